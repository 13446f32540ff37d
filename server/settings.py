"""The settings: every key of the configuration, its type, its range and its default.

Each class is a table of the file; `config` reads the file and checks what concerns more than one key. Relative paths
are relative to the folder in pydantic's context. Touches nothing but home folders, for ``~``. What each key is for is
said in ``config.example.toml``.
"""

from __future__ import annotations

import ipaddress
import re
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    model_validator,
)

from .megaphone.exports import KINDS, METRICS, ExportKind, FinalityRule, calendar_day
from .s3.errors import BucketPlace
from .triton import DEFAULT_URL, ColumnSpec, Layout, LogFormat, LogRules, UrlTemplate, prefix_problem

# A bucket's name (its alias for an access point looks the same), or the ARN of an access point; then the prefix, in
# which ? and # stand for themselves, as in any key.
_S3_URL = re.compile(
    r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9]|arn:aws[a-z-]*:s3:[a-z0-9-]+:[0-9]{12}:accesspoint[:/][a-z0-9-]{3,50})"
    r"(?:/(.*))?"
)
STATE_FOLDER = ".pickup-point/"  # in a bucket of published logs
_DURATION = re.compile(r"([0-9]{1,12})(s|m|h|d)")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse_duration(value: object) -> timedelta:
    """Return ``90s``, ``65m``, ``60h`` or ``2d`` as a duration.

    Raises:
        ValueError: ``value`` is not a duration.
    """
    if isinstance(value, timedelta):
        return value
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('not a duration; write a number and a unit: "90s", "65m", "60h"')
    try:
        return timedelta(**{_UNITS[match[2]]: int(match[1])})
    except OverflowError:
        raise ValueError("too long a duration; write a smaller number of days or hours") from None


def duration_text(value: timedelta) -> str:
    """Return a duration as the file spells it, in its largest whole unit up to hours: ``65m``."""
    seconds = int(value.total_seconds())
    for unit, size in (("h", 3600), ("m", 60)):
        if seconds and seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _clock(value: object) -> object:
    if isinstance(value, time):
        return value
    match = re.fullmatch(r"([01][0-9]|2[0-3]):([0-5][0-9])", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('not a time of day; write hours and minutes in UTC: "04:30"')
    return time(int(match[1]), int(match[2]))


def _day(value: object) -> object:
    if isinstance(value, datetime) or (day := calendar_day(str(value))) is None:
        raise ValueError('not a day; write "2026-12-01"')
    return day


def path_in(folder: Path, text: str) -> Path:
    """Return the path that ``text`` means in a configuration file in ``folder``.

    Raises:
        ValueError: ``text`` is blank, contains a NUL, or begins with the ``~`` of a user that does not exist.
    """
    if not text.strip() or "\0" in text:
        raise ValueError("not a path; write the path of a file or folder in quotes")
    try:
        return Path(folder, Path(text).expanduser())
    except RuntimeError:  # pathlib found no home folder for the ~
        raise ValueError("a path in a home folder that does not exist; write the full path") from None


def _path(value: object, info: ValidationInfo) -> object:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str):
        raise ValueError("not a path; write the path of a file or folder in quotes")  # noqa: TRY004  # pydantic's way
    return path_in(_folder(info), value)


def _folder(info: ValidationInfo) -> Path:
    return Path(info.context["folder"]) if info.context else Path()


def _network(value: object) -> object:
    if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return value
    try:
        return ipaddress.ip_network(str(value))
    except ValueError as error:
        raise ValueError(f'{error}; write a network like "203.0.113.0/24" or an address') from None


def _balancer(value: Network) -> Network:
    if value.prefixlen == 0:
        raise ValueError(
            'every address, which would let anybody pretend to be anybody; write the balancers\' own: "10.0.0.5"'
        )
    return value


def _web_address(value: object) -> object:
    if isinstance(value, str) and not re.search(r"[\s\x00-\x20\x7f]", value):
        # urllib's message about a bad URL quotes parts of it, which may be a secret.
        try:
            parts = urlsplit(value)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if good:
            return value
    raise ValueError('not a web address; write "https://host/path"')


