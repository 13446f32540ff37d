"""What is fuzzed beside the conversion: names, headers, configuration, RSS feeds, the SFTP session.

Touches one folder of its own in memory, for configuration files. A target takes bytes and raises when a promise is
broken. Fuzzers (`benchmarks.faults.fuzz`) and `test_corpus` call the same functions.
"""

from __future__ import annotations

import asyncio
import os
import re
import tomllib
from concurrent.futures import Executor, Future
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from server.config import load_config
from server.episodes.rss import NotRss, RssDocument, bare_url, megaphone_token, safe_url
from server.errors import ConfigError
from server.megaphone.exports import METRICS
from server.settings import Config
from server.sftp.handler import MUTATING, Client, Events, RequestHandler, ServedFiles
from server.sftp.protocol import DATA_HEADER_SIZE, MAX_READ, Kind, Status
from server.triton import LogFile, LogFormat, LogName, UrlTemplate, layouts_by_header, prefix_problem

from .odd_rows import RULES
from .reference_conversion import DAY
from .sftp import acknowledged

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.errors import Problem
    from server.pickups import Pickup

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
_LAYOUTS = [rules.layout for _, rules in sorted(RULES.items())]
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f]")


def names(data: bytes) -> None:
    """A text is the name of a log or an export, or it is not; what is one says exactly what it was read from.

    Bytes: the layout, the text; it is read as a name, a prefix, and the beginning of a log.
    """
    if not data:
        return
    text = data[1:].decode(errors="surrogateescape")
    name = LogName.parse(text)
    if name is not None:
        assert str(name) == text
        assert text == os.path.basename(text) == text.strip()  # noqa: PTH119  # a text, not a path
        assert text.isascii()
        assert LogName.parse(name.rejects) is None
    day = METRICS.day_of(text)
    assert day is None or text == f"metrics-day-{day}.json.gz"
    if not prefix_problem(text):
        for number in (0, 99, 100, 123_456_789):
            made = LogName(text, DAY, number, LogFormat.W3C)
            assert LogName.parse(str(made)) == made
    layout = _LAYOUTS[data[0] % len(_LAYOUTS)]
    for log_format in LogFormat:
        found = layouts_by_header(text, layout, LogName("MEGA", DAY, 0, log_format))
        assert found is None or found.format is log_format
        assert found is None or text.startswith(found.header_lines(DAY))
    with suppress(ValueError):
        url, _ = UrlTemplate(text).fill({"podcast_id": "p", "episode_id": "e"}, "guid")
        assert not re.search(r'[\s"\\]', url)


def config(data: bytes) -> None:
    """A file is a configuration, or it is refused with problems that can be read and hold no secret."""
    with TemporaryDirectory(dir=MEMORY) as folder:
        path = Path(folder, "config.toml")
        path.write_bytes(data)
        made = _loaded(path)
    if not isinstance(made, Config):
        text = "\n".join(f"{problem.key} {problem.wrong} {problem.cure}" for problem in made)
        assert made
        assert all(problem.key and problem.wrong and problem.cure for problem in made)
        for secret in _secrets(data):
            assert secret not in text
        return
    rules = made.log.log_rules
    assert type(rules).from_json(rules.as_json()) == rules
    assert 0 <= rules.layout.id_column() < len(rules.layout.specs)
    assert rules.layout.header_lines(DAY).isprintable() or rules.layout.header_lines(DAY).endswith("\n")
    assert not _CONTROLS.search(rules.layout.header_lines(DAY).replace("\n", "").replace("\t", ""))
    UrlTemplate(rules.url).fill({}, "guid")
    assert LogName.parse(str(LogName(made.log.prefix, DAY, 0, made.log.log_format))) is not None
    assert (made.export.bucket is None) == isinstance(made.export.place, Path)
    if made.web is not None:
        assert made.web.host_and_port[0]
    for secret in _secrets(data):
        assert secret not in repr(made)


def _loaded(path: Path) -> Config | list[Problem]:
    try:
        return load_config(path)
    except ConfigError as error:
        return error.problems


