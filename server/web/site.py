"""The page: which path shows what.

Reads the ledger through `status`, and its own templates. Promise: no request changes anything, whatever a template
shows is escaped, and nothing comes from another host.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..errors import DataFolderError, LedgerError, PickupPointError
from ..hints import OURS, Call, lines, steps
from ..megaphone.exports import calendar_day
from ..sftp.limits import Limits
from ..status.metrics import METRICS_TYPE, exposition
from ..status.snapshot import Snapshot, details_of, reconciliation_of, trace_of
from ..status.words import activation_sheet, reconciliation_csv
from ..threads import in_thread
from ..triton import LogName
from . import views
from .access import Door, load_access
from .answer import CSV, HTML, Answer, json, text
from .glossary import CHAPTER, glossary
from .listener import Listener
from .reader import Reader

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ..settings import Config, WebSettings
    from ..sftp.registry import CurrentBan
    from ..sftp.users import Access
    from ..status.metrics import Reading

log = structlog.get_logger()

FOLDER = Path(__file__).parent
REFRESH_SECONDS = 60
STILL = "still"  # the query that stops a page from refreshing itself
_STATIC = {"/style.css": "text/css; charset=utf-8", "/icon.svg": "image/svg+xml"}


class Page:
    """The page of a service; without ``[web]`` it does nothing.

    ``unhealthy_reason`` returns why the service does not work, or ''; only tests pass a ``clock``.
    """

    def __init__(
        self,
        config: Callable[[], Config],
        read_metrics: Callable[[], Reading],
        unhealthy_reason: Callable[[], Awaitable[str]],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._config = config
        self._read_metrics = read_metrics
        self._unhealthy_reason = unhealthy_reason
        self._clock = clock
        self._parts: tuple[Listener, Door, Reader] | None = None
        self._static = {path: (FOLDER / "static" / path[1:]).read_bytes() for path in _STATIC}
        self._templates = templates()
        self._templates.globals["style"] = f"/style.css?{sha256(self._static['/style.css']).hexdigest()[:12]}"
        self._templates.globals["glossary"] = glossary((FOLDER.parent / "manual" / CHAPTER).read_text(encoding="utf-8"))

    async def start(self) -> int | None:
        """Start listening, and return the port; None without ``[web]``.

        Raises:
            ConfigError: the password hash cannot be used.
            CannotListen: the address cannot be bound.
        """
        settings = self._config().web
        if settings is None:
            return None
        door = Door(load_access(settings), lambda: Limits.of(self._config().sftp))
        listener, reader = Listener(settings, door, self.answer), Reader()
        port = await listener.start()
        self._parts = listener, door, reader
        log.info("service opened the page", url=f"http://{settings.listen.rpartition(':')[0]}:{port}/", port=port)
        if settings.beyond_loopback:
            hint = "pickup-point manual web"
            log.warning("service serves the page without TLS: put a proxy in front of it", hint=hint)
        return port

    def replace(self, settings: WebSettings, access: Access | None) -> None:
        """Ask for another password, and answer to other names, from now on."""
        if self._parts is not None:
            self._parts[0].replace(settings)
            self._parts[1].replace(access)

    def bans(self) -> list[CurrentBan]:
        """Return who is kept out now, and until when."""
        return self._parts[1].bans() if self._parts is not None else []

    def summarize(self) -> None:
        """Log, once a minute, how many refusals had no line of their own."""
        if self._parts is not None:
            self._parts[1].summarize()

    async def close(self) -> None:
        """Stop listening, and stop the threads."""
        if self._parts is None:
            return
        listener, door, reader = self._parts
        self._parts = None
        await listener.close()
        door.close()
        await in_thread(reader.close)  # it waits for the answer under way

    async def answer(self, path: str, query: str) -> Answer:
        """Return the answer to a request for ``path``; whether the client may see it has been checked."""
        if path == "/healthz":
            sentence = await self._unhealthy_reason()
            return text(503, sentence) if sentence else text(200, "OK")
        if path in self._static:
            # Kept for a day: another stylesheet has another address, and the icon is no harm.
            return Answer(200, _STATIC[path], self._static[path], {"Cache-Control": "max-age=86400"})
        assert self._parts is not None  # noqa: S101  # only the listener calls
        reader = self._parts[2]
        still = query == STILL
        return await reader.ask(f"{path}?{still}", partial(self._make, path, still=still))

    def _make(self, path: str, *, still: bool) -> Answer:
        """Make the answer; runs in the reader's thread."""
        try:
            return self._page(path, still=still)
        except PickupPointError as error:
            broken = isinstance(error, (LedgerError, DataFolderError))
            unknown = path.startswith(("/days/", "/files/")) and not broken
            return self._sorry(404 if unknown else 503, error, path, still=still)

    def _page(self, path: str, *, still: bool) -> Answer:
        config, now = self._config(), self._clock()
        match path.split("/")[1:]:
            case [""]:
                return self._html(
                    "overview.html", path, still, views.overview(Snapshot.take(config, now), config, _call(config))
                )
            case ["metrics"]:
                return Answer(200, METRICS_TYPE, exposition(self._read_metrics()))
            case ["status.json"]:
                sheet = {"activation_sheet": dict(activation_sheet(config))}
                return json(Snapshot.take(config, now).as_json() | sheet)
            case ["days", name]:
                return self._day(config, _day(name), now, path, still=still)
            case ["days", name, "podcasts.csv"]:
                lines, _ = reconciliation_of(config, day := _day(name))
                saved = {"Content-Disposition": f'attachment; filename="podcasts-{day}.csv"'}
                return Answer(200, CSV, reconciliation_csv(lines).encode(), saved)
            case ["days", name, "podcasts.json"]:
                lines, matched = reconciliation_of(config, day := _day(name))
                podcasts = [line.as_json() for line in lines]
                return json({"day": str(day), "matched_share": matched, "podcasts": podcasts})
            case ["files", name] if (log_name := LogName.parse(name)) is not None:
                return self._html("file.html", path, still, views.one_file(trace_of(config, log_name), now))
        return self._sorry(404, PickupPointError("There is no such page."), path, still=still)

    def _day(self, config: Config, day: date, now: datetime, path: str, *, still: bool) -> Answer:
        snapshot = Snapshot.take(config, now)
        days = {it.day: it for it in snapshot.days}
        before, after = (
            max((it for it in days if it < day), default=None),
            min((it for it in days if it > day), default=None),
        )
        if day not in days:
            error = PickupPointError(f"Nothing is known here about {day}.")
            return self._sorry(404, error, path, still=still, days=[it for it in (before, after) if it is not None])
        values = views.one_day(days[day], details_of(config, day), snapshot, config, _call(config))
        values |= {"before": before, "after": after}
        return self._html("day.html", path, still, values)

    def _html(self, template: str, path: str, still: bool, values: dict[str, Any], status: int = 200) -> Answer:
        """Return a page; it is refreshed by a header, which needs no script, and which a link can leave out."""
        values |= {"path": path, "still": still, "still_query": STILL, "seconds": REFRESH_SECONDS}
        body = self._templates.get_template(template).render(values)
        return Answer(status, HTML, body.encode(), {} if still else {"Refresh": str(REFRESH_SECONDS)})

    def _sorry(
        self, status: int, error: PickupPointError, path: str, *, still: bool, days: Sequence[date] = ()
    ) -> Answer:
        """Return why there is no answer: as JSON or plain text to a program, else as a page that leads to ``days``."""
        to_do = lines(steps(error.hint), _call(self._config()))
        if path.endswith(".json"):
            return json({"error": str(error), "hint": [line.text for line in to_do]}, status)
        if path == "/metrics" or path.endswith(".csv"):
            return text(status, "\n".join((str(error), *(line.text for line in to_do))))
        values = {"now": self._clock(), "sentence": str(error), "lines": to_do, "days": days}
        return self._html("sorry.html", "", still, values, status)


def templates() -> Environment:
    """Return the templates; values are escaped, and a missing one is an error."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"utc": _utc, "local": _local, "short": _short, "count": _count}
    return environment


def _call(config: Config) -> Call:
    """Return how commands are typed on this server."""
    return Call(OURS, str(config.path))


def _day(name: str) -> date:
    day = calendar_day(name)
    if day is None:
        raise PickupPointError("A day is written like 2026-11-20.")
    return day


def _utc(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M}Z"


def _short(at: datetime) -> str:
    return f"{at:%m-%d %H:%M}"


def _local(at: datetime) -> str:
    """Return an instant in the server's local time."""
    return f"{at.astimezone():%Y-%m-%d %H:%M %Z}"


def _count(number: int) -> str:
    return f"{number:,}"
