"""A row of the part `bucket`: radosgw is killed, frozen and restarted while a running service reads from it.

Touches its own folder, a one-node Ceph on loopback and a real `serve`, with its own patience. The blow falls when the
service has begun to read an export, as its staging folder shows, or at any moment.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from contextlib import AsyncExitStack, closing, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tests.support.ceph import OWNER, READER, Ceph, missing_packages
from tests.support.program import Program, ServiceSite, day_before
from tests.support.s3 import client_of

from .deliveries import Megaphone

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .result import Campaign, Fault

BUCKET = "exports"
MOST_DAYS = 360
WAIT = 60.0  # seconds for one blow's day to be published


async def run(campaign: Campaign, row: Fault, seconds: float) -> None:
    """Deliver a day, strike, let it come back, again and again; in the end everything must be there."""
    from .bucket import Watch, configure

    if missing := missing_packages():
        row.figures = {"not run": missing}
        return
    folder = campaign.folder / "gateway"
    folder.mkdir()
    (folder / "ceph").mkdir()
    started, loop = asyncio.get_running_loop().time(), asyncio.get_running_loop()
    figures: Counter[str] = Counter()
    dice = campaign.rng("bucket", "gateway")
    program = Program(folder)
    async with AsyncExitStack() as stack:
        ceph = stack.enter_context(Ceph.up(folder / "ceph"))
        stack.callback(program.end)
        s3 = stack.enter_context(closing(client_of(ceph.url, "s3", *OWNER)))
        s3.create_bucket(Bucket=BUCKET)
        s3.put_bucket_policy(Bucket=BUCKET, Policy=ceph.read_policy(BUCKET))

        def put(key: str, body: bytes) -> None:
            s3.put_object(Bucket=BUCKET, Key=key, Body=body)

        os.environ.update(AWS_ACCESS_KEY_ID=READER[0], AWS_SECRET_ACCESS_KEY=READER[1])
        site = ServiceSite(folder, campaign.folder / "keys", program)
        configure(site, ceph.url)
        megaphone = Megaphone(put, dice, rows=(6_000, 12_000), level=0)
        serving = await site.serve()
        watch = Watch(site, row, serving)
        reading = asyncio.create_task(watch.read_for_ever(campaign.rng("bucket", "gateway's client")))
        blows = ["killed", "frozen", "restarted"]
        while len(megaphone.days) < MOST_DAYS and not row.lost:
            if loop.time() - started > seconds - 6 and len(megaphone.days) >= len(blows):
                break
            blow = blows[len(megaphone.days) % 3] if len(megaphone.days) < 3 else dice.choice(blows)
            day = day_before(1 + len(megaphone.days))
            await asyncio.to_thread(megaphone.new_day, day)
            if dice.random() < 0.85 or len(megaphone.days) <= len(blows):
                figures["in mid-read"] += await _read_begun(site.folder / "data" / "staging")
            row.tried += 1
            figures[f"radosgw {blow}"] += 1
            await _BLOWS[blow](ceph, dice, campaign.short)
            wanted = f"TEST{day:%Y%m%d}-00.tsv.gz"
            if not await _comes(site.pickup / wanted, row):
                figures["days that needed a round by hand"] += 1
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading
        watch.count(figures)
        figures["files fetched by a client"] = watch.fetched
        await watch.ends_well(megaphone.expected)
    row.figures = {"days": len(megaphone.days), **figures}


async def _read_begun(staging: Path) -> bool:
    """Wait until the service has a part of an export on its disk; False when it was too quick to be seen."""
    deadline = asyncio.get_running_loop().time() + 5
    while asyncio.get_running_loop().time() < deadline:
        with suppress(OSError):
            if any(path.stat().st_size for path in staging.glob("export-*")):
                return True
        await asyncio.sleep(0.001)
    return False


async def _killed(ceph: Ceph, dice: Any, short: bool) -> None:
    """kill -9, a while without it, a new one."""
    await asyncio.to_thread(ceph.kill_gateway)
    await asyncio.sleep(dice.random() * (1 if short else 4))
    await asyncio.to_thread(ceph.start_gateway)


async def _frozen(ceph: Ceph, dice: Any, short: bool) -> None:
    """SIGSTOP, sometimes for longer than the service's patience, SIGCONT."""
    ceph.freeze_gateway()
    await asyncio.sleep(dice.random() * 2 if short or dice.random() < 0.8 else 20 + 10 * dice.random())
    ceph.thaw_gateway()


async def _restarted(ceph: Ceph, dice: Any, short: bool) -> None:
    """Killed and started several times in a row."""
    for _ in range(2 if short else dice.randrange(2, 5)):
        await asyncio.to_thread(ceph.kill_gateway)
        await asyncio.to_thread(ceph.start_gateway)
        await asyncio.sleep(dice.random() / 3)


_BLOWS: dict[str, Callable[[Ceph, Any, bool], Any]] = {"killed": _killed, "frozen": _frozen, "restarted": _restarted}


async def _comes(path: Path, row: Fault) -> bool:
    """Whether the day is published by the service itself, which it must be."""
    deadline = asyncio.get_running_loop().time() + timedelta(seconds=WAIT).total_seconds()
    while asyncio.get_running_loop().time() < deadline:
        if path.exists():
            return True
        await asyncio.sleep(0.05)
    row.lost.append(f"{path.name} was not published within {WAIT:.0f} s after radosgw was back")
    return False
