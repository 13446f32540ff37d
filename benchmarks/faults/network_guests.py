"""Those who are let in and behave badly: random requests, random SSH packets, slow readers, clients that are killed.

Connects to one port of 127.0.0.1, and runs Debian's sftp, lftp and rclone in folders of its own, which it removes.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncssh

from tests.support.sftp import PASSWORD, RawSftp, string
from tests.support.sftp_requests import random_request

from .network_strangers import address

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable
    from pathlib import Path

PROGRAMS = {"sftp": "openssh-client", "lftp": "lftp", "rclone": "rclone"}
HANDLE = 102  # SSH_FXP_HANDLE
GREEDY_READS = 24
GREEDY_LENGTH = 16 << 20
OPENSSH = (
    "-oStrictHostKeyChecking=no",
    "-oUserKnownHostsFile=/dev/null",
    "-oLogLevel=ERROR",
    "-oNumberOfPasswordPrompts=1",
)


def log_in(port: int, user: str, dice: random.Random) -> Any:
    """A connection of a user from a stranger's address."""
    return asyncssh.connect(
        "127.0.0.1", port, username=user, password=PASSWORD, known_hosts=None, client_keys=None, agent_path=None,
        config=None, local_addr=address(dice, 3), kex_algs=["curve25519-sha256"], login_timeout=20,
        server_host_key_algs=["ssh-ed25519"],
    )  # fmt: skip


IN_HAND = 2 << 20  # bytes of a channel's window, of OpenSSH and of Go