def _export_url(value: object, info: ValidationInfo) -> object:
    """Return ``s3://bucket/prefix`` as is, and a folder as ``file:///absolute/path``."""
    if not isinstance(value, str):
        raise ValueError('not a text; write "s3://bucket/prefix" or a folder, in quotes')  # noqa: TRY004  # pydantic's way
    if re.search(r"[\x00-\x1f\x7f]", unquote(value)):
        raise ValueError('a text with control characters; write "s3://bucket/prefix" or a folder without them')
    if value.startswith("s3://"):
        if not _S3_URL.fullmatch(value):
            raise ValueError('a URL without a valid bucket name; write "s3://bucket" or "s3://bucket/prefix"')
        return value
    if value.startswith("file://"):
        path = unquote(value.removeprefix("file://"))
        if not path.startswith("/"):
            raise ValueError('a file URL without its three slashes; write "file:///srv/exports"')
    elif re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", value):
        raise ValueError('neither a bucket nor a folder; write "s3://bucket/prefix", "file:///folder" or a path')
    elif not value.strip():
        raise ValueError('empty; write "s3://bucket/prefix" or a folder')
    else:
        path = value
    return path_in(_folder(info), path).absolute().as_uri()


def _bucket_of(url: str) -> str | None:
    """Return the bucket's name, or the ARN of its access point; None for a folder."""
    match = _S3_URL.fullmatch(url)
    return match[1] if match is not None else None


def _prefix_of(url: str) -> str:
    """Return the prefix of every key in the bucket: empty, or ending with a slash."""
    match = _S3_URL.fullmatch(url)
    prefix = (match[2] or "").strip("/") if match is not None else ""
    return f"{prefix}/" if prefix else ""


def _store_url(value: str) -> str:
    form = 'write "s3://bucket/prefix"'
    if re.search(r"[\x00-\x1f\x7f]", unquote(value)) or _bucket_of(value) is None:
        raise ValueError(f"not a bucket with a prefix; {form}")
    if not (prefix := _prefix_of(value)):
        raise ValueError(f"a bucket without a prefix, which must hold nothing but logs; {form}")
    if prefix.startswith(STATE_FOLDER):
        raise ValueError(f"a prefix in {STATE_FOLDER}, where the service keeps its own objects; {form}")
    return value


def _log_prefix(value: str) -> str:
    if wrong := prefix_problem(value):
        raise ValueError(f'{wrong}; use letters, digits, - and _, beginning with a letter: "MEGA"')
    return value


def _url_template(value: str) -> str:
    try:
        UrlTemplate(value)
    except ValueError as error:
        raise ValueError(f'{error}; write fields of the export in braces: "{DEFAULT_URL}"') from None
    return value


def _user_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._@-]{0,63}", value):
        raise ValueError('a user name is up to 64 letters, digits and . _ @ -; write a plain name: "triton"')
    return value


def _public_address(value: str) -> str:
    match = re.fullmatch(r"(?:\[[0-9A-Fa-f:.]+\]|[^\s:/@\[\]]+)(?::([0-9]{1,5}))?", value)
    if match is None or not 0 < int(match[1] or 22) <= 65535:
        raise ValueError('not a host with a port; write "sftp.example.com:2222", or "[2001:db8::1]:2222"')
    return value


def _one_line(value: str) -> str:
    if not value.isprintable():
        raise ValueError('not a text on one line; write "Jane Doe, jane@example.com"')
    return value


def _listen_address(value: str) -> str:
    match = re.fullmatch(r"(?:\[[0-9A-Fa-f:]+\]|[^:\s\[\]]+):([0-9]{1,5})", value)
    if match is None:
        raise ValueError('not an address with a port; write "127.0.0.1:9108"')
    if int(match[1]) > 65535:
        raise ValueError('an address with a port over 65535; write "127.0.0.1:9108"')
    return value


def _host_name(value: str) -> str:
    if not re.fullmatch(r"(?!-)[A-Za-z0-9-]{1,63}(?:\.(?!-)[A-Za-z0-9-]{1,63})*", value):
        raise ValueError('not the name of a host; write it without a port: "status.example.com"')
    return value


Duration = Annotated[timedelta, BeforeValidator(parse_duration), PlainSerializer(str)]
ClockTime = Annotated[time, BeforeValidator(_clock)]
Day = Annotated[date, BeforeValidator(_day)]
FilePath = Annotated[Path, BeforeValidator(_path)]
Network = Annotated[ipaddress.IPv4Network | ipaddress.IPv6Network, BeforeValidator(_network)]
BalancerNetwork = Annotated[Network, AfterValidator(_balancer)]
ExportUrl = Annotated[str, BeforeValidator(_export_url)]
WebAddress = Annotated[str, BeforeValidator(_web_address)]
LogPrefix = Annotated[str, AfterValidator(_log_prefix)]
UrlTemplateText = Annotated[str, AfterValidator(_url_template)]
UserName = Annotated[str, AfterValidator(_user_name)]
PublicAddress = Annotated[str, AfterValidator(_public_address)]
StoreUrl = Annotated[str, AfterValidator(_store_url)]
ListenAddress = Annotated[str, AfterValidator(_listen_address)]
OneLine = Annotated[str, AfterValidator(_one_line)]
HostName = Annotated[str, AfterValidator(_host_name)]


