"""The configuration: one TOML file, checked whole.

Reads the configuration file and nothing else (for key files and the episode catalogue it only looks whether they are
there). Every problem of a file is reported at once, each with its key, its value and the cure; a file with a problem
gives no configuration. ``config.example.toml`` is the manual of the keys.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import tomllib
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import unquote, urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
)

from .errors import ConfigError, Problem
from .triton import ColumnSpec, LogFormat, UrlTemplate, layout_problems, prefix_problem

SEARCHED = (Path("config.toml"), Path("/etc/pickup-point/config.toml"))
_DURATION = re.compile(r"(\d+)(s|m|h|d)")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_SECRET_KEYS = {"password_hash", "webhook_url", "heartbeat_url"}


def _duration(value: object) -> object:
    if isinstance(value, timedelta):
        return value
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('not a duration; write a number and a unit: "90s", "65m", "60h"')
    try:
        return timedelta(**{_UNITS[match[2]]: int(match[1])})
    except OverflowError:
        raise ValueError("a duration too long to count; write days or hours") from None


def _clock(value: object) -> object:
    if isinstance(value, time):
        return value
    match = re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('not a time of day; write hours and minutes in UTC: "04:30"')
    return time(int(match[1]), int(match[2]))


def _day(value: object) -> object:
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    try:
        return datetime.strptime(str(value), "%Y-%m-%d").date()  # noqa: DTZ007  # a calendar day has no zone
    except ValueError:
        raise ValueError('not a day; write "2026-12-01"') from None


def _path(value: object, info: ValidationInfo) -> object:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("not a path; write the path of a file or folder in quotes")
    folder = info.context["folder"] if info.context else Path()
    return Path(folder, Path(value).expanduser())


def _network(value: object) -> object:
    if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return value
    try:
        return ipaddress.ip_network(str(value))
    except ValueError as error:
        raise ValueError(f'{error}; write a network like "203.0.113.0/24" or an address') from None


def _web_address(value: object) -> object:
    if isinstance(value, str):
        parts = urlsplit(value)
        if parts.scheme in ("http", "https") and parts.hostname:
            return value
    raise ValueError('not a web address; write "https://host/path"')


def _export_url(value: object, info: ValidationInfo) -> object:
    """``s3://bucket/prefix`` as it is; a folder as ``file:///absolute/path``."""
    if not isinstance(value, str):
        raise ValueError('not a text; write "s3://bucket/prefix" or a folder in quotes')  # noqa: TRY004  # pydantic's way
    scheme = value.split("://", 1)[0] if "://" in value else ""
    if scheme == "s3":
        parts = urlsplit(value)
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", parts.netloc) or parts.query or parts.fragment:
            raise ValueError('no bucket name in it; write "s3://bucket" or "s3://bucket/prefix"')
        return value
    if scheme == "file":
        path = unquote(urlsplit(value).path)
        if urlsplit(value).netloc or not path.startswith("/"):
            raise ValueError('a file URL has three slashes: "file:///srv/exports"')
    elif scheme:
        raise ValueError('neither a bucket nor a folder; write "s3://bucket/prefix", "file:///folder" or a path')
    elif not value:
        raise ValueError('empty; write "s3://bucket/prefix" or a folder')
    else:
        path = value
    folder = info.context["folder"] if info.context else Path()
    return Path(folder, Path(path).expanduser()).absolute().as_uri()


Duration = Annotated[timedelta, BeforeValidator(_duration), PlainSerializer(str)]
ClockTime = Annotated[time, BeforeValidator(_clock)]
Day = Annotated[date, BeforeValidator(_day)]
FilePath = Annotated[Path, BeforeValidator(_path)]
Network = Annotated[ipaddress.IPv4Network | ipaddress.IPv6Network, BeforeValidator(_network)]
ExportUrl = Annotated[str, BeforeValidator(_export_url)]
WebAddress = Annotated[str, BeforeValidator(_web_address)]


