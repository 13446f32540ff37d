"""A user's attempts: a password, and more in mind than reading log files.

Logs in as ``evil`` from addresses of 127.11.0.0/16, reads and writes SFTP byte by byte. What must hold: nothing but
the published files can be named, read or changed, whatever is asked, and no pickup is recorded as complete, since no
attempt here takes a file whole.
"""

# ruff: noqa: SLF001  # a client that behaves has no way to do this

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import asyncssh

from server.pickups import Coverage
from server.sftp.protocol import Kind
from tests.support.program import log_of
from tests.support.sftp import RawSftp, string

from .attack_forgery import FORGERIES

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from .attack_target import Target
    from .result import Fault

NETWORK = 11
NO_SUCH_FILE, DENIED, UNSUPPORTED = 2, 3, 8
LONGEST_ANSWER = 255 * 1024


def hostile_paths(name: str, folder: Path) -> list[bytes]:
    """Names of what is there and is not served, in every spelling that some server has fallen for."""
    whole = f"{folder}/data/pickup/{name}".encode()
    own = name.encode()
    outside = [b"etc/passwd", b"config.toml", b"keys/ip_hash.key", b"data/ledger.sqlite3", b"data/staging",
               b"proc/self/mem", b"proc/self/environ", b"data/rejects", b"dev/zero"]  # fmt: skip
    ups = [b"/", b"//", b"../", b"../../", b"/../", b"/..//", b"./../", b"....//", b"%2e%2e/", b"..%2f", b"..\\", b"\\",
           b"\xc0\xae\xc0\xae/", b"\xe2\x80\xae", b"~/", b"~root/", b"/./../", b"C:/", b"file:///", b"\0/"]  # fmt: skip
    return [
        *(up + path for up in ups for path in outside),
        *(whole, b"../pickup/" + own, own + b"/", own + b"/..", own + b"/../" + own, own + b"\0", own + b"\0.txt"),
        *(own + b" ", b" " + own, own.lower(), own + b".", own + b"::$DATA", own.replace(b".", b"%2e"), own[:-1]),
        *(b"." + own, own + b"~", own + b".part", own + b"-wal", b"*", b"TEST*", b"TEST?", b"[A-Z]*", b"-rf", b"|id"),
        "\uff34EST".encode() + own[4:],
        own.replace(b"T", "\u0422".encode(), 1),
        own + "\u0301".encode(),
        *(b"\xff\xfe", b"\xed\xa0\x80", b"\x1b[2J", own + b"\r\n", b"a" * 65_536, b"x/" * 30_000),
        b"/" * 65_536 + own + b"/",
        *(b"ledger.sqlite3", b"ledger.sqlite3-wal", b"staging", b"..", b"/..", b"...", b".git", b"\\..\\etc\\passwd"),
        log_of(3).encode(),  # lies in the staging folder
        log_of(200).encode(),  # might have been pruned
    ]


async def paths(target: Target, dice: random.Random, row: Fault) -> int:
    """Each hostile name by every request that takes one."""
    names = dice.sample(hostile_paths(target.big, target.site.folder), 60)
    async with target.connect("evil", dice, NETWORK) as connection:
        raw = await RawSftp.open(connection)
        for name in names:
            for kind in (Kind.STAT, Kind.LSTAT, Kind.REALPATH, Kind.OPENDIR, Kind.OPEN):
                more = b"\0\0\0\1" + bytes(4) if kind is Kind.OPEN else b""
                reply = await raw.ask(kind, string(name) + more)
                status = int.from_bytes(reply[5:9], "big") if reply[0] == Kind.STATUS else -1
                # REALPATH says how a name would be spelled, as OpenSSH does, and nothing of whether it is there.
                spelled = kind is Kind.REALPATH and reply[0] == Kind.NAME and reply[13:14] == b"/"
                row.expect(
                    spelled or status == NO_SUCH_FILE, f"{kind.name} of {name[:60]!r} was answered {reply[:20]!r}"
                )
    return len(names) * 5


