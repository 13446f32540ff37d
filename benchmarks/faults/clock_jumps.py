"""The local clock of a running service set back and forth, by libfaketime; the clock of its bucket is right.

Real `serve`, a real S3 server on loopback (`tests.support.fault_s3`), real clients. Touches its own folder. What must
hold: every version that is delivered goes out once, in files whose mtimes grow; nothing is pruned because of a wrong
clock; the service lives, lets clients in, and `check` speaks of the clock.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from server.config import load_config
from server.status.snapshot import Snapshot
from server.storage.ledger import Ledger
from tests.support.fault_s3 import BUCKET, FaultServer, Version, fault_server
from tests.support.program import Program, ServiceSite, Serving, day_before, export_name, export_of, port_of

from .stock import Stock

if TYPE_CHECKING:
    from .result import Campaign, Fault

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
AWS = {
    "AWS_ACCESS_KEY_ID": "AKIDTEST", "AWS_SECRET_ACCESS_KEY": "secret-of-the-test",
    "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}  # fmt: skip
JUMPS = (0, 1, -1, 5, -5, 23, -23, 72, -72, 24 * 61, -24 * 61, 24 * 400)  # hours
PATIENCE = 40.0  # seconds


def jumps(campaign: Campaign, row: Fault) -> None:
    """One service; its clock jumps, a version is delivered, it goes out."""
    if LIBRARY is None:
        row.figures["not run"] = "apt-get install faketime"
        return
    folder = campaign.folder / "jumps"
    folder.mkdir()
    program = Program(folder)
    try:
        asyncio.run(_jumps(campaign, row, Stock(ServiceSite(folder, campaign.folder / "keys", program))))
    finally:
        program.end()


async def _jumps(campaign: Campaign, row: Fault, stock: Stock) -> None:
    dice, site, offset = campaign.rng("clock", "jumps"), stock.site, campaign.folder / "offset"
    untried = [float(hours) for hours in JUMPS]
    dice.shuffle(untried)
    counts = {1: 0, 2: 0}
    server = FaultServer()
    async with fault_server(server):
        site.configure(f'url = "s3://{BUCKET}"\nendpoint_url = "{server.url}"\nregion = "us-east-1"', poll="2s")
        _set(offset, 0)
        environment = AWS | {
            "LD_PRELOAD": str(LIBRARY), "FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1",
        }  # fmt: skip
        argv = [sys.executable, "-P", "-m", "benchmarks.faults.tools.set_clock", "serve", "--config", str(site.config)]
        running = site.program.start(argv=argv, env=environment)
        serving = Serving(running, await port_of(running))
        while (campaign.left > 0 or row.tried < 3) and not row.lost:
            hours = untried.pop() if untried else dice.uniform(-100, 100)
            await asyncio.to_thread(_set, offset, hours)
            back = dice.choice([1, 2])
            counts[back] += dice.randrange(1, 60)
            body = export_of(day_before(back), counts[back])
            server.objects[export_name(day_before(back))] = Version(body, datetime.now(UTC))
            stock.ids[day_before(back)] = [f"{day_before(back)}-{n}" for n in range(counts[back])]
            what = f"the clock {hours:+.1f} h off"
            await _published(stock, row, running, what)
            row.tried += 1
            row.lost += [f"{what}: {wrong}" for wrong in stock.look() + _order(stock)]
            seen = set(await serving.names())
            row.expect(seen == set(stock.seen.files), f"{what}: a client sees {seen}")
            await asyncio.to_thread(_told, stock, row, hours, what)
        row.expect(await running.stops() == 0, f"the service did not end in order: {running.text[-300:]}")
        row.expect("Traceback" not in running.text, f"a traceback: {running.text[-600:]}")
    row.figures["log files published"] = len(stock.seen.files)


def _set(offset: Path, hours: float) -> None:
    """Set the clock: whole at once, as it is read at every look at it."""
    part = offset.with_suffix(".part")
    part.write_text(f"{hours * 3600:+.0f}\n")
    os.replace(part, offset)  # noqa: PTH105  # by its plain name


async def _published(stock: Stock, row: Fault, running: object, what: str) -> None:
    deadline, wrong = time.monotonic() + PATIENCE, ["?"]
    while wrong and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
        if stock.site.pickup.is_dir():
            wrong = await asyncio.to_thread(stock.wrong)
    row.lost += [f"{what}: {one} | {getattr(running, 'err', [])[-3:]}" for one in wrong]


def _order(stock: Stock) -> list[str]:
    with closing(Ledger.read(stock.site.folder / "data" / "ledger.sqlite3")) as ledger:
        logs = sorted(ledger.logs(), key=lambda log: (log.publication, log.name.number))
    return [f"{b.name} is not younger than {a.name}" for a, b in pairwise(logs) if b.mtime < a.mtime + 1]


def _told(stock: Stock, row: Fault, hours: float, what: str) -> None:
    """Once a round has compared the clocks, `check` says how far off the local one is."""
    config, deadline, names = load_config(stock.site.config), time.monotonic() + PATIENCE, set[str]()
    while time.monotonic() < deadline:
        names = {alarm.name for alarm in Snapshot.take(config, datetime.now(UTC) + timedelta(hours=hours)).alarms}
        if ("clock" in names) == (hours != 0):
            return
        time.sleep(0.2)
    row.lost.append(f"{what}: check has the alarms {names}")
