"""A stranger's attempts: the port, and no password.

Connects from addresses of 127.10.0.0/16, each attempt from another one, as somebody who has many. What must hold: he is
never let in, he hears nothing of what the machine is made of, the time of a refusal does not tell who is known here,
and the partner, who is in no allow list, comes in all the while.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import statistics
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncssh
import paramiko

from tests.support.between import IGNORE

from .attack_target import LEAKS, VICTIM, address
from .network_strangers import kexinit, packet

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable

    from .attack_target import Target
    from .result import Campaign, Fault

NETWORK = 10
NAMES = [
    "triton",
    "evil",
    "middle",
    "root",
    "",
    "tri\nton",
    f"x sftp refused {VICTIM}",
    "\x1b[2J",
    "x" * 900,
]
PASSWORDS = ["", "wrong", "correct horsE", "correct horse\0", " correct horse", "x" * 5000, "\0", "\u00e9"]
WAIT = "longest wait of a newcomer beside floods in ms"


async def _say(target: Target, dice: random.Random, data: bytes, seconds: float = 1.0) -> bytes:
    """Send bytes, and hear what comes until the end or for a while."""
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port, local_addr=address(dice, NETWORK))
    heard = b""
    try:
        writer.write(data)
        async with asyncio.timeout(seconds):
            while part := await reader.read(1 << 16):
                heard += part
    except (OSError, TimeoutError):
        pass
    finally:
        writer.close()
    return heard


def _silent(row: Fault, heard: bytes, what: str) -> None:
    leak = LEAKS.search(heard.replace(b"@openssh.com", b""))
    row.expect(leak is None, f"{what}: the reply says {leak and leak[0]!r}")


async def noisy_exchange(target: Target, dice: random.Random, row: Fault) -> int:
    """Key exchanges with noise in them, and lines that look like our log's."""
    for _ in range(8):
        version = dice.choice([b"SSH-2.0-x", f"SSH-2.0-a\x1b[1A\tsftp refused {VICTIM}".encode(), b"SSH-2.0-\x07" * 20])
        payloads = [kexinit(dice), bytes([dice.randrange(256)]) + dice.randbytes(dice.randrange(300))]
        said = b"".join(packet(payload, dice) for payload in payloads * 3)
        _silent(row, await _say(target, dice, version + b"\r\n" + said, 0.2), "a noisy key exchange")
    return 8


def _transport(target: Target, dice: random.Random) -> paramiko.Transport:
    sock = socket.create_connection(("127.0.0.1", target.port), 10, address(dice, NETWORK))
    transport = paramiko.Transport(sock)
    transport.start_client(timeout=10)
    return transport


async def juggled_methods(target: Target, dice: random.Random, row: Fault) -> int:
    """All ways to log in, in any order on one connection, for names that there are and are not."""
    return await asyncio.to_thread(_juggle, target, dice, row)


def _juggle(target: Target, dice: random.Random, row: Fault) -> int:
    foreign = paramiko.ECDSAKey.generate()
    count = 0
    transport = _transport(target, dice)
    name = dice.choice(NAMES)
    methods: list[Callable[[], Any]] = [
        lambda: transport.auth_none(name),
        lambda: transport.auth_password(name, dice.choice(PASSWORDS), fallback=False),
        lambda: transport.auth_publickey(name, foreign),
        lambda: transport.auth_interactive(name, lambda *_: [dice.choice(PASSWORDS)]),
        lambda: transport.auth_interactive(name, lambda *_: ["a", "b", "c"]),
    ]
    try:
        for _ in range(5):
            if dice.random() < 0.3:
                name = dice.choice(NAMES)
            with suppress(paramiko.SSHException, EOFError, OSError, UnicodeError):
                count += 1
                dice.choice(methods)()
            row.expect(not transport.is_authenticated(), f"{name!r} came in without a password")
            if not transport.is_active():
                break
    finally:
        transport.close()
    return count


async def signature_of_another_session(target: Target, dice: random.Random, row: Fault) -> int:
    """The right key of a user, and a signature that was made for another connection."""
    return await asyncio.to_thread(_borrow, target, dice, row)


def _borrow(target: Target, dice: random.Random, row: Fault) -> int:
    path = target.site.folder / "borrowed"
    path.write_bytes(target.user_key.export_private_key())
    key = paramiko.Ed25519Key.from_private_key_file(str(path))
    path.unlink()
    for right in (False, True):
        transport = _transport(target, dice)
        try:
            if not right:
                transport.session_id = dice.randbytes(len(transport.session_id))
            with suppress(paramiko.SSHException, EOFError):
                transport.auth_publickey("evil", key)
            row.expect(transport.is_authenticated() == right, f"a signature {'for this' if right else 'of another'} "
                       f"session was {'refused' if right else 'taken'}")  # fmt: skip
        finally:
            transport.close()
    return 2


async def many_keys(target: Target, dice: random.Random, row: Fault) -> int:
    """Forty keys offered, to learn whether one of them is known; then the answers for a name that there is not."""
    keys = [asyncssh.generate_private_key("ecdsa-sha2-nistp256") for _ in range(40)]
    heard = []
    for name in ("evil", "nobody"):
        try:
            await target.connect(name, dice, NETWORK, password=None, client_keys=keys)
            row.lost.append(f"{name} came in with a foreign key")
        except asyncssh.Error as error:
            # The client puts the name that it asked with into its words.
            heard.append((type(error).__name__, str(error).replace(f"user {name}", "user")))
    row.expect(len(set(heard)) == 1, f"keys of a user and of nobody are refused in other words: {heard}")
    return 80


