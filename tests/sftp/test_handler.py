"""The request handler, asked by real clients and byte by byte."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import asyncssh
import pytest
from structlog.testing import capture_logs

from server.sftp import protocol as packets
from server.sftp.limits import OPENS, OWN_DESCRIPTORS
from server.sftp.protocol import Kind, Status

from ..support.sftp import NAME, RawSftp, Running, running, string

if TYPE_CHECKING:
    from pathlib import Path

OK, EOF, NO_SUCH_FILE, DENIED, FAILURE, BAD, UNSUPPORTED = 0, 1, 2, 3, 4, 5, 8

# Every public method of asyncssh's own SFTP server: what a client's request for it gets here. "read" is answered,
# "refused" names the requests that must fail, "none" is no request but a helper of asyncssh's, which is not in use.
ASYNCSSH_METHODS: dict[str, str] = {
    "open": "read",
    "close": "read",
    "read": "read",
    "stat": "read",
    "lstat": "read",
    "fstat": "read",
    "scandir": "read",
    "realpath": "read",
    "open56": "refused",
    "write": "refused",
    "setstat": "refused",
    "lsetstat": "refused",
    "fsetstat": "refused",
    "statvfs": "refused",
    "fstatvfs": "refused",
    "remove": "refused",
    "mkdir": "refused",
    "rmdir": "refused",
    "rename": "refused",
    "posix_rename": "refused",
    "readlink": "refused",
    "symlink": "refused",
    "link": "refused",
    "lock": "refused",
    "unlock": "refused",
    "fsync": "refused",
    "channel": "none",
    "connection": "none",
    "env": "none",
    "logger": "none",
    "convert_attrs": "none",
    "exit": "none",
    "format_user": "none",
    "format_group": "none",
    "format_longname": "none",
    "map_path": "none",
    "reverse_map_path": "none",
}
PATH, TEN = string(NAME.encode()), bytes(4)
# What reaches those methods: the message code and the payload, for the named file and for an open handle.
REFUSED_REQUESTS: dict[str, list[tuple[int, bytes, int]]] = {
    "open56": [(Kind.OPEN, PATH + (0x80000001).to_bytes(4, "big") + bytes(4), DENIED)],
    "write": [
        (Kind.WRITE, b"{handle}" + bytes(8) + string(b"x" * 1000), DENIED),
        (Kind.EXTENDED, string(b"copy-data") + b"{handle}" + bytes(16) + b"{handle}" + bytes(8), UNSUPPORTED),
    ],
    "setstat": [(Kind.SETSTAT, PATH + b"\0\0\0\x04\0\0\x01\xff", DENIED)],
    "lsetstat": [(Kind.EXTENDED, string(b"lsetstat@openssh.com") + PATH + TEN, UNSUPPORTED)],
    "fsetstat": [(Kind.FSETSTAT, b"{handle}" + b"\0\0\0\x01" + bytes(8), DENIED)],
    "statvfs": [(Kind.EXTENDED, string(b"statvfs@openssh.com") + string(b"/"), UNSUPPORTED)],
    "fstatvfs": [(Kind.EXTENDED, string(b"fstatvfs@openssh.com") + b"{handle}", UNSUPPORTED)],
    "remove": [(Kind.REMOVE, PATH, DENIED)],
    "mkdir": [(Kind.MKDIR, string(b"new") + TEN, DENIED)],
    "rmdir": [(Kind.RMDIR, string(b"/"), DENIED)],
    "rename": [(Kind.RENAME, PATH + string(b"new"), DENIED)],
    "posix_rename": [(Kind.EXTENDED, string(b"posix-rename@openssh.com") + PATH + string(b"new"), UNSUPPORTED)],
    "readlink": [(Kind.READLINK, PATH, DENIED)],
    "symlink": [(Kind.SYMLINK, string(b"/etc/passwd") + string(b"new"), DENIED)],
    "link": [
        (Kind.LINK, string(b"new") + PATH + b"\0", UNSUPPORTED),
        (Kind.EXTENDED, string(b"hardlink@openssh.com") + PATH + string(b"new"), UNSUPPORTED),
    ],
    "lock": [(Kind.BLOCK, b"{handle}" + bytes(16) + TEN, UNSUPPORTED)],
    "unlock": [(Kind.UNBLOCK, b"{handle}" + bytes(16), UNSUPPORTED)],
    "fsync": [(Kind.EXTENDED, string(b"fsync@openssh.com") + b"{handle}", UNSUPPORTED)],
}


def test_every_method_of_asyncssh_s_sftp_server_is_classified() -> None:
    """A verb that a new asyncssh brings must be classified here before this passes again."""
    methods = {name for name in dir(asyncssh.SFTPServer) if not name.startswith("_")}
    assert methods == set(ASYNCSSH_METHODS)
    assert {name for name, sort in ASYNCSSH_METHODS.items() if sort == "refused"} == set(REFUSED_REQUESTS)


@pytest.mark.parametrize("method", REFUSED_REQUESTS)
async def test_a_refused_verb_changes_nothing_and_the_session_goes_on(listener: Running, method: str) -> None:
    """The client hears "permission denied" or "unsupported", and its next read is answered."""
    before = listener.served.state()
    async with listener.connect() as connection:
        raw = await RawSftp.open(connection)
        handle = await raw.open_file(NAME)
        for kind, payload, code in REFUSED_REQUESTS[method]:
            assert await raw.status(kind, payload.replace(b"{handle}", handle)) == code
            assert await raw.read(handle, 0, 10) == bytes(range(10))
    assert listener.served.state() == before


@pytest.mark.parametrize("flags", [0, 2, 3, 5, 9, 0x11, 0x21, 0x3F, 0x80000001, 0xFFFFFFFF])
async def test_only_plain_reading_opens_a_file(listener: Running, flags: int) -> None:
    """FXF_READ with CREAT or TRUNC, or anything else, creates nothing and empties nothing."""
    before = listener.served.state()
    async with listener.connect() as connection:
        raw = await RawSftp.open(connection)
        for name in (NAME, "MEGA20261121-00.tsv.gz"):
            code = await raw.status(Kind.OPEN, string(name.encode()) + flags.to_bytes(4, "big") + bytes(4))
            assert code == DENIED
    assert listener.served.state() == before


@pytest.mark.parametrize(
    "path", ["", "/", ".", "./", "/.", "//", "/./", "././.", "..", "/..", "/../", "../.", "./../.."]
)
async def test_the_one_directory_has_many_spellings(listener: Running, path: str) -> None:
    """All of them stat as a directory, list the files, and have the real path "/"."""
    async with listener.connect() as connection, connection.start_sftp_client() as sftp:
        raw = await RawSftp.open(connection)
        for kind in (Kind.STAT, Kind.LSTAT):
            assert (await raw.ask(kind, string(path.encode())))[0] == Kind.ATTRS
        assert (await raw.ask(Kind.OPENDIR, string(path.encode())))[0] == Kind.HANDLE
        assert await raw.status(Kind.OPEN, string(path.encode()) + b"\0\0\0\1" + bytes(4)) == FAILURE
        reply = await raw.ask(Kind.REALPATH, string(path.encode()))
        assert reply[9:14] == string(b"/")
        if path:
            assert await sftp.listdir(path) == [NAME]


@pytest.mark.parametrize("path", [NAME, f"/{NAME}", f"./{NAME}", f"../{NAME}", f"/../{NAME}", f"/./..//{NAME}"])
async def test_a_file_has_several_spellings(listener: Running, path: str) -> None:
    """NAME, /NAME, ./NAME and, since above the root is the root, ../NAME are the same file."""
    async with listener.connect() as connection, connection.start_sftp_client() as sftp:
        attrs = await sftp.stat(path)
        assert (attrs.size, attrs.permissions, attrs.mtime) == (1 << 20, stat.S_IFREG | 0o440, 1_795_000_000)
        assert await sftp.realpath(path) == f"/{NAME}"
        async with sftp.open(path, "rb") as file:
            assert await file.read(5) == bytes(range(5))


@pytest.mark.parametrize(
    ("path", "real"),
    [
        (f"x/{NAME}", None),
        (f"x/../{NAME}", None),
        (f"{NAME}/", b"/" + NAME.encode()),
        (f"{NAME}/.", b"/" + NAME.encode()),
        (f"{NAME}/..", b"/"),
        (f"{NAME}/../{NAME}", b"/" + NAME.encode()),
        (f"{NAME}/../etc", b"/etc"),
        (f"{NAME}/x", None),
        (f"{NAME}/{NAME}", None),
        ("etc/", None),
        ("etc/..", None),
        ("/etc/passwd", None),
        ("../etc/passwd", None),
        ("//etc/hostname", None),
        ("etc", b"/etc"),
        ("/../etc", b"/etc"),
        ("/proc/self/environ", None),
        ("hidden", b"/hidden"),
        ("...", b"/..."),
        (NAME + "\0", None),
        ("a" * 255, b"/" + b"a" * 255),
        ("a" * 256, None),
        (NAME.lower(), b"/" + NAME.lower().encode()),
        ("\u00e9", "/\u00e9".encode()),
    ],
)
async def test_no_other_path_exists(listener: Running, path: str, real: bytes | None, tmp_path: Path) -> None:
    """A path with another directory in it, an unpublished file, a control character: no such file. Only REALPATH
    answers for a last name that is missing, and takes a file for a folder, as OpenSSH does: clients ask it before they
    try."""
    (tmp_path / "pickup" / "hidden").write_text("not in the catalogue")
    async with listener.connect() as connection:
        raw = await RawSftp.open(connection)
        for kind in (Kind.STAT, Kind.LSTAT, Kind.OPENDIR):
            assert await raw.status(kind, string(path.encode())) == NO_SUCH_FILE
        reply = await raw.ask(Kind.REALPATH, string(path.encode()))
        if real is None:
            assert (reply[0], int.from_bytes(reply[5:9], "big")) == (Kind.STATUS, NO_SUCH_FILE)
        else:
            assert (reply[0], reply[5:]) == (Kind.NAME, b"\0\0\0\1" + string(real) * 2 + bytes(4))
        assert await raw.status(Kind.OPEN, string(path.encode()) + b"\0\0\0\1" + bytes(4)) == NO_SUCH_FILE


async def test_bytes_behind_a_request_are_ignored(listener: Running) -> None:
    """As OpenSSH does: some clients send attributes or padding that version 3 does not know."""
    more = b"\0\0\0\0more"
    async with listener.connect() as connection:
        raw = await RawSftp.open(connection)
        handle = await raw.open_file(NAME)
        folder = (await raw.ask(Kind.OPENDIR, string(b"/") + more))[5:]
        for kind, payload, answer in (
            (Kind.OPEN, PATH + b"\0\0\0\1" + bytes(4), Kind.HANDLE),
            (Kind.READ, handle + bytes(8) + b"\0\0\0\1", Kind.DATA),
            (Kind.STAT, PATH, Kind.ATTRS),
            (Kind.LSTAT, PATH, Kind.ATTRS),
            (Kind.FSTAT, handle, Kind.ATTRS),
            (Kind.REALPATH, PATH, Kind.NAME),
            (Kind.READDIR, folder, Kind.NAME),
            (Kind.EXTENDED, string(b"limits@openssh.com"), Kind.EXTENDED_REPLY),
        ):
            assert (await raw.ask(kind, payload + more))[0] == answer
        assert await raw.status(Kind.CLOSE, handle + more) == OK
        assert await raw.status(Kind.STAT, PATH[:-1]) == BAD


async def test_links_fifos_and_replaced_files_are_not_served(listener: Running, tmp_path: Path) -> None:
    """What is not a regular file of the published size does not exist, and a FIFO blocks nobody."""
    target = tmp_path / "pickup" / NAME
    async with listener.connect() as connection:
        raw = await RawSftp.open(connection)
        content = target.read_bytes()
        for replace in (
            lambda: target.symlink_to("/etc/hostname"),
            lambda: os.mkfifo(target),
            lambda: target.mkdir(),
            lambda: target.write_bytes(content + b"x"),
        ):
            target.unlink()
            replace()
            reply = await raw.ask(Kind.OPEN, PATH + b"\0\0\0\1" + bytes(4))
            assert reply[0] == Kind.STATUS
            assert int.from_bytes(reply[5:9], "big") in (NO_SUCH_FILE, FAILURE)
            if target.is_dir() and not target.is_symlink():
                target.rmdir()
                target.write_bytes(b"")


async def test_reads_are_cut_at_255_kib_and_at_the_end(listener: Running) -> None:
    """A request for 4 GiB gets 255 KiB; a read past the end gets EOF, up to an offset of 2^64-1; one of nothing gets
    nothing, as from OpenSSH's server, and not the end of the file."""
    content = bytes(range(256)) * 4096
    async with listener.connect() as connection:
        raw = await RawSftp.open(connection)
        handle = await raw.open_file(NAME)
        assert await raw.read(handle, 0, 0xFFFFFFFF) == content[: packets.MAX_READ]
        assert await raw.read(handle, len(content) - 5, 100) == content[-5:]
        for offset in (len(content), len(content) + 1, 2**63, 2**64 - 1):
            assert await raw.read(handle, offset, 100) is None
        for offset in (0, 5, len(content)):
            assert await raw.read(handle, offset, 0) == b""
        assert await raw.status(Kind.READ, string(b"none") + bytes(8) + b"\0\0\0\1") == FAILURE


