"""What an S3 server's refusal means: one sentence, a command to type, and what a retry would need.

Pure: the answers are passed in as plain values. The promise: every cause has its own sentence, and none ever contains a
credential, text from the server, or a signed address.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from enum import Enum
from urllib.parse import urlsplit

from ..errors import ExportChanged, SourceError, SourceRefused, SourceUnreachable


class Remedy(Enum):
    """What another try needs in order to succeed."""

    NONE = "none"
    WAIT = "wait"
    NEW_CREDENTIALS = "new credentials"


class FailedAttempt(Exception):  # not yet an error: the next try may succeed
    """One failed try: the error to raise if it was the last, and what might help.

    ``sdk_tried`` says that the SDK has already repeated the request several times.
    """

    def __init__(self, error: SourceError, remedy: Remedy, *, sdk_tried: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.remedy = remedy
        self.sdk_tried = sdk_tried


@dataclass(frozen=True, slots=True)
class Answer:
    """An unsuccessful answer. ``code`` is S3's error code or the status; ``region`` is where the bucket is."""

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


_CREDENTIALS = "pickup-point manual bucket"

# What an operation of the SDK does to an object, and the right that it takes.
_RIGHTS = {
    "GetObject": ("read", "s3:GetObject"),
    "HeadObject": ("read", "s3:GetObject"),
    "PutObject": ("write", "s3:PutObject"),
    "DeleteObject": ("remove", "s3:DeleteObject"),
}
OPERATIONS = frozenset({"ListObjectsV2", *_RIGHTS})


