"""The configuration: one TOML file, checked as a whole.

Reads the configuration file and the key of the address hash; of other files that it names, it only checks that they
exist. Every problem of a file is reported at once, each with its key, its value and the cure; a file with a problem
gives no configuration; a secret is never part of a problem. ``config.example.toml`` is the manual of the keys.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
import shlex
import tomllib
from datetime import date, time, timedelta
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ValidationError

from .disk import read_private
from .errors import ConfigError, Problem
from .paths import file_problem, read_file
from .s3.errors import BucketPlace
from .settings import (
    AlertSettings,
    Config,
    ExportSettings,
    FeedsSettings,
    LogOutputSettings,
    LogSettings,
    PublisherSettings,
    RetentionSettings,
    Section,
    SftpSettings,
    StoreSettings,
    TopSettings,
    UserSettings,
    WebSettings,
    duration_text,
    parse_duration,
    path_in,
)
from .triton import COUNTED_DAYS, ColumnSpec, LogFormat, layout_problems

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = [
    "AlertSettings",
    "Config",
    "ExportSettings",
    "FeedsSettings",
    "LogOutputSettings",
    "LogSettings",
    "RetentionSettings",
    "SftpSettings",
    "StoreSettings",
    "UserSettings",
    "WebSettings",
    "load_config",
    "parse_config",
]


_SECRET_KEYS = {"password_hash", "webhook_url", "heartbeat_url"}
_EMPTY = '""'  # how TOML writes an empty key
_SECTIONS: dict[str, type[Section]] = {
    "publisher": PublisherSettings,
    "export": ExportSettings,
    "log": LogSettings,
    "feeds": FeedsSettings,
    "retention": RetentionSettings,
    "sftp": SftpSettings,
    "alerts": AlertSettings,
    "web": WebSettings,
    "store": StoreSettings,
    "log_output": LogOutputSettings,
}
# What a wrong required key is replaced with, so that the checks across keys still run on the others.
_STAND_INS: dict[str, dict[str, Any]] = {
    "export": {"url": "s3://any-bucket"},
    "sftp": {"users": [{"name": "any"}]},
}
_OPTIONAL = frozenset({"web", "store"})  # tables without which something is not done
_TOP_KEYS = ("data_dir", "keys_dir")
_RENAMED = {"metrics": "web"}  # tables of earlier releases


def load_config(path: Path) -> Config:
    """Read and check a configuration file.

    Raises:
        ConfigError: the file is missing, is not TOML, or has problems; all of them are in ``problems``.
    """
    return config_of(read_config(path), path)


def read_config(path: Path) -> bytes:
    """Return the content of a configuration file.

    Raises:
        ConfigError: it is missing, or cannot be read.
    """
    try:
        return read_file(path)
    except FileNotFoundError:
        cure = "to make one: pickup-point init; or, to try it out: pickup-point demo"
        raise ConfigError(str(path), [Problem(str(path), "there is no such file", cure)]) from None
    except OSError as error:
        cure = f"ls -l {(quoted := shlex.quote(str(path)))}"
        if isinstance(error, PermissionError):
            own = f"chown root:pickup-point {quoted}; chmod 640 {quoted}"
            cure = f"run this as root, or let the service's group read it: {own}"
        raise ConfigError(str(path), [Problem(str(path), f"cannot be read: {error.strerror}", cure)]) from error


def config_of(text: bytes, path: Path) -> Config:
    """Check the content of the configuration file ``path``, be it written or not.

    Raises:
        ConfigError: it is not TOML, or has problems; all of them are in ``problems``.
    """
    try:
        raw = tomllib.loads(text.decode())
    # A number of thousands of digits is a ValueError, too; tables nested too deeply are a RecursionError.
    except (ValueError, RecursionError) as error:
        cure = "correct the line; the form of every key: pickup-point manual config"
        raise ConfigError(str(path), [Problem(str(path), f"is not TOML: {error}", cure)]) from error
    return parse_config(raw, path)


# What a running service reads again at a reload; everything else was built into its parts at the start.
_RELOADED = {
    "sftp": {"host", "port"},
    "alerts": set[str](),
    "publisher": set[str](),
    "web": {"listen"},
}  # the tables, and the keys of each that stay


def after_reload(old: Config, new: Config) -> Config:
    """Return the settings that a service which started with ``old`` has in force once it has read ``new``."""
    update: dict[str, Any] = {}
    for table, staying in _RELOADED.items():
        ours, theirs = getattr(old, table), getattr(new, table)
        if ours is not None and theirs is not None:
            update[table] = theirs.model_copy(update={key: getattr(ours, key) for key in staying})
    in_force = old.model_copy(update=update)
    # The password may be missing because the new listen would be this machine's own, and the old one stays.
    web = in_force.web
    open_to_all = web is not None and web.beyond_loopback and web.password_hash is None
    return in_force.model_copy(update={"web": old.web}) if open_to_all else in_force


def changed_keys(old: Config, new: Config) -> list[str]:
    """Return the keys whose values differ, as the file spells them."""
    keys = [key for key in _TOP_KEYS if getattr(old, key) != getattr(new, key)]
    for name, model in _SECTIONS.items():
        ours, theirs = getattr(old, name), getattr(new, name)
        if ours is None or theirs is None:
            keys += [] if ours is theirs else [name]
        else:
            keys += [f"{name}.{key}" for key in model.model_fields if getattr(ours, key) != getattr(theirs, key)]
    return keys


def parse_config(raw: dict[str, Any], path: Path) -> Config:
    """Check the file's content as tomllib returns it; relative paths are relative to ``path``'s folder.

    Raises:
        ConfigError: the content has problems; all of them are in ``problems``.
    """
    context = {"folder": path.absolute().parent}
    problems: list[Problem] = []
    for key, value in raw.items():
        if key in _RENAMED and key not in _SECTIONS:
            new = _RENAMED[key]
            cure = f"write [{new}] in its place; its keys have kept their names"
            cure = f"remove it, since [{new}] is there, too" if new in raw else cure
            problems.append(Problem(key, f"is now called [{new}]", cure))
        elif key not in _SECTIONS and key not in _TOP_KEYS:
            problems.append(_unknown_key("", key, [*_SECTIONS, *_TOP_KEYS]))
        elif key in _SECTIONS and not isinstance(value, dict):
            problems.append(Problem(key, f"is {_shown(key, value)}, not a table", f"write it as [{key}]"))
    top_raw = {key: raw.get(key, key.removesuffix("_dir")) for key in _TOP_KEYS}
    top = _section("", TopSettings, top_raw, context, problems)
    sections: dict[str, Any] = {}
    for name, model in _SECTIONS.items():
        value = raw.get(name, None if name in _OPTIONAL else {})
        sections[name] = _section(name, model, value, context, problems) if isinstance(value, dict) else None
    wrong = [problem.key for problem in problems]
    problems += [problem for problem in _cross_checks(sections) if not _rests_on(wrong, problem)]
    for name, check in (("log", _column_checks), ("sftp", _user_checks), ("web", _web_checks)):
        if isinstance(raw.get(name), dict):
            problems += check(raw[name], context["folder"])
    if problems:
        raise ConfigError(str(path), problems)
    assert top is not None  # noqa: S101  # without problems every section was read
    return Config.model_construct(path=path.absolute(), **dict(top), **sections)


def _section(
    name: str, model: type[Section], raw: dict[str, Any], context: dict[str, Any], problems: list[Problem]
) -> Section | None:
    """Return the section and add its problems; if it has any, return what is left without the wrong keys."""
    try:
        return model.model_validate(raw, context=context)
    except ValidationError as error:
        wrong = set()
        for detail in error.errors():
            problem = _problem(name, model, detail)
            if problem not in problems:
                problems.append(problem)
            wrong.add(str(detail["loc"][0]))
    # A second pass over the right keys, so that the checks across keys report their problems in the same run.
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
        table = f"[[{key.partition('[')[0]}]]" if key.endswith("]") else f"[{key}]"
        return Problem(full, "is missing", f"add {last} to {table}; its form: pickup-point manual config")
    # Our own messages end with "; cure", and what is before it may quote the value. Pydantic's have no cure.
    what, _, cure = detail["msg"].removeprefix("Value error, ").rpartition("; ")
    what, cure = (what, cure) if what else (cure, "")
    if detail["type"] == "list_type" and isinstance(detail["input"], dict):
        what, cure = "a list is needed", f"write [[{full}]], in two pairs of brackets"
    elif detail["type"] == "model_type":
        return Problem(full, "is not a table", f"what {full.split('[')[0]} may be: pickup-point manual config")
    if not cure:
        cure = f"what {full.split('[')[0]} may be: pickup-point manual config"
    return Problem(full, f"is {_shown(str(last), detail['input'])}: {what[:1].lower()}{what[1:]}", cure)


def _inner_model(model: Any, part: Any) -> Any:
    """Return the model of a field, or of the elements of a list; None if it is not a model."""
    if isinstance(part, int) or model is None:
        return model
    annotation = model.model_fields[part].annotation
    candidates = [annotation, *get_args(annotation)]
    candidates += [inner for candidate in candidates for inner in get_args(candidate)]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, Section)), None)


def _unknown_key(section: str, key: str, known: list[str]) -> Problem:
    if section and key in _TOP_KEYS:
        return Problem(f"{section}.{key}", "is not a known key", "move it above the first [table] of the file")
    close = difflib.get_close_matches(key, known, 1, 0.6)
    cure = f"did you mean {close[0]}?" if close else f"remove it; the known keys are: {', '.join(known)}"
    return Problem(f"{section}.{key or _EMPTY}".lstrip("."), "is not a known key", cure)


def _shown(key: str, value: object) -> str:
    """Return a value as a problem may show it: never a secret, nor anything that may contain one."""
    if key in _SECRET_KEYS:
        return "as given (not shown)"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, date | time):
        return value.isoformat()
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else str(value)
    text = re.sub(r"//[^/@]*@|\$argon2.*", "(not shown)", text)
    return text if len(text) <= 80 else text[:77] + "..."


# The range of each duration, and the reason for it. They are checked here and not in the settings, so that tests and
# benchmarks can build settings with waits of a fraction of a second.
_RANGES = (
    (
        "export",
        "settle",
        "0s",
        "24h",
        "a day could never become final within the three days in which Triton counts",
    ),
    ("export", "poll_every", "1s", "6h", "this is how often the bucket is listed"),
    ("feeds", "refresh_every", "5m", "7d", "this is how often each RSS feed is checked for changes"),
    ("sftp", "login_timeout", "1s", "1h", "a connection that does not log in is closed after this time"),
    ("sftp", "idle_timeout", "1s", "24h", "an idle session is closed after this time"),
    ("sftp", "keepalive", "1s", "1h", "this is how often a silent client is asked whether it is still there"),
    ("sftp", "ban_time", "1s", "30d", "a ban ends by itself after this time"),
    ("alerts", "pull_every", "1m", "48h", "Triton counts nothing that arrives more than three days after the session"),
    ("alerts", "warn_before", "0s", "72h", "no deadline is more than three days away"),
    ("alerts", "critical_before", "0s", "72h", "no deadline is more than three days away"),
)


def _cross_checks(sections: dict[str, Any]) -> list[Problem]:
    """Return the problems that one key alone cannot show, and those of the durations' ranges."""
    problems: list[Problem] = []
    export: ExportSettings | None = sections["export"]
    log: LogSettings | None = sections["log"]
    retention: RetentionSettings | None = sections["retention"]
    alerts: AlertSettings | None = sections["alerts"]
    feeds: FeedsSettings | None = sections["feeds"]
    for section, key, low, high, why in _RANGES:
        value = getattr(sections[section], key, None)
        if value is not None and not parse_duration(low) <= value <= parse_duration(high):
            default = duration_text(type(sections[section]).model_fields[key].default)
            cure = f'set it between "{low}" and "{high}"; the default is "{default}"'
            problems.append(Problem(f"{section}.{key}", f'is "{duration_text(value)}": {why}', cure))
    if export and retention and export.look_back_days >= retention.keep_days:
        problems.append(
            Problem(
                "export.look_back_days",
                f"is {export.look_back_days}, not less than retention.keep_days ({retention.keep_days}): a pruned day "
                "would be published again if the ledger were lost",
                f"set look_back_days to at most {retention.keep_days - 1}"
                if retention.keep_days > 1
                else "set retention.keep_days to more than look_back_days; the default is 60",
            )
        )
    if export:
        problems += _export_checks(export)
        problems += _store_checks(sections["store"], export)
    if export and log:
        problems += _kind_checks(export, log, feeds)
    for key, path, cure in (
        ("log.episodes", log.episodes if log else None, "put the file there, or remove the key"),
        (
            "feeds.file",
            feeds.file if feeds else None,
            "put the file there, with one RSS feed per line, or remove the key",
        ),
    ):
        if path is not None and (lack := file_problem(path)) is not None:
            problems.append(Problem(key, f"is {path}: {lack[0]}", lack[1] or cure))
    web: WebSettings | None = sections["web"]
    if web and web.beyond_loopback and web.password_hash is None:
        wrong = f"is missing, and web.listen ({web.listen}) can be reached from other machines"
        cure = "listen on 127.0.0.1, or write what this prints: pickup-point hash-password"
        problems.append(Problem("web.password_hash", wrong, cure))
    if alerts and alerts.critical_before > alerts.warn_before:
        longer = f'more than alerts.warn_before ("{duration_text(alerts.warn_before)}")'
        wrong = f'is "{duration_text(alerts.critical_before)}", {longer}'
        problems.append(Problem("alerts.critical_before", wrong, "make it the shorter of the two"))
    return problems