async def test_a_listing_is_the_snapshot_of_its_opening(listener: Running) -> None:
    """Files pruned and published between two READDIRs neither break the listing nor show up in it."""
    for number in range(1, 250):
        listener.served.add(f"MEGA20261120-{number:02d}.tsv.gz", b"x")
    async with listener.connect() as connection:
        raw = await RawSftp.open(connection)
        reply = await raw.ask(Kind.OPENDIR, string(b"/"))
        handle = reply[5:]
        seen = int.from_bytes((await raw.ask(Kind.READDIR, handle))[5:9], "big")
        for number in range(1, 250):
            listener.served.prune(f"MEGA20261120-{number:02d}.tsv.gz")
        listener.served.add("MEGA20261121-00.tsv.gz", b"x")
        while (reply := await raw.ask(Kind.READDIR, handle))[0] == Kind.NAME:
            seen += int.from_bytes(reply[5:9], "big")
        assert seen == 250
        assert await raw.status(Kind.READDIR, handle) == EOF
        assert await raw.status(Kind.CLOSE, handle) == OK
        assert await raw.status(Kind.CLOSE, handle) == FAILURE


async def test_an_open_file_outlives_its_pruning(listener: Running) -> None:
    """Reads and fstat go on after the file is gone; a new open does not find it."""
    async with listener.connect() as connection:
        raw = await RawSftp.open(connection)
        handle = await raw.open_file(NAME)
        listener.served.prune(NAME)
        assert await raw.read(handle, 1000, 4) == bytes(range(256))[1000 % 256 :][:4]
        reply = await raw.ask(Kind.FSTAT, handle)
        assert reply[0] == Kind.ATTRS
        assert int.from_bytes(reply[9:17], "big") == 1 << 20
        assert await raw.status(Kind.OPEN, PATH + b"\0\0\0\1" + bytes(4)) == NO_SUCH_FILE