def _secrets(data: bytes) -> list[str]:
    """The values of secret keys in a file, where neither the file nor a cure says the same elsewhere."""
    text = data.decode() if _is_utf8(data) else ""
    try:
        raw: Any = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        return []
    sftp, alerts = raw.get("sftp"), raw.get("alerts")
    users = sftp.get("users") if isinstance(sftp, dict) else None
    found = [user.get("password_hash") for user in users if isinstance(user, dict)] if isinstance(users, list) else []
    found += [alerts.get(key) for key in ("webhook_url", "heartbeat_url")] if isinstance(alerts, dict) else []
    return [one for one in found if isinstance(one, str) and len(one) > 20 and "{" not in one and text.count(one) == 1]


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def rss(data: bytes) -> None:
    """A document is read, or is no RSS; the same whatever pieces it comes in. Bytes: the size of a piece, the rest."""
    if not data:
        return
    whole, pieces = _read(data[1:], len(data)), _read(data[1:], data[0] + 1)
    assert (whole is None) == (pieces is None)
    if whole is not None and pieces is not None:
        assert (whole.title, whole.items) == (pieces.title, pieces.items)
        for item in whole.items:
            assert item.guid or item.enclosure_url
            assert item.title.isprintable()
    text = data[1:].decode(errors="surrogateescape")
    assert safe_url(text).isprintable()
    token = megaphone_token(bare_url(text))
    assert token == "" or (token.isalnum() and token.isascii())


def _read(data: bytes, size: int) -> RssDocument | None:
    document = RssDocument()
    try:
        for at in range(0, len(data), size):
            document.feed(data[at : at + size])
        document.close()
    except NotRss:
        return None
    return document


class _AtOnce(Executor):
    """Does what it is given before it gives the future back."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


_FILES = {
    str(name): LogFile(name, 1000, 1_795_000_000)
    for name in (LogName("MEGA", DAY, number, LogFormat.TSV) for number in range(2))
}


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def sftp(data: bytes) -> None:
    """A session's requests are each answered once, with their number, and change nothing.

    Bytes: the requests, each after its length in one byte; a handle is the 4 bytes that the replies give.
    """
    opened: list[int] = []
    pickups: list[Pickup] = []

    def open_file(_: LogFile) -> int:
        descriptor = os.memfd_create("log")
        os.write(descriptor, bytes(1000))
        opened.append(descriptor)
        return descriptor

    delivery = acknowledged(pickups.append)
    view = RequestHandler(
        ServedFiles(lambda: _FILES, open_file),
        Client("triton", "203.0.113.9", "fuzz"),
        Events(pickups.append, lambda *_: None, lambda *_: None),
        delivery=delivery,
        max_handles=4,
        threads=_AtOnce(),
    )
    at = 0
    view.answer(b"\x01\0\0\0\x03")
    try:
        while at < len(data):
            request = data[at + 1 : at + 1 + data[at]]
            at += 1 + data[at]
            reply = view.answer(request)
            if reply is None:
                assert len(request) < 5
                continue
            if not isinstance(reply, bytes | bytearray):
                reply = _loop().run_until_complete(reply)  # type: ignore[arg-type]  # it is a coroutine
            delivery.handed_over(len(reply), data=isinstance(reply, bytearray))
            _answers(request, bytes(reply))
    finally:
        delivery.confirm()
        view.abandon()
    for descriptor in opened:
        with suppress(OSError):
            os.fstat(descriptor)
            raise AssertionError(f"descriptor {descriptor} is still open")
    done = [pickup for pickup in pickups if pickup.grade == "complete"]
    assert len(done) <= len(opened)


def _answers(request: bytes, reply: bytes) -> None:
    assert int.from_bytes(reply[:4], "big") == len(reply) - 4
    assert reply[5:9] == request[1:5]
    assert reply[4] in (Kind.STATUS, Kind.HANDLE, Kind.DATA, Kind.NAME, Kind.ATTRS, Kind.EXTENDED_REPLY)
    assert len(reply) <= DATA_HEADER_SIZE + MAX_READ
    if request[0] in MUTATING:
        assert reply[4] == Kind.STATUS
        assert int.from_bytes(reply[9:13], "big") in (Status.PERMISSION_DENIED, Status.BAD_MESSAGE)
