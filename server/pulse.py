"""The pulse: a look at oneself, then a sign of life to systemd.

Touches nothing of its own. Promise: systemd's watchdog is fed from the event loop, and only when the loop turns, the
thread pool answers and the listener accepts; otherwise the log says what does not, and systemd ends the service.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from .sftp.server import SftpServer
    from .systemd import Supervisor

log = structlog.get_logger()

BEATS = 3  # in the time within which systemd wants one
QUEUE_LOOKS, QUEUE_PAUSE = 10, 0.1  # how often a queue of connections is looked at before it counts as stuck


async def beat_for_ever(supervisor: Supervisor, server: SftpServer) -> None:
    """Feed the watchdog as long as all is well."""
    every = (supervisor.watchdog_seconds or 60) / BEATS
    while True:
        why = await ailment(server, every)
        if why:
            log.error("service withheld its sign of life", why=why, hint="systemd ends and starts it; nothing to do")
        else:
            supervisor.alive()
        await asyncio.sleep(every)


async def ailment(server: SftpServer, patience: float) -> str:
    """What does not work of what every part of the service needs, or an empty text; ``patience`` in seconds."""
    answer = asyncio.get_running_loop().run_in_executor(None, lambda: None)
    await asyncio.wait([answer], timeout=patience)
    if not answer.done():
        return f"no thread was free for {patience:.0f} s"
    arrived = server.arrived
    for _ in range(QUEUE_LOOKS):
        if not server.waiting or server.arrived != arrived:
            return ""
        await asyncio.sleep(QUEUE_PAUSE)
    return f"{server.waiting} connections wait and none is accepted"
