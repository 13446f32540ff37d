"""Pages of installations in virtual time: seven weeks with everything in them, and a page that shows them.

Real ledger, conversion, feed and HTTP listener; only the clock is handed in. Touches what the caller gives it, and
loopback.
"""

from __future__ import annotations

import asyncio
import random
import threading
from base64 import b64encode
from contextlib import asynccontextmanager, contextmanager, nullcontext
from datetime import date, timedelta
from typing import TYPE_CHECKING

from server.config import parse_config
from server.status.metrics import Reading
from server.storage.folder import DataFolder
from server.web.site import Page

from .config_text import USER
from .rows import row
from .site import DAY, at, broken_rows, name, rows_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from datetime import datetime
    from pathlib import Path
    from typing import Any

    from server.settings import Config

    from .site import Site

FIRST, TODAY = date(2026, 10, 5), date(2026, 11, 24)
NOW = at(0, "05:40", TODAY)
MISSING, LATE, HELD = date(2026, 11, 21), date(2026, 11, 22), date(2026, 11, 23)
MORE = date(2026, 11, 18)  # a day with late rows
CLIENT = "JSCH-0.2.9"


async def live(site: Site, first: date = FIRST) -> None:
    """Let seven weeks pass, or the days since ``first``.

    Exports arrive, rounds publish them, and Triton comes every morning at seven.
    """
    volume = random.Random(7)
    for number in range((TODAY - first).days):
        day = first + timedelta(days=number)
        rows = rows_of(day, volume.randrange(950, 1050) - 200 * (day.weekday() > 4))
        if day == HELD:
            rows = rows[:-90] + broken_rows(90)
        if day != MISSING:
            site.put(rows, at(1, "08:00" if day == LATE else "04:05", day), day)
        await site.round(at(1, "05:20", day))
        if day == HELD:
            return
        site.ledger.record_login("triton", at(1, "07:00", day), "203.0.113.7", CLIENT)
        if day not in (MISSING, LATE):
            site.pick_up(at(1, "07:01", day), name(0, day))
        if day == LATE:
            await site.round(at(1, "09:10", day))
        if day == MORE:
            site.put([*rows, *rows_of(day, 12, len(rows))], at(1, "06:30", day), day)
            await site.round(at(1, "08:10", day))
            site.pick_up(at(2, "07:02", day), name(1, day))


def facts_at(now: datetime) -> dict[str, Any]:
    """What a running service has noted by then."""
    return {
        "service_started": (now - timedelta(days=50)).isoformat(), "service_port": 2222,
        "last_round": (now - timedelta(minutes=4)).isoformat(), "next_round": (now + timedelta(minutes=6)).isoformat(),
        "last_good_round": (now - timedelta(minutes=4)).isoformat(),
    }  # fmt: skip


def page_config(root: Path, first: date = DAY, **web: Any) -> Config:
    """The configuration of an installation in ``root`` with a page on a free port."""
    table = {"listen": "127.0.0.1:0"} | web
    raw = {
        "data_dir": "data",
        "export": {"url": "exports", "first_day": first},
        "sftp": {
            "address": "sftp.example.com:2222",
            "users": [{"name": "triton", "password_hash": USER.split('"')[3]}],
        },
        "web": table,
    }
    return parse_config(raw, root / "config.toml")


HOST = "Host: localhost\r\n"


class Served:
    """A page that listens; ``health`` is what it says of the service."""

    def __init__(self, config: Config, now: datetime) -> None:
        self.health = ""
        self.page = Page(lambda: config, Reading, self._health, lambda: now)
        self.port = 0

    async def _health(self) -> str:
        return self.health

    async def ask(self, request: str | bytes) -> tuple[int, dict[str, str], bytes]:
        """Send these bytes; the status, the headers and the body of the answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request if isinstance(request, bytes) else request.encode("latin-1"))
        answer = await reader.read()
        writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        first, *rest = head.decode("latin-1").split("\r\n")
        assert first.startswith(("HTTP/1.0 ", "HTTP/1.1 ")), first
        headers = dict(line.split(": ", 1) for line in rest)
        return int(first.split()[1]), headers, body

    async def get(self, path: str, *headers: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        """Ask for a path, with these headers after that of the host."""
        return await self.ask("\r\n".join((f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", "")))


@asynccontextmanager
async def serving(root: Path, now: datetime = NOW, **web: Any) -> AsyncIterator[Served]:
    """The page of the installation in a folder, as it is ``now``."""
    served = Served(config := page_config(root, **web), now)
    # The page is the service's, which therefore runs; an installation that is not there yet stays away.
    with DataFolder(config.data_dir).service_lock() if config.data_dir.exists() else nullcontext():
        port = await served.page.start()
        assert port
        served.port = port
        try:
            yield served
        finally:
            await served.page.close()


def basic(password: str, name: str = "anybody") -> str:
    """The header that a browser sends after it has asked."""
    return f"Authorization: Basic {b64encode(f'{name}:{password}'.encode()).decode()}"


@contextmanager
def shown(config: Config, now: datetime) -> Iterator[str]:
    """Serve the page of an installation in a thread, as it is ``now``; its address."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)

    served = Served(config, now)
    try:
        yield f"http://127.0.0.1:{run(served.page.start())}"
    finally:
        run(served.page.close())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>&amp;'


def hostile_rows(day: date, count: int) -> list[bytes]:
    """Rows of podcasts whose ids attack whoever shows them: HTML, a formula, a control character."""
    ids = (HOSTILE, "=cmd|'/c calc'!A0", "a\u001b[31mb", "{{ 7 * 7 }}")
    return [row(id=f"{day}-{n}", created_at=f"{day}T00:00:{n % 60:02d}Z", podcast_id=ids[n % 4]) for n in range(count)]
