"""The configuration: its defaults, its manual, and every mistake that an operator can make in it.

Reads files in a temporary folder; nothing else.
"""

from __future__ import annotations

import os
import re
import tomllib
from datetime import date, time, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any, get_args

import pytest

from server.config import after_reload, load_config, read_config
from server.errors import ConfigError
from server.settings import (
    AlertSettings,
    ColumnSettings,
    ExportSettings,
    FeedsSettings,
    LogOutputSettings,
    LogSettings,
    PublisherSettings,
    RetentionSettings,
    SftpSettings,
    StoreSettings,
    UserSettings,
    WebSettings,
    duration_text,
    parse_duration,
)
from server.triton import ColumnSpec, LogFormat

from .support.config_text import HASH, MINIMAL, USER, parse

EXAMPLE = Path(__file__).parent.parent / "config.example.toml"

TABLES: dict[str, type[Any]] = {
    "publisher": PublisherSettings,
    "export": ExportSettings,
    "log": LogSettings,
    "feeds": FeedsSettings,
    "retention": RetentionSettings,
    "sftp": SftpSettings,
    "sftp.users": UserSettings,
    "alerts": AlertSettings,
    "web": WebSettings,
    "store": StoreSettings,
    "log_output": LogOutputSettings,
}


# --- What holds when a key is away ----------------------------------------------------------------------------------

# DESIGN.md §4, key by key; `...` marks a key without a default.
DEFAULTS: dict[str, dict[str, Any]] = {
    "publisher": {"name": "", "contacts": []},
    "export": {
        "url": ..., "region": None, "endpoint_url": None, "kind": "metrics", "agreed": False,
        "final_at": time(4, 30), "settle": timedelta(minutes=65),
        "poll_every": timedelta(minutes=10), "look_back_days": 3, "first_day": None,
        "give_up_waiting": timedelta(hours=47),
    },
    "log": {
        "prefix": "MEGA", "format": "tsv", "header": "plain", "rows": "not-blacklisted", "ip": "full", "tokens": None,
        "partial_status": 206, "bytes": "clamped", "object_size": "export", "text": "safe",
        "url": "/{podcast_id}/{episode_id}.mp3",
        "episodes": None, "max_rows_per_file": 0, "max_rejected": 0.01, "workers": 0, "columns": None,
    },
    "feeds": {"urls": [], "file": None, "refresh_every": timedelta(hours=6), "allow_local": False},
    "retention": {"keep_days": 60, "keep_pickups_days": 14},
    "sftp": {
        "host": "0.0.0.0", "port": 2222, "address": None, "max_connections": 50, "max_connections_per_address": 10,
        "max_sessions_per_user": 10, "login_timeout": timedelta(seconds=30), "idle_timeout": timedelta(minutes=15),
        "max_auth_tries": 6, "max_handles_per_session": 64, "keepalive": timedelta(seconds=30), "ban_after": 20,
        "ban_time": timedelta(minutes=30), "drain_seconds": 30, "legacy_algorithms": False, "chacha20": False,
        "proxy_protocol_from": [], "users": ...,
    },
    "sftp.users": {
        "name": ..., "password_hash": None, "authorized_keys": None, "allow_from": [], "required": True,
    },
    "alerts": {
        "pull_every": timedelta(hours=24), "warn_before": timedelta(hours=12), "critical_before": timedelta(hours=6),
        "webhook_url": None, "heartbeat_url": None,
    },
    "web": {"listen": ..., "password_hash": None, "hosts": []},
    "store": {"url": ..., "region": None, "endpoint_url": None, "profile": None, "required": False,
              "shared": False},
    "log_output": {"format": "text"},
}  # fmt: skip


@pytest.mark.parametrize("table", list(TABLES))
def test_a_section_has_exactly_the_keys_and_the_defaults_of_the_contract(table: str) -> None:
    """Key by key, the defaults are those of the design page."""
    fields = TABLES[table].model_fields
    assert {name: ... if field.is_required() else field.default for name, field in fields.items()} == DEFAULTS[table]


