"""The part `network`: everything that a network can do to a running service, while a good client checks every byte.

A real `serve` with its page, in one phase with 64 descriptors in all; `network_strangers`, `network_guests` and
`network_browsers` beside it; memory and descriptors by `tools.gauge`. Touches its own folder and loopback. What must
hold: no fetch of the good client fails, memory and descriptors are flat, everything is given back in the end, and the
record of pickups says exactly who took what.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import resource
import shutil
import traceback
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import asyncssh

from server.pickups import Grade
from server.sftp.keys import make_keys
from server.storage.ledger import Ledger
from server.storage.pickup_store import KEPT_HANDLES
from tests.support.program import Program, ServiceSite, day_before, export_of, log_of
from tests.support.sftp import CHEAP_HASH, PASSWORD

from . import network_browsers, network_guests, network_strangers
from .deliveries import Megaphone
from .result import Fault
from .tools.gauge import Budget, Gauge, descriptors

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.program import Serving

    from .result import Campaign

FEW = 64  # descriptors
SHARE = 0.5  # of a processor, on average, for all of it
LOGIN_TIMEOUT = 10
LAST_WORDS = 5.0  # seconds that the end of a phase takes
# A leak of one connection's buffers, or of a kilobyte a connection, is above this within minutes; what an allocator
# does to and fro in half an hour is below it.
MOST_GROWTH = 256.0  # KiB a minute
MOST_DESCRIPTORS = 1.0  # a minute; how many are open at rest is exact
LEAST_TO_SHOW, LEAST_TO_TELL = 100.0, 1100.0  # seconds: in less, a slope is the warm-up's; in less, it is not judged
USERS = ("good", "fuzz", "slow", "killed")


def run(campaign: Campaign) -> list[Fault]:
    """The rows of this part: what was done in each phase, and what the good client had of it."""
    if missing := [
        f"{name} ({package})" for name, package in network_guests.PROGRAMS.items() if shutil.which(name) is None
    ]:
        return [Fault("the network", figures={"not run": f"apt-get install {' '.join(missing)}"})]
    for name in ("asyncssh", "asyncio"):  # of the attackers' own connections, which end in every way
        logging.getLogger(name).setLevel(logging.CRITICAL)
    make_keys(campaign.folder / "keys")
    few = Fault(f"the network: strangers and badly behaved clients, with {FEW} descriptors in all")
    soak = Fault("the network: strangers and badly behaved clients, with the usual limit of descriptors")
    for row, limit, seconds in ((few, FEW, campaign.seconds * 0.5), (soak, 0, 0.0)):
        try:
            asyncio.run(_phase(campaign, row, limit, min(seconds or campaign.left, campaign.left)))
        except Exception as error:
            traceback.print_exc()
            row.lost.append(f"it did not come to its end: {type(error).__name__}: {error}".splitlines()[0])
    return [few, soak]


@dataclass
class Good:
    """The client that is owed everything: lists, fetches every file, compares every byte."""

    serving: Serving
    digests: dict[str, str]
    home: Path
    row: Fault
    fetched: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0

    async def pull(self, openssh: bool) -> None:
        """One pull of everything, by asyncssh or by OpenSSH's sftp."""
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(120):
                await (self._by_openssh() if openssh else self._by_asyncssh())
        except (OSError, asyncssh.Error, TimeoutError) as error:
            self.row.lost.append(f"the good client failed: {type(error).__name__}: {error}")
        self.slowest = max(self.slowest, asyncio.get_running_loop().time() - began)

    async def _by_asyncssh(self) -> None:
        async with self.serving.client(username="good") as sftp:
            names = sorted(str(name) for name in await sftp.listdir(".") if name not in (".", ".."))
            self.row.expect(names == sorted(self.digests), f"the good client saw {names}")
            for name in names:
                async with sftp.open(name, "rb") as file:
                    digest = hashlib.sha256()
                    while data := await file.read(4 << 20):
                        digest.update(data)  # type: ignore[arg-type]  # bytes, of a file opened with "rb"
                self._got(name, digest.hexdigest())

    async def _by_openssh(self) -> None:
        folder = self.home / "good"
        folder.mkdir(parents=True, exist_ok=True)
        askpass = folder / "askpass"
        askpass.write_text(f"#!/bin/sh\necho '{PASSWORD}'\n")
        askpass.chmod(0o700)
        batch = "".join(f"get {name}\n" for name in sorted(self.digests))
        process = await asyncio.create_subprocess_exec(
            *("sftp", "-q", *network_guests.OPENSSH, "-oBatchMode=no", "-P", str(self.serving.port), "-b", "-"),
            "good@127.0.0.1", cwd=folder, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT, start_new_session=True, env=network_guests.surroundings(folder, askpass),
        )  # fmt: skip
        output, _ = await process.communicate(batch.encode())
        self.row.expect(process.returncode == 0, f"the good client's sftp said {output.decode()[-200:]}")
        for name in self.digests:
            data = await asyncio.to_thread((folder / name).read_bytes) if (folder / name).exists() else b""
            self._got(name, hashlib.sha256(data).hexdigest())
        shutil.rmtree(folder)

    def _got(self, name: str, digest: str) -> None:
        self.row.expect(digest == self.digests[name], f"the good client got other bytes of {name}")
        self.fetched[name] += 1


