"""Who a user is: name, password hash, public keys, and the networks that they may connect from.

Touches nothing but the processor: Argon2id is computed in two threads, so at most two checks run at once and none on
the event loop. Promise: an unknown user, a user without a password and a user at a wrong address take as long as a
wrong password; a password is never logged, kept or compared by hand.
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
MAX_MEMORY_KIB = 256 * 1024  # for one check; two run at once
CHECKS_AT_ONCE = 2
MAX_PASSWORD = 1024
# 19 MiB and two passes: OWASP's recommendation for Argon2id, and two checks at once stay under 40 MiB.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1, type=Type.ID)
_COST = re.compile(r"\$argon2id\$v=\d+\$m=(\d+),t=(\d+),p=(\d+)\$")


def hash_password(password: str) -> str:
    """Return the Argon2id hash of a password, for the configuration."""
    return _HASHER.hash(password)


def password_hash_problem(password_hash: str) -> str:
    """Return why a hash cannot be used, or ''."""
    match = _COST.match(password_hash)
    if match is None:
        return "is not an Argon2id hash (not shown)"
    memory, passes, lanes = (int(number) for number in match.groups())
    if memory > MAX_MEMORY_KIB or passes > 100 or lanes > 16:
        return f"is too expensive to check (memory {memory} KiB, {passes} passes, {lanes} lanes)"
    # The pattern sees only the beginning: a hash that is cut off fails here.
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
        """Return whether the address is in the allow list, or there is no list."""
        return not self.allow_from or any(address in network for network in self.allow_from)


class Verdict(StrEnum):
    """The result of a password check; only GRANTED lets a client in, which never learns which of the others it was."""

    GRANTED = "granted"
    WRONG_PASSWORD = "wrong-password"  # noqa: S105  # a verdict, not a password
    UNKNOWN_USER = "unknown-user"
    WRONG_ADDRESS = "address-not-allowed"


class Access:
    """The users of one configuration; never changed, a reload makes a new object."""

    def __init__(self, users: Iterable[User]) -> None:
        self.users = {user.name: user for user in users}
        self._networks = tuple(network for user in self.users.values() for network in user.allow_from)
        self._closed = bool(self.users) and all(user.allow_from for user in self.users.values())
        self._decoy = _decoy([user.password_hash for user in self.users.values() if user.password_hash])

    def may_connect(self, address: Address) -> bool:
        """Return whether an address may exchange keys: if every user has an allow list, it must be in one of them."""
        return not self._closed or self.is_listed(address)

    def is_listed(self, address: Address) -> bool:
        """Return whether the address is in some user's allow list: such an address is never banned."""
        return any(address in network for network in self._networks)

    def knows_key(self, name: str, address: Address, key: bytes) -> bool:
        """Return whether the user may log in with this public key (SSH wire form) from this address."""
        user = self.users.get(name)
        return user is not None and user.may_come_from(address) and key in user.keys

    def hash_to_check(self, name: str, address: Address) -> tuple[str, Verdict]:
        """Return the hash to check a password against, and the verdict if it does not match.

        Where no password may match it is a decoy: the check takes as long, and its time gives nothing away.
        """
        user = self.users.get(name)
        if user is None:
            return self._decoy, Verdict.UNKNOWN_USER
        if not user.may_come_from(address):
            return self._decoy, Verdict.WRONG_ADDRESS
        return user.password_hash or self._decoy, Verdict.WRONG_PASSWORD


def _decoy(hashes: list[str]) -> str:
    """Return a hash that no password matches, as expensive to check as the most expensive of the users'."""
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
        """Check one password; wait while two others are being checked."""
        password_hash, otherwise = access.hash_to_check(name, address)
        loop = asyncio.get_running_loop()
        # A longer password is cut and checked all the same, and then refused: its length must not show in the time.
        matches = await loop.run_in_executor(self._threads, _matches, password_hash, password[:MAX_PASSWORD])
        return Verdict.GRANTED if matches and len(password) <= MAX_PASSWORD else otherwise

    def close(self) -> None:
        """Let the threads end, without waiting for them."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _matches(password_hash: str, password: str) -> bool:
    try:
        return _HASHER.verify(password_hash, password)
    except (VerificationError, InvalidHashError, UnicodeEncodeError):
        return False