@dataclass(frozen=True, slots=True)
class BucketPlace:
    """The bucket (or its access point's ARN) as the configuration names it, and commands that show what is wrong.

    ``table`` is the table of the configuration that names it; ``profile`` is one of the AWS credential chain, None for
    the default.
    """

    bucket: str
    prefix: str
    region: str | None
    endpoint_url: str | None
    profile: str | None = None
    table: str = "export"

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def is_access_point(self) -> bool:
        """Whether ``bucket`` is an access point's ARN; S3 addresses these by host, never by path."""
        return self.bucket.startswith("arn:")

    @property
    def arn(self) -> str:
        """The resource of a policy for listing."""
        return self.bucket if self.is_access_point else f"arn:aws:s3:::{self.bucket}"

    @property
    def objects_arn(self) -> str:
        """The beginning of the resource of a policy for objects; a slash and their keys follow."""
        return f"{self.arn}/object" if self.is_access_point else self.arn

    @property
    def endpoint(self) -> str:
        """The host and port, without anything else that an address may contain, such as a password."""
        if self.endpoint_url is None:
            if self.is_access_point:
                _, _, _, region, account, name = self.bucket.split(":", 5)
                return f"{name[len('accesspoint/') :]}-{account}.s3-accesspoint.{region}.amazonaws.com"
            return f"s3.{self.region}.amazonaws.com" if self.region else "s3.amazonaws.com"
        parts = urlsplit(self.endpoint_url)
        return parts.netloc.rpartition("@")[2]

    @property
    def scheme(self) -> str:
        """The scheme of the endpoint, ``http`` or ``https``."""
        return urlsplit(self.endpoint_url).scheme if self.endpoint_url else "https"

    @property
    def _options(self) -> str:
        options = f" --profile {shlex.quote(self.profile)}" if self.profile else ""
        options += f" --region {self.region}" if self.region else ""
        return f"{options} --endpoint-url {self.scheme}://{self.endpoint}" if self.endpoint_url else options

    def meaning(self, answer: Answer, key: str | None = None, operation: str = "GetObject") -> FailedAttempt:
        """Return what an answer to a listing means, or (with ``key``) to an operation on that object."""
        # The order matters: 400 and 403 carry many codes, so the specific ones come before the bare status.
        if answer.code == "RequestTimeTooSkewed":
            return _refused(
                f"{self} refused the request because the clock of this machine is wrong",
                "timedatectl set-ntp true; timedatectl status",
            )
        if answer.code in _WRONG_REGION or (300 <= answer.status < 400 and answer.region):
            return self._wrong_region(answer)
        if 300 <= answer.status < 400:
            return self._redirect(answer)
        if answer.code in _WRONG_KEY or answer.status == 401:
            return _refused(
                f"{self} refused the credentials: the access key or secret key is wrong ({answer.code})",
                f"correct the key where it comes from: {_CREDENTIALS}; then try: pickup-point doctor",
                Remedy.NEW_CREDENTIALS,
            )
        if answer.code in _EXPIRED:
            return _refused(
                f"the credentials for {self} have expired ({answer.code})",
                f"renew them where they come from; whether a restart is needed: {_CREDENTIALS}",
                Remedy.NEW_CREDENTIALS,
            )
        if answer.code == "InvalidObjectState":
            return _refused(
                f"{key} in {self} has been moved to an archive storage class",
                f"aws s3api restore-object --bucket {self.bucket} --key {shlex.quote(key or '')} "
                f"--restore-request Days=7{self._options}",
            )
        if answer.status == 403:
            return self._not_allowed(answer, key, operation)
        return self._other(answer, key)

    def _other(self, answer: Answer, key: str | None) -> FailedAttempt:
        if answer.code == "NoSuchBucket" or (answer.status == 404 and key is None):
            return _refused(
                f"there is no bucket {self.bucket} at {self.endpoint}",
                f"correct {self.table}.url or {self.table}.endpoint_url; the buckets that are there: "
                f"aws s3 ls{self._options}",
            )
        if answer.status in (404, 412, 410):
            gone = "was rewritten after it was listed" if answer.status == 412 else "is no longer there"
            return FailedAttempt(
                ExportChanged(
                    f"{key} in {self} {gone}",
                    hint=f"nothing to do, the day is read again from the start: {self.ls_command}",
                ),
                Remedy.NONE,
            )
        if answer.status == 416 and key is not None:
            return self.altered(key, "the rest of the object is missing")
        if answer.status in (408, 409, 429) or answer.status >= 500 or answer.code in _BUSY:
            # The SDK reports a page that is not XML as a 500, whatever its status was.
            code = answer.code if answer.code != str(answer.status) else "not an S3 error message"
            return FailedAttempt(
                SourceUnreachable(
                    f"{self} cannot serve requests at the moment ({answer.status}, {code})",
                    hint=f"wait, it is retried automatically; to see whether it is up: {self.ls_command}",
                ),
                Remedy.WAIT,
                sdk_tried=answer.status not in _SDK_DOES_NOT_RETRY,
            )
        return _refused(
            f"{self} refused the request ({answer.status} {answer.code})",
            f"compare with the AWS tool: {self.ls_command}",
        )

    def _not_allowed(self, answer: Answer, key: str | None, operation: str) -> FailedAttempt:
        if key is None:
            return _refused(
                f"the credentials may not list {self} (s3:ListBucket is missing, {answer.code})",
                f"put s3:ListBucket on {self.arn} into the policy, then try: {self.ls_command}",
                Remedy.NEW_CREDENTIALS,
            )
        verb, right = _RIGHTS[operation]
        kms = {"read": "kms:Decrypt", "write": "kms:GenerateDataKey"}.get(verb)
        encrypted = f" (and {kms} if the bucket is encrypted with a KMS key)" if kms else ""
        folder = self.prefix if self.table == "export" else f"{key.rpartition('/')[0]}/"
        grant = f"put {right} on {self.objects_arn}/{folder}* into the policy{encrypted}"
        if verb != "read":
            return _refused(
                f"the credentials may not {verb} {key} in {self} ({right} is missing, {answer.code})",
                f"{grant}, then try: pickup-point doctor",
                Remedy.NEW_CREDENTIALS,
            )
        # Without s3:ListBucket, S3 also answers 403 for an object that does not exist.
        return _refused(
            f"the credentials may not read {key} in {self} (s3:GetObject is missing, {answer.code})",
            f"{grant}, then try: aws s3 cp {shlex.quote(f's3://{self.bucket}/{key}')} /dev/null{self._options}",
            Remedy.NEW_CREDENTIALS,
        )

    def _wrong_region(self, answer: Answer) -> FailedAttempt:
        is_in = f"is in region {answer.region}" if answer.region else "is in another region"
        ours = f"the configuration says {self.region}" if self.region else "the configuration names no region"
        cure = (
            f'write in [{self.table}]: region = "{answer.region}"'
            if answer.region
            else f"write in {self.table}.region what this prints: aws s3api get-bucket-location --bucket {self.bucket}"
        )
        return _refused(f"the bucket {self.bucket} {is_in}, {ours}", cure)

    def _redirect(self, answer: Answer) -> FailedAttempt:
        to = f" to {answer.location}" if answer.location else ""
        what = "the day's export would come from" if self.table == "export" else "the logs would go to"
        return _refused(
            f"{self.endpoint} redirects{to} ({answer.status}), which is never followed: {what} a host that is not "
            "configured",
            f"if that host is right, write it in {self.table}.endpoint_url; otherwise ask whoever runs the proxy in "
            f"between: curl -sI {self.scheme}://{self.endpoint}/",
        )

    @property
    def ls_command(self) -> str:
        """The command that shows what is there."""
        return f"aws s3 ls {shlex.quote(f'{self}/')}{self._options}"

    def no_credentials(self, why: str) -> FailedAttempt:
        """Return the failure of a chain that has no credentials or is broken; ``why`` must contain no secret."""
        return _refused(
            f"there are no usable credentials for {self} ({why})",
            f"where a key belongs, and what else finds one: {_CREDENTIALS}",
        )

    def unreachable(self, why: str) -> FailedAttempt:
        """Return the failure of a try that got no answer, or one that broke off."""
        return FailedAttempt(
            SourceUnreachable(
                f"{self} is unreachable: {self.endpoint} {why}",
                hint=f"check {self.table}.endpoint_url, DNS, the firewall and HTTPS_PROXY, until this answers: "
                f"curl -sI {self.scheme}://{self.endpoint}/",
            ),
            Remedy.WAIT,
            sdk_tried=True,
        )

    def not_trusted(self) -> FailedAttempt:
        """Return the failure of an endpoint whose TLS certificate is not trusted."""
        host = self.endpoint if ":" in self.endpoint else f"{self.endpoint}:443"
        return _refused(
            f"the TLS certificate of {self.endpoint} is not trusted",
            f"openssl s_client -connect {host}; for a private authority set AWS_CA_BUNDLE=/path/ca.pem for the service",
        )

    def no_s3(self, why: str) -> FailedAttempt:
        """Return the failure of an endpoint that answers, but not like S3."""
        return _refused(
            f"{self.endpoint} does not answer like S3 ({why})",
            f"correct {self.table}.endpoint_url, or bypass the proxy that alters the answers; "
            f"compare: {self.ls_command}",
        )

    def altered(self, key: str, why: str) -> FailedAttempt:
        """Return the failure of a reply that cannot be trusted: worth another try, then an operator must look."""
        return FailedAttempt(
            SourceRefused(
                f"{self.endpoint} sent an answer for {key} that cannot be trusted ({why})",
                hint="something in between may be altering the answers; look at the headers: "
                f"aws s3api head-object --bucket {self.bucket} --key {shlex.quote(key)}{self._options}",
            ),
            Remedy.WAIT,
        )


def safe_word(text: object) -> str:
    """Return a server's error code if it looks like one; anything else might quote a key, and is ``no code``."""
    return text if isinstance(text, str) and re.fullmatch(r"[A-Za-z0-9.:_-]{1,64}", text) else "no code"


def _refused(sentence: str, hint: str, remedy: Remedy = Remedy.NONE) -> FailedAttempt:
    return FailedAttempt(SourceRefused(sentence, hint=hint), remedy)