class Section(BaseModel):
    """A table of the file: unknown keys are errors, types are not guessed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)


class ExportSettings(Section):
    """``[export]``: where Megaphone delivers, and when a day counts as final."""

    url: ExportUrl
    region: str | None = None
    endpoint_url: WebAddress | None = None
    final_at: ClockTime = time(4, 30)
    settle: Duration = timedelta(minutes=65)
    poll_every: Duration = timedelta(minutes=10)
    look_back_days: int = Field(3, ge=1, le=365)
    first_day: Day | None = None
    give_up_waiting: Duration = timedelta(hours=47)

    @property
    def bucket(self) -> str | None:
        """The bucket's name, or None for a folder."""
        parts = urlsplit(self.url)
        return parts.netloc if parts.scheme == "s3" else None

    @property
    def prefix(self) -> str:
        """What every key in the bucket begins with: empty, or ending with a slash."""
        prefix = urlsplit(self.url).path.strip("/")
        return f"{prefix}/" if prefix else ""

    @property
    def folder(self) -> Path | None:
        """The folder, or None for a bucket."""
        return None if self.bucket is not None else Path(unquote(urlsplit(self.url).path))


class ColumnSettings(Section):
    """One of ``log.columns``: a name, and exactly one of ``value``, ``field`` and ``constant``."""

    name: str
    value: str | None = None
    field: str | None = None
    constant: str | None = None


class LogSettings(Section):
    """``[log]``: what Triton gets."""

    prefix: str = "MEGA"
    format: Literal["tsv", "w3c"] = "tsv"
    header: Literal["plain", "comment", "none"] = "plain"
    rows: Literal["not-blacklisted", "all", "reporting"] = "not-blacklisted"
    ip: Literal["full", "truncated"] = "full"
    tokens: Literal["hash", "hold"] | None = None
    partial_status: Literal[206, 200] = 206
    bytes: Literal["clamped", "as-sent"] = "clamped"
    text: Literal["safe", "percent"] = "safe"
    url: str = "/{podcast_id}/{episode_id}.mp3"
    episodes: FilePath | None = None
    max_rows_per_file: int = Field(0, ge=0)
    max_rejected: float = Field(0.01, ge=0, le=1)
    workers: int = Field(0, ge=0, le=64)
    columns: list[ColumnSettings] | None = Field(None, min_length=1)

    @property
    def log_format(self) -> LogFormat:
        """The format as the word of `triton`."""
        return LogFormat(self.format)

    @property
    def column_specs(self) -> tuple[ColumnSpec, ...] | None:
        """The columns as the words of `triton`, or None for the default layout."""
        if self.columns is None:
            return None
        return tuple(ColumnSpec(c.name, value=c.value, field=c.field, constant=c.constant) for c in self.columns)


class RetentionSettings(Section):
    """``[retention]``."""

    keep_days: int = Field(60, ge=1, le=3650)


class UserSettings(Section):
    """One of ``[[sftp.users]]``."""

    name: str
    password_hash: str | None = Field(None, repr=False)
    authorized_keys: FilePath | None = None
    allow_from: list[Network] = []
    required: bool = True


class SftpSettings(Section):
    """``[sftp]``: the listener, its limits and its users."""

    host: str = "0.0.0.0"  # noqa: S104  # the service's purpose is to be reached by the partner
    port: int = Field(2222, ge=0, le=65535)
    address: str | None = None
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
    users: list[UserSettings] = Field(min_length=1)


class AlertSettings(Section):
    """``[alerts]``: the partner's rhythm, and when a deadline is worth a word."""

    pull_every: Duration = timedelta(hours=24)
    warn_before: Duration = timedelta(hours=12)
    critical_before: Duration = timedelta(hours=6)
    webhook_url: WebAddress | None = Field(None, repr=False)
    heartbeat_url: WebAddress | None = Field(None, repr=False)


