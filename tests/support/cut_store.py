"""Two nodes over HTTP, on an S3 server that cuts, refuses or loses half of its answers; done or not, as it comes.

Real client, real requests, the scripted server of `fault_s3` on 127.0.0.1; only the days are made up.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from server.errors import StoreError
from server.s3.errors import BucketPlace
from server.s3.objects import ObjectStore
from server.storage.shelf import open_shelf

from .apart import conversions_here
from .fault_s3 import BUCKET, FaultServer, cut, done_but, fault_server, hang_up, refuse
from .faulty_bucket import UNHURRIED
from .s3 import REGION
from .site import Site, at, rows_of

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from aiohttp import web

    from .fault_s3 import Fault

DAYS = 2
STATE = ".pickup-point/logs/"


def shared_over(url: str) -> dict[str, object]:
    """The settings of a `Site` whose store is a bucket."""
    place = BucketPlace(BUCKET, "logs/", REGION, url, None, "store")
    return {"store": True, "open_shelf": partial(open_shelf, ObjectStore(place, UNHURRIED), STATE)}


def cut_days(folder: Path, dice: random.Random) -> tuple[int, list[str]]:
    """Publish some days, with late rows; return the number of requests, and what is wrong at the end."""
    os.environ |= {"AWS_ACCESS_KEY_ID": "AKIDTEST", "AWS_SECRET_ACCESS_KEY": "secret-of-the-test"}
    with conversions_here():
        return asyncio.run(_cut_days(folder, dice))


async def _cut_days(folder: Path, dice: random.Random) -> tuple[int, list[str]]:
    requests, calm = 0, False
    # Days that are over by the server's own clock, which dates what is published: one far ahead is refused.
    first = datetime.now(UTC).date() - timedelta(days=DAYS + 1)
    writes = [hang_up(), hang_up(reset=True), done_but(hang_up()), refuse(503, "SlowDown"),
              refuse(409, "ConditionalRequestConflict"), done_but(refuse(500, "InternalError")),
              done_but(refuse(409, "ConditionalRequestConflict"))]  # fmt: skip

    def weather(request: web.Request) -> Fault | None:
        nonlocal requests
        requests += 1
        if calm or dice.random() < 0.5:
            return None
        return dice.choice(writes if request.method == "PUT" else [cut(0), hang_up(), refuse(503, "SlowDown")])

    server = FaultServer(weather=weather)
    async with fault_server(server):
        more = {"exports": folder / "exports", "max_rows_per_file": 20, **shared_over(server.url)}
        nodes = [Site(folder / word, **more) for word in "ab"]
        try:
            for number in range(DAYS):
                day = first + timedelta(days=number)
                nodes[0].put(rows_of(day, 30), at(1, "04:10", day), day)
                for tries in range(8):
                    if tries == 4:
                        nodes[0].put(rows_of(day, 40), at(1, "06:10", day), day)
                    with suppress(StoreError):
                        await dice.choice(nodes).round(at(1, f"{8 + tries:02d}:00", day))
            calm = True
            now = at(DAYS, "22:00", first)
            for site in (*nodes, *nodes):
                now += timedelta(hours=1, minutes=30)
                await site.round(now)
            wrong = []
            shown = [{log.name: (log.sha256, log.mtime) for log in site.ledger.logs()} for site in nodes]
            wrong += ["the nodes do not know the same"] * (shown[0] != shown[1])
            wanted = {f"{first + timedelta(days=n)}-{m}": 1 for n in range(DAYS) for m in range(40)}
            for site in nodes:
                site.check_folder()
                wrong += ["rows are lost or sent twice"] * (site.standing_ids() != wanted)
        finally:
            for site in nodes:
                site.stop()
    return requests, wrong
