"""What the outside hears of a running service: the reading for Prometheus, and every change of an alarm.

Brings `snapshot`, `metrics` and `webhook` together; touches nothing of its own. Promise: an alarm that came, changed
its level or went is told once, also over a restart; a webhook that does not answer is tried again until it does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import structlog

from ..errors import PickupPointError
from ..threads import in_thread
from .alarms import Level
from .metrics import Reading
from .snapshot import Glance

if TYPE_CHECKING:
    from ..assembly import Parts
    from ..settings import Config
    from ..sftp.server import SftpServer
    from .alarms import Alarm
    from .webhook import Pushes

log = structlog.get_logger()

LOOK_EVERY = timedelta(seconds=30)
FIRST_LOOK = timedelta(minutes=5)  # a first round that takes longer does not keep what else is wrong from being told
LONGEST_RETRY = timedelta(minutes=15)
_TOLD = "alarms_told"


class Broadcast:
    """Reads the installation as `status` does, and tells it."""

    def __init__(self, config: Config, parts: Parts, server: SftpServer) -> None:
        self._config = config
        self._parts = parts
        self._server = server
        self.rounds: Counter[str] = Counter()
        self._round_ended = asyncio.Event()

    def round_ended(self, result: str) -> None:
        """Count a round, ``good`` or ``failed``; what it changed is told at once."""
        self.rounds[result] += 1
        self._round_ended.set()

    def reading(self) -> Reading:
        """What one scrape shows; called in a thread of the metrics' own."""
        glance = Glance.take(self._config, datetime.now(UTC))
        counters = self._server.counters
        rows: Counter[str] = Counter()
        for day in glance.days:
            for publication in day.publications:
                if publication.tally is not None:
                    rows["line"] += publication.tally.lines
                    rows.update({reason: n for reason, n in publication.tally.filtered.items() if n})
                    rows.update({reason: n for reason, n in publication.tally.rejected.items() if n})
        return Reading(
            days=tuple(glance.days),
            rounds=dict(self.rounds),
            rows=dict(rows),
            refusals=dict(counters.refusals),
            pickups=dict(counters.pickups),
            alarms=dict(Counter(alarm.level.name.lower() for alarm in glance.alarms)),
            last_success=_last_success(glance),
            bytes_sent=counters.bytes_sent,
            logins=counters.logins,
            connections=self._server.connected,
            sessions=self._server.sessions,
            served_files=len(self._parts.point.served),
            disk_free_bytes=glance.measured.disk_free_bytes,
        )

    async def watch_alarms(self, pushes: Pushes) -> None:
        """Tell the webhook of every change, for ever; not before a round has ended: a start is no alarm."""
        pause = FIRST_LOOK
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._round_ended.wait(), timeout=pause.total_seconds())
            self._round_ended.clear()
            try:
                taken = await self.tell_changes(pushes, datetime.now(UTC))
            except PickupPointError as error:
                log.error("alarms could not be looked at", why=str(error), hint=error.hint)
                taken = False
            pause = LOOK_EVERY if taken else min(max(pause, LOOK_EVERY) * 2, LONGEST_RETRY)

    async def tell_changes(self, pushes: Pushes, now: datetime) -> bool:
        """Push what came, changed its level or went since the last push that was taken; False to try again."""
        if not pushes.hears_alarms:
            return True
        glance = await in_thread(Glance.take, self._config, now)
        told: dict[str, str] = glance.facts.get(_TOLD, {})
        standing = {f"{alarm.name} {alarm.subject}".strip(): alarm for alarm in glance.alarms}
        levels = {key: alarm.level.name for key, alarm in standing.items()}
        if levels == told:
            return True
        raised = [alarm for key, alarm in standing.items() if told.get(key) != alarm.level.name]
        cleared = sorted(key for key in told if key not in standing)
        if not await pushes.alarm(_message(now, glance.alarms, raised, cleared)):
            return False
        await in_thread(lambda: self._parts.ledger.note(**{_TOLD: levels}))
        log.info("alarms told the webhook", raised=len(raised), cleared=len(cleared))
        return True


def _message(now: datetime, standing: list[Alarm], raised: list[Alarm], cleared: list[str]) -> dict[str, Any]:
    """The JSON that a webhook gets; ``text`` is for people, and for chat programs that show it."""
    level = max((alarm.level for alarm in standing), default=Level.OK)
    text = "; ".join(alarm.sentence for alarm in raised) or "all alarms that stood are over"
    return {
        "text": f"pickup-point {level.name}: {text}",
        "at": now.isoformat(timespec="seconds"),
        "level": level.name,
        "raised": [_alarm_json(alarm) for alarm in raised],
        "cleared": cleared,
        "standing": [_alarm_json(alarm) for alarm in standing],
    }


def _alarm_json(alarm: Alarm) -> dict[str, str]:
    return {
        "level": alarm.level.name,
        "name": alarm.name,
        "subject": alarm.subject,
        "sentence": alarm.sentence,
        "hint": alarm.hint,
    }


def _last_success(glance: Glance) -> dict[str, datetime]:
    found = {}
    if "last_good_round" in glance.facts:
        found["round"] = datetime.fromisoformat(glance.facts["last_good_round"])
    published = [p.published_at for day in glance.days for p in day.publications if p.published_at is not None]
    taken = [user.last for day in glance.days for user in day.pickups if user.last is not None]
    if published:
        found["publication"] = max(published)
    if taken:
        found["pickup"] = max(taken)
    if glance.rss_feeds and all(feed.read_at is not None for feed in glance.rss_feeds):
        found["rss"] = min(feed.read_at for feed in glance.rss_feeds if feed.read_at is not None)  # the oldest of them
    if glance.logins:
        found["login"] = max(login[0] for login in glance.logins.values())
    return found
