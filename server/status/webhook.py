"""Pushes: every change of an alarm to a webhook, and a heartbeat after every good round.

Touches the two web addresses of ``[alerts]``. Promises: a push never raises and never delays anything; its address,
which may be a secret, never appears in the journal; an alarm that is raised, changes its level or is cleared is pushed
until the webhook accepts it, and then not again, even across restarts.
"""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import structlog

from ..disk import connection_failure
from ..errors import PickupPointError
from ..threads import in_thread
from .alarms import ALARMING_DAYS, Level
from .snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aiohttp import ClientSession

    from ..settings import AlertSettings, Config
    from ..storage.ledger import Ledger
    from .alarms import Alarm

log = structlog.get_logger()

_TIMEOUT = 15  # seconds


class Pushes:
    """Sends pushes to the two addresses in force, either of which may be None; `close` comes last."""

    def __init__(self, settings: Callable[[], AlertSettings]) -> None:
        self._settings = settings
        self._session: ClientSession | None = None
        self._heartbeat_ok = True

    def _client(self) -> ClientSession:
        if self._session is None:
            # Only here, and not for an installation that pushes nothing: it takes long to load.
            from aiohttp import ClientSession, ClientTimeout

            timeout = ClientTimeout(total=_TIMEOUT)
            self._session = ClientSession(timeout=timeout, headers={"User-Agent": "pickup-point"})
        return self._session

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    @property
    def has_webhook(self) -> bool:
        """Whether a webhook is configured."""
        return self._settings().webhook_url is not None

    async def alarm(self, message: dict[str, Any]) -> bool:
        """POST a change of the alarms as JSON; return whether the webhook accepted it (an answer of 2xx)."""
        url = self._settings().webhook_url
        if url is None:  # removed from the settings meanwhile
            return False
        try:
            async with self._client().post(url, json=message, allow_redirects=False) as answer:
                if answer.status < 300:  # a redirect is not followed: it would become a GET
                    return True
                why = f"it answered {answer.status}"
        except _failures() as error:
            why = _why(error)
        log.warning("webhook did not accept alarms", why=why, hint="correct alerts.webhook_url")
        return False

    async def heartbeat(self) -> None:
        """GET the heartbeat's address; log a failure once, until it works again."""
        url = self._settings().heartbeat_url
        if url is None:
            return
        why = ""
        try:
            async with self._client().get(url) as answer:
                if not answer.ok:
                    why = f"it answered {answer.status}"
        except _failures() as error:
            why = _why(error)
        if why and self._heartbeat_ok:
            log.warning("heartbeat failed", why=why, hint="correct alerts.heartbeat_url")
        self._heartbeat_ok = not why


def _failures() -> tuple[type[Exception], ...]:
    """Return what a push may raise."""
    from aiohttp import ClientError

    # ValueError: a host that cannot be a name, which shows only when it is used.
    return ClientError, TimeoutError, OSError, ValueError


def _why(error: Exception) -> str:
    """Return why a push failed: never the error's own text, which may hold the address."""
    from aiohttp import ClientConnectorError

    if isinstance(error, ClientConnectorError):
        return connection_failure(error.os_error)
    return f"no answer in {_TIMEOUT} s" if isinstance(error, TimeoutError) else type(error).__name__


CHECK_EVERY = timedelta(seconds=30)
FIRST_CHECK = timedelta(minutes=5)  # after the start, even if the first round takes longer
LONGEST_RETRY = timedelta(minutes=15)
_PUSHED = "alarms_told"  # the ledger's name for the levels that the webhook has accepted


class AlarmWatch:
    """Pushes an alarm once when it is raised, changes its level or is cleared, even across restarts."""

    def __init__(self, config: Callable[[], Config], ledger: Ledger, pushes: Pushes) -> None:
        self._config = config
        self._ledger = ledger
        self._pushes = pushes
        self._wake = asyncio.Event()

    def check_now(self) -> None:
        """Check the alarms at once: a round or a reload may have changed them."""
        self._wake.set()

    async def watch(self) -> None:
        """Push every change, for ever; not before the first round has ended, since a start alone is no alarm."""
        pause = FIRST_CHECK
        while True:
            # A round wakes the watch; the pause is for changes without one: a deadline, the disk, a silent partner.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause.total_seconds()):
                    await self._wake.wait()
            self._wake.clear()
            try:
                accepted = await self.push_changes(datetime.now(UTC))
            except PickupPointError as error:
                log.error("alarms could not be checked", why=str(error), hint=error.hint)
                accepted = False
            # A webhook that is down is tried less and less often, each time with the alarms as they are then.
            pause = CHECK_EVERY if accepted else min(max(pause, CHECK_EVERY) * 2, LONGEST_RETRY)

    async def push_changes(self, now: datetime) -> bool:
        """Push what was raised, cleared or changed its level since the last accepted push; return False to retry."""
        if not self._pushes.has_webhook:
            return True
        snapshot = await in_thread(Snapshot.take, self._config(), now, ALARMING_DAYS)
        pushed: dict[str, str] = snapshot.facts.get(_PUSHED, {})
        standing = {f"{alarm.name} {alarm.subject}".strip(): alarm for alarm in snapshot.alarms}
        levels = {key: alarm.level.name for key, alarm in standing.items()}
        if levels == pushed:
            return True
        raised = [alarm for key, alarm in standing.items() if pushed.get(key) != alarm.level.name]
        cleared = sorted(key for key in pushed if key not in standing)
        if not await self._pushes.alarm(message(snapshot, raised, cleared)):
            return False
        # Remembered only once accepted: after a crash in between a change is pushed twice, but never lost.
        await in_thread(lambda: self._ledger.note(**{_PUSHED: levels}))
        log.info("webhook accepted alarms", raised=len(raised), cleared=len(cleared))
        return True


def message(snapshot: Snapshot, raised: Sequence[Alarm], cleared: Sequence[str]) -> dict[str, Any]:
    """Return the JSON for the webhook; ``text`` is for people, and for chat programs that show it.

    ``cleared`` are names of alarms, with their subjects. With several nodes it names this one.
    """
    standing, node = snapshot.alarms, snapshot.node
    level = max((alarm.level for alarm in standing), default=Level.OK)
    says = [alarm.sentence for alarm in raised]
    says += [f"cleared: {', '.join(cleared)}"] if cleared else []
    if not standing:
        says.append("nothing is wrong any more")
    elif (more := len(standing) - len(raised)) > 0:
        says.append(f"{more} alarm{' stands' if more == 1 else 's stand'} as before")
    return {
        "text": f"pickup-point {level.name}{f' at {node}' if node else ''}: {'; '.join(says)}",
        "at": snapshot.at.isoformat(timespec="seconds"),
        "node": node,
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