async def test_nothing_about_this_machine_leaks(listener: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The long name has a fixed owner and UTC; banner and VERSION give away no version number."""
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    yesterday = datetime.now(UTC) - timedelta(days=1)  # of an older file the year is shown
    listener.served.add(NAME, bytes(1 << 20), int(yesterday.timestamp()))
    async with listener.connect() as connection, connection.start_sftp_client() as sftp:
        assert connection.get_extra_info("server_version") == "SSH-2.0-pickup-point"
        (entry,) = await sftp.readdir("/")
        assert str(entry.longname).startswith(
            f"-r--r-----    1 pickup   pickup        1048576 {yesterday:%b} {yesterday.day:2} {yesterday:%H:%M} MEGA"
        )
        assert (entry.attrs.uid, entry.attrs.gid) == (None, None)
        raw = await RawSftp.open(connection, greet=False)
        raw.send(b"\x01" + (6).to_bytes(4, "big"))
        assert await raw.receive() == b"\x02\0\0\0\x03" + string(b"limits@openssh.com") + string(b"1")
        reply = await raw.ask(Kind.EXTENDED, string(b"limits@openssh.com"))
        numbers = [int.from_bytes(reply[i : i + 8], "big") for i in range(5, 37, 8)]
        assert numbers == [256 * 1024, 255 * 1024, 255 * 1024, 64]


async def test_an_open_that_fails_tells_the_client_nothing(listener: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error's text stays in the service log; the client gets "Failure" and may go on."""

    def broken(_: object) -> int:
        raise PermissionError(13, "secret path /var/lib")

    monkeypatch.setattr(listener.served, "open_file", broken)
    object.__setattr__(listener.server.registry.files, "open_file", broken)
    async with listener.connect() as connection:
        raw = await RawSftp.open(connection)
        reply = await raw.ask(Kind.OPEN, PATH + b"\0\0\0\1" + bytes(4))
        assert reply[5:] == b"\0\0\0\x04" + string(b"Failure") + string(b"en")
        assert (await raw.ask(Kind.STAT, PATH))[0] == Kind.ATTRS


async def test_a_file_that_cannot_be_opened_for_want_of_descriptors_is_told(
    listener: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client is asked to come again, and the operator is told why, and what to raise."""
    async with listener.connect() as connection:
        raw = await RawSftp.open(connection)
        with capture_logs() as entries, monkeypatch.context() as few:
            few.setattr("server.sftp.registry.free_descriptors", lambda: OWN_DESCRIPTORS)
            assert await raw.status(Kind.OPEN, PATH + b"\0\0\0\1" + bytes(4)) == FAILURE
        assert [(entry["reason"], "LimitNOFILE" in entry["hint"]) for entry in entries] == [("no-descriptors", True)]
        await raw.open_file(NAME)


async def test_a_listed_file_that_is_gone_is_told(listener: Running) -> None:
    """To the client it does not exist; the journal says which one, since the operator must put it back."""
    (listener.served.folder / NAME).unlink()
    with capture_logs() as entries:
        async with listener.connect() as connection:
            raw = await RawSftp.open(connection)
            assert await raw.status(Kind.OPEN, PATH + b"\0\0\0\1" + bytes(4)) == NO_SUCH_FILE
    assert [entry["error"] for entry in entries if f"could not read {NAME}" in entry["event"]] != []


@pytest.mark.parametrize("command", ["id -u", f"scp -f {NAME}", None])
async def test_a_shell_or_a_command_gets_one_sentence(listener: Running, command: str | None) -> None:
    """ "This service allows SFTP only." and exit status 1; the journal says what was asked for, not in whose words."""
    with capture_logs() as entries:
        async with listener.connect() as connection:
            result = await connection.run(command, check=False)
            assert (result.stdout, result.exit_status) == ("This service allows SFTP only.\n", 1)
    (line,) = [entry for entry in entries if "refused" in entry["event"]]
    assert line["event"].endswith(f"refused {'command' if command else 'shell'}") and "scp -s" in line["hint"]
    assert command is None or command not in str(entries)


async def test_everything_but_sftp_is_switched_off(listener: Running) -> None:
    """No port forwarding in either direction, no UNIX sockets, no agent, no X11, no terminal, no other subsystem."""
    async with listener.connect() as connection:
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.open_connection("127.0.0.1", listener.port)
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.open_unix_connection("/run/x")
        with pytest.raises(asyncssh.ChannelListenError):
            await connection.forward_remote_port("127.0.0.1", 0, "127.0.0.1", listener.port)
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.open_session(subsystem="netconf")
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.open_session(term_type="xterm")
    assert listener.server.registry.counters.refused_verbs == {"forwarding": 3, "subsystem": 1}


async def test_reads_that_wait_for_the_disk_are_answered_in_order(tmp_path: Path, keys_dir: Path) -> None:
    """Without the page cache every read goes through a thread, and the file is still whole."""
    async with running(tmp_path, keys_dir) as it:
        content = it.served.add(NAME, os.urandom(3_000_000))
        descriptor = os.open(it.served.folder / NAME, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
        async with it.connect() as connection:
            raw = await RawSftp.open(connection)
            handle = await raw.open_file(NAME)
            for offset in range(0, len(content), 100_000):
                number = (1000 + offset).to_bytes(4, "big")
                raw.send(bytes([5]) + number + handle + offset.to_bytes(8, "big") + (100_000).to_bytes(4, "big"))
            got = [await raw.receive() for _ in range(0, len(content), 100_000)]
        assert [int.from_bytes(reply[1:5], "big") - 1000 for reply in got] == list(range(0, len(content), 100_000))
        assert b"".join(reply[9:] for reply in got) == content


async def test_the_session_ends_when_the_client_says_so(listener: Running) -> None:
    """After the client's end of input everything asked is answered, then the channel closes with status 0."""
    async with listener.connect() as connection:
        raw = await RawSftp.open(connection)
        handle = await raw.open_file(NAME)
        for number in range(50):
            raw.send(bytes([5]) + number.to_bytes(4, "big") + handle + bytes(8) + (200_000).to_bytes(4, "big"))
        raw.writer.write_eof()
        for _ in range(50):
            assert len(await raw.receive()) == 200_009
        assert await raw.reader.read() == b""
        await asyncio.wait_for(raw.writer.channel.wait_closed(), 10)
        assert raw.writer.channel.get_returncode() == 0


async def test_a_loop_of_openings_is_slowed_down(listener: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each costs a line and two records, which must not crowd out those of other users."""
    monkeypatch.setattr("server.sftp.limits.OPENS_BURST", 5.0)
    waits: list[float] = []
    turn, instant = listener.server.registry._opens.turn, time.monotonic()

    def watching(user: str, _: float) -> float:
        waits.append(turn(user, instant))  # always the same: a machine that is busy pauses long enough by itself
        return waits[-1]

    monkeypatch.setattr(listener.server.registry._opens, "turn", watching)
    async with listener.connect() as connection, connection.start_sftp_client() as sftp:
        for _ in range(8):
            async with sftp.open(NAME, "rb"):
                pass
    assert waits == pytest.approx([max(0, number - 4) / OPENS for number in range(8)], abs=1e-6)


async def test_refused_verbs_of_many_sessions_are_a_few_lines(listener: Running) -> None:
    """A session reports each verb once; a client that opens sessions in a loop gets no more lines than other floods."""
    with capture_logs() as entries:
        async with listener.connect() as connection:
            for _ in range(12):
                raw = await RawSftp.open(connection)
                assert await raw.status(Kind.REMOVE, string(NAME.encode())) == Status.PERMISSION_DENIED
                raw.writer.channel.close()
                await raw.writer.channel.wait_closed()
    assert sum("refused remove" in entry["event"] for entry in entries) == 5
    assert listener.server.registry.counters.refused_verbs["remove"] == 12
