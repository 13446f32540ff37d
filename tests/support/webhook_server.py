"""What an operator's machine has around the service: somebody who hears the webhook and the heartbeat.

``ear`` is a real HTTP server on 127.0.0.1 that writes down what it is told, and answers as the test says.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from .program import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


@dataclass
class Ear:
    """Hears on ``/hook`` and ``/beat``; ``answers`` are the statuses of the next webhooks, then 200."""

    port: int = 0
    hooks: list[dict[str, Any]] = field(default_factory=list)
    beats: int = 0
    answers: list[int] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where it hears."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def alerts(self) -> str:
        """The table of the configuration that names it; the path holds a secret, as such addresses do."""
        return f'[alerts]\nwebhook_url = "{self.url}/hook/s3cret"\nheartbeat_url = "{self.url}/beat/s3cret"\n'

    async def hook(self, request: web.Request) -> web.Response:
        """A change of an alarm."""
        assert request.content_type == "application/json"
        self.hooks.append(json.loads(await request.text()))
        return web.Response(status=self.answers.pop(0) if self.answers else 200)

    async def beat(self, _: web.Request) -> web.Response:
        """A sign of life."""
        self.beats += 1
        return web.Response()

    async def until(self, true: Callable[[], bool], what: str) -> None:
        """Wait until it has heard enough."""
        deadline = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < deadline, f"never: {what}; heard {self.hooks}, {self.beats} beats"
            await asyncio.sleep(0.05)

    def told(self, kind: str, name: str) -> list[str]:
        """What was told of an alarm, ``raised`` or ``cleared``, in order: its level, or its name."""
        found = []
        for hook in self.hooks:
            if kind == "raised":
                found += [alarm["level"] for alarm in hook["raised"] if alarm["name"] == name]
            else:
                found += [key for key in hook["cleared"] if key.split()[0] == name]
        return found


@pytest.fixture
async def ear() -> AsyncIterator[Ear]:
    """Somebody who listens."""
    it = Ear()
    app = web.Application()
    app.router.add_post("/hook/s3cret", it.hook)
    app.router.add_get("/beat/s3cret", it.beat)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    it.port = runner.addresses[0][1]
    yield it
    await runner.cleanup()
