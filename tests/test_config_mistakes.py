"""Every mistake that an operator can make in the configuration, reported at once, with its cure and without a secret.

Reads files in a temporary folder; nothing else.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from server.cli.privileges import find_config
from server.config import load_config
from server.errors import ConfigError, Problem

from .support.config_text import EXPORT, HASH, MINIMAL, USER, parse


def problems_of(text: str, folder: Path = Path("/srv/point")) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        parse(text, folder)
    assert caught.value.exit_code == 2
    return caught.value.problems


def printed(problems: list[Problem]) -> str:
    return "\n".join(f"{problem} // {problem.cure}" for problem in problems)


def _in(table: str, line: str) -> str:
    """Return a file with one more line in one table."""
    tables = {"": line + "\n" + MINIMAL, "export": EXPORT + line + "\n" + USER, "sftp.users": MINIMAL + line + "\n"}
    if table in tables:
        return tables[table]
    return f"{EXPORT}[{table}]\n{line}\n{USER}"


def test_a_size_from_rss_needs_a_feed() -> None:
    """And only the kind of export that may lack sizes takes one."""
    text = f'{EXPORT}kind = "delivery-v2"\n[log]\nobject_size = "rss"\n{USER}'
    (problem,) = problems_of(text)
    assert problem.key == "log.object_size" and "no RSS feed" in str(problem) and "feeds.urls" in problem.cure
    parse(text.replace("[log]", '[feeds]\nurls = ["https://x.example/feed"]\n[log]'))


# (table, line, key of the problem, what it shows of the value, a word of the cure)
MISTAKES = [
    ("", "data_dirs = 1", "data_dirs", "not a known key", "did you mean data_dir?"),
    ("", "wholly_unlike = 1", "wholly_unlike", "not a known key", "known keys are: publisher, export"),
    ("", "data_dir = 5", "data_dir", "is 5", "path"),
    ("", 'data_dir = ""', "data_dir", 'is ""', "path"),
    ("", 'data_dir = "a\\u0000b"', "data_dir", "not a path", "path"),
    ("", 'data_dir = "~nobody-of-that-name/x"', "data_dir", "~nobody-of-that-name/x", "full path"),
    ("", 'keys_dir = ["keys"]', "keys_dir", "is a list", "path"),
    ("export", "data_dir = 5", "export.data_dir", "not a known key", "above the first [table]"),
    ("export", 'pol_every = "10m"', "export.pol_every", "not a known key", "did you mean poll_every?"),
    ("export", "region = 5", "export.region", "is 5", "export.region"),
    ("export", 'region = ""', "export.region", 'is ""', "export.region"),
    ("export", 'endpoint_url = "localhost:9000"', "export.endpoint_url", "localhost:9000", "https://"),
    ("export", 'endpoint_url = "ftp://host"', "export.endpoint_url", "ftp://host", "https://"),
    ("export", 'endpoint_url = "https://"', "export.endpoint_url", "https://", "https://"),
    ("export", 'endpoint_url = "http://host:99999"', "export.endpoint_url", "http://host:99999", "https://"),
    ("export", 'endpoint_url = "http://ho st"', "export.endpoint_url", "http://ho st", "https://"),
    ("export", 'kind = "delivery"', "export.kind", '"delivery"', "export.kind"),
    ("export", "agreed = 1", "export.agreed", "is 1", "export.agreed"),
    ("export", "agreed = true", "export.agreed", 'export.kind is "metrics"', 'export.kind = "delivery-v2"'),
    ("log", 'object_size = "rss"', "log.object_size", 'export.kind is "metrics"', 'export.kind = "delivery-v2"'),
    ("log", 'url = "/{media_type}"', "log.url", '"media_type", which Metrics exports', "seconds_downloaded"),
    ("log", 'columns = [{name = "x-metric-id", value = "x-metric-id"}, {name = "m", field = "media_type"}]',
     "log.columns", '"media_type", which Metrics exports', "seconds_downloaded"),
    ("export", 'final_at = "4:30"', "export.final_at", "4:30", '"04:30"'),
    ("export", 'final_at = "24:00"', "export.final_at", "24:00", '"04:30"'),
    ("export", "final_at = 430", "export.final_at", "430", '"04:30"'),
    ("export", 'settle = "65"', "export.settle", '"65"', '"65m"'),
    ("export", "settle = 65", "export.settle", "is 65", '"65m"'),
    ("export", 'settle = "-5m"', "export.settle", '"-5m"', '"65m"'),
    ("export", 'settle = "1.5h"', "export.settle", '"1.5h"', '"65m"'),
    ("export", 'settle = "1w"', "export.settle", '"1w"', '"65m"'),
    ("export", 'settle = "65 m"', "export.settle", '"65 m"', '"65m"'),
    ("export", 'settle = "\u0666m"', "export.settle", '"\u0666m"', '"65m"'),
    ("export", 'settle = "25h"', "export.settle", '"25h"', '"24h"'),
    ("export", 'settle = "999999999999d"', "export.settle", "999999999999d", "hours"),
    ("export", 'poll_every = "0s"', "export.poll_every", '"0s"', '"1s"'),
    ("export", 'poll_every = "7h"', "export.poll_every", '"7h"', '"6h"'),
    ("export", "look_back_days = 0", "export.look_back_days", "is 0", "look_back_days"),
    ("export", "look_back_days = 3.5", "export.look_back_days", "is 3.5", "look_back_days"),
    ("export", 'look_back_days = "3"', "export.look_back_days", 'is "3"', "look_back_days"),
    ("export", "look_back_days = true", "export.look_back_days", "is true", "look_back_days"),
    ("export", "look_back_days = 60", "export.look_back_days", "is 60, not less than", "at most 59"),
    ("export", 'first_day = "01.12.2026"', "export.first_day", "01.12.2026", '"2026-12-01"'),
    ("sftp.users", f'authorized_keys = "/{"x" * 300}"', "sftp.users[0].authorized_keys", "too long", "namei -l"),
    ("sftp.users", 'authorized_keys = "/"', "sftp.users[0].authorized_keys", "it is not a regular file", "ls -ld"),
    ("log", f'episodes = "/{"x" * 300}"', "log.episodes", "File name too long", "namei -l"),
    ("feeds", f'file = "/{"x" * 300}"', "feeds.file", "File name too long", "namei -l"),
    ("export", "first_day = 9999-12-31", "export.first_day", "9999-12-31", '"2026-12-01"'),
    ("export", "first_day = 0001-01-01", "export.first_day", "0001-01-01", '"2026-12-01"'),
    ("export", 'first_day = "2026-02-30"', "export.first_day", "2026-02-30", '"2026-12-01"'),
    ("export", "first_day = 2026-12-01T00:00:00Z", "export.first_day", "2026-12-01T00:00:00", '"2026-12-01"'),
    ("export", 'give_up_waiting = "28h"', "export.give_up_waiting", '"28h"', '"29h"'),
    ("export", 'give_up_waiting = "73h"', "export.give_up_waiting", '"73h"', '"72h"'),
    ("export", 'look_back_days = 1\ngive_up_waiting = "49h"', "export.look_back_days", "48h after its start", '"48h"'),
    ("export", 'look_back_days = 2\ngive_up_waiting = "72h"', "export.look_back_days", '("72h")', "at least 3"),
    ("export", 'final_at = "23:30"', "export.give_up_waiting", '"47h"', '"48h"'),
    ("log", 'prefix = "MEGA/"', "log.prefix", '"MEGA/"', "letters, digits, - and _"),
    ("log", 'prefix = ""', "log.prefix", '""', "letters, digits, - and _"),
    ("log", 'prefix = "-a"', "log.prefix", '"-a"', "letters, digits, - and _"),
    ("log", 'prefix = "MEGÄ"', "log.prefix", '"MEGÄ"', "letters, digits, - and _"),
    ("log", 'prefix = "a.b"', "log.prefix", '"a.b"', "letters, digits, - and _"),
    ("log", 'prefix = "a b"', "log.prefix", '"a b"', "letters, digits, - and _"),
    ("log", f'prefix = "{"a" * 65}"', "log.prefix", "aaa", "letters, digits, - and _"),
    ("log", 'format = "csv"', "log.format", '"csv"', "log.format"),
    ("log", 'header = "yes"', "log.header", '"yes"', "log.header"),
    ("log", 'rows = "some"', "log.rows", '"some"', "log.rows"),
    ("log", 'ip = "none"', "log.ip", '"none"', "log.ip"),
    ("log", 'tokens = "send"', "log.tokens", '"send"', "log.tokens"),
    ("log", "partial_status = 404", "log.partial_status", "is 404", "log.partial_status"),
    ("log", 'partial_status = "206"', "log.partial_status", '"206"', "log.partial_status"),
    ("log", 'bytes = "all"', "log.bytes", '"all"', "log.bytes"),
    ("log", "text = true", "log.text", "is true", "log.text"),
    ("log", 'url = "/{episode}.mp3"', "log.url", "{episode} is not a field", "in braces"),
    ("log", 'url = "/{episode_id.mp3"', "log.url", "unmatched brace", "in braces"),
    ("log", 'url = " "', "log.url", "it is empty", "in braces"),
    ("log", 'episodes = "gone.csv"', "log.episodes", "/srv/point/gone.csv", "put the file there"),
    ("log", "max_rows_per_file = -1", "log.max_rows_per_file", "is -1", "log.max_rows_per_file"),
    ("log", "max_rejected = 1.5", "log.max_rejected", "is 1.5", "log.max_rejected"),
    ("log", "max_rejected = nan", "log.max_rejected", "is nan", "log.max_rejected"),
    ("log", "workers = 65", "log.workers", "is 65", "log.workers"),
    ("log", "columns = []", "log.columns", "an empty list", "log.columns"),
    ("log", 'columns = "date"', "log.columns", '"date"', "log.columns"),
    ("log", 'columns = [{ name = "date", value = "date" }]', "log.columns", "no x-metric-id", "x-metric-id"),
    ("log", 'columns = [{ name = "a", value = "day" }]', "log.columns[0]", '"day"', "start-time"),
    ("log", 'columns = [{ name = "a", field = "agent" }]', "log.columns[0]", '"agent"', "normalized_user_agent"),
    ("log", 'columns = [{ name = "a" }]', "log.columns[0]", "no source", "exactly one"),
    ("log", 'columns = [{ name = "a", field = "ip", constant = "x" }]', "log.columns[0]", "and constant", "exactly"),
    ("log", 'columns = [{ value = "date" }]', "log.columns[0].name", "is missing", "[[log.columns]]"),
    ("log", 'columns = [{ name = "a", feld = "ip" }]', "log.columns[0].feld", "not a known key", "field"),
    ("log", 'columns = [{ name = "a\\tb", field = "ip" }]', "log.columns[0]", "header line", "visible characters"),
    ("log", 'columns = [{ name = "#a", field = "ip" }]', "log.columns[0]", "header line", "not beginning with #"),
    ("log", 'columns = [{ name = " ", field = "ip" }]', "log.columns[0]", "header line", "visible characters"),
    ("log", 'columns = [{ name = "a", field = "ip" }, { name = "a", field = "id" }]', "log.columns[1]", "twice", "own"),
    ("log", 'format = "w3c"\ncolumns = [{ name = "a b", field = "ip" }]', "log.columns[0]", "header line", "visible"),
    ("retention", "keep_days = 0", "retention.keep_days", "is 0", "retention.keep_days"),
    ("retention", "keep_days = 3", "export.look_back_days", "retention.keep_days (3)", "at most 2"),
    ("retention", "keep_days = 1", "export.look_back_days", "retention.keep_days (1)", "more than look_back_days"),
    ("sftp", "port = 65536", "sftp.port", "is 65536", "sftp.port"),
    ("sftp", 'port = "22"', "sftp.port", '"22"', "sftp.port"),
    ("sftp", 'host = ""', "sftp.host", '""', "sftp.host"),
    ("sftp", 'address = "s3://a-bucket"', "sftp.address", "not a host with a port", "sftp.example.com:2222"),
    ("sftp", 'address = "sftp.example.com:0"', "sftp.address", "not a host with a port", "sftp.example.com:2222"),
    ("sftp", 'address = "2001:db8::1"', "sftp.address", "not a host with a port", '"[2001:db8::1]:2222"'),
    ("sftp", 'login_timeout = "0s"', "sftp.login_timeout", '"0s"', '"1s"'),
    ("sftp", 'login_timeout = "2h"', "sftp.login_timeout", '"2h"', '"1h"'),
    ("sftp", 'idle_timeout = "0m"', "sftp.idle_timeout", '"0s"', '"1s"'),
    ("sftp", 'keepalive = "0s"', "sftp.keepalive", '"0s"', '"1s"'),
    ("sftp", 'ban_time = "31d"', "sftp.ban_time", '"744h"', '"30d"'),
    ("sftp", "max_connections = 0", "sftp.max_connections", "is 0", "sftp.max_connections"),
    ("sftp", "drain_seconds = -1", "sftp.drain_seconds", "is -1", "sftp.drain_seconds"),
    ("sftp", 'legacy_algorithms = "no"', "sftp.legacy_algorithms", '"no"', "sftp.legacy_algorithms"),
    ("sftp.users", "pasword = 1", "sftp.users[0].pasword", "not a known key", "did you mean password_hash?"),
    ("sftp.users", 'authorized_keys = "gone.pub"', "sftp.users[0].authorized_keys", "/point/gone.pub", "public key"),
    ("sftp.users", 'allow_from = ["300.1.1.1"]', "sftp.users[0].allow_from[0]", "300.1.1.1", "203.0.113.0/24"),
    ("sftp.users", 'allow_from = ["10.0.0.1/8"]', "sftp.users[0].allow_from[0]", "host bits", "203.0.113.0/24"),
    ("sftp", 'proxy_protocol_from = ["balancer"]', "sftp.proxy_protocol_from[0]", "balancer", "203.0.113.0/24"),
    ("sftp", 'proxy_protocol_from = ["0.0.0.0/0"]', "sftp.proxy_protocol_from[0]", "every address", "10.0.0.5"),
    ("sftp.users", 'allow_from = "10.0.0.0/8"', "sftp.users[0].allow_from", "10.0.0.0/8", "sftp.users"),
    ("sftp.users", "required = 1", "sftp.users[0].required", "is 1", "sftp.users"),
    ("sftp.users", '[[sftp.users]]\nname = "x"', "sftp.users[1]", 'user "x" has neither', "hash-password"),
    ("sftp.users", USER, "sftp.users[1].name", "second", "own name"),
    ("sftp.users", f'[[sftp.users]]\nname = "a b"\npassword_hash = "{HASH}"', "sftp.users[1].name", '"a b"', "triton"),
    ("sftp.users", f'[[sftp.users]]\npassword_hash = "{HASH}"', "sftp.users[1].name", "missing", "[[sftp.users]]"),
    ("sftp.users", '[[sftp.users]]\nname = "x"\npassword_hash = "pw"', "sftp.users[1].password_hash", "Argon2id", "h"),
    ("alerts", 'pull_every = "0s"', "alerts.pull_every", '"0s"', '"1m"'),
    ("alerts", 'pull_every = "3d"', "alerts.pull_every", '"72h"', '"48h"'),
    ("alerts", 'warn_before = "73h"', "alerts.warn_before", '"73h"', '"72h"'),
    ("alerts", 'critical_before = "13h"', "alerts.critical_before", '"13h"', "shorter"),
    ("alerts", 'webhook_url = "example.com"', "alerts.webhook_url", "not a web address", "https://"),
    ("web", "", "web.listen", "is missing", "[web]"),
    ("web", 'listen = "9108"', "web.listen", '"9108"', "127.0.0.1:9108"),
    ("web", 'listen = "::1:9108"', "web.listen", '"::1:9108"', "127.0.0.1:9108"),
    ("web", 'listen = "127.0.0.1:65536"', "web.listen", "65536", "127.0.0.1:9108"),
    ("web", "listen = 9108", "web.listen", "is 9108", "web.listen"),
    ("web", 'listen = "0.0.0.0:9108"', "web.password_hash", "other machines", "hash-password"),
    ("web", 'listen = "status.example.com:9108"', "web.password_hash", "other machines", "127.0.0.1"),
    ("web", 'listen = "[::1]:1"\npassword_hash = "pw"', "web.password_hash", "Argon2id", "hash-password"),
    ("web", 'listen = "[::1]:1"\nhosts = ["a.example:80"]', "web.hosts[0]", '"a.example:80"', "status.example.com"),
    ("metrics", 'listen = "127.0.0.1:9108"', "metrics", "is now called [web]", "write [web]"),
    ("metrics", '[web]\nlisten = "127.0.0.1:9108"', "metrics", "is now called [web]", "remove it"),
    ("store", "", "store.url", "is missing", "[store]"),
    ("store", 'url = "/srv/logs"', "store.url", '"/srv/logs"', "s3://bucket/prefix"),
    ("store", 'url = "s3://bucket/"', "store.url", "without a prefix", "s3://bucket/prefix"),
    ("store", 'url = "s3://bucket/.pickup-point/x"', "store.url", "keeps its own objects", "s3://bucket/prefix"),
    ("store", 'url = "s3://b/a\\u0007"', "store.url", "not a bucket with a prefix", "s3://bucket/prefix"),
    ("store", 'url = "s3://bucket/logs"\nshard = true', "store.shard", "not a known key", "did you mean shared?"),
    ("log_output", 'format = "xml"', "log_output.format", '"xml"', "log_output.format"),
]  # fmt: skip


@pytest.mark.parametrize(("table", "line", "key", "shows", "cure"), MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_is_reported_with_key_value_and_cure(table: str, line: str, key: str, shows: str, cure: str) -> None:
    """Each of these lines is refused; the problem names the key, what is wrong, and what to write."""
    found = [problem for problem in problems_of(_in(table, line)) if problem.key == key]
    assert found
    assert any(shows in problem.wrong and cure in problem.cure for problem in found), printed(found)


@pytest.mark.parametrize(
    ("url", "cure"),
    [
        ("", "s3://bucket"),
        ("   ", "s3://bucket"),
        ("s3://", "s3://bucket"),
        ("s3:///prefix", "s3://bucket"),
        ("s3://UPPER/x", "s3://bucket"),
        ("s3://bucket?x=1", "s3://bucket"),
        ("s3://bucket#b", "s3://bucket"),
        ("s3://arn:aws:s3:::bucket/x", "s3://bucket"),
        ("s3://arn:aws:s3:eu-west-1:1234:accesspoint/mine", "s3://bucket"),
        ("s3:/bucket/prefix", "s3://bucket"),
        ("S3://bucket", "s3://bucket"),
        ("https://bucket.s3.amazonaws.com", "s3://bucket"),
        ("file://exports", "file:///srv/exports"),
        ("file:/exports", "file:///"),
        ("file:///a%00b", "folder"),
        ("s3://buc\\nket", "folder"),
        ("~nobody-of-that-name/exports", "full path"),
    ],
)
def test_an_export_url_that_is_neither_bucket_nor_folder_is_refused(url: str, cure: str) -> None:
    """A typing mistake in a URL never becomes a folder of that name."""
    problems = problems_of(f'[export]\nurl = "{url}"\n{USER}')
    assert [problem.key for problem in problems] == ["export.url"]
    assert cure in problems[0].cure


@pytest.mark.parametrize(
    ("export", "rest", "wrong"),
    [
        ('kind = "delivery_v2"\nagreed = true', "", "export.kind"),
        (
            'kind = "delivery_v2"',
            '[feeds]\nurls = ["https://a.example/rss"]\n[log]\nobject_size = "rss"',
            "export.kind",
        ),
        ('kind = "delivery_v2"', '[log]\nurl = "/{media_type}.mp3"', "export.kind"),
        ('final_at = "99:00"\ngive_up_waiting = "27h"', "", "export.final_at"),
        ("look_back_days = -1", "[retention]\nkeep_days = 3", "export.look_back_days"),
        ("", '[alerts]\nwarn_before = "x"\ncritical_before = "13h"', "alerts.warn_before"),
    ],
)
def test_one_mistake_is_one_problem(export: str, rest: str, wrong: str) -> None:
    """A value that cannot be used is replaced by its default; what is compared with that says nothing."""
    assert [problem.key for problem in problems_of(f"{EXPORT}{export}\n{USER}\n{rest}\n")] == [wrong]


def test_what_is_required_is_asked_for() -> None:
    """An empty file lacks a bucket and a user, and nothing else."""
    assert [str(problem) for problem in problems_of("")] == ["export.url: is missing", "sftp.users: is missing"]
    assert "sftp.users" in [problem.key for problem in problems_of(EXPORT + "[sftp]\nusers = []\n")]


@pytest.mark.parametrize("key", ["region", "endpoint_url"])
def test_a_folder_has_no_region_and_no_endpoint(key: str) -> None:
    """Keys of a bucket beside a folder are a mistake, not a preference."""
    problems = problems_of(f'[export]\nurl = "exports"\n{key} = "https://a.b"\n{USER}')
    assert [problem.key for problem in problems] == [f"export.{key}"]
    assert "export.url" in problems[0].cure


def test_the_partner_must_not_be_given_the_exports(tmp_path: Path) -> None:
    """Whoever may read the logs could read what lies under them too; beside each other, and elsewhere, they may lie."""
    for store, export, wrong in (
        ("s3://bucket/logs", "s3://bucket/logs", True),
        ("s3://bucket/logs/", "s3://bucket/logs/exports", True),
        ("s3://bucket/logs", "s3://bucket/logs-of-megaphone", False),
        ("s3://bucket/logs", "s3://bucket", False),
        ("s3://bucket/logs", "s3://other/logs", False),
    ):
        text = f'[export]\nurl = "{export}"\n{USER}\n[store]\nurl = "{store}"\n'
        if wrong:
            assert [problem.key for problem in problems_of(text)] == ["store.url"]
        else:
            assert parse(text, tmp_path).store is not None


@pytest.mark.parametrize("name", ["export", "log", "retention", "sftp", "alerts", "web", "store", "log_output"])
@pytest.mark.parametrize("value", ['"text"', "5", "[1]", "[{ url = 1 }]"])
def test_a_section_must_be_a_table(name: str, value: str) -> None:
    """``export = "s3://…"`` is reported as such, with the brackets to write."""
    kept = {"export": USER, "sftp": EXPORT}.get(name, MINIMAL)
    problems = problems_of(f"{name} = {value}\n{kept}")
    assert (name, f"write it as [{name}]") in [(problem.key, problem.cure) for problem in problems]


def test_users_in_single_brackets_get_their_own_cure(tmp_path: Path) -> None:
    """The most common mistake in TOML has its own cure."""
    problems = problems_of(f'{EXPORT}[sftp.users]\nname = "triton"\npassword_hash = "{HASH}"\n', tmp_path)
    assert [(problem.key, problem.cure) for problem in problems] == [
        ("sftp.users", "write [[sftp.users]], in two pairs of brackets")
    ]


def test_all_mistakes_of_a_file_are_reported_at_once(tmp_path: Path) -> None:
    """One run shows everything: unknown keys, wrong types, missing files, and what only two keys together show."""
    text = """
        datadir = "x"
        keys_dir = 5
        [export]
        look_back_days = 90
        settle = "soon"
        endpoint = "http://x"
        [log]
        prefix = "a/b"
        url = "/{nope}"
        ip = "half"
        episodes = "gone.csv"
        columns = [{ name = "x", feld = "ip" }, { name = "y", value = "nope" }]
        [retention]
        keep_days = 60
        [sftp]
        port = "x"
        [[sftp.users]]
        name = "triton"
        [[sftp.users]]
        name = "b"
        password_hash = "plain"
        authorized_keys = "gone.pub"
        [alerts]
        critical_before = "20h"
        [web]
        listen = "here"
        [extra]
    """
    problems = problems_of(text, tmp_path)
    assert {problem.key for problem in problems} == {
        "datadir", "keys_dir", "export.url", "export.look_back_days", "export.settle", "export.endpoint", "log.prefix",
        "log.url", "log.ip", "log.episodes", "log.columns[0].feld", "log.columns[0]", "log.columns[1]", "log.columns",
        "sftp.port", "sftp.users[0]", "sftp.users[1].password_hash", "sftp.users[1].authorized_keys",
        "alerts.critical_before", "web.listen", "extra",
    }  # fmt: skip
    assert all(problem.wrong and problem.cure for problem in problems)
    assert len(problems) == len(set(problems))


def test_the_error_counts_its_problems_and_hints_at_a_single_one(tmp_path: Path) -> None:
    """The sentence names the file; one problem alone gives the hint."""
    file = tmp_path / "config.toml"
    file.write_text(MINIMAL + "requird = true\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert str(caught.value) == f"{file} has 1 problem"
    assert caught.value.hint == "did you mean required?"
    file.write_text("")
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert str(caught.value) == f"{file} has 2 problems"
    assert caught.value.hint == ""


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (b"[export\n", "is not TOML"),
        (b'a = "\xff"\n', "is not TOML"),
        (b"a = 1\na = 2\n", "is not TOML"),
        (b"a = " + b"9" * 5000, "is not TOML"),
        (b"a = " + b"[" * 5000, "is not TOML"),
    ],
)
def test_a_file_that_is_no_toml_is_reported_with_its_place(tmp_path: Path, content: bytes, wrong: str) -> None:
    """A broken file is a problem of the file, not a traceback."""
    file = tmp_path / "config.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert wrong in caught.value.problems[0].wrong


def test_a_file_that_is_missing_or_a_folder_is_reported(tmp_path: Path) -> None:
    """Both say what to do."""
    for path, wrong in ((tmp_path / "gone.toml", "no such file"), (tmp_path, "cannot be read")):
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        assert wrong in caught.value.problems[0].wrong
        assert caught.value.hint


def test_the_configuration_is_looked_for_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A given path is used as is; without one, config.toml in the working folder comes first."""
    monkeypatch.chdir(tmp_path)
    assert find_config(Path("other.toml")) == Path("other.toml")
    (tmp_path / "config.toml").write_text("")
    assert find_config(None) == Path("config.toml")