async def refusals_alike(target: Target, dice: random.Random, row: Fault) -> int:
    """A wrong password of a user and of two who do not exist: the same words."""
    heard = []
    for name in ("evil", "nobody", "root"):
        with suppress(asyncssh.ConnectionLost):
            try:
                await target.connect(name, dice, NETWORK, password="wrong")
                row.lost.append(f"{name} came in with a wrong password")
            except asyncssh.Error as error:
                heard.append((type(error).__name__, str(error).replace(name, "")))
    row.expect(len(set(heard)) == 1, f"refusals differ: {heard}")
    return 3


async def guessing(target: Target, dice: random.Random, row: Fault) -> int:
    """Passwords from one address, on ten connections at once, until it is banned; a reconnection is not let in."""
    source, count = address(dice, NETWORK), 0

    async def guess() -> None:
        nonlocal count
        for _ in range(2):
            with suppress(asyncssh.Error, OSError):
                count += 1
                await target.connect("evil", dice, NETWORK, password=dice.choice(PASSWORDS), local_addr=source)
                row.lost.append("a wrong password opened the door")

    async with asyncio.timeout(20):
        while not target.serving.running.count(f"sftp banned {source[0]}$|sftp banned {source[0]} "):
            await asyncio.gather(*(guess() for _ in range(10)))
            row.expect(count < 200, "two hundred guesses from one address are no reason for a ban")
    with suppress(asyncssh.Error, OSError):
        await target.connect("evil", dice, NETWORK, local_addr=source)
        row.lost.append("a banned address came in")
    return count + 1


async def idle_talk(target: Target, dice: random.Random, row: Fault) -> int:
    """IGNORE packets without end from five connections, and how long a newcomer waits for our version beside them."""

    async def talk() -> bool:
        _, writer = await asyncio.open_connection("127.0.0.1", target.port, local_addr=address(dice, NETWORK))
        end = time.monotonic() + 5
        try:
            writer.write(b"SSH-2.0-x\r\n")
            while time.monotonic() < end:
                writer.write(IGNORE * 1000)
                await writer.drain()
        except OSError:
            return True
        finally:
            writer.close()
        return False

    talking = asyncio.gather(*(talk() for _ in range(5)))
    await asyncio.sleep(0.02)
    began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port, local_addr=address(dice, NETWORK))
    await reader.readline()
    waited = round((time.monotonic() - began) * 1000)
    writer.close()
    row.expect(all(await talking), "a stranger may talk idly for ever")
    row.figures[WAIT] = max(waited, int(row.figures.get(WAIT, 0)))
    return 5


async def slow_words(target: Target, dice: random.Random, row: Fault) -> int:
    """A byte now and then, from ten connections: each ends with the login timeout, the partner comes in."""

    async def drip() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port, local_addr=address(dice, NETWORK))
        began = time.monotonic()
        with suppress(OSError):
            for byte in b"SSH-2.0-x\r\n" + struct.pack(">I", 30_000) + bytes(100):
                writer.write(bytes([byte]))
                await asyncio.sleep(0.1)
                if reader.at_eof() or writer.is_closing():
                    break
        row.expect(time.monotonic() - began < 10, "a byte now and then holds a connection for ever")
        writer.close()

    await asyncio.gather(*(drip() for _ in range(10)))
    return 10


ATTEMPTS: dict[str, Callable[[Target, random.Random, Fault], Awaitable[int | None]]] = {
    "noisy key exchanges": noisy_exchange,
    "all ways to log in": juggled_methods,
    "a signature of another session": signature_of_another_session,
    "many keys": many_keys,
    "refusals alike": refusals_alike,
    "guessing": guessing,
    "idle talk": idle_talk,
    "slow words": slow_words,
}


async def tell_timing(target: Target, campaign: Campaign, row: Fault) -> None:
    """The medians of the time that a wrong password takes, for a user and for nobody, in turn, from new addresses."""
    dice = campaign.rng("attack", "timing")
    samples: dict[str, list[float]] = {"evil": [], "nobody": []}
    rounds = 12 if campaign.short else 100
    for number in range(rounds):
        for name in sorted(samples, reverse=bool(number % 2)):
            samples[name].append(await asyncio.to_thread(_time_of_refusal, target, dice, name))
    known, unknown = (statistics.median(samples[name]) * 1000 for name in ("evil", "nobody"))
    row.tried += 2 * rounds
    row.figures["refusal of a known user, median ms"] = round(known, 1)
    row.figures["of an unknown one"] = round(unknown, 1)
    # Whatever else runs here makes some samples longer, none shorter: the lower quartiles are compared.
    quick, quick_unknown = (statistics.quantiles(samples[name])[0] * 1000 for name in ("evil", "nobody"))
    row.expect(
        abs(quick - quick_unknown) < max(quick, quick_unknown) * (0.5 if campaign.short else 0.3),
        f"the time tells who is known: {quick:.1f} ms, else {quick_unknown:.1f} ms",
    )


def _time_of_refusal(target: Target, dice: random.Random, name: str) -> float:
    transport = _transport(target, dice)
    try:
        with suppress(paramiko.SSHException):
            transport.auth_none(name)
        began = time.perf_counter()
        with suppress(paramiko.SSHException):
            transport.auth_password(name, "wrong", fallback=False)
        return time.perf_counter() - began
    finally:
        transport.close()


async def audit(target: Target, row: Fault) -> None:
    """ssh-audit, where it is installed: not one line of failure."""
    program = shutil.which("ssh-audit", path=f"{Path(sys.executable).parent}:/usr/bin")
    if program is None:
        row.figures["ssh-audit"] = "not run: pip install ssh-audit"
        return
    process = await asyncio.create_subprocess_exec(
        program, "-n", "--skip-rate-test", "-p", str(target.port), "127.0.0.1", stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    row.tried += 1
    row.expect(b"(kex)" in output and b"[fail]" not in output, f"ssh-audit fails it: {output[-500:]!r}")