def test_two_keys_make_a_configuration(tmp_path: Path) -> None:
    """Only export.url and one user are required; folders default to data and keys beside the file."""
    config = parse(MINIMAL, tmp_path)
    assert config.path == tmp_path / "config.toml"
    assert (config.data_dir, config.keys_dir) == (tmp_path / "data", tmp_path / "keys")
    assert config.web is None
    assert config.store is None
    assert config.sftp.users[0].name == "triton"
    for table in ("log", "feeds", "retention", "alerts", "log_output"):
        section = getattr(config, table)
        assert {name: getattr(section, name) for name in DEFAULTS[table]} == DEFAULTS[table]
    assert config.export.first_day is None
    assert config.export.settle == timedelta(minutes=65)


def test_the_other_kind_of_export_has_defaults_of_its_own(tmp_path: Path) -> None:
    """11:00 where no final_at is given; it decides nothing alone. The rules of the rows name the kind."""
    text = MINIMAL.replace("[export]", '[export]\nkind = "delivery-v2"\nagreed = true')
    config = parse(text, tmp_path)
    assert (config.export.final_at, config.export.finality.marked) == (time(11, 0), True)
    assert config.log_rules.kind == config.export.export_kind.name == "delivery-v2"
    given = parse(text.replace("agreed = true", 'final_at = "12:30"'), tmp_path).export
    assert (given.final_at, given.agreed) == (time(12, 30), False)
    assert not parse(MINIMAL, tmp_path).export.finality.marked


def test_relative_paths_begin_at_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the command is started, a path means the same file; ``~`` is the home folder."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "episodes.csv").write_text("episode_id,guid,url\n")
    (tmp_path / "triton.pub").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir("/")
    file = tmp_path / "etc" / "config.toml"
    file.write_text(
        'data_dir = "/var/point"\nkeys_dir = "~/secret"\n[export]\nurl = "exports"\n[log]\nepisodes = "episodes.csv"\n'
        '[[sftp.users]]\nname = "triton"\nauthorized_keys = "~/triton.pub"\n'
    )
    config = load_config(file)
    assert config.data_dir == Path("/var/point")
    assert config.keys_dir == tmp_path / "secret"
    assert config.export.place == tmp_path / "etc" / "exports"
    assert config.log.episodes == tmp_path / "etc" / "episodes.csv"
    assert config.sftp.users[0].authorized_keys == tmp_path / "triton.pub"


ACCESS_POINT = "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/mine"


@pytest.mark.parametrize(
    ("url", "bucket", "prefix", "folder"),
    [
        ("s3://bucket", "bucket", "", None),
        ("s3://bucket/", "bucket", "", None),
        ("s3://my.bucket-1/a/b", "my.bucket-1", "a/b/", None),
        ("s3://my.bucket-1/a/b/", "my.bucket-1", "a/b/", None),
        ("s3://bucket/a#b", "bucket", "a#b/", None),
        ("s3://bucket/a?b/c", "bucket", "a?b/c/", None),
        (ACCESS_POINT, ACCESS_POINT.removeprefix("s3://"), "", None),
        (f"{ACCESS_POINT}/a/b", ACCESS_POINT.removeprefix("s3://"), "a/b/", None),
        (
            "s3://mine-6xzcfhttuq6grxyinmhbv4kxihs5euse1b-s3alias",
            "mine-6xzcfhttuq6grxyinmhbv4kxihs5euse1b-s3alias",
            "",
            None,
        ),
        ("file:///srv/exports", None, "", Path("/srv/exports")),
        ("file:///srv/my%20exports", None, "", Path("/srv/my exports")),
        ("exports", None, "", Path("/srv/point/exports")),
        ("/exports", None, "", Path("/exports")),
        ("./a b#c?d", None, "", Path("/srv/point/a b#c?d")),
    ],
)
def test_an_export_url_is_a_bucket_or_a_folder(url: str, bucket: str | None, prefix: str, folder: Path | None) -> None:
    """A bucket has a name and a prefix that is empty or ends with a slash; a folder has a whole path."""
    export = parse(f'[export]\nurl = "{url}"\n{USER}').export
    assert export.bucket == bucket
    assert bucket is not None or export.place == folder
    if bucket is not None:
        assert export.prefix == prefix


