"""Hostile exports that are not a complete gzip file, or no file at all.

Writes what `exports_cases` is asked to make.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import socket
import zipfile
import zlib
from collections import Counter
from typing import TYPE_CHECKING

from .exports_cases import GOOD, MB, Outcome, bomb, good, hostile, text

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import date
    from pathlib import Path

_TORN, _NO_FILE = "gzip", "no file"


def _whole(day: date) -> tuple[bytes, list[str]]:
    lines, ids = good(day)
    return gzip.compress(text(lines), 6, mtime=0), ids


def _torn(name: str, why: str, damage: Callable[[bytes], bytes]) -> None:
    """A whole export, damaged; nothing of it is published."""

    @hostile(name, _TORN)
    def make(path: Path, day: date) -> Outcome:
        path.write_bytes(damage(_whole(day)[0]))
        return Outcome("failed", why=why)


def _zip(data: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("metrics.json", data)
    return packed.getvalue()


_torn("zero bytes long", "is empty, so it is not a gzip file", lambda _: b"")
_torn("one byte long", "is not a complete gzip file", lambda whole: whole[:1])
_torn("a gzip header and nothing else", "it is truncated", lambda whole: whole[:10])
_torn("cut in its middle", "it is truncated", lambda whole: whole[: len(whole) // 2])
_torn("cut before its checksum", "it is truncated", lambda whole: whole[:-8])
_torn("cut before its last byte", "it is truncated", lambda whole: whole[:-1])
_torn("a wrong checksum", "is not a complete gzip file", lambda whole: whole[:-8] + bytes(4) + whole[-4:])
_torn("a wrong length", "is not a complete gzip file", lambda whole: whole[:-4] + b"\1\2\3\4")
_torn(
    "a bit flipped",
    "is not a complete gzip file",
    lambda w: w[: len(w) // 2] + bytes([w[len(w) // 2] ^ 8]) + w[len(w) // 2 + 1 :],
)
_torn("text after its end", "is not a complete gzip file", lambda whole: whole + b"<html>")
_torn("a second member, cut short", "it is truncated", lambda whole: whole + whole[:-9])
_torn("not compressed", "is not a complete gzip file", gzip.decompress)
_torn("a ZIP archive", "is not a complete gzip file", lambda whole: _zip(gzip.decompress(whole)))
_torn("bzip2", "is not a complete gzip file", lambda whole: bz2.compress(gzip.decompress(whole)))
_torn("xz", "is not a complete gzip file", lambda whole: lzma.compress(gzip.decompress(whole)))
_torn("zlib without gzip", "is not a complete gzip file", lambda whole: zlib.compress(gzip.decompress(whole)))
_torn("zeros", "is not a complete gzip file", lambda _: bytes(100_000))
_torn("a web page", "is not a complete gzip file", lambda _: b"<!doctype html><title>503</title>" * 50)
_torn(
    "a member's name of 2 MB without an end",
    "is not a complete gzip file",
    lambda _: b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 2 * MB,
)
_torn(
    "1 GB of zeros, then damage",
    "is not a complete gzip file",
    lambda _: gzip.compress(bytes(1 << 30), 1)[:-8] + bytes(8),
)


@hostile("gzip in gzip", _TORN)
def gzip_in_gzip(path: Path, day: date) -> Outcome:
    """Unpacked once: what is inside is not JSON."""
    path.write_bytes(gzip.compress(_whole(day)[0] + b"\n"))
    return Outcome("held", why="most of them malformed_json")


@hostile("a row for each of 20,000 members, empty ones between them", _TORN)
def a_member_a_row(path: Path, day: date) -> Outcome:
    """Is a whole gzip file."""
    lines, ids = good(day, 20_000)
    empty = gzip.compress(b"", 1, mtime=0)
    path.write_bytes(b"".join(gzip.compress(line + b"\n", 1, mtime=0) + empty for line in lines))
    return Outcome(ids=ids)


@hostile("every field that a gzip header has, and zero padding", _TORN)
def full_header(path: Path, day: date) -> Outcome:
    """Is a whole gzip file."""
    whole, ids = _whole(day)
    fields = b"\x04\0\x01\x02\x03\x04" + b"../../etc/passwd\0" + b"a comment\0"
    head = b"\x1f\x8b\x08\x1e\1\2\3\4\0\3" + fields
    path.write_bytes(head + (zlib.crc32(head) & 0xFFFF).to_bytes(2, "little") + whole[10:] + bytes(70_000))
    return Outcome(ids=ids)


@hostile("nothing but a million newlines", _TORN)
def newlines(path: Path, _: date) -> Outcome:
    """An empty day, after days that had rows."""
    bomb(path, [(b"\n" * MB, 1)])
    return Outcome("held", why="the export is empty, although one of the last 7 days had rows")


@hostile("cut in mid-row, but whole as gzip", _TORN)
def cut_in_mid_row(path: Path, day: date) -> Outcome:
    """The row is malformed, the others are good."""
    lines, ids = good(day)
    bomb(path, [(text(lines) + lines[0][:50], 1)])
    return Outcome(ids=ids, rejected=Counter(malformed_json=1), at={GOOD + 1: "malformed_json"})


@hostile("no newline at its end", _TORN)
def no_last_newline(path: Path, day: date) -> Outcome:
    """Every row is there."""
    lines, ids = good(day)
    bomb(path, [(b"\n".join(lines), 1)])
    return Outcome(ids=ids)


def _no_file(name: str, make_it: Callable[[Path], object]) -> None:
    """Something that is not a regular file: as if there were nothing."""

    @hostile(name, _NO_FILE)
    def make(path: Path, _: date) -> Outcome:
        make_it(path)
        return Outcome("missing")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as it:
        folder = os.open(path.parent, os.O_PATH)
        try:  # a socket's path has 107 bytes at most
            it.bind(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)


_no_file("a folder", lambda path: (path / "metrics-day-2026-01-01.json.gz").mkdir(parents=True))
_no_file("a FIFO", lambda path: os.mkfifo(path))
_no_file("a socket", _socket)
_no_file("a link to /dev/zero", lambda path: path.symlink_to("/dev/zero"))
_no_file("a link to itself", lambda path: path.symlink_to(path))
_no_file("a link to nothing", lambda path: path.symlink_to("nothing"))
_no_file("a wrong extension", lambda path: path.with_suffix(".GZ").write_bytes(b"x"))
_no_file("a name in a folder", lambda path: (path.parent / "deeper" / path.name).mkdir(parents=True))


@hostile("a link to a good export", _NO_FILE)
def link_to_an_export(path: Path, day: date) -> Outcome:
    """Counts as the file it leads to."""
    whole, ids = _whole(day)
    target = path.with_name(f"elsewhere-{day}")
    target.write_bytes(whole)
    path.symlink_to(target)
    return Outcome(ids=ids)


@hostile("a good export among names that are not", _NO_FILE)
def among_bad_names(path: Path, day: date) -> Outcome:
    """None of these names is a day; the good one is."""
    whole, ids = _whole(day)
    for name in (
        f"metrics-day-{day}.json", f"metrics-day-{day}.json.gz.part", f"METRICS-day-{day}.json.gz",
        f" metrics-day-{day}.json.gz", f"metrics-day-{day}.json.gz\n", f"metrics-day-{day}.json.gz%00",
        "metrics-day-2026-02-30.json.gz", "metrics-day-0000-00-00.json.gz", "metrics-day-9999-12-31.json.gz",
        "..metrics-day-2026-11-20.json.gz", "*", "\udcff\udcfe",
        "metrics-day-\uff12026-11-20.json.gz", "metrics-day-2026-11-20.json.gz\u202e", "-rf", "$(id)", "a" * 255,
    ):  # fmt: skip
        path.with_name(name).write_bytes(b"no export")
    path.write_bytes(whole)
    return Outcome(ids=ids)


@hostile("days that no calendar is used to", _NO_FILE)
def odd_days(path: Path, day: date) -> Outcome:
    """The first and the last day that there can be, beside a good one."""
    whole, ids = _whole(day)
    for odd in ("0001-01-01", "0001-01-02", "9999-12-30", "1969-12-31", "1900-02-28"):
        path.with_name(f"metrics-day-{odd}.json.gz").write_bytes(whole)
    path.write_bytes(whole)
    return Outcome(ids=ids)
