"""Lives of an installation that is killed at random instants, again and again, while exports and clients come and go.

Starts real `feed` and `serve` processes in a folder, and an SFTP client on 127.0.0.1; none of them outlives its life.
"""

from __future__ import annotations

import asyncio
import hashlib
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import asyncssh

from tests.support.program import Program, ServiceSite, Serving, day_before, port_of

from .checks import Seen, standing, whole
from .deliveries import Megaphone

if TYPE_CHECKING:
    import random
    from pathlib import Path

ROWS = (4000, 7000)


@dataclass(slots=True)
class Life:
    """What a life is given: a folder of its own, keys, a seed, and how often it is killed."""

    folder: Path
    keys: Path
    dice: random.Random
    kills: int


@dataclass(slots=True)
class _Living:
    """An installation and all that is known of it."""

    life: Life
    site: ServiceSite
    megaphone: Megaphone
    seen: Seen = field(default_factory=Seen)
    wrong: list[str] = field(default_factory=list)

    @classmethod
    def begin(cls, life: Life) -> _Living:
        life.folder.mkdir()
        site = ServiceSite(life.folder, life.keys, Program(life.folder))
        site.configure(log=f"max_rows_per_file = {life.dice.choice([0, 1500])}")

        def put(key: str, body: bytes) -> None:
            part = life.folder / "part"
            part.write_bytes(body)
            part.rename(site.exports / key)

        return cls(life, site, Megaphone(put, life.dice, ROWS))

    def deliver(self) -> None:
        """A new day, or a later version of yesterday's. The day before that gets none: it may expire meanwhile."""
        days, recent = self.megaphone.days, day_before(1)
        fresh = [day for day in (recent, day_before(2)) if day not in days and len(days) < 2]
        if fresh and (not days or self.life.dice.random() < 0.5):
            self.megaphone.new_day(fresh[0])
        else:
            self.megaphone.rewrite(next(iter(days)))  # yesterday came first

    def look(self) -> None:
        """No client may see anything torn, nor anything that was otherwise before."""
        self.wrong += self.seen.look(self.site.pickup)

    def settle(self) -> None:
        """A round without a fault, and what must be true then."""
        done = self.site.run("feed")
        if done.returncode != 0:
            self.wrong.append(f"the next feed ended with {done.returncode}: {done.stdout[-300:]} {done.stderr[-300:]}")
        self.look()
        self.wrong += standing(self.site.folder / "data", self.megaphone.expected)


def feed_life(life: Life) -> tuple[int, int, list[str]]:
    """Kills of `feed`; none read anything; what was wrong."""
    living = _Living.begin(life)
    living.deliver()
    took, tried = 0.8, 0
    while tried < life.kills and not living.wrong:
        running = living.site.program.start("feed", "--config", living.site.config)
        started = time.monotonic()
        early = 0.0 if life.dice.random() < 0.2 else 0.5  # the first half of its time is the start of Python
        try:
            with suppress(Exception):
                running.process.wait(took * life.dice.uniform(early, 1.0))
            if running.process.poll() is None:
                tried += 1
            else:
                took = time.monotonic() - started
            running.process.kill()
        finally:
            running.end()
        living.look()
        if life.dice.random() < 0.5 or tried == life.kills:
            living.settle()
            living.deliver()
    return tried, 0, living.wrong


def serve_life(life: Life) -> tuple[int, int, list[str]]:
    """Kills of `serve`; the files that were read whole over SFTP; what was wrong."""
    living = _Living.begin(life)
    living.deliver()
    try:
        reads = asyncio.run(_served(living))
    finally:
        living.site.program.end()
    living.settle()
    return life.kills, reads, living.wrong


async def _served(living: _Living) -> int:
    client = _Client(living.wrong)
    for _ in range(living.life.kills):
        running = living.site.program.start("serve", "--config", living.site.config)
        if living.life.dice.random() < 0.2:
            await asyncio.sleep(living.life.dice.uniform(0, 1))
        else:
            serving = Serving(running, await port_of(running))
            reading = asyncio.create_task(client.read(serving))
            delivering = asyncio.create_task(asyncio.to_thread(living.deliver))
            await asyncio.sleep(living.life.dice.uniform(0, 3))
            await delivering  # what is known and what is there are one
            running.send(signal.SIGKILL)
            with suppress(OSError, asyncssh.Error):
                await reading
        running.end()
        living.look()
        for name, facts in client.seen.items():
            if (name in living.seen.files) and living.seen.files[name][:2] != facts[:2]:
                living.wrong.append(f"{name} was read by a client, and is another file now")
            elif name not in living.seen.files:
                living.wrong.append(f"{name} was read by a client, and is gone")
    return client.reads


@dataclass(slots=True)
class _Client:
    """A partner that lists and reads all the time. ``seen``: by name the digest, size and mtime that it got."""

    wrong: list[str]
    seen: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    reads: int = 0

    async def read(self, serving: Serving) -> None:
        """Until the connection ends."""
        async with serving.client() as sftp:
            while True:
                for entry in await sftp.readdir("."):
                    name = str(entry.filename)
                    if name in (".", ".."):
                        continue
                    async with sftp.open(name, "rb") as file:
                        data = await file.read()
                    assert isinstance(data, bytes)
                    self.reads += 1
                    facts = (hashlib.sha256(data).hexdigest(), len(data), int(entry.attrs.mtime or 0))
                    if torn := whole(data):
                        self.wrong.append(f"a client read {name}, and it {torn}")
                    if len(data) != entry.attrs.size:
                        self.wrong.append(f"a client read {len(data)} bytes of {name}, of {entry.attrs.size}")
                    if self.seen.setdefault(name, facts) != facts:
                        self.wrong.append(f"a client read {name} again, and it had changed")
                await asyncio.sleep(0.05)