def _rests_on(keys: Sequence[str], problem: Problem) -> bool:
    """Return whether a problem names one of these wrong keys: it would have been found by comparing a default."""
    named = {problem.key, *re.findall(r"[a-z_]+\.[a-z_]+", f"{problem.wrong} {problem.cure}")}
    return any(key in named for key in keys)


def _export_checks(export: ExportSettings) -> list[Problem]:
    problems = []
    earliest = timedelta(days=1, hours=export.final_at.hour, minutes=export.final_at.minute)
    if not earliest <= export.give_up_waiting <= COUNTED_DAYS:
        problems.append(
            Problem(
                "export.give_up_waiting",
                f'is "{duration_text(export.give_up_waiting)}" after the start of a day: that is before the day can be '
                f"final by export.final_at ({duration_text(earliest)}) or after the three days in which Triton counts",
                f'set it between "{int(earliest.total_seconds() // 3600) + 1}h" and "72h"; the default is "47h"',
            )
        )
    # A day that still counts is looked at in any case; on the first day after that, only what look_back_days covers.
    covered = timedelta(days=export.look_back_days + 1)
    longest = covered if covered < COUNTED_DAYS else COUNTED_DAYS - timedelta(hours=1)
    if covered <= COUNTED_DAYS and longest < export.give_up_waiting <= COUNTED_DAYS:
        problems.append(
            Problem(
                "export.look_back_days",
                f"is {export.look_back_days}: that covers a day for {duration_text(covered)} after its start, and "
                f'export.give_up_waiting ("{duration_text(export.give_up_waiting)}") ends later: a day that never '
                "becomes final would not be published",
                f"set look_back_days to at least {export.give_up_waiting // timedelta(days=1)}, or give_up_waiting to "
                f'at most "{duration_text(longest)}"',
            )
        )
    # Beside a folder they have no effect: whoever wrote them meant a bucket.
    for key in ("region", "endpoint_url") if export.bucket is None else ():
        if getattr(export, key) is not None:
            cure = "remove it, or write s3://bucket in export.url"
            problems.append(Problem(f"export.{key}", "is given, but export.url is a folder", cure))
    return problems


