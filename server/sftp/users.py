"""Who a user is: names, password hashes, public keys, and the networks they may come from.

Touches nothing but the processor: Argon2id is computed in two threads, so at most two checks run at once and none on
the event loop. Promise: an unknown user, a user without a password and a user from a wrong address cost as much time
as a wrong password; a password is never logged, kept or compared by hand.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .limits import Address

Network = IPv4Network | IPv6Network
MOST_MEMORY_KIB = 256 * 1024  # of one check; two run at once
CHECKS_AT_ONCE = 2
LONGEST_PASSWORD = 1024
# 19 MiB and two passes: OWASP's recommendation for Argon2id, and two checks at once stay under 40 MiB.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1, type=Type.ID)
_COST = re.compile(r"\$argon2id\$v=\d+\$m=(\d+),t=(\d+),p=(\d+)\$")


def hash_password(password: str) -> str:
    """The Argon2id hash for the configuration."""
    return _HASHER.hash(password)


def password_hash_problem(password_hash: str) -> str:
    """Why a hash cannot be used, or an empty text."""
    match = _COST.match(password_hash)
    if match is None:
        return "is not an Argon2id hash (not shown)"
    memory, passes, lanes = (int(number) for number in match.groups())
    if memory > MOST_MEMORY_KIB or passes > 100 or lanes > 16:
        return f"costs too much to check (memory {memory} KiB, {passes} passes, {lanes} lanes)"
    try:
        _HASHER.verify(password_hash, "")
    except InvalidHashError:
        return "is not an Argon2id hash (not shown)"
    except VerificationError as error:
        return "" if "match" in str(error) else f"cannot be checked: {error}"
    return ""


@dataclass(frozen=True, slots=True)
class User:
    """One user; ``keys`` are public keys in SSH wire form."""

    name: str
    password_hash: str | None
    keys: frozenset[bytes]
    allow_from: tuple[Network, ...]

    def may_come_from(self, address: Address) -> bool:
        """Whether the address is in the allow list, or there is none."""
        return not self.allow_from or any(address in network for network in self.allow_from)


class Verdict(StrEnum):
    """What a password check found; only GRANTED opens the door, the client is not told which of the others it was."""

    GRANTED = "granted"
    WRONG_PASSWORD = "wrong-password"  # noqa: S105  # a verdict, not a password
    UNKNOWN_USER = "unknown-user"
    WRONG_ADDRESS = "address-not-allowed"


class Access:
    """The users of one configuration; never changed, a reload makes a new one."""

    def __init__(self, users: Iterable[User]) -> None:
        self.users = {user.name: user for user in users}
        self._networks = tuple(network for user in self.users.values() for network in user.allow_from)
        self._closed = bool(self.users) and all(user.allow_from for user in self.users.values())
        self._decoy = _decoy([user.password_hash for user in self.users.values() if user.password_hash])

    def may_connect(self, address: Address) -> bool:
        """What is known before key exchange: when every user has an allow list, the address must be in one."""
        return not self._closed or self.is_listed(address)

    def is_listed(self, address: Address) -> bool:
        """Whether the address stands in some user's allow list: such an address is never banned."""
        return any(address in network for network in self._networks)

    def knows_key(self, name: str, address: Address, key: bytes) -> bool:
        """Whether the user may log in with this public key (SSH wire form) from this address."""
        user = self.users.get(name)
        return user is not None and user.may_come_from(address) and key in user.keys

    def question(self, name: str, address: Address) -> tuple[str, Verdict]:
        """The hash to check a password against, and the verdict if it does not match or must not match."""
        user = self.users.get(name)
        if user is None:
            return self._decoy, Verdict.UNKNOWN_USER
        if not user.may_come_from(address):
            return self._decoy, Verdict.WRONG_ADDRESS
        return user.password_hash or self._decoy, Verdict.WRONG_PASSWORD


def _decoy(hashes: list[str]) -> str:
    """A hash that nothing matches, as costly to check as the costliest of the users'."""
    costs = [tuple(int(n) for n in match.groups()) for text in hashes if (match := _COST.match(text))]
    if not costs:
        return _HASHER.hash(secrets.token_urlsafe(32))
    memory, passes, lanes = max(costs, key=lambda cost: cost[0] * cost[1])
    like = PasswordHasher(time_cost=passes, memory_cost=memory, parallelism=lanes, type=Type.ID)
    return like.hash(secrets.token_urlsafe(32))


class PasswordChecks:
    """The two threads in which passwords are checked."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(CHECKS_AT_ONCE, thread_name_prefix="password")

    async def check(self, access: Access, name: str, address: Address, password: str) -> Verdict:
        """Check one password; takes its time, and waits while two others are being checked."""
        password_hash, otherwise = access.question(name, address)
        loop = asyncio.get_running_loop()
        matches = await loop.run_in_executor(self._threads, _matches, password_hash, password[:LONGEST_PASSWORD])
        return Verdict.GRANTED if matches and len(password) <= LONGEST_PASSWORD else otherwise

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _matches(password_hash: str, password: str) -> bool:
    try:
        return _HASHER.verify(password_hash, password)
    except (VerificationError, InvalidHashError, UnicodeEncodeError):
        return False