# --- Secrets --------------------------------------------------------------------------------------------------------

SECRET = "hunter2SECRET"
LEAKS = [
    f'{EXPORT}[[sftp.users]]\nname = "t"\npassword_hash = "{SECRET}"\n',
    f'{EXPORT}[[sftp.users]]\nname = "t"\npassword_hash = "$argon2id${SECRET}"\n',
    f'{EXPORT}[[sftp.users]]\nname = "t"\npassword_hash = ["{SECRET}"]\n',
    f'{EXPORT}[[sftp.users]]\nname = "t"\npassword_hash = {{ value = "{SECRET}" }}\n',
    f'{EXPORT}[[sftp.users]]\nname = "t"\npassword = "{SECRET}"\n',
    f'{EXPORT}[[sftp.users]]\nname = "$argon2id${SECRET}"\npassword_hash = "x"\n',
    f'{EXPORT}[[sftp.users]]\nname = "t"\nauthorized_keys = 5\npassword_hash = "{SECRET}"\nrequired = 5\n',
    f'{EXPORT}[sftp.users]\nname = "t"\npassword_hash = "{SECRET}"\n',
    f'{EXPORT}[sftp]\nusers = ["t:{SECRET}"]\n',
    f'{EXPORT}[sftp]\nusers = [["t", "{SECRET}"]]\n',
    f'{EXPORT}[[sftp]]\npassword_hash = "{SECRET}"\n',
    f'sftp = {{ users = "x" }}\npassword_hash = "{SECRET}"\n{EXPORT}',
    f'{MINIMAL}[alerts]\nwebhook_url = "{SECRET}"\nheartbeat_url = "ftp://{SECRET}"\n',
    f'{MINIMAL}[alerts]\nwebhook_url = "https://[{SECRET}/x"\n',
    f'{MINIMAL}[alerts]\nwebhook_url = "https://a\u2100{SECRET}/x"\n',
    f'{MINIMAL}[alerts]\nwebhook_url = "https://a:{SECRET}/x"\n',
    f'{MINIMAL}[alerts]\nwebhook_url = ["https://{SECRET}/x"]\n',
    f'{MINIMAL}[alerts]\nwebhook = "https://{SECRET}/x"\n',
    f'{MINIMAL}[alerts]\nwebhook_url = "https://{SECRET}/x"\nwarn_before = 5\n',
    f'{MINIMAL}[[alerts]]\nheartbeat_url = "https://{SECRET}/x"\n',
    f'[export]\nurl = "s3://key:{SECRET}@bucket/x"\n{USER}',
    f'[export]\nurl = "s3://bucket"\nendpoint_url = "ftp://key:{SECRET}@host"\n{USER}',
]


@pytest.mark.parametrize("text", LEAKS)
def test_no_problem_ever_shows_a_secret(text: str) -> None:
    """However a password hash or a secret URL is misplaced or misspelt, no message repeats it."""
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert caught.value.problems
    assert SECRET not in f"{caught.value}{caught.value.hint}{printed(caught.value.problems)}{caught.value.problems!r}"


def test_a_loaded_configuration_does_not_show_its_secrets() -> None:
    """Not in its representation, which a traceback or a debug line may print."""
    config = parse(f'{MINIMAL}[alerts]\nwebhook_url = "https://{SECRET}/"\nheartbeat_url = "https://{SECRET}/"\n')
    for shown in (repr(config), str(config), repr(config.sftp.users), repr(config.alerts)):
        assert SECRET not in shown
        assert HASH not in shown
