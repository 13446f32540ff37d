"""What it means when an S3 server says no: one sentence, something to type, and what may help by itself.

No outside world: the answers are handed in as plain values. The promise: every sentence tells one cause from the
others, and no credential, no text of the server's and no signed address is ever in it.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from enum import Enum
from urllib.parse import urlsplit

from ..errors import ExportChanged, SourceError, SourceRefused, SourceUnreachable


class Remedy(Enum):
    """What a new try needs to have a chance."""

    NONE = "none"
    WAIT = "wait"
    NEW_CREDENTIALS = "new credentials"


class FailedAttempt(Exception):  # not yet an error: the next try may succeed
    """One try that failed: the error that it becomes when it was the last, and what may help.

    ``sdk_tried`` says that the SDK has repeated the request several times already.
    """

    def __init__(self, error: SourceError, remedy: Remedy, *, sdk_tried: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.remedy = remedy
        self.sdk_tried = sdk_tried


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's answer that is no success. ``code`` is S3's word or the status; ``region`` where the bucket is."""

    status: int
    code: str
    region: str | None = None
    location: str | None = None


# S3's error codes: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
_WRONG_KEY = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "NotSignedUp", "InvalidSecurity"}
_EXPIRED = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "ExpiredTokenException"}
_WRONG_REGION = {"AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException"}
_BUSY = {"SlowDown", "RequestTimeout", "OperationAborted", "ServiceUnavailable", "InternalError", "BadDigest"}
_BUSY |= {"Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests"}
_SDK_DOES_NOT_RETRY = {409, 429}


