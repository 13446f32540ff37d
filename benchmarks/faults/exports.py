"""The part `exports`: exports that mean harm, or look as if they did, through real commands and a running service.

Makes installations in the campaign's folder, one for every command, and removes them. What is checked of every export:
its day has the state, the sentence, the rejected rows and their lines that it must have; the books balance; what was
published is exactly the good rows; the days beside it are published; and all processes together stay below
`MOST_MEMORY`.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import shutil
import subprocess
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.sftp.keys import make_keys
from tests.support.program import Program, ServiceSite, command, day_before, export_name, export_of

from . import exports_files, exports_rows  # noqa: F401  # they enter their exports
from .checks import standing
from .exports_cases import HOSTILE, Hostile, Outcome
from .exports_outcomes import judge
from .result import Fault
from .tools.peak import Peak

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import date
    from pathlib import Path

    from .result import Campaign

MOST_MEMORY = 350 << 20  # bytes, of all processes together; the most that was ever seen is 260
_LONGEST = 240  # seconds for one round
_MORE = "[retention]\nkeep_days = 300"
_DONE = r"feed (failed|held) \d|feed published \S+ rows="  # what the log says of a day that is done with
_TITLES = {
    "bombs": "hostile export: gzip bombs, endless lines",
    "rows": "hostile export: odd rows",
    "gzip": "hostile export: damaged, cut or odd gzip",
    "no file": "hostile export: no file, or a bad name",
}


@dataclass(slots=True)
class _Yard:
    """Where installations are made."""

    folder: Path
    keys: Path
    made: int = 0

    @contextmanager
    def site(self, *, look_back: int = 3) -> Iterator[ServiceSite]:
        """A new installation; gone afterwards, with every process of it."""
        self.made += 1
        folder = self.folder / f"site-{self.made}"
        folder.mkdir()
        program = Program(folder)
        try:
            site = ServiceSite(folder, self.keys, program)
            site.configure(f'url = "exports"\nlook_back_days = {look_back}', more=_MORE, give_up_waiting="72h")
            text = site.config.read_text()
            site.config.write_text(text.replace("workers = 1", "workers = 2"))
            yield site
        finally:
            program.end()
            shutil.rmtree(folder)


def run(campaign: Campaign) -> list[Fault]:
    """Every export at once before a running service; then each by itself, again and again while there is time."""
    rows = {group: Fault(title) for group, title in _TITLES.items()}
    keys = campaign.folder / "keys"
    make_keys(keys)
    yard = _Yard(campaign.folder, keys)
    served = Fault("hostile exports, all at once before a running service")
    asyncio.run(_before_a_service(yard, served, [case for case in HOSTILE if not (campaign.short and case.heavy)]))
    dice = campaign.rng("order")
    turns = 0
    while not turns or (campaign.left > 20 and not campaign.short):
        for case in _order(dice.sample(HOSTILE, len(HOSTILE)), short=campaign.short):
            if campaign.left < 5 and turns:
                break
            _by_hand(yard, case, rows[case.group])
        turns += 1
    _unreadable(yard, rows["no file"])
    _growing(yard, rows["no file"])
    shutil.rmtree(keys)
    return [*rows.values(), served]


def _order(cases: list[Hostile], *, short: bool) -> list[Hostile]:
    """All of them; in the short form one of each group, and always the line of a gigabyte."""
    if not short:
        return cases
    of_groups = {case.group: case for case in cases if not case.heavy}
    return list((of_groups | {case.group: case for case in HOSTILE if case.name == "a line of 1 GB"}).values())


def _put(site: ServiceSite, case: Hostile, day: date) -> Outcome:
    return case.make(site.exports / export_name(day), day)


def _good(site: ServiceSite, days: list[date]) -> dict[date, list[str]]:
    for day in days:
        site.put(day, export_of(day))
    return {day: [f"{day}-{number}" for number in range(20)] for day in days}


def _by_hand(yard: _Yard, case: Hostile, row: Fault) -> None:
    """One export and two good days through `feed`, and what `status` says of it."""
    with yard.site() as site:
        expected = _good(site, [day_before(2), day_before(3)])
        day = day_before(1)
        outcome = _put(site, case, day)
        if outcome.state == "published":
            expected[day] = outcome.ids
        running = site.program.start("feed", "--config", site.config)
        with Peak(running.process.pid) as peak:
            try:
                code = running.process.wait(_LONGEST)
            except subprocess.TimeoutExpired:
                row.lost.append(f"{case.name}: feed took more than {_LONGEST} s")
                return
        running.wait()
        row.tried += 1
        _note_memory(row, case.name, peak.bytes)
        for sentence in [*judge(site.folder / "data", day, outcome), *standing(site.folder / "data", expected)]:
            row.lost.append(f"{case.name}: {sentence}")
        bad = outcome.state in ("failed", "held")
        row.expect(code == bad, f"{case.name}: feed ended with {code}")
        told = [line for line in running.out if line.startswith(str(day))]
        row.expect(len(told) == 1 and outcome.state in told[0], f"{case.name}: feed printed {told}")
        row.expect(outcome.why in "".join(told), f"{case.name}: feed printed {told}, without {outcome.why!r}")
        row.expect("Traceback" not in running.text, f"{case.name}: feed printed a traceback")
        status = {one["day"]: one for one in site.status()["days"]}[str(day)]
        row.expect(status["state"] == outcome.state, f"{case.name}: status says {status['state']}")
        row.expect(outcome.why in status["advice"], f"{case.name}: status advises {status['advice']!r}")


def _note_memory(row: Fault, name: str, peak: int) -> None:
    row.figures["peak memory in MB"] = max(int(row.figures.get("peak memory in MB", 0)), peak >> 20)
    row.expect(peak <= MOST_MEMORY, f"{name}: took {peak >> 20} MB")


async def _before_a_service(yard: _Yard, row: Fault, cases: list[Hostile]) -> None:
    """A day for each export, good days among them; a client that lists and fetches all the while."""
    # The two newest days are not given up, so that a day that is held for few rejected rows stays held.
    cases = sorted(cases, key=lambda case: case.name != "one row in fifty is malformed")
    count = len(cases) + 3
    with yard.site(look_back=count) as site:
        days = [day_before(back) for back in range(1, count + 1)]
        outcomes = {day: _put(site, case, day) for day, case in zip(days, cases, strict=False)}
        expected = _good(site, days[len(cases) :])
        expected |= {day: outcome.ids for day, outcome in outcomes.items() if outcome.state == "published"}
        service = await site.serve()
        last = max(days[len(cases) :])
        name = f"TEST{last:%Y%m%d}-00.tsv.gz"
        slowest = 0.0
        with Peak(service.running.process.pid) as peak:
            deadline = time.monotonic() + _LONGEST
            while not service.running.count(_DONE) >= _said(outcomes, expected):
                started = time.monotonic()
                if name in await service.names():
                    await service.fetch(name)
                slowest = max(slowest, time.monotonic() - started)
                if time.monotonic() > deadline or service.running.process.poll() is not None:
                    row.lost.append(f"the service came to no end of its round: {service.running.text[-500:]}")
                    break
                await asyncio.sleep(0.2)
        _note_memory(row, "all", peak.bytes)
        row.figures["slowest login, listing and fetch in ms"] = round(slowest * 1000)
        for day, outcome in outcomes.items():
            row.tried += 1
            row.lost += [
                f"{cases[days.index(day)].name}: {wrong}" for wrong in judge(site.folder / "data", day, outcome)
            ]
        row.lost += standing(site.folder / "data", expected)
        # A rewrite of the first hostile day, as it should have been: the service goes on.
        rewritten = days[0]
        site.put(rewritten, export_of(rewritten))
        await service.running.says(f"feed published TEST{rewritten:%Y%m%d}-00")
        expected[rewritten] = [f"{rewritten}-{number}" for number in range(20)]
        await service.sees(*(path.name for path in site.pickup.iterdir()))
        row.expect(await service.running.stops() == 0, "the service did not end well")
        row.expect("Traceback" not in service.running.text, "the service printed a traceback")
        row.lost += standing(site.folder / "data", expected)


def _said(outcomes: dict[date, Outcome], expected: dict[date, list[str]]) -> int:
    """How many lines of the log tell that a day was done with."""
    return len(expected) + sum(outcome.state in ("failed", "held") for outcome in outcomes.values())


def _unreadable(yard: _Yard, row: Fault) -> None:
    """An export that the service may not read fails its day, with what to type."""
    with yard.site() as site:
        expected = _good(site, [day_before(2)])
        site.put(day_before(1), export_of(day_before(1))).chmod(0)
        # Root reads everything by two capabilities: it is run without them.
        without = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
        done = site.run("feed", argv=[*without, *command("feed", "--config", site.config)])
        row.tried += 1
        row.expect(done.returncode == 1, f"an unreadable export: feed ended with {done.returncode}: {done.stderr}")
        row.expect("this user may not read" in done.stdout, f"an unreadable export: feed printed {done.stdout}")
        row.expect("chmod o+rX" in done.stderr, f"an unreadable export: no hint in {done.stderr}")
        row.lost += [f"an unreadable export: {wrong}" for wrong in standing(site.folder / "data", expected)]


def _growing(yard: _Yard, row: Fault) -> None:
    """An export that grows while it is read is not published until it rests; what is published is the last of it."""
    with yard.site() as site:
        expected = _good(site, [day_before(2)])
        path = site.put(day_before(1), export_of(day_before(1), 2000))
        over = threading.Event()

        def grow() -> None:
            member = gzip.compress(b"\n" * 1000)
            with path.open("ab", buffering=0) as file:
                while not over.wait(0.0005):
                    file.write(member)

        writer = threading.Thread(target=grow)
        writer.start()
        try:
            done = site.run("feed")
        finally:
            over.set()
            writer.join()
        row.tried += 1
        row.expect(done.returncode == 1, f"a growing export: feed ended with {done.returncode}: {done.stdout}")
        row.expect("was rewritten after it was listed" in done.stdout, f"a growing export: feed printed {done.stdout}")
        row.lost += [f"a growing export: {wrong}" for wrong in standing(site.folder / "data", expected)]
        done = site.run("feed")
        row.expect(done.returncode == 0, f"an export that grew no more: {done.stdout}")
        expected[day_before(1)] = [f"{day_before(1)}-{number}" for number in range(2000)]
        row.lost += [f"an export that grew no more: {wrong}" for wrong in standing(site.folder / "data", expected)]
