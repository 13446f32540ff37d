"""systemd: the notification protocol, inherited sockets, and the watchdog.

Touches the socket in ``NOTIFY_SOCKET`` and the descriptors in ``LISTEN_FDS``. Promise: a notification never raises;
the variables are removed from the environment, so that no child process speaks to systemd in our name; the watchdog is
fed only while the event loop turns, a thread is free and the listener accepts connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from .errors import PickupPointError

if TYPE_CHECKING:
    from collections.abc import Callable

log = structlog.get_logger()

END_SECONDS = 25.0  # after the transfers, a service that is asked to stop ends within this time, whatever hangs

_FIRST_LISTEN_FD = 3  # sd_listen_fds(3)
_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


@dataclass(frozen=True, slots=True)
class Supervisor:
    """What systemd handed over at start; without systemd every call does nothing.

    ``watchdog_seconds`` is the time within which systemd expects a ping, 0 for never.
    """

    notify_socket: str = ""
    watchdog_seconds: float = 0.0
    listening: socket.socket | None = None

    @classmethod
    def from_environment(cls) -> Supervisor:
        """Read systemd's variables, and remove them from the environment.

        Raises:
            PickupPointError: what was handed over is not a socket.
        """
        found = {name: os.environ.pop(name, "") for name in _VARIABLES}
        own = str(os.getpid())
        watchdog = 0.0
        if found["WATCHDOG_USEC"].isdecimal() and found["WATCHDOG_PID"] in ("", own):
            watchdog = int(found["WATCHDOG_USEC"]) / 1e6
        listening = None
        if found["LISTEN_PID"] == own and found["LISTEN_FDS"].isdecimal() and int(found["LISTEN_FDS"]) > 0:
            # systemd hands the descriptor over as inheritable; a conversion's process must not get it.
            try:
                os.set_inheritable(_FIRST_LISTEN_FD, False)
                listening = socket.socket(fileno=_FIRST_LISTEN_FD)
            except OSError as error:
                sentence = f"the socket that systemd hands over cannot be used: {error.strerror}"
                raise PickupPointError(sentence, hint="systemctl cat pickup-point.socket") from error
        return cls(found["NOTIFY_SOCKET"], watchdog, listening)

    def ready(self, status: str) -> None:
        """Report that the service is ready, or that a reload has ended."""
        self._notify("READY=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """Set the line that ``systemctl status`` shows."""
        self._notify(f"STATUS={status}")

    def alive(self) -> None:
        """Ping the watchdog."""
        self._notify("WATCHDOG=1")

    def reloading(self) -> None:
        """Report that a reload begins; `ready` reports its end."""
        self._notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Report that the service is shutting down."""
        self._notify("STOPPING=1")

    def _notify(self, *lines: str) -> None:
        """Send one datagram, sd_notify(3); errors are ignored, as the service could do nothing about them."""
        if not self.notify_socket:
            return
        # A leading @ stands for the NUL of the abstract namespace, sd_notify(3).
        address = f"\0{self.notify_socket[1:]}" if self.notify_socket.startswith("@") else self.notify_socket
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
        ):
            sock.connect(address)
            sock.send("\n".join(lines).encode())


PINGS = 3  # sent in the time within which systemd expects one
QUEUE_CHECKS, QUEUE_PAUSE = 10, 0.1  # looks, and seconds between them, before a queue of connections counts as stuck


@dataclass(frozen=True, slots=True)
class Listener:
    """Whether a listener accepts: how many connections have ``arrived`` so far, and how many are ``waiting`` now."""

    arrived: Callable[[], int]
    waiting: Callable[[], int]


async def keep_watchdog_fed(supervisor: Supervisor, listener: Listener) -> None:
    """Ping systemd's watchdog for ever, but only while the event loop, the thread pool and the listener work.

    The ping comes from the event loop: a loop that is stuck sends none, and systemd ends the service.
    """
    every = (supervisor.watchdog_seconds or 60) / PINGS
    while True:
        why = await unhealthy_reason(listener, every)
        if why:
            log.error(
                "service skipped a watchdog ping", why=why, hint="nothing to do: systemd will restart the service"
            )
        else:
            supervisor.alive()
        await asyncio.sleep(every)


async def unhealthy_reason(listener: Listener, seconds: float) -> str:
    """Return why the service is unhealthy, or ''; wait at most ``seconds`` for a free thread."""
    answer = asyncio.get_running_loop().run_in_executor(None, lambda: None)
    await asyncio.wait([answer], timeout=seconds)
    if not answer.done():
        return f"no thread was free for {seconds:.0f} s"
    arrived = listener.arrived()
    # One look is not enough: a connection may just have arrived.
    for _ in range(QUEUE_CHECKS):
        if not listener.waiting() or listener.arrived() != arrived:
            return ""
        await asyncio.sleep(QUEUE_PAUSE)
    return f"{listener.waiting()} connections are waiting and none was accepted"