async def reads(target: Target, dice: random.Random, row: Fault) -> int:
    """Offsets and lengths of every size, one range ten thousand times, closed, foreign and made-up handles."""
    content = target.content[target.big]
    edges = [0, 1, len(content) - 1, len(content), len(content) + 1, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1]
    async with target.connect("evil", dice, NETWORK) as connection:
        raw, other = await RawSftp.open(connection), await RawSftp.open(connection)
        handle, closed = await raw.open_file(target.big), await raw.open_file(target.big)
        await raw.status(Kind.CLOSE, closed)
        foreign = await other.open_file(target.big)
        foreign = await other.open_file(target.big)
        foreign = await other.open_file(target.big)
        seen = Coverage()
        for _ in range(60):
            offset = dice.choice([*edges, dice.randrange(1, len(content))])
            length = dice.choice([0, 1, 255, LONGEST_ANSWER, LONGEST_ANSWER + 1, (1 << 31), (1 << 32) - 1])
            got = await raw.read(handle, offset, length)
            wanted = content[offset : offset + min(length, LONGEST_ANSWER)]
            row.expect((got or b"") == wanted, f"READ {offset} {length} gave {len(got or b'')} bytes")
            seen.add(offset, offset + len(got or b""))
        target.fetched["evil", target.big] += seen.covers(len(content))  # then it was picked up
        for wrong in (closed, foreign, string(b""), string(b"\xff" * 256), string(dice.randbytes(4))):
            row.expect(await raw.read(wrong, 0, 100) is None, f"the handle {wrong!r} can be read")
        many = 10_000
        ask = bytes([Kind.READ]) + bytes(4) + handle + bytes(8) + (100).to_bytes(4, "big")
        for _ in range(many // 100):
            for _ in range(100):
                raw.send(ask)
            for _ in range(100):
                row.expect((await raw.receive())[9:] == content[:100], "a range read again was another one")
    return 65 + many


async def beside_sftp(target: Target, dice: random.Random, row: Fault) -> int:
    """Shells, commands, other subsystems, terminals, agents, X11, and forwarding in every direction."""
    count = 0
    async with target.connect("evil", dice, NETWORK) as connection:
        for command in (None, "id", "/bin/sh -c id", "internal-sftp", "scp -t /", "scp -f /etc/passwd", "\x1b[2J"):
            done = await connection.run(command, check=False, stdin=asyncssh.DEVNULL)
            count += 1
            row.expect(done.exit_status == 1 and str(done.stdout) == "This service allows SFTP only.\n",
                       f"{command} gave {done.exit_status}, {done.stdout!r}")  # fmt: skip
        tries: list[Callable[[], Any]] = [
            lambda: connection.create_process(subsystem="netconf"),
            lambda: connection.create_process(subsystem="sftp\0"),
            lambda: connection.open_connection("127.0.0.1", target.port),
            lambda: connection.open_connection("169.254.169.254", 80),
            lambda: connection.open_unix_connection("/run/systemd/notify"),
            lambda: connection.forward_remote_port("127.0.0.1", 0, "127.0.0.1", 22),
            lambda: connection.forward_remote_path(f"{target.site.folder}/sock", "/x"),
            lambda: connection.start_server(lambda *_: None, "127.0.0.1", 0),
            lambda: connection.start_unix_server(lambda *_: None, f"{target.site.folder}/sock"),
        ]
        for number, attempt in enumerate(tries):
            count += 1
            try:
                await attempt()
                row.lost.append(f"something beside SFTP was opened: {number}")
            except (asyncssh.Error, asyncssh.ChannelListenError, OSError):
                pass
    return count


async def packets_after_login(target: Target, dice: random.Random, row: Fault) -> int:
    """SSH packets that no client sends, one a connection: most end it, and only it."""
    for _ in range(4):
        async with target.connect("evil", dice, NETWORK) as connection:
            raw = await RawSftp.open(connection)
            code = dice.choice([1, 2, 3, 4, 5, 6, 7, 21, 30, 31, 50, 52, 61, 80, 81, 82, *range(90, 101), 192, 255])
            body = dice.choice([bytes(4), b"\xff" * 4, bytes(4) + string(dice.randbytes(20)), dice.randbytes(40), b""])
            connection.send_packet(code, body)
            with suppress(asyncio.IncompleteReadError, TimeoutError, asyncssh.Error):
                async with asyncio.timeout(0.3):
                    reply = await raw.ask(Kind.STAT, string(b"/"))
                    row.expect(reply[0] == Kind.ATTRS, f"after packet {code} STAT was answered {reply[:9]!r}")
            connection.abort()
    return 4


async def too_many(target: Target, dice: random.Random, row: Fault) -> int:
    """Sessions, handles and requests on a channel beyond the limits: each is refused, and those before go on."""
    count = 0
    async with target.connect("evil", dice, NETWORK) as connection:
        sessions: list[RawSftp] = []
        with suppress(asyncssh.ChannelOpenError):
            while len(sessions) < 40:
                count += 1
                sessions.append(await RawSftp.open(connection))
        row.expect(len(sessions) <= 10, f"a user has {len(sessions)} sessions")
        opened = 0
        while opened < 100 and (await sessions[0].ask(Kind.OPENDIR, string(b"/")))[0] == Kind.HANDLE:
            opened += 1
        count += opened + 1
        row.expect(opened <= 64, f"a session has {opened} handles")
        for raw in sessions:
            row.expect((await raw.ask(Kind.STAT, string(b"/")))[0] == Kind.ATTRS, "a session did not go on")
        for _ in range(200):
            sessions[-1].writer.channel._send_request(b"env", string(b"A"), string(b"B" * 100))
        await asyncio.sleep(0.2)
    return count + 200


ATTEMPTS: dict[str, Callable[[Target, random.Random, Fault], Awaitable[int | None]]] = {
    "hostile paths": paths,
    "reads of every size": reads,
    "everything beside SFTP": beside_sftp,
    "packets after login": packets_after_login,
    **{f"forged pickup: {name}": attempt for name, attempt in FORGERIES.items()},
    "too many of everything": too_many,
}
