"""Pushing: the webhook that hears of every change of an alarm, and the heartbeat of every good round.

Touches the two web addresses of ``[alerts]``. Promise: a push never raises and never holds anything up; its address,
which may be a secret, never stands in the log.
"""

from __future__ import annotations

from typing import Any

import aiohttp
import structlog

log = structlog.get_logger()

_TIMEOUT = aiohttp.ClientTimeout(total=15)


class Pushes:
    """The two addresses, either of which may be None; `close` comes last."""

    def __init__(self, webhook_url: str | None, heartbeat_url: str | None) -> None:
        self._webhook_url = webhook_url
        self._heartbeat_url = heartbeat_url
        self._session: aiohttp.ClientSession | None = None
        self._beating = True

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=_TIMEOUT, headers={"User-Agent": "pickup-point"})
        return self._session

    async def close(self) -> None:
        """Let go of the connections."""
        if self._session is not None:
            await self._session.close()

    @property
    def hears_alarms(self) -> bool:
        """Whether a webhook is configured."""
        return self._webhook_url is not None

    async def alarm(self, message: dict[str, Any]) -> bool:
        """POST a change of the alarms as JSON; whether it was taken (an answer of 2xx)."""
        assert self._webhook_url is not None  # noqa: S101  # see hears_alarms
        try:
            async with self._client().post(self._webhook_url, json=message, allow_redirects=False) as answer:
                if answer.status < 300:  # a redirect is not followed: it would become a GET
                    return True
                why = f"it answered {answer.status}"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            why = type(error).__name__
        log.warning("alarms missed the webhook", why=why, hint="look at alerts.webhook_url")
        return False

    async def heartbeat(self) -> None:
        """GET the heartbeat's address; a failure is told once, until it works again."""
        if self._heartbeat_url is None:
            return
        why = ""
        try:
            async with self._client().get(self._heartbeat_url) as answer:
                if not answer.ok:
                    why = f"it answered {answer.status}"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            why = type(error).__name__
        if why and self._beating:
            log.warning("service missed the heartbeat", why=why, hint="look at alerts.heartbeat_url")
        self._beating = not why