class MetricsSettings(Section):
    """``[metrics]``: Prometheus."""

    listen: str

    @property
    def host_and_port(self) -> tuple[str, int]:
        """The address to listen on."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


class LogOutputSettings(Section):
    """``[log_output]``: the service's own log."""

    format: Literal["text", "json"] = "text"


class Config(Section):
    """The whole file; ``path`` is where it was read."""

    path: Path
    data_dir: FilePath
    keys_dir: FilePath
    export: ExportSettings
    log: LogSettings
    retention: RetentionSettings
    sftp: SftpSettings
    alerts: AlertSettings
    metrics: MetricsSettings | None
    log_output: LogOutputSettings


class _TopLevel(Section):
    data_dir: FilePath
    keys_dir: FilePath


_SECTIONS: dict[str, type[Section]] = {
    "export": ExportSettings,
    "log": LogSettings,
    "retention": RetentionSettings,
    "sftp": SftpSettings,
    "alerts": AlertSettings,
    "metrics": MetricsSettings,
    "log_output": LogOutputSettings,
}
# With a required key wrong, the checks across keys still run on the others.
_STAND_INS: dict[str, dict[str, Any]] = {"export": {"url": "s3://any-bucket"}}
_TOP_KEYS = ("data_dir", "keys_dir")


def find_config(given: Path | None) -> Path | None:
    """The configuration file to read: the one given, else the first of the usual places that exists."""
    return given if given is not None else next((path for path in SEARCHED if path.is_file()), None)


def load_config(path: Path) -> Config:
    """Read and check a configuration file.

    Raises:
        ConfigError: the file is missing, no TOML, or has problems; all of them are in ``problems``.
    """
    try:
        raw = tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError:
        cure = "pickup-point demo, or copy config.example.toml and change it"
        raise ConfigError(str(path), [Problem(str(path), "there is no such file", cure)]) from None
    except OSError as error:
        cure = f"ls -l {path}"
        raise ConfigError(str(path), [Problem(str(path), f"cannot be read: {error.strerror}", cure)]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        cure = "correct the line; config.example.toml shows the form of every key"
        raise ConfigError(str(path), [Problem(str(path), f"is not TOML: {error}", cure)]) from error
    return parse_config(raw, path)


def parse_config(raw: dict[str, Any], path: Path) -> Config:
    """Check the file's content as tomllib gives it; relative paths are relative to ``path``'s folder.

    Raises:
        ConfigError: with every problem.
    """
    context = {"folder": path.absolute().parent}
    problems: list[Problem] = []
    for key, value in raw.items():
        if key not in _SECTIONS and key not in _TOP_KEYS:
            problems.append(_unknown_key("", key, [*_SECTIONS, *_TOP_KEYS]))
        elif key in _SECTIONS and not isinstance(value, dict):
            problems.append(Problem(key, f"is {_shown(key, value)}, not a table", f"write it as [{key}]"))
    top_raw = {key: raw.get(key, key.removesuffix("_dir")) for key in _TOP_KEYS}
    top = _section("", _TopLevel, top_raw, context, problems)
    sections: dict[str, Any] = {}
    for name, model in _SECTIONS.items():
        value = raw.get(name, None if name == "metrics" else {})
        sections[name] = _section(name, model, value, context, problems) if isinstance(value, dict) else None
    problems += _cross_checks(sections)
    if isinstance(raw.get("sftp"), dict):
        problems += _user_checks(raw["sftp"].get("users"), context["folder"])
    if problems:
        raise ConfigError(str(path), problems)
    assert top is not None  # noqa: S101  # without problems every section was read
    return Config.model_construct(path=path.absolute(), **dict(top), **sections)


def _section(
    name: str, model: type[Section], raw: dict[str, Any], context: dict[str, Any], problems: list[Problem]
) -> Section | None:
    """The section, its problems added; with problems, what is left of it when the wrong keys are dropped."""
    try:
        return model.model_validate(raw, context=context)
    except ValidationError as error:
        wrong = set()
        for detail in error.errors():
            problem = _problem(name, model, detail)
            if problem not in problems:
                problems.append(problem)
            wrong.add(str(detail["loc"][0]))
    rest = {key: value for key, value in raw.items() if key not in wrong}
    try:
        return model.model_validate(_STAND_INS.get(name, {}) | rest, context=context)
    except ValidationError:
        return None


def _problem(section: str, model: type[Section], detail: Any) -> Problem:
    location = detail["loc"]
    key = section
    current: Any = model
    for part in location[:-1]:
        key += f"[{part}]" if isinstance(part, int) else f".{part}"
        current = _inner_model(current, part)
    last = location[-1]
    full = f"{key}[{last}]" if isinstance(last, int) else f"{key}.{last}".lstrip(".")
    if detail["type"] == "extra_forbidden":
        return _unknown_key(key, str(last), list(current.model_fields) if current is not None else [])
    if detail["type"] == "missing":
        return Problem(full, "is missing", f"add {last} to [{key}]; config.example.toml shows its form")
    what, _, cure = detail["msg"].removeprefix("Value error, ").partition("; ")
    if not cure:
        cure = f"see {full.split('[')[0]} in config.example.toml"
    return Problem(full, f"is {_shown(str(last), detail['input'])}: {what[:1].lower()}{what[1:]}", cure)


def _inner_model(model: Any, part: Any) -> Any:
    """The model behind a field of a model, or behind an element of a list of models."""
    if isinstance(part, int) or model is None:
        return model
    annotation = model.model_fields[part].annotation
    candidates = [annotation, *get_args(annotation)]
    candidates += [inner for candidate in candidates for inner in get_args(candidate)]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, Section)), None)


