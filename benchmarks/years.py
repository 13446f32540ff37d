"""What ten years leave behind: status, check, round, start and scrape of an old installation, beside a young one's.

    python -m benchmarks.years [--years 10] [--podcasts 2000] [--rounds 5]

Builds two installations day by day, with the ledger, the retention pass and the pickups as the service uses them: one
of a month, one of that many years. On every day both users pick up what was published, one of them in pieces on every
seventh; on every tenth late rows are published; on every thirtieth a client opens a file hundreds of times. The last
three days are published by `pickup-point feed`. Then every command is run in turn on both, as a process; prints the
medians in milliseconds and their ratio: of CPU time for the commands, which other work on the machine does not disturb,
of wall time for a start and a scrape of the metrics.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from datetime import time as wall_time
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from isal import igzip

from server.cli.samples import write_day
from server.config import IP_HASH_KEY
from server.convert.tally import PodcastBooks, Tally
from server.megaphone.exports import DayExport
from server.pickups import PickupProgress
from server.publish.retention import prune, thin_out_pickups
from server.sftp.keys import make_keys
from server.sftp.users import hash_password
from server.storage.folder import DataFolder
from server.storage.ledger import Ledger
from server.storage.records import DayRecord, LateCheck, LedgerLog, Publication
from server.triton import LogFormat, LogName, LogRules
from server.web.reader import FRESH

if TYPE_CHECKING:
    from collections.abc import Callable

MONTH = 30
USERS = ("triton", "auditor")
FLOOD = 400  # handles that a client opens on every thirtieth day
KEEP_DAYS, KEEP_PICKUPS_DAYS, BY_FEED = 60, 14, 3
CONFIG = """\
[export]
url = "exports"
settle = "0s"
[sftp]
host = "127.0.0.1"
port = {port}
[[sftp.users]]
name = "triton"
password_hash = "{hash}"
[[sftp.users]]
name = "auditor"
password_hash = "{hash}"
required = false
[web]
listen = "127.0.0.1:{metrics}"
"""


class History:
    """The days of an installation, lived through in virtual time."""

    def __init__(self, root: Path, days: int, podcasts: int) -> None:
        self.random = random.Random(days)
        self.folder = DataFolder(root / "data")
        self.folder.prepare()
        self.books = PodcastBooks()
        for _ in range(podcasts):
            rows = self.random.randrange(1, 5000)
            name = f"{self.random.getrandbits(128):032x}"
            self.books.tallies[name] = Tally(rows=rows, reporting=rows, lines=rows)
        today = datetime.now(UTC).date()
        self.days = [today - timedelta(days=back) for back in range(days, BY_FEED, -1)]

    def live(self) -> None:
        """Live through all of it."""
        with closing(Ledger.open(self.folder.ledger_path)) as ledger:
            ledger.note(folder_adopted="", clock_skew=0.0, first_start=f"{self.days[0]}T00:00:00+00:00")
            for first in range(0, len(self.days), 50):
                # Many days in one transaction, or the disk would be all that is waited for.
                with ledger.together():
                    for number, day in enumerate(self.days[first : first + 50], first):
                        self._one_day(ledger, day, number)
                        if number % 5 == 0 or day == self.days[-1]:
                            prune(ledger, self.folder, KEEP_DAYS, _at(day, 30))
                            thin_out_pickups(ledger, KEEP_PICKUPS_DAYS, _at(day, 30))

    def _one_day(self, ledger: Ledger, day: date, number: int) -> None:
        export = DayExport(day, f"metrics-day-{day}.json.gz", f"{number:032x}", 100_000_000, _at(day, 28))
        ledger.see(DayRecord(day, "due", _at(day, 29), export))
        names = [self._publish(ledger, export, 0)]
        if number % 10 == 0:
            names.append(self._publish(ledger, export, 1))
            tally = Tally(rows=1_000_000, lines=900_000)
            ledger.late_checked(LateCheck(day, _at(day, 31), export.etag, export.last_modified, 0, 3, 0, tally))
        for user in USERS:
            for name, size in names:
                pieces = 12 if number % 7 == 0 and user == "triton" else 1
                for piece in range(pieces):
                    self._read(ledger, name, size, user, (size * piece // pieces, size * (piece + 1) // pieces))
            ledger.record_login(user, _at(day, 30), "198.51.100.7", "JSCH-0.1.55")
        if number % 30 == 0:
            for _ in range(FLOOD):
                self._read(ledger, *names[0], "auditor", (0, 1))

    def _publish(self, ledger: Ledger, export: DayExport, number: int) -> tuple[LogName, int]:
        name = LogName("MEGA", export.day, number, LogFormat.TSV)
        content = igzip.compress(f"{name}\n".encode() * 10)
        path, at = self.folder.pickup_dir / str(name), _at(export.day, 30 + number)
        path.write_bytes(content)
        path.chmod(0o440)
        os.utime(path, (at.timestamp(), at.timestamp()))
        entry = LedgerLog(
            name, 0, len(content), hashlib.sha256(content).hexdigest(), int(at.timestamp()), 900_000, "intended"
        )
        tally = Tally(rows=1_000_000, lines=900_000)
        tally.filtered["blacklisted_ua"] = 100_000
        kind = "late" if number else "first"
        made = Publication(0, export.day, kind, export, LogRules(), tally, at, None, podcasts=self.books)  # type: ignore[arg-type]  # one of two
        ledger.published(ledger.intend(made, [entry], [entry.lines]), at, checked_etag=export.etag)
        return name, entry.size

    def _read(self, ledger: Ledger, name: LogName, size: int, user: str, part: tuple[int, int]) -> None:
        begun = _at(name.day, 31) + timedelta(seconds=self.random.randrange(3600))
        progress = PickupProgress(name, size, user, "198.51.100.7", "JSCH-0.1.55", begun)
        ledger.pickups.record(progress.opened(), begun)
        progress.answered(part[0], part[1] - part[0])
        progress.delivered(part[0], part[1] - part[0])
        ended = begun + timedelta(seconds=9)
        ledger.pickups.record(progress.finished(ended, closed=True), ended)


def _at(day: date, hours: int) -> datetime:
    return datetime.combine(day, wall_time(), UTC) + timedelta(hours=hours)


class Installation:
    """A folder with configuration and keys, and the commands that are measured in it."""

    def __init__(self, root: Path, days: int, podcasts: int) -> None:
        root.mkdir()
        self.root = root
        self.port, self.metrics = _free_port(), _free_port()
        History(root, days, podcasts).live()
        (root / "exports").mkdir()
        make_keys(root / "keys")
        (root / "keys" / IP_HASH_KEY).write_text(os.urandom(32).hex())
        (root / "keys" / IP_HASH_KEY).chmod(0o600)
        text = CONFIG.format(port=self.port, metrics=self.metrics, hash=hash_password("years"))
        (root / "config.toml").write_text(text)
        today = datetime.now(UTC).date()
        for back in range(1, BY_FEED + 1):
            day = today - timedelta(days=back)
            path = root / "exports" / f"metrics-day-{day}.json.gz"
            write_day(path, day, 100)
            os.utime(path, (_at(day, 28).timestamp(),) * 2)
        self.run("feed")

    def run(self, *command: str) -> None:
        """Run a command; that `check` has something to say does not matter."""
        done = subprocess.run(self.command(*command), capture_output=True, check=False, cwd=self.root)
        if done.returncode and command != ("check",):
            raise SystemExit(f"{command} failed: {done.stderr.decode()}")

    def command(self, *command: str) -> list[str]:
        """The command line."""
        return [sys.executable, "-m", "server", *command, "--config", str(self.root / "config.toml")]

    def serve(self, scrapes: int) -> tuple[float, list[float]]:
        """Start the service, scrape its metrics, end it; seconds until it listened, and of each scrape but one."""
        environment = os.environ | {"PYTHONPATH": str(Path.cwd()), "PYTHONUNBUFFERED": "1"}
        started = time.perf_counter()
        service = subprocess.Popen(self.command("serve"), stderr=subprocess.PIPE, cwd=self.root, env=environment)
        try:
            assert service.stderr is not None
            for line in service.stderr:
                if b"service started listening" in line:
                    break
            listening = time.perf_counter() - started
            time.sleep(2)  # the first round
            taken = []
            for _ in range(scrapes + 1):
                time.sleep(FRESH)  # or the answer would be the last one
                taken.append(_seconds(lambda: _get(self.metrics)))
            return listening, taken[1:]
        finally:
            service.send_signal(signal.SIGTERM)
            service.communicate()


def _get(port: int) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        assert b"pickup_point_day_done" in answer.read()


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Build both, measure in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--years", type=float, default=10)
    parser.add_argument("--podcasts", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    os.environ["PYTHONPATH"] = str(Path.cwd())
    with tempfile.TemporaryDirectory() as folder:
        ages = {"month": MONTH, "years": round(arguments.years * 365)}
        installations = {}
        for age, days in ages.items():
            installations[age] = Installation(Path(folder) / age, days, arguments.podcasts)
            size = (Path(folder) / age / "data" / "ledger.sqlite3").stat().st_size
            print(f"{days} days: a ledger of {size / 1e6:.1f} MB")
        taken: dict[str, dict[str, list[float]]] = {}
        for _ in range(arguments.rounds):
            for age, installation in installations.items():
                for what in ("status", "check", "feed"):
                    before = os.times()
                    installation.run(what)
                    after = os.times()
                    seconds = (
                        after.children_user + after.children_system - before.children_user - before.children_system
                    )
                    taken.setdefault(what, {}).setdefault(age, []).append(seconds)
                start, scrapes = installation.serve(10)
                taken.setdefault("start", {}).setdefault(age, []).append(start)
                taken.setdefault("scrape", {}).setdefault(age, []).extend(scrapes)
        for what, by_age in taken.items():
            young, old = (1000 * statistics.median(by_age[age]) for age in ("month", "years"))
            print(f"{what:7} {young:8.1f} ms in the first month {old:8.1f} ms after years  ratio {old / young:.2f}")


if __name__ == "__main__":
    main()