class Section(BaseModel):
    """A table of the file: unknown keys are errors, and types are never converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)


class TopSettings(Section):
    """The keys above the first table."""

    data_dir: FilePath
    keys_dir: FilePath


class PublisherSettings(Section):
    """``[publisher]``: who sends the logs, and whom the partner can ask; for the handover only."""

    name: OneLine = ""
    contacts: list[OneLine] = []


class ExportSettings(Section):
    """``[export]``: where Megaphone delivers, and when a day counts as final."""

    url: ExportUrl
    region: str | None = Field(None, min_length=1)
    endpoint_url: WebAddress | None = None
    kind: Literal["metrics", "delivery-v2"] = "metrics"
    agreed: bool = False
    final_at: ClockTime = METRICS.final_at
    settle: Duration = timedelta(minutes=65)
    poll_every: Duration = timedelta(minutes=10)
    look_back_days: int = Field(3, ge=1, le=365)
    first_day: Day | None = None
    give_up_waiting: Duration = timedelta(hours=47)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_its_kind(cls, given: Any) -> Any:
        kind = KINDS.get(str(given.get("kind"))) if isinstance(given, dict) else None
        return given if kind is None else {"final_at": kind.final_at} | given

    @property
    def export_kind(self) -> ExportKind:
        """Which of Megaphone's exports are read."""
        return KINDS[self.kind]

    @property
    def finality(self) -> FinalityRule:
        """The rule by which a day is final."""
        return FinalityRule(self.final_at, self.settle, bool(self.export_kind.marker_pattern))

    @property
    def bucket(self) -> str | None:
        """The bucket's name, or the ARN of its access point; None for a folder."""
        return _bucket_of(self.url)

    @property
    def prefix(self) -> str:
        """The prefix of every key in the bucket: empty, or ending with a slash."""
        return _prefix_of(self.url)

    @property
    def place(self) -> Path | BucketPlace:
        """The folder or the bucket that ``url`` names."""
        if self.bucket is None:
            return Path(unquote(urlsplit(self.url).path))
        return BucketPlace(self.bucket, self.prefix, self.region, self.endpoint_url)


class StoreSettings(Section):
    """``[store]``: the bucket that also holds the published logs."""

    url: StoreUrl
    region: str | None = Field(None, min_length=1)
    endpoint_url: WebAddress | None = None
    profile: str | None = Field(None, min_length=1)
    required: bool = False
    shared: bool = False

    @property
    def place(self) -> BucketPlace:
        """The bucket, and the prefix under which there is nothing but logs."""
        bucket = _bucket_of(self.url)
        assert bucket is not None  # noqa: S101  # by `_store_url`
        return BucketPlace(bucket, _prefix_of(self.url), self.region, self.endpoint_url, self.profile, "store")

    @property
    def state_prefix(self) -> str:
        """The prefix of the service's own objects in that bucket, outside what the partner may see."""
        return f"{STATE_FOLDER}{self.place.prefix}"


class ColumnSettings(Section):
    """One of ``log.columns``: a name, and exactly one of ``value``, ``field`` and ``constant``."""

    name: str
    value: str | None = None
    field: str | None = None
    constant: str | None = None


class LogSettings(Section):
    """``[log]``: the names, the format and the content of the log files."""

    prefix: LogPrefix = "MEGA"
    format: Literal["tsv", "w3c"] = "tsv"
    header: Literal["plain", "comment", "none"] = "plain"
    rows: Literal["not-blacklisted", "all", "reporting"] = "not-blacklisted"
    ip: Literal["full", "truncated"] = "full"
    tokens: Literal["hash", "hold"] | None = None
    partial_status: Literal[206, 200] = 206
    bytes: Literal["clamped", "as-sent"] = "clamped"
    object_size: Literal["export", "rss"] = "export"
    text: Literal["safe", "percent"] = "safe"
    url: UrlTemplateText = DEFAULT_URL
    episodes: FilePath | None = None
    max_rows_per_file: int = Field(0, ge=0)
    max_rejected: float = Field(0.01, ge=0, le=1)
    workers: int = Field(0, ge=0, le=64)
    columns: list[ColumnSettings] | None = Field(None, min_length=1)

    @property
    def log_format(self) -> LogFormat:
        """The format as an enum of `triton`."""
        return LogFormat(self.format)

    @property
    def column_specs(self) -> tuple[ColumnSpec, ...] | None:
        """The columns as `triton` defines them, or None for the default layout."""
        if self.columns is None:
            return None
        return tuple(ColumnSpec(c.name, value=c.value, field=c.field, constant=c.constant) for c in self.columns)

    @property
    def log_rules(self) -> LogRules:
        """The rules by which rows become lines."""
        return LogRules(
            layout=Layout(self.log_format, self.header, self.text, self.column_specs),
            rows=self.rows,
            ip=self.ip,
            partial_status=self.partial_status,
            bytes=self.bytes,
            url=self.url,
            object_size=self.object_size,
        )