def _unknown_key(section: str, key: str, known: list[str]) -> Problem:
    close = difflib.get_close_matches(key, known, 1, 0.6)
    cure = f"did you mean {close[0]}?" if close else f"remove it; known are: {', '.join(known)}"
    return Problem(f"{section}.{key}".lstrip("."), "is not a known key", cure)


def _shown(key: str, value: object) -> str:
    if key in _SECRET_KEYS:
        return "as given (not shown)"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _cross_checks(sections: dict[str, Any]) -> list[Problem]:
    """What one key alone cannot show."""
    problems: list[Problem] = []
    export: ExportSettings | None = sections["export"]
    log: LogSettings | None = sections["log"]
    retention: RetentionSettings | None = sections["retention"]
    alerts: AlertSettings | None = sections["alerts"]
    metrics: MetricsSettings | None = sections["metrics"]
    if export and retention and export.look_back_days >= retention.keep_days:
        problems.append(
            Problem(
                "export.look_back_days",
                f"is {export.look_back_days}, not less than retention.keep_days ({retention.keep_days}): a pruned day "
                "would be published again if the ledger were lost",
                f"set look_back_days to at most {retention.keep_days - 1}",
            )
        )
    if export:
        problems += _export_checks(export)
    if log:
        problems += _log_checks(log)
    if alerts:
        if alerts.critical_before > alerts.warn_before:
            wrong = f"is {alerts.critical_before}, more than warn_before ({alerts.warn_before})"
            problems.append(Problem("alerts.critical_before", wrong, "make it the shorter of the two"))
        if not timedelta(minutes=1) <= alerts.pull_every <= timedelta(days=2):
            wrong = f"is {alerts.pull_every}: Triton counts nothing that comes three days after the session"
            problems.append(Problem("alerts.pull_every", wrong, 'set it between "1m" and "48h"'))
    if metrics and not re.fullmatch(r"(\[[0-9A-Fa-f:]+\]|[^:\s]+):\d{1,5}", metrics.listen):
        wrong = f'is "{metrics.listen}", not an address with a port'
        problems.append(Problem("metrics.listen", wrong, 'write "127.0.0.1:9108"'))
    return problems