async def _phase(campaign: Campaign, row: Fault, limit: int, seconds: float) -> None:
    folder = campaign.folder / (f"limit-{limit}" if limit else "soak")
    folder.mkdir()
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    program, gauge = Program(folder), Gauge()
    try:
        site = _site(campaign, folder, program)
        await asyncio.to_thread(_publish, site, campaign)
        options: dict[str, Any] = {}
        if limit:
            options["preexec_fn"] = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        serving = await site.serve(**options)
        digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in site.pickup.iterdir()}
        big = max(site.pickup.iterdir(), key=lambda path: path.stat().st_size)
        good = Good(serving, digests, folder, row)
        bad = network_guests.Guests(big.name, big.stat().st_size, folder / "clients")
        pid = serving.running.process.pid
        for openssh in (False, True):
            await good.pull(openssh)
        (told,) = await serving.running.says(r"service opened the page .*port=(\d+)")
        page = int(told[1])
        # SQLite keeps one descriptor of the ledger, once somebody else in the process has read it and left.
        row.expect(await network_browsers.works(page), "the page does not work")
        await asyncio.sleep(2)
        at_rest = descriptors(pid)
        budget = Budget(1.5 if campaign.short else SHARE, [pid])
        tried: Counter[str] = Counter()
        tasks = [asyncio.create_task(gauge.watch(pid))]
        attacks = {**network_strangers.ATTACKS, **bad.attacks, **network_browsers.ATTACKS}
        for name, (attack, pause, many) in attacks.items():
            port = page if name in network_browsers.ATTACKS else serving.port
            for number in range(many):
                dice = campaign.rng("network", limit, name, number)
                tasks.append(asyncio.create_task(_again(name, attack, pause, port, dice, budget, tried, row)))
        turn = 0
        while loop.time() < end - LAST_WORDS or any(not tried[name] for name in attacks):
            await good.pull(openssh=bool(turn % 2))
            turn += 1
            await budget.rest(0.3)
            if serving.running.process.poll() is not None or len(row.lost) > 20:
                row.expect(serving.running.process.poll() is None, "the service died")
                break
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await good.pull(openssh=False)
        left = await _given_back(pid, at_rest)
        row.expect(left <= at_rest, f"{left} descriptors are open at rest, {at_rest} were before")
        if not limit:  # with few descriptors the page is the first to be refused some
            row.expect(await network_browsers.works(page), "the page does not work any more")
        code = await serving.running.stops()
        row.expect(code == 0, f"the service ended with {code}: {serving.running.err[-3:]}")
        row.expect("Traceback" not in serving.running.text, "the service had a traceback in its log")
        _judge(row, site, good, bad)
        _weigh(row, gauge, seconds)
        row.tried = tried.total()
        row.figures |= {"descriptors at rest": f"{at_rest} before, {left} after", **tried,
                        "transfers cut": bad.transfers_cut}  # fmt: skip
    finally:
        gauge.write(folder / "gauge.tsv")
        (folder / "service.log").write_text("\n".join(running.text for running in program.started))
        program.end()