@dataclass(frozen=True, slots=True)
class BucketPlace:
    """The bucket as the configuration names it, and the commands that show what is wrong with it."""

    bucket: str
    prefix: str
    region: str | None
    endpoint_url: str | None

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def endpoint(self) -> str:
        """Host and port, without what else an address may hold (a password)."""
        if self.endpoint_url is None:
            return f"s3.{self.region}.amazonaws.com" if self.region else "s3.amazonaws.com"
        parts = urlsplit(self.endpoint_url)
        return parts.netloc.rpartition("@")[2]

    @property
    def scheme(self) -> str:
        """http or https."""
        return urlsplit(self.endpoint_url).scheme if self.endpoint_url else "https"

    @property
    def _options(self) -> str:
        options = f" --region {self.region}" if self.region else ""
        return f"{options} --endpoint-url {self.scheme}://{self.endpoint}" if self.endpoint_url else options

    def meaning(self, answer: Answer, key: str | None = None) -> FailedAttempt:
        """What an answer to a listing means, or (with ``key``) to a read of that object."""
        if answer.code == "RequestTimeTooSkewed":
            return _refused(
                f"{self} refused the request because the clock of this machine is wrong",
                "timedatectl set-ntp true, then look at: timedatectl status",
            )
        if answer.code in _WRONG_REGION or (300 <= answer.status < 400 and answer.region):
            return self._wrong_region(answer)
        if 300 <= answer.status < 400:
            return self._redirect(answer)
        if answer.code in _WRONG_KEY or answer.status == 401:
            return _refused(
                f"{self} refused the credentials: access key or secret key are wrong ({answer.code})",
                "aws configure list shows where the keys come from; try them: aws sts get-caller-identity",
                Remedy.NEW_CREDENTIALS,
            )
        if answer.code in _EXPIRED:
            return _refused(
                f"the credentials for {self} have expired ({answer.code})",
                "renew them where they come from (aws configure list shows it); a new session is tried each time",
                Remedy.NEW_CREDENTIALS,
            )
        if answer.code == "InvalidObjectState":
            return _refused(
                f"{key} in {self} has been moved to an archive storage class",
                f"aws s3api restore-object --bucket {self.bucket} --key {key} --restore-request Days=7{self._options}",
            )
        if answer.status == 403:
            return self._not_allowed(answer, key)
        return self._other(answer, key)

    def _other(self, answer: Answer, key: str | None) -> FailedAttempt:
        if answer.code == "NoSuchBucket" or (answer.status == 404 and key is None):
            return _refused(
                f"there is no bucket {self.bucket} at {self.endpoint}",
                f"correct export.url or export.endpoint_url; aws s3 ls{self._options} lists the buckets there",
            )
        if answer.status in (404, 412, 410):
            gone = "was rewritten after it was listed" if answer.status == 412 else "is no longer there"
            return FailedAttempt(
                ExportChanged(f"{key} in {self} {gone}", hint=f"nothing to do, the day begins again: {self._ls}"),
                Remedy.NONE,
            )
        if answer.status == 416 and key is not None:
            return self.altered(key, "the rest of the object is not there")
        if answer.status in (408, 409, 429) or answer.status >= 500 or answer.code in _BUSY:
            # A page that is no XML is a 500 for the SDK, whatever its status was.
            said = answer.code if answer.code != str(answer.status) else "in words that are not S3's"
            return FailedAttempt(
                SourceUnreachable(
                    f"{self} answers that it cannot serve now ({answer.status}, {said})",
                    hint=f"wait; it is tried again by itself. Is it up? {self._ls}",
                ),
                Remedy.WAIT,
                sdk_tried=answer.status not in _SDK_DOES_NOT_RETRY,
            )
        return _refused(
            f"{self} refused the request ({answer.status} {answer.code})", f"compare with the AWS tool: {self._ls}"
        )

    def _not_allowed(self, answer: Answer, key: str | None) -> FailedAttempt:
        if key is None:
            return _refused(
                f"the credentials may not list {self} (s3:ListBucket is missing, {answer.code})",
                f"put s3:ListBucket on arn:aws:s3:::{self.bucket} into the policy, then try: {self._ls}",
                Remedy.NEW_CREDENTIALS,
            )
        # Without s3:ListBucket, S3 says 403 of an object that is not there, too.
        return _refused(
            f"the credentials may not read {key} in {self} (s3:GetObject is missing, {answer.code})",
            f"put s3:GetObject on arn:aws:s3:::{self.bucket}/{self.prefix}* into the policy (and kms:Decrypt if the "
            f"bucket is encrypted with a KMS key), then try: aws s3 cp s3://{self.bucket}/{key} /dev/null"
            f"{self._options}",
            Remedy.NEW_CREDENTIALS,
        )

    def _wrong_region(self, answer: Answer) -> FailedAttempt:
        is_in = f"is in region {answer.region}" if answer.region else "is in another region"
        ours = f"the configuration says {self.region}" if self.region else "the configuration names no region"
        cure = (
            f'write in [export]: region = "{answer.region}"'
            if answer.region
            else f"ask for it: aws s3api get-bucket-location --bucket {self.bucket}, and write it in export.region"
        )
        return _refused(f"the bucket {self.bucket} {is_in}, {ours}", cure)

    def _redirect(self, answer: Answer) -> FailedAttempt:
        to = f" to {answer.location}" if answer.location else ""
        return _refused(
            f"{self.endpoint} redirects{to} ({answer.status}), which is never followed: the day's object would come "
            "from a place that nobody configured",
            "if that is the right place, write it in export.endpoint_url; else ask who runs the proxy in between: "
            f"curl -sI {self.scheme}://{self.endpoint}/",
        )

    @property
    def _ls(self) -> str:
        return f"aws s3 ls {shlex.quote(f'{self}/')}{self._options}"

    def no_credentials(self, why: str) -> FailedAttempt:
        """The chain has none, or a part of it is broken; ``why`` must hold nothing secret."""
        return _refused(
            f"there are no usable credentials for {self} ({why})",
            "aws configure, or set AWS_SHARED_CREDENTIALS_FILE for the service; aws configure list shows what is found",
        )

    def unreachable(self, why: str) -> FailedAttempt:
        """No answer at all, or one that broke off."""
        return FailedAttempt(
            SourceUnreachable(
                f"{self} is unreachable: {self.endpoint} {why}",
                hint=f"curl -sI {self.scheme}://{self.endpoint}/ must answer; else look at export.endpoint_url, DNS, "
                "firewall and HTTPS_PROXY",
            ),
            Remedy.WAIT,
            sdk_tried=True,
        )

    def not_trusted(self) -> FailedAttempt:
        """The TLS certificate of the endpoint cannot be checked."""
        host = self.endpoint if ":" in self.endpoint else f"{self.endpoint}:443"
        return _refused(
            f"the TLS certificate of {self.endpoint} is not trusted",
            f"openssl s_client -connect {host}; for a private authority set AWS_CA_BUNDLE=/path/ca.pem for the service",
        )

    def no_s3(self, why: str) -> FailedAttempt:
        """It answers, but not as S3 does."""
        return _refused(
            f"{self.endpoint} does not answer as S3 does ({why})",
            f"correct export.endpoint_url, or take what alters the answers out of the way; compare: {self._ls}",
        )

    def altered(self, key: str, why: str) -> FailedAttempt:
        """A reply to a read that cannot be trusted: worth a new try, then somebody must look."""
        return FailedAttempt(
            SourceRefused(
                f"{self.endpoint} gave an answer for {key} that cannot be checked ({why})",
                hint="something between may alter the answers; look at the headers: "
                f"aws s3api head-object --bucket {self.bucket} --key {key}{self._options}",
            ),
            Remedy.WAIT,
        )


def safe_word(text: object) -> str:
    """A server's word, if it is one: never text that might quote a key."""
    return text if isinstance(text, str) and re.fullmatch(r"[A-Za-z0-9.:_-]{1,64}", text) else "no code"


def _refused(sentence: str, hint: str, remedy: Remedy = Remedy.NONE) -> FailedAttempt:
    return FailedAttempt(SourceRefused(sentence, hint=hint), remedy)