def _export_checks(export: ExportSettings) -> list[Problem]:
    problems = []
    earliest = timedelta(days=1, hours=export.final_at.hour, minutes=export.final_at.minute)
    if not earliest <= export.give_up_waiting <= timedelta(days=3):
        problems.append(
            Problem(
                "export.give_up_waiting",
                f"is {export.give_up_waiting} after the start of a day: that is before the day can be final "
                f"({earliest}) or after the three days in which Triton counts",
                f'set it between "{int(earliest.total_seconds() // 3600) + 1}h" and "72h"; the default is "47h"',
            )
        )
    if not timedelta(seconds=1) <= export.poll_every <= timedelta(hours=6):
        wrong = f"is {export.poll_every}: the bucket is looked at once in this time"
        problems.append(Problem("export.poll_every", wrong, 'set it between "1s" and "6h"; the default is "10m"'))
    if export.bucket is None and (export.region or export.endpoint_url):
        key = "export.endpoint_url" if export.endpoint_url else "export.region"
        problems.append(Problem(key, "is given, but export.url is a folder", f"remove it, or write s3://… in {key}"))
    return problems


def _log_checks(log: LogSettings) -> list[Problem]:
    problems = []
    if wrong := prefix_problem(log.prefix):
        cure = 'use letters, digits, - and _, beginning with a letter: "MEGA"'
        problems.append(Problem("log.prefix", f'is "{log.prefix}": {wrong}', cure))
    try:
        UrlTemplate(log.url)
    except ValueError as error:
        cure = 'name fields of the export in braces: "/{podcast_id}/{episode_id}.mp3"'
        problems.append(Problem("log.url", f'is "{log.url}": {error}', cure))
    for index, wrong, cure in layout_problems(log.column_specs, log.log_format):
        problems.append(Problem("log.columns" if index is None else f"log.columns[{index}]", wrong, cure))
    if log.episodes is not None and not log.episodes.is_file():
        cure = "put the file there, or remove the key"
        problems.append(Problem("log.episodes", f"is {log.episodes}: there is no such file", cure))
    return problems


def _user_checks(users: Any, folder: Path) -> list[Problem]:
    """Read from the file as it is, so that every user is looked at whatever is wrong with another."""
    problems = []
    seen: set[str] = set()
    for index, user in enumerate(users if isinstance(users, list) else []):
        if not isinstance(user, dict):
            continue
        key, name, keys = f"sftp.users[{index}]", user.get("name"), user.get("authorized_keys")
        if isinstance(name, str):
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._@-]{0,63}", name):
                wrong = f'is "{name}": a user name has letters, digits and . _ @ -, at most 64'
                problems.append(Problem(f"{key}.name", wrong, 'write a plain name: "triton"'))
            if name in seen:
                problems.append(Problem(f"{key}.name", f'is "{name}" a second time', "give each user its own name"))
            seen.add(name)
        if user.get("password_hash") is None and keys is None:
            cure = "add password_hash (pickup-point hash-password) or authorized_keys"
            problems.append(Problem(key, f'user "{name}" has neither a password nor a key', cure))
        if isinstance(user.get("password_hash"), str) and not _ARGON2ID.fullmatch(user["password_hash"]):
            wrong = "is not an Argon2id hash (not shown)"
            problems.append(Problem(f"{key}.password_hash", wrong, "type: pickup-point hash-password"))
        if isinstance(keys, str) and not Path(folder, keys).expanduser().is_file():
            wrong = f"is {Path(folder, keys)}: there is no such file"
            problems.append(Problem(f"{key}.authorized_keys", wrong, "put the partner's public key there"))
    return problems


_ARGON2ID = re.compile(r"\$argon2id\$v=\d+\$m=\d{1,7},t=\d{1,3},p=\d{1,3}\$[A-Za-z0-9+/]{11,86}\$[A-Za-z0-9+/]{22,86}")