def _store_checks(store: StoreSettings | None, export: ExportSettings) -> list[Problem]:
    """Return whether exports lie where the partner may read: under the prefix that they are given."""
    if store is None or not isinstance(export.place, BucketPlace):
        return []
    ours, theirs = store.place, export.place
    if (ours.bucket, ours.endpoint) != (theirs.bucket, theirs.endpoint) or not theirs.prefix.startswith(ours.prefix):
        return []
    wrong = f'is "{store.url}": the exports of export.url lie under it, and the partner could read them'
    return [Problem("store.url", wrong, "give the logs a prefix of their own")]


def _kind_checks(export: ExportSettings, log: LogSettings, feeds: FeedsSettings | None) -> list[Problem]:
    """Return the problems of keys that do not go together with the kind of export."""
    kind, problems = export.export_kind, []
    if export.agreed and not kind.unknown:
        wrong = f'is true, but export.kind is "{kind.name}", about which nothing has to be agreed'
        problems.append(Problem("export.agreed", wrong, 'remove it, or set export.kind = "delivery-v2"'))
    if log.object_size == "rss" and not kind.bytes_optional:
        wrong = f'is "rss", but export.kind is "{kind.name}", whose rows have a size of their own'
        problems.append(Problem("log.object_size", wrong, 'remove it, or set export.kind = "delivery-v2"'))
    elif log.object_size == "rss" and feeds is not None and not feeds.configured:
        wrong = 'is "rss", but there is no RSS feed to take a size from'
        problems.append(Problem("log.object_size", wrong, "set feeds.urls or feeds.file, or remove it"))
    # A key that has a problem of its own has its default here.
    for field in sorted(log.log_rules.fields.difference(kind.fields, {"", None})):
        key = "log.url" if f"{{{field}}}" in log.url else "log.columns"
        wrong = f'asks for the field "{field}", which {kind.label} (export.kind = "{kind.name}") do not have'
        problems.append(Problem(key, wrong, f"the fields are: {', '.join(kind.fields)}"))
    return problems


