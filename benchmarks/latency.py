"""Logins and listings while a day is being converted, on every core, by the service that answers them.

    python -m benchmarks.latency [--rows 1000000] [--tries 60]

Starts `pickup-point serve` on a folder with one small and one large final day; logs in, lists and leaves, again and
again, first while nothing is converted, then while the large day is; prints the medians of login and listing in
milliseconds. The client runs on the same machine and is part of what is measured.
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
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncssh

from server.access import hash_password
from server.keys import make_keys
from server.samples import write_day

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


async def visits(port: int, tries: int, going_on: Path | None = None) -> list[tuple[float, float]]:
    """Visits one after the other; with ``going_on``, only while that file is there."""
    taken = []
    for _ in range(tries):
        if going_on is not None and not going_on.exists():
            break
        taken.append(await one_visit(port))
        await asyncio.sleep(0.02)
    return taken


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
        for _ in range(200):
            try:
                await one_visit(port)
                break
            except (OSError, asyncssh.Error):
                await asyncio.sleep(0.1)
        show("nothing converted", await visits(port, tries))
        part.replace(exports / part.name)
        spool = folder / "data" / "staging" / f"export-{large}.json.gz"
        while not spool.exists():
            await asyncio.sleep(0.05)
        while spool.stat().st_size < (exports / part.name).stat().st_size:
            await asyncio.sleep(0.01)
        show("a day converted", await visits(port, tries, spool))
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
