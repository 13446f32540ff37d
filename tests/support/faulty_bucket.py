"""A bucket on the scripted fault server, opened with little patience: what the fault tests share. Only loopback."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING

from server.megaphone.bucket import Bucket
from server.s3.retry import RetryPolicy

from .fault_s3 import BUCKET, Fault, FaultServer
from .s3 import bucket_settings

if TYPE_CHECKING:
    from server.megaphone.exports import DayExport

DAY = date(2026, 11, 20)
KEY = f"metrics-day-{DAY}.json.gz"
SIZE = 300_000
QUICK = RetryPolicy(
    connect=1,
    silence=0.3,
    call=3,
    window=0.4,
    least_rate=25_000,
    tries=4,
    first_pause=0.01,
    longest_pause=0.03,
    sdk_tries=1,
)

# For what must succeed in the end, on a machine that does much else besides.
UNHURRIED = replace(QUICK, connect=5, silence=1.5, call=10)


def body_of(seed: int, size: int = SIZE) -> bytes:
    """An object's bytes."""
    return random.Random(seed).randbytes(size)


async def bucket_of(faulty: FaultServer, patience: RetryPolicy = QUICK) -> Bucket:
    """The bucket with little patience."""
    return await Bucket.open(bucket_settings(f"s3://{BUCKET}", faulty.url).place, retry=patience)


async def listed(bucket: Bucket) -> DayExport:
    """The one day."""
    return (await bucket.day_exports()).exports[DAY]


async def read(faulty: FaultServer, *faults: Fault, patience: RetryPolicy = QUICK) -> bytes:
    """List, then read under these faults; a spool that holds something already keeps it."""
    bucket = await bucket_of(faulty, patience)
    export = await listed(bucket)
    faulty.script.extend(faults)
    into = io.BytesIO(b"kept")
    into.seek(4)
    await bucket.fetch(export, into)
    assert into.getvalue()[:4] == b"kept"
    return into.getvalue()[4:]