def _column_checks(log: dict[str, Any], _folder: Path) -> list[Problem]:
    """Return the problems of the columns, read from the raw file: pydantic would stop at the first broken one."""
    columns = log.get("columns")
    if not isinstance(columns, list) or not columns:
        return []
    tables = [index for index, column in enumerate(columns) if isinstance(column, dict)]
    specs = []
    for index in tables:
        texts = {
            key: text
            for key in ("name", "value", "field", "constant")
            if isinstance(text := columns[index].get(key), str)
        }
        specs.append(ColumnSpec(**{"name": f"column-{index}"} | texts))
    log_format = LogFormat.W3C if log.get("format") == "w3c" else LogFormat.TSV
    return [
        Problem("log.columns" if index is None else f"log.columns[{tables[index]}]", wrong, cure)
        for index, wrong, cure in layout_problems(specs, log_format)
    ]


def _user_checks(sftp: dict[str, Any], folder: Path) -> list[Problem]:
    """Return the problems of the users, read from the raw file: pydantic would stop at the first broken one."""
    problems = []
    users = sftp.get("users")
    seen: set[str] = set()
    for index, user in enumerate(users if isinstance(users, list) else []):
        if not isinstance(user, dict):
            continue
        key, name, keys = f"sftp.users[{index}]", user.get("name"), user.get("authorized_keys")
        if isinstance(name, str):
            if name in seen:
                wrong = f"is {_shown('name', name)} a second time"
                problems.append(Problem(f"{key}.name", wrong, "give each user its own name"))
            seen.add(name)
        if user.get("password_hash") is None and keys is None:
            who = f"user {_shown('name', name)}" if isinstance(name, str) else "this user"
            cure = "add authorized_keys, or password_hash with what this prints: pickup-point hash-password"
            problems.append(Problem(key, f"{who} has neither a password nor a key", cure))
        problems += _hash_checks(key, user)
        if isinstance(keys, str):
            with contextlib.suppress(ValueError):  # reported already, as a wrong value
                path = path_in(folder, keys)
                if (lack := file_problem(path)) is not None:
                    cure = lack[1] or "put the partner's public key there"
                    problems.append(Problem(f"{key}.authorized_keys", f"is {path}: {lack[0]}", cure))
    return problems