@dataclass
class Guests:
    """``big`` is the name of the file that is read slowly and in part; ``whole`` counts killed clients that had it,
    on disk or in the hands of their ssh, which answers for what lies in its window.
    """

    big: str
    size: int
    home: Path
    whole: int = 0
    transfers_cut: int = 0

    async def random_requests(self, port: int, dice: random.Random) -> None:
        """SFTP requests of every kind, whole and broken; some sessions end in mid-request."""
        async with log_in(port, "fuzz", dice) as connection:
            raw = await RawSftp.open(connection)
            handles: list[bytes] = []
            for _ in range(dice.randrange(5, 40)):
                raw.send(request := random_request(dice, handles))
                with suppress(asyncio.IncompleteReadError):
                    reply = await raw.receive()
                    assert reply[1:5] == request[1:5], "a request has another's reply"
                    handles = [*handles[-20:], reply[5:]] if reply[0] == HANDLE else handles
            if dice.random() < 0.5:
                raw.writer.write(dice.randbytes(dice.randrange(1, 20_000)))
            if dice.random() < 0.5:
                connection.abort()

    async def random_packets(self, port: int, dice: random.Random) -> None:
        """SSH messages under keys that hold, of any number and content: unknown channels, requests, answers."""
        async with log_in(port, "fuzz", dice) as connection:
            if dice.random() < 0.5:
                await RawSftp.open(connection)
            for _ in range(dice.randrange(1, 30)):
                number = dice.choice([dice.randrange(1, 256), dice.randrange(80, 101), dice.randrange(90, 101)])
                body = dice.choice([bytes(4), b""]) + dice.randbytes(dice.choice([0, 4, 8, 40, 2_000]))
                with suppress(asyncssh.Error, OSError, AttributeError):
                    connection.send_packet(number, body)
            await asyncio.sleep(dice.random())
            connection.abort()

    async def slow_readers(self, port: int, dice: random.Random) -> None:
        """24 reads of 16 MiB, none of whose answers is taken, on one channel or on the whole connection."""
        async with log_in(port, "slow", dice) as connection:
            raw = await RawSftp.open(connection)
            opened = await raw.ask(3, string(self.big.encode()) + (1).to_bytes(4, "big") + bytes(4))
            if opened[0] != HANDLE:
                return  # with few descriptors a guest may be told to wait
            handle = opened[5:]
            raw.writer.channel.pause_reading()
            if dice.random() < 0.5:
                connection._transport.pause_reading()  # noqa: SLF001  # asyncssh has no word for it
            for number in range(GREEDY_READS):
                offset = number * GREEDY_LENGTH % self.size
                length = GREEDY_LENGTH.to_bytes(4, "big")
                raw.send(b"\x05" + number.to_bytes(4, "big") + handle + offset.to_bytes(8, "big") + length)
            await asyncio.sleep(1 + 10 * dice.random())
            connection.abort()

    async def killed_clients(self, port: int, dice: random.Random) -> None:
        """sftp, lftp or rclone, killed when a part of the file is there."""
        program = dice.choice(list(PROGRAMS))
        folder = self.home / f"{program}-{dice.getrandbits(64):x}"
        folder.mkdir(parents=True)
        process = await self._start(program, port, folder, dice)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(15):
                    while process.returncode is None and not _size(folder):
                        await asyncio.sleep(0.02)
                    await asyncio.sleep(dice.random())
        finally:
            had = _size(folder)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            self.whole += had >= self.size - IN_HAND
            self.transfers_cut += 0 < had < self.size
            await asyncio.to_thread(shutil.rmtree, folder)

    async def _start(self, program: str, port: int, folder: Path, dice: random.Random) -> asyncio.subprocess.Process:
        bind = address(dice, 4)[0]
        askpass = folder.parent / "askpass"
        if not askpass.exists():
            askpass.write_text(f"#!/bin/sh\necho '{PASSWORD}'\n")
            askpass.chmod(0o700)
        ssh = f"ssh -a -x -oBindAddress={bind} {' '.join(OPENSSH)}"
        script = (
            "set net:max-retries 1; set net:limit-rate 1500000; set sftp:auto-confirm yes; "
            f"set sftp:connect-program '{ssh}'; get {self.big} -o part; bye"
        )
        commands = {
            "sftp": ["sftp", "-q", "-l", "12000", *OPENSSH, f"-oBindAddress={bind}", "-P", str(port),
                     f"killed@127.0.0.1:/{self.big}", "part"],
            "lftp": ["lftp", "-u", f"killed,{PASSWORD}", "-e", script, f"sftp://127.0.0.1:{port}"],
            "rclone": ["rclone", "copyto", f":sftp:{self.big}", "part", "--bwlimit=1500k", "--retries=1",
                       "--low-level-retries=1", f"--bind={bind}", "--sftp-host=127.0.0.1", f"--sftp-port={port}",
                       "--sftp-user=killed", f"--sftp-pass={await self._obscured()}"],
        }  # fmt: skip
        return await asyncio.create_subprocess_exec(
            *commands[program], cwd=folder, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL, start_new_session=True, env=surroundings(folder, askpass),
        )  # fmt: skip

    async def _obscured(self) -> str:
        if not (kept := self.home / "obscured").exists():
            process = await asyncio.create_subprocess_exec(
                "rclone", "obscure", PASSWORD, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
            )
            kept.write_bytes((await process.communicate())[0])
        return kept.read_text().strip()

    @property
    def attacks(self) -> dict[str, tuple[Callable[[int, random.Random], Awaitable[None]], float, int]]:
        """What, the least pause after it in seconds, how many at a time."""
        return {
            "sessions of random requests": (self.random_requests, 0.3, 1),
            "random packets after login": (self.random_packets, 0.5, 1),
            "slow readers": (self.slow_readers, 0.2, 4),
            "clients killed in mid-transfer": (self.killed_clients, 0.3, 2),
        }


def surroundings(home: Path, askpass: Path) -> dict[str, str]:
    """The environment of a client that is asked for its password."""
    return {"PATH": os.environ["PATH"], "HOME": str(home), "SSH_ASKPASS": str(askpass), "SSH_ASKPASS_REQUIRE": "force",
            "RCLONE_CONFIG": "/dev/null"}  # fmt: skip


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("part*"))