def test_values_are_given_to_the_service_as_types() -> None:
    """Durations, times, days, networks and columns are no longer texts once they are loaded."""
    config = parse(
        '[export]\nurl = "s3://bucket"\nfinal_at = "05:15"\nsettle = "0s"\npoll_every = "90s"\n'
        "first_day = 2026-12-01\ngive_up_waiting = \"2d\"\n[log]\nformat = \"w3c\"\n"
        'columns = [{ name = "id", value = "x-metric-id" }, { name = "ps", field = "normalized_user_agent" }, '
        '{ name = "dist", constant = "B" }]\n[web]\nlisten = "[::1]:9108"\n'
        + USER
        + 'allow_from = ["203.0.113.0/24", "2001:db8::1"]\n'
    )  # fmt: skip
    assert config.export.final_at == time(5, 15)
    assert config.export.settle == timedelta(0)
    assert config.export.poll_every == timedelta(seconds=90)
    assert config.export.first_day == date(2026, 12, 1)
    assert config.export.give_up_waiting == timedelta(days=2)
    assert config.log.log_format is LogFormat.W3C
    assert config.log.column_specs == (
        ColumnSpec("id", value="x-metric-id"),
        ColumnSpec("ps", field="normalized_user_agent"),
        ColumnSpec("dist", constant="B"),
    )
    assert config.sftp.users[0].allow_from == [ip_network("203.0.113.0/24"), ip_network("2001:db8::1/128")]
    assert config.web is not None
    assert config.web.host_and_port == ("::1", 9108)


@pytest.mark.parametrize("text", ["0s", "90s", "65m", "47h", "60h"])
def test_a_duration_is_printed_as_it_was_written(text: str) -> None:
    """``65m`` stays ``65m`` in every sentence."""
    assert duration_text(parse_duration(text)) == text


# --- The manual -----------------------------------------------------------------------------------------------------

COMMENTED = re.compile(r"^# (?=[a-z_]+ = |\[|  \{ |\]$)", re.MULTILINE)


def uncommented() -> str:
    """The example with every optional key in use."""
    return COMMENTED.sub("", EXAMPLE.read_text(encoding="utf-8"))


def test_the_example_is_loaded_as_it_stands() -> None:
    """A copy of the manual is a configuration, without any other file."""
    config = load_config(EXAMPLE)
    assert config.export.bucket == "example-megaphone-exports"
    assert config.web is None


def test_the_example_shows_the_defaults() -> None:
    """Every optional key in use in the example shows its default, so copying it changes no behaviour."""
    raw = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))
    users = raw["sftp"].pop("users")
    assert (raw.pop("data_dir"), raw.pop("keys_dir")) == ("data", "keys")
    for table, keys in [*raw.items(), ("sftp.users", users[0])]:
        for key, value in keys.items():
            default = DEFAULTS[table][key]
            if default is ... or key == "password_hash":
                continue
            if isinstance(default, timedelta):
                assert value == duration_text(default)
            elif isinstance(default, time):
                assert value == f"{default:%H:%M}"
            else:
                assert value == default


def test_the_example_is_loaded_with_every_optional_key_in_use(tmp_path: Path) -> None:
    """Each commented key is valid too, once its file exists."""
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "triton.pub").write_text("")
    (tmp_path / "episodes.csv").write_text("episode_id,guid,url\n")
    (tmp_path / "feeds.txt").write_text("https://feeds.example.com/show\n")
    file = tmp_path / "config.toml"
    file.write_text(uncommented(), encoding="utf-8")
    config = load_config(file)
    for table, model in TABLES.items():
        section = config.sftp.users[0] if table == "sftp.users" else getattr(config, table)
        assert set(model.model_fields) == section.model_fields_set, f"config.example.toml lacks a key of [{table}]"
    assert config.log.columns is not None
    assert len(config.log.columns) == 16
    assert set(ColumnSettings.model_fields) == {key for column in config.log.columns for key in column.model_fields_set}


