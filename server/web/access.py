"""Who may see the page: the host names it answers to, the password, and the guard against guessing.

Touches the processor (Argon2id, in threads), the clock and the journal. Growing delays, bans, the pace of connections
(`Guard`) and the check of a password are the SFTP listener's. Promises: a password is never logged, and never kept; of
the last correct one there is a keyed digest. Nobody learns whether a guess was right before the delay for earlier
guesses is over, however often they hang up.
"""

from __future__ import annotations

import asyncio
import binascii
import hmac
import secrets
import sys
import time
from base64 import b64decode
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

import structlog

from ..errors import ConfigError, Problem
from ..sftp.limits import Guard, Limits, LogBudget, Reason
from ..sftp.registry import current_bans
from ..sftp.users import Access, PasswordChecks, User, Verdict, password_hash_problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..settings import WebSettings
    from ..sftp.limits import Address
    from ..sftp.registry import CurrentBan

log = structlog.get_logger()

MAX_CONNECTIONS = 32
MAX_CONNECTIONS_PER_ADDRESS = 12
_USER = "page"  # there is one password; whatever name comes with it is ignored


def load_access(settings: WebSettings) -> Access | None:
    """Return what checks the page's password; None if it has none.

    Raises:
        ConfigError: the hash cannot be used.
    """
    if settings.password_hash is None:
        return None
    if wrong := password_hash_problem(settings.password_hash):
        cure = "write what this prints: pickup-point hash-password"
        raise ConfigError("the configuration", [Problem("web.password_hash", wrong, cure)])
    return Access([User(_USER, settings.password_hash, frozenset(), ())])


def is_own_name(host: str, names: frozenset[str]) -> bool:
    """Return whether a Host header names this listener: by an address, as localhost, or by one of ``names``.

    This stops DNS rebinding: a foreign page whose own name resolves to our address sends that name.
    """
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() and not host.endswith("]") else host
    name = name.lower().rstrip(".")
    try:
        ip_address(name.removeprefix("[").removesuffix("]") if name.startswith("[") else name)
    except ValueError:
        return name == "localhost" or name in names
    return True


def given_password(header: str) -> bytes | None:
    """Return the password of an ``Authorization`` header (RFC 7617); None if it holds none."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        _, colon, password = b64decode(value.strip(), validate=True).partition(b":")
    except binascii.Error:
        return None
    return password if colon else None


LONGEST_TURN = 1.0  # seconds that a connection waits at most


class Door:
    """Counts connections, and lets in whoever knows the password."""

    def __init__(
        self, access: Access | None, limits: Callable[[], Limits], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._access = access
        self._limits = limits
        self._clock = clock
        self._checking: set[asyncio.Task[bool]] = set()
        self._checks = PasswordChecks()
        self._guards = {near: Guard(self._guard_limits(near=near), lambda _: False) for near in (True, False)}
        self._budget = LogBudget()
        self._key = secrets.token_bytes(32)
        self._right = b""  # the digest of the last correct password

    def replace(self, access: Access | None) -> None:
        """Check passwords against this from now on."""
        self._access, self._right = access, b""

    def bans(self) -> list[CurrentBan]:
        """Return who is kept out now, and until when."""
        return [ban for guard in self._guards.values() for ban in current_bans(guard, self._clock())]

    def _guard_limits(self, *, near: bool) -> Limits:
        limits = replace(
            self._limits(), connections=MAX_CONNECTIONS, connections_per_address=MAX_CONNECTIONS_PER_ADDRESS
        )
        # All clients on this machine, and so all behind a proxy, share one address: delays, but no ban.
        return replace(limits, ban_after=sys.maxsize) if near else limits

    def _guard(self, address: Address) -> Guard:
        guard = self._guards[address.is_loopback]
        guard.limits = self._guard_limits(near=address.is_loopback)  # a reload may have changed them
        return guard

    def admit(self, address: Address, descriptors: int) -> Reason | float:
        """Count a connection in; return the seconds until its turn, or why it is refused."""
        verdict = self._guard(address).admit(address, self._clock(), descriptors)
        # The guard spaces out SSH key exchanges, which cost far more than a connection here. And clients on this
        # machine, or behind a proxy, share one address: a flood from one must not keep the others waiting for minutes.
        return verdict if isinstance(verdict, Reason) else min(verdict, LONGEST_TURN)

    def leave(self, address: Address) -> None:
        """Count a connection out."""
        self._guard(address).leave(address)

    def refused(self, address: Address, reason: str) -> None:
        """Log a refusal, within the budget; a fail2ban filter can match the line."""
        self.summarize()
        if self._budget.take(reason, str(address)):
            log.warning(f"web refused {address}", reason=reason)

    def summarize(self) -> None:
        """Log, once a minute, how many refusals had no line of their own."""
        for reason, count in self._budget.summaries(self._clock()):
            log.warning(f"web refused {count} more", reason=reason)

    async def admits(self, header: str, address: Address) -> bool:
        """Return whether a request with this ``Authorization`` header may see the page."""
        if self._access is None:
            return True
        password = given_password(header)
        if password is None:
            return False
        # Before anything is compared, and by address: whoever hangs up and comes again still waits, even for the answer
        # to a password that is known to be correct, which would otherwise come at once.
        await asyncio.sleep(self._guard(address).wait(address, self._clock()))
        # A browser sends the password with every request: only one that differs from the last correct one is hashed.
        digest = hmac.digest(self._key, password, "sha256")
        if hmac.compare_digest(digest, self._right):
            return True
        # In a task of its own: a guess counts even if whoever made it hangs up, which cancels this one.
        task = asyncio.get_running_loop().create_task(self._check(self._access, address, password, digest))
        self._checking.add(task)
        task.add_done_callback(self._checking.discard)
        return await asyncio.shield(task)

    async def _check(self, access: Access, address: Address, password: bytes, digest: bytes) -> bool:
        """Return whether this is the password, and count the guess."""
        if await self._checks.check(access, _USER, address, password) is Verdict.GRANTED:
            if access is self._access:  # a reload may have brought another meanwhile
                self._right = digest
            self._guard(address).forgive(address, "")
            return True
        penalty = self._guard(address).failed(address, self._clock())
        self.refused(address, Reason.PASSWORD.value)
        if penalty.banned:
            log.warning(f"web banned {address}", minutes=round(self._limits().ban_time / 60, 1))
        return False

    def close(self) -> None:
        """Stop the running checks and the threads."""
        for task in self._checking:
            task.cancel()
        self._checks.close()
