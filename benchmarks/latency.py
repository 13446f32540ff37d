"""Logins and listings while a day is being converted, on every core, by the service that answers them.

    python -m benchmarks.latency [--rows 1000000] [--tries 60]

Starts `pickup-point serve` on a folder with one small and one large final day; logs in, lists and leaves, again and
again, first while nothing is converted, then until the large day is published; prints the medians of login and listing
in milliseconds. Then fetches the large day's log, and holds its lines against the books that the service kept of it.
The client runs on the same machine and is part of what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import asyncssh
from isal import igzip

from server.cli.samples import write_day
from server.sftp.keys import make_keys
from server.sftp.users import hash_password
from server.storage.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterable

PASSWORD = "latency"
CONFIG = """\
[export]
url = "exports"
settle = "0s"
poll_every = "1s"
[sftp]
host = "127.0.0.1"
port = {port}
max_connections_per_address = 100
[[sftp.users]]
name = "bench"
password_hash = "{password_hash}"
allow_from = ["127.0.0.1"]
"""


async def one_visit(port: int) -> tuple[float, float]:
    """Seconds for a login with a password, and for a listing."""
    started = time.perf_counter()
    async with asyncssh.connect(
        "127.0.0.1", port, username="bench", password=PASSWORD, known_hosts=None, client_keys=None, config=None
    ) as connection:
        logged_in = time.perf_counter()
        async with connection.start_sftp_client() as client:
            await client.readdir("/")
            return logged_in - started, time.perf_counter() - logged_in


async def visits(port: int, go_on: Iterable[object]) -> list[tuple[float, float]]:
    """Visits one after the other, one for each of ``go_on``."""
    taken = []
    for _ in go_on:
        taken.append(await one_visit(port))
        await asyncio.sleep(0.02)
    return taken


async def fetch(port: int, day: date, folder: Path) -> str:
    """Fetch the day's log; what it holds beside what the books say of it, in a sentence.

    Raises:
        SystemExit: they differ.
    """
    copy = folder / "fetched.tsv.gz"
    async with (
        asyncssh.connect(
            "127.0.0.1", port, username="bench", password=PASSWORD, known_hosts=None, client_keys=None, config=None
        ) as connection,
        connection.start_sftp_client() as client,
    ):
        await client.get(f"/MEGA{day:%Y%m%d}-00.tsv.gz", copy)
    lines, ids = -1, set[bytes]()
    with igzip.open(copy) as log:  # type: ignore[no-untyped-call]  # isal annotates in part
        for line in log:
            lines += 1
            ids.add(blake2b(line.split(b"\t")[12], digest_size=8).digest())
    with closing(Ledger.read(folder / "data" / "ledger.sqlite3")) as ledger:
        (entry,) = (entry for entry in ledger.logs() if entry.name.day == day)
        (tally,) = (each.tally for each in ledger.publications() if each.day == day)
    if tally is None or not tally.balanced or not lines == len(ids) - 1 == tally.lines == entry.lines:
        raise SystemExit(f"{lines} lines with {len(ids) - 1} ids were fetched, and the books say {tally}")
    return f"published and fetched whole: {tally.rows:,} rows, {lines:,} lines, {copy.stat().st_size / 1e6:.0f} MB"


def show(what: str, taken: list[tuple[float, float]]) -> None:
    """A line of medians, and the slowest of each."""
    logins, listings = ([1000 * seconds for seconds in column] for column in zip(*taken, strict=True))
    print(
        f"{what:18} visits {len(taken):4}"
        f"   login median {statistics.median(logins):6.1f} ms, slowest {max(logins):6.1f}"
        f"   listing median {statistics.median(listings):6.1f} ms, slowest {max(listings):6.1f}"
    )


async def measure(folder: Path, rows: int, tries: int) -> None:
    """Both series against one service."""
    exports = folder / "exports"
    exports.mkdir()
    make_keys(folder / "keys")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = folder / "config.toml"
    config.write_text(CONFIG.format(port=port, password_hash=hash_password(PASSWORD)))
    today = datetime.now(UTC).date()
    large = today - timedelta(days=3)
    write_day(exports / f"metrics-day-{today - timedelta(days=2)}.json.gz", today - timedelta(days=2), 1000)
    part = folder / f"metrics-day-{large}.json.gz"
    write_day(part, large, rows)
    service = subprocess.Popen(
        [sys.executable, "-m", "server", "serve", "--config", str(config)], stderr=subprocess.DEVNULL, env=os.environ
    )
    try:
        while True:
            try:
                await one_visit(port)
                break
            except (OSError, asyncssh.Error):
                if service.poll() is not None:
                    raise SystemExit(f"the service ended with status {service.returncode}") from None
                await asyncio.sleep(0.1)
        show("nothing converted", await visits(port, range(tries)))
        part.replace(exports / part.name)
        spool = folder / "data" / "staging" / f"export-{large}.json.gz"
        whole = (exports / part.name).stat().st_size
        while not spool.exists() or spool.stat().st_size < whole:
            await asyncio.sleep(0.01)
        started = time.perf_counter()
        show("a day converted", await visits(port, iter(spool.exists, False)))
        print(f"it took {time.perf_counter() - started:.0f} s;", await fetch(port, large, folder))
    finally:
        service.terminate()
        service.wait()


def main() -> None:
    """Make a folder, measure, remove it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--tries", type=int, default=60)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(Path(folder), arguments.rows, arguments.tries))


if __name__ == "__main__":
    main()