def _web_checks(web: dict[str, Any], _folder: Path) -> list[Problem]:
    """Return the problem of the page's password."""
    return _hash_checks("web", web)


def _hash_checks(key: str, table: dict[str, Any]) -> list[Problem]:
    """Return what is wrong with the form of a table's password hash."""
    if not isinstance(table.get("password_hash"), str) or _ARGON2ID.fullmatch(table["password_hash"]):
        return []
    wrong = "is not an Argon2id hash (not shown)"
    return [Problem(f"{key}.password_hash", wrong, "write what this prints: pickup-point hash-password")]


_ARGON2ID = re.compile(
    r"\$argon2id\$v=[0-9]+\$m=[0-9]{1,7},t=[0-9]{1,3},p=[0-9]{1,3}\$[A-Za-z0-9+/]{11,86}\$[A-Za-z0-9+/]{22,86}"
)


IP_HASH_KEY = "ip_hash.key"
IP_HASH_KEY_BYTES = 32


def load_ip_hash_key(keys_dir: Path) -> bytes:
    """Return the 32 bytes of the site's secret for hashing addresses.

    Raises:
        ConfigError: the file is missing, readable by others, or not 64 hex digits.
    """
    problems: list[Problem] = []
    data = read_private(IP_HASH_KEY, keys_dir, problems)
    if data is not None:
        try:
            key = bytes.fromhex(data.decode("ascii").strip())
        except ValueError:
            key = b""
        if len(key) == IP_HASH_KEY_BYTES:
            return key
        cure = "restore it from the backup; a new key would give every listener a new hash"
        problems.append(Problem(IP_HASH_KEY, "is not 64 hex digits", cure))
    raise ConfigError("the keys", problems)