def test_every_key_of_the_example_is_explained() -> None:
    """Above each key are its purpose, its default (or that it has none), and what happens if it is wrong."""
    table, said, explained = "", "", set()
    for line in EXAMPLE.read_text(encoding="utf-8").splitlines():
        key = re.match(r"(?:# )?([a-z_0-9]+) = ", line)
        header = re.match(r"(?:# )?\[+([a-z_.]+)\]+$", line)
        if header:
            table, said = header[1], ""
        elif key:
            sections = [part for part in ("Default: ", "Required", "Optional") if part in said]
            assert len(sections) == 1, f"[{table}] {key[1]} has {sections}"
            assert said.index("If wrong: ") > said.index(sections[0]) > 20, f"[{table}] {key[1]}"
            if table:
                default = DEFAULTS[table][key[1]]
                assert sections[0] == ("Required" if default is ... else sections[0])
                if isinstance(default, int | float | str) and not isinstance(default, bool):
                    assert str(default) in said, f"[{table}] {key[1]} does not state its default"
                if isinstance(default, timedelta):
                    assert f'Default: "{duration_text(default)}"' in said, f"[{table}] {key[1]}"
                    assert "duration" in said, f"[{table}] {key[1]} does not state its unit"
            explained.add((table, key[1]))
            said = ""
        elif line.startswith("# "):
            said += f"{line[2:]} "
        elif not line:
            said = ""
    assert explained == {("", "data_dir"), ("", "keys_dir")} | {
        (table, key) for table, keys in DEFAULTS.items() for key in keys if key != "users"
    }


def test_nobody_can_log_in_with_the_example() -> None:
    """The hash shown is well formed, and no password of the example's own words opens it."""
    import argon2

    shown = load_config(EXAMPLE).sftp.users[0].password_hash
    assert shown is not None
    for word in ("", "triton", "password", "pickup-point"):
        with pytest.raises(argon2.exceptions.VerifyMismatchError):
            argon2.PasswordHasher().verify(shown, word)


def test_choices_of_a_key_are_all_named_in_the_example() -> None:
    """Every word that a key accepts is in the manual."""
    text = EXAMPLE.read_text(encoding="utf-8")
    for model in TABLES.values():
        for name, field in model.model_fields.items():
            for choice in [c for arg in (field.annotation, *get_args(field.annotation)) for c in get_args(arg)]:
                if isinstance(choice, str):
                    assert f'"{choice}"' in text, f"{name}: {choice}"


@pytest.mark.parametrize(
    ("before", "after", "asks"),
    [
        ('listen = "127.0.0.1:1"', f'listen = "127.0.0.1:2"\npassword_hash = "{HASH}"\nhosts = ["a.example"]', True),
        (f'listen = "127.0.0.1:1"\npassword_hash = "{HASH}"', 'listen = "127.0.0.1:1"', False),
        (f'listen = "0.0.0.0:1"\npassword_hash = "{HASH}"', 'listen = "127.0.0.1:1"', True),
    ],
)
def test_a_reload_takes_the_pages_password_and_never_opens_it_to_all(before: str, after: str, asks: bool) -> None:
    """Where it listens stays; a page that others can reach keeps its password until a restart moves it."""
    old, new = (parse(f"{MINIMAL}[web]\n{text}\n") for text in (before, after))
    web = after_reload(old, new).web
    assert web is not None and old.web is not None and web.listen == old.web.listen
    assert (web.password_hash is not None) is asks and (web.hosts == ["a.example"]) is ("hosts" in after)
    assert after_reload(old, parse(MINIMAL)).web == old.web and after_reload(parse(MINIMAL), new).web is None


def test_a_configuration_that_may_not_be_read_says_who_may_and_how_the_service_may(tmp_path: Path) -> None:
    """As an edit by root under a tight umask leaves it."""
    path = tmp_path / "config.toml"
    path.touch(mode=0)
    root = os.geteuid() == 0  # who reads everything
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(ConfigError) as caught:
            read_config(path)
    finally:
        if root:
            os.seteuid(0)
    (problem,) = caught.value.problems
    assert "Permission denied" in problem.wrong
    assert problem.cure.endswith(f"chown root:pickup-point {path}; chmod 640 {path}")
