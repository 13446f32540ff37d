"""What is attacked: an installation with a real `serve`, and what must be true of it after every attempt.

Makes a site in a folder of its own, runs the service on loopback, reads its log and its ledger. Four users log in:
``triton`` is owed everything, ``evil``, ``middle`` and `RESUMER` are those whose attempts are judged.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncssh

from server.pickups import Grade
from server.sftp.keys import make_keys
from server.sftp.users import hash_password
from server.storage.ledger import Ledger
from tests.support.program import Program, ServiceSite, day_before, export_of, log_of
from tests.support.sftp import PASSWORD

from .tools.gauge import PAGE

if TYPE_CHECKING:
    import random

    from tests.support.program import Running, Serving

    from .result import Campaign, Fault

ROWS = 20_000  # of the larger day: a file that waits in buffers, and is read in several turns
MOST_GROWTH = 96 << 20  # bytes, over the whole part
RESUMER = "resumer"  # who claims to have what never arrived, and never takes the larger file whole
VICTIM = "198.51.100.7"  # an address that nobody comes from: a log line about it is a forged one
_REFUSED = re.compile(r"sftp (?:refused|banned) (\S+)")
# What the machine is made of, which no reply may say. The names of algorithms are everybody's.
LEAKS = re.compile(
    rb"asyncssh|python|openssl|cryptography|linux|debian|traceback|\.py\b|/home|/usr|/tmp", re.IGNORECASE
)


def address(dice: random.Random, network: int) -> tuple[str, int]:
    """A new address to come from: what others have earned does not count for it."""
    return f"127.{network}.{dice.randrange(256)}.{dice.randrange(1, 255)}", 0


SETTINGS = 'login_timeout = "5s"\nchacha20 = true\n'  # every cipher is attacked


@dataclass
class Target:
    """The installation under attack."""

    site: ServiceSite
    serving: Serving
    user_key: asyncssh.SSHKey
    content: dict[str, bytes]
    fetched: Counter[tuple[str, str]] = field(default_factory=Counter)  # whole, by user and name
    came_from: set[str] = field(default_factory=set)  # the addresses that the network in between has used
    _tree: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    _memory: int = 0
    _judged: int = 0

    @classmethod
    async def begin(cls, campaign: Campaign, program: Program) -> Target:
        """Publish two days and serve them."""
        folder = campaign.folder
        make_keys(folder / "made")
        site = ServiceSite(folder, folder / "made", program)
        key = asyncssh.generate_private_key("ssh-ed25519")
        (folder / "evil.pub").write_bytes(key.export_public_key())
        secret = hash_password(PASSWORD)  # at its real cost: the time of a check is part of what is attacked
        names = (RESUMER, "middle", "evil")
        users = "".join(f'[[sftp.users]]\nname = "{name}"\npassword_hash = "{secret}"\n' for name in names)
        site.configure(password_hash=secret, poll="60s", more=users + 'authorized_keys = "evil.pub"\n')
        site.config.write_text(site.config.read_text().replace("drain_seconds", SETTINGS + "drain_seconds"))
        site.put(day_before(2), export_of(day_before(2), ROWS))
        site.put(day_before(1), export_of(day_before(1)))
        done = await asyncio.to_thread(site.run, "feed")
        if done.returncode:
            raise RuntimeError(f"nothing was published: {done.stdout}{done.stderr}")
        (site.folder / "data" / "staging" / log_of(3)).write_bytes(b"not yet published")
        serving = await site.serve()
        content = {path.name: path.read_bytes() for path in site.pickup.iterdir()}
        it = cls(site, serving, key, content)
        it._tree = it.tree()
        await it.pull()
        it._memory = it.memory
        return it

    @property
    def port(self) -> int:
        """Where it listens on 127.0.0.1."""
        return self.serving.port

    @property
    def big(self) -> str:
        """The name of the larger file."""
        return max(self.content, key=lambda name: len(self.content[name]))

    @property
    def memory(self) -> int:
        """Resident bytes of the service."""
        return int(Path(f"/proc/{self.serving.running.process.pid}/statm").read_text().split()[1]) * PAGE

    def tree(self) -> dict[str, tuple[int, int, str]]:
        """Everything that no request may change: the published files, the configuration, the keys."""
        found = {}
        for top in ("data/pickup", "exports", "keys", "config.toml", "evil.pub"):
            path = self.site.folder / top
            for one in [path, *path.rglob("*")] if path.is_dir() else [path]:
                stat = one.lstat()
                digest = hashlib.sha256(one.read_bytes()).hexdigest() if one.is_file() else ""
                found[str(one)] = (stat.st_mode, stat.st_mtime_ns, digest)
        return found

    @property
    def host_key(self) -> Path:
        """The file of its private host key."""
        return self.site.folder / "keys" / "ssh_host_ed25519_key"

    def logged_in(self, source: str) -> bool:
        """Whether the service reports a login from this address."""
        return bool(self.serving.running.count(rf" {re.escape(source)}\] logged in"))

    def connect(self, user: str, dice: random.Random, network: int, **options: Any) -> Any:
        """An asyncssh client, logged in with the password, from an address of its own."""
        settings: dict[str, Any] = {
            "username": user, "password": PASSWORD, "known_hosts": None, "client_keys": None, "agent_path": None,
            "config": None, "local_addr": address(dice, network), "login_timeout": 15,
        }  # fmt: skip
        return asyncssh.connect("127.0.0.1", options.pop("port", self.port), **(settings | options))

    async def pull(self) -> str:
        """Fetch everything as the partner does; what was wrong."""
        try:
            async with asyncio.timeout(60):
                for name, content in self.content.items():
                    if await self.serving.fetch(name) != content:
                        return f"the partner got other bytes of {name}"
                    self.fetched["triton", name] += 1
        except (OSError, asyncssh.Error, TimeoutError) as error:
            return f"the partner was kept out: {type(error).__name__}: {error}"
        return ""

    async def judge(self, row: Fault, what: str) -> None:
        """Look at everything that must be true now."""
        process: Running = self.serving.running
        row.expect(process.process.poll() is None, f"{what}: the service died")
        if wrong := await self.pull():
            row.lost.append(f"{what}: {wrong}")
        row.expect(self.tree() == self._tree, f"{what}: a file was changed")
        grown = self.memory - self._memory
        row.expect(grown < MOST_GROWTH, f"{what}: the memory grew by {grown >> 20} MiB")
        lines, self._judged = process.err[self._judged :], len(process.err)
        for line in lines:
            row.expect(line.isprintable(), f"{what}: a control character is in the log: {line!r}")
            row.expect("raceback" not in line, f"{what}: a traceback is in the log: {line[-300:]}")
            told = _REFUSED.search(line)
            row.expect(
                not told or told[1].startswith("127.") or told[1].isdigit(),
                f"{what}: a forged line is in the log: {line}",
            )
            row.expect("logged in" not in line or " - " not in line, f"{what}: somebody without a name came in: {line}")
        await self.judge_records(row, what)

    async def judge_records(self, row: Fault, what: str) -> None:
        """Nobody has picked up more than was taken, and what the partner has taken is there."""
        complete: Counter[tuple[str, str]] = Counter()
        async with asyncio.timeout(20):
            while True:  # the pickup writer records it a moment later
                with closing(Ledger.read(self.site.folder / "data" / "ledger.sqlite3")) as ledger:
                    names = [log.name for log in ledger.logs()]
                    pickups = ledger.pickups.handles(names)
                    delivered = ledger.pickups.delivered(names)
                complete = Counter((one.user, str(one.name)) for one in pickups if one.grade is Grade.COMPLETE)
                if all(complete["triton", name] >= self.fetched["triton", name] for name in self.content):
                    break
                await asyncio.sleep(0.1)
        whole = [str(one.name) for one in delivered if one.user == RESUMER and one.completed is not None]
        row.expect(self.big not in whole, f"{what}: {self.big} is recorded as whole for {RESUMER}, who never had it")
        for key in complete.keys() | self.fetched.keys():
            row.expect(
                complete[key] <= self.fetched[key],
                f"{what}: {key[1]} is recorded as picked up {complete[key]} times by {key[0]}, and was taken whole "
                f"{self.fetched[key]} times",
            )
            self.fetched[key] = max(self.fetched[key], complete[key])  # told once