def _site(campaign: Campaign, folder: Path, program: Program) -> ServiceSite:
    site = ServiceSite(folder, campaign.folder / "keys", program)
    users = "".join(f'[[sftp.users]]\nname = "{name}"\npassword_hash = "{CHEAP_HASH}"\n' for name in USERS)
    users = users.replace('name = "good"\n', 'name = "good"\nallow_from = ["127.0.0.1/32"]\n')
    page = f'[web]\nlisten = "127.0.0.1:0"\npassword_hash = "{CHEAP_HASH}"\n'
    site.configure(more=users + page, poll="30s")
    text = site.config.read_text()
    site.config.write_text(
        text.replace("drain_seconds", f'login_timeout = "{LOGIN_TIMEOUT}s"\nban_time = "20s"\ndrain_seconds')
    )
    return site


def _publish(site: ServiceSite, campaign: Campaign) -> None:
    """Two small files and a large one that cannot be compressed any more."""
    rows = 40_000 if campaign.short else 130_000  # of which each costs some 150 bytes
    megaphone = Megaphone(lambda _, body: site.put(day_before(3), body), campaign.rng("network"), (rows, rows + 1))
    megaphone.new_day(day_before(3))
    site.put(day_before(2), export_of(day_before(2), 500))
    site.put(day_before(1), export_of(day_before(1)))
    done = site.run("feed")
    if done.returncode or not (site.pickup / log_of(3)).exists():
        raise RuntimeError(f"nothing was published: {done.stdout}{done.stderr}")


async def _again(
    name: str, attack: Callable[..., Any], pause: float, port: int, dice: random.Random, budget: Budget,
    tried: Counter[str], row: Fault,
) -> None:  # fmt: skip
    """One attack after the other; a service that ends their connections does right."""
    while True:
        await budget.rest(pause * (0.5 + dice.random()))
        try:
            await attack(port, dice)
        except (OSError, asyncssh.Error, asyncio.IncompleteReadError, TimeoutError):
            pass
        except Exception as error:
            row.lost.append(f"{name}: {type(error).__name__}: {error}")
            await asyncio.sleep(5)
        tried[name] += 1


async def _given_back(pid: int, at_rest: int) -> int:
    """The descriptors that are open when everybody is gone, for which some time is given."""
    for _ in range((LOGIN_TIMEOUT + 5) * 10):
        if descriptors(pid) <= at_rest:
            break
        await asyncio.sleep(0.1)
    return descriptors(pid)


def _judge(row: Fault, site: ServiceSite, good: Good, bad: network_guests.Guests) -> None:
    """The record of pickups: exact for the good client, and nobody else has taken what was not taken."""
    with closing(Ledger.read(site.folder / "data" / "ledger.sqlite3")) as ledger:
        pickups = ledger.pickups.handles([log.name for log in ledger.logs()])
    complete = Counter((one.user, str(one.name)) for one in pickups if one.grade is Grade.COMPLETE)
    for name, count in good.fetched.items():
        recorded = complete["good", name]
        exact = recorded == count or count > KEPT_HANDLES  # more of them are not kept one by one
        row.expect(exact, f"{name} was fetched {count} times by the good client, recorded {recorded} times")
    row.expect(complete["slow", bad.big] == 0, "a reader that took nothing has picked up the file")
    killed = complete["killed", bad.big]
    row.expect(killed <= bad.whole, f"{killed} pickups by killed clients, of which {bad.whole} had the file")
    row.expect(all(one.ending for one in pickups), "a pickup never ended")
    row.figures |= {
        "fetches by a well-behaved client": good.fetched.total(),
        "its slowest fetch in s": round(good.slowest, 1),
        "pickups recorded": len(pickups),
    }


def _weigh(row: Fault, gauge: Gauge, seconds: float) -> None:
    """Memory and descriptors: the most, and the slope of the last quarter; the heap settles in a quarter of an hour."""
    warm_up = seconds * 0.75
    memory, opened = gauge.slope(1, warm_up), gauge.slope(2, warm_up)
    if seconds >= LEAST_TO_TELL:
        row.expect(memory < MOST_GROWTH, f"the memory grew by {memory:.0f} KiB a minute")
        row.expect(opened < MOST_DESCRIPTORS, f"the descriptors grew by {opened:.2f} a minute")
    row.figures |= {"peak memory in MiB": round(gauge.most(1) / 1024), "descriptors at most": int(gauge.most(2))}
    if seconds >= LEAST_TO_SHOW:
        row.figures |= {
            "growth of memory at the end in KiB a minute": round(memory),
            "of descriptors a minute": round(opened, 2),
        }