class FeedsSettings(Section):
    """``[feeds]``: the publisher's RSS feeds, for the episode catalogue."""

    urls: list[WebAddress] = []
    file: FilePath | None = None
    refresh_every: Duration = timedelta(hours=6)
    allow_local: bool = False

    @property
    def configured(self) -> bool:
        """Whether there is an RSS feed to read."""
        return bool(self.urls) or self.file is not None


class RetentionSettings(Section):
    """``[retention]``: how long files are kept, and how long the records of single handles."""

    keep_days: int = Field(60, ge=1, le=3650)
    keep_pickups_days: int = Field(14, ge=1, le=3650)


class UserSettings(Section):
    """One of ``[[sftp.users]]``: a name, and a password, keys or both."""

    name: UserName
    password_hash: str | None = Field(None, repr=False)
    authorized_keys: FilePath | None = None
    allow_from: list[Network] = []
    required: bool = True


class SftpSettings(Section):
    """``[sftp]``: the listener, its limits and its users."""

    host: str = Field("0.0.0.0", min_length=1)  # noqa: S104  # the service's purpose is to be reached by the partner
    port: int = Field(2222, ge=0, le=65535)
    address: PublicAddress | None = None
    max_connections: int = Field(50, ge=1, le=10000)
    max_connections_per_address: int = Field(10, ge=1, le=10000)
    max_sessions_per_user: int = Field(10, ge=1, le=10000)
    login_timeout: Duration = timedelta(seconds=30)
    idle_timeout: Duration = timedelta(minutes=15)
    max_auth_tries: int = Field(6, ge=1, le=100)
    max_handles_per_session: int = Field(64, ge=1, le=10000)
    keepalive: Duration = timedelta(seconds=30)
    ban_after: int = Field(20, ge=1, le=100000)
    ban_time: Duration = timedelta(minutes=30)
    drain_seconds: int = Field(30, ge=0, le=3600)
    legacy_algorithms: bool = False
    chacha20: bool = False
    proxy_protocol_from: list[BalancerNetwork] = []
    users: list[UserSettings] = Field(min_length=1)


class AlertSettings(Section):
    """``[alerts]``: how often the partner pulls, and how long before a deadline to warn."""

    pull_every: Duration = timedelta(hours=24)
    warn_before: Duration = timedelta(hours=12)
    critical_before: Duration = timedelta(hours=6)
    webhook_url: WebAddress | None = Field(None, repr=False)
    heartbeat_url: WebAddress | None = Field(None, repr=False)


class WebSettings(Section):
    """``[web]``: the page, and what programs ask for over HTTP."""

    listen: ListenAddress
    password_hash: str | None = Field(None, repr=False)
    hosts: list[HostName] = []

    @property
    def host_and_port(self) -> tuple[str, int]:
        """The host and port to listen on."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def beyond_loopback(self) -> bool:
        """Whether other machines can connect."""
        host, _ = self.host_and_port
        try:
            return not ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host.lower() != "localhost"


class LogOutputSettings(Section):
    """``[log_output]``: the service's own log (the journal)."""

    format: Literal["text", "json"] = "text"


class Config(Section):
    """The whole file; ``path`` is where it was read from."""

    path: Path
    data_dir: FilePath
    keys_dir: FilePath
    publisher: PublisherSettings
    export: ExportSettings
    log: LogSettings
    feeds: FeedsSettings
    retention: RetentionSettings
    sftp: SftpSettings
    alerts: AlertSettings
    web: WebSettings | None
    store: StoreSettings | None
    log_output: LogOutputSettings

    @property
    def log_rules(self) -> LogRules:
        """The rules by which rows of the configured kind of export become lines."""
        return self.log.log_rules._replace(kind=self.export.kind)
