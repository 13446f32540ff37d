"""Who a user is: name, password hash, public keys, and the networks that they may connect from.

Touches only the processor and the clock: Argon2id is computed in two threads, so at most two checks run at once, and
none on the event loop. Promise: the time a refusal takes does not tell whether the user exists, has a password or may
come from that address, nor how expensive their hash is, not even on a busy machine: every check does the same work, and
its verdict waits for a fixed time. A password is never logged, kept or compared by hand; it is prepared (SASLprep)
here and nowhere else, both when it is hashed and when it is checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import secrets
import stringprep
import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError

from ..errors import PickupPointError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from .limits import Address

Network = IPv4Network | IPv6Network
MAX_MEMORY_KIB = 256 * 1024  # per check; two run at once
CHECKS_AT_ONCE = 2
LEAST_PASSWORD, MAX_PASSWORD = 12, 1024  # characters
MAX_SENT = 4 * MAX_PASSWORD  # a client may send each character decomposed, into at most four
VERDICT_STEP = 4  # times the measured length of a check: with two at once, nearly all still end within one step
_MEASUREMENTS = 3  # per kind of hash; the shortest counts, since whatever else runs only adds to it
# 19 MiB and two passes: OWASP's recommendation for Argon2id, and two checks at once stay under 40 MiB.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1, type=Type.ID)
_COST = re.compile(r"\$argon2id\$v=\d+\$m=(\d+),t=(\d+),p=(\d+)\$")


def hash_password(password: str) -> str:
    """Return the Argon2id hash of a password, for the configuration.

    Raises:
        PickupPointError: some or all clients could not log in with it.
    """
    hint = "openssl rand -base64 24 | pickup-point hash-password"
    try:
        prepared = prepare(password)
    except Unprepared as error:
        sentence = f"SSH clients do not all send this password alike (RFC 4013): it has {error}"
        raise PickupPointError(sentence, hint=hint) from None
    if not prepared:
        raise PickupPointError("the password is empty", hint=hint)
    if max(len(password), len(prepared)) > MAX_PASSWORD:
        raise PickupPointError(f"the password is longer than {MAX_PASSWORD} characters", hint=hint)
    return _HASHER.hash(prepared)


def check_length(password: str) -> None:
    """Check that a password is not too easy to guess.

    Raises:
        PickupPointError: it is shorter than `LEAST_PASSWORD` characters.
    """
    if len(password) < LEAST_PASSWORD:
        hint = "choose a longer one, or add --weak if the partner cannot; to make one: openssl rand -base64 24"
        raise PickupPointError(f"the password is shorter than {LEAST_PASSWORD} characters", hint=hint)


def password_matches(password_hash: str, password: bytes) -> bool:
    """Return whether a hash is that of a password, as a client sends it; not if it is not UTF-8, empty or too long."""
    try:
        text = password.decode()
    except UnicodeDecodeError:
        return False
    if not 0 < len(text) <= MAX_SENT:
        return False
    # Also unprepared: earlier versions hashed passwords like that, and other tools do.
    forms = [password]
    with contextlib.suppress(Unprepared):
        forms.append(prepare(text).encode())
    return any(_verify(password_hash, form) for form in dict.fromkeys(forms))


def _any_matches(hashes: list[str], password: bytes) -> bool:
    return any([password_matches(password_hash, password) for password_hash in hashes])  # noqa: C419  # all of them


def _verify(password_hash: str, password: bytes) -> bool:
    try:
        return _HASHER.verify(password_hash, password)
    except (VerificationError, InvalidHashError):
        return False


def password_hash_problem(password_hash: str) -> str:
    """Return why a hash cannot be used, or ''."""
    match = _COST.match(password_hash)
    if match is None:
        return "is not an Argon2id hash (not shown)"
    memory, passes, lanes = (int(number) for number in match.groups())
    if memory > MAX_MEMORY_KIB or passes > 100 or lanes > 16:
        return f"is too expensive to check (memory {memory} KiB, {passes} passes, {lanes} lanes)"
    # The pattern covers only the beginning: a truncated hash fails here.
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
        """Return whether the address is in the user's allow list, or there is none."""
        return not self.allow_from or any(address in network for network in self.allow_from)


class Verdict(StrEnum):
    """The result of checking a password or a key; only GRANTED lets a client in, and none learns which other it was."""

    GRANTED = "granted"
    WRONG_PASSWORD = "wrong-password"  # noqa: S105  # a verdict, not a password
    UNKNOWN_KEY = "unknown-key"
    UNKNOWN_USER = "unknown-user"
    WRONG_ADDRESS = "address-not-allowed"


class Access:
    """The users of one configuration; immutable, a reload makes a new object.

    The constructor measures what a check costs, which takes as long as a few checks. ``verdict_step`` is in seconds.
    """

    def __init__(self, users: Iterable[User]) -> None:
        self.users = {user.name: user for user in users}
        self._networks = tuple(network for user in self.users.values() for network in user.allow_from)
        self._closed = bool(self.users) and all(user.allow_from for user in self.users.values())
        hashes = [user.password_hash for user in self.users.values() if user.password_hash]
        ours = (_HASHER.memory_cost, _HASHER.time_cost, _HASHER.parallelism)
        self._decoys = {kind: _decoy(kind) for kind in dict.fromkeys(map(_kind, hashes)) or [ours]}
        self.verdict_step = VERDICT_STEP * sum(map(_seconds_to_check, self._decoys.values()))

    def may_connect(self, address: Address) -> bool:
        """Return whether an address may connect: if every user has an allow list, it must be in one of them."""
        return not self._closed or self.is_listed(address)

    def is_listed(self, address: Address) -> bool:
        """Return whether the address is in some user's allow list: such an address is never banned."""
        return any(address in network for network in self._networks)

    def check_key(self, name: str, address: Address, key: bytes) -> Verdict:
        """Return whether the user may log in with this public key (SSH wire form) from this address, or why not."""
        user = self.users.get(name)
        if user is None:
            return Verdict.UNKNOWN_USER
        if key not in user.keys:
            return Verdict.UNKNOWN_KEY
        return Verdict.GRANTED if user.may_come_from(address) else Verdict.WRONG_ADDRESS

    def hashes_to_check(self, name: str, address: Address) -> tuple[list[str], Verdict]:
        """Return the hashes to check a password against, and the verdict if none matches.

        There is one hash of each kind that is configured, whoever the user is: decoys, with the user's own in place of
        one, if they have one and may come from there. So every check takes equally long, and its time gives nothing
        away.
        """
        user = self.users.get(name)
        otherwise, own = Verdict.WRONG_PASSWORD, user.password_hash if user is not None else None
        if user is None:
            otherwise = Verdict.UNKNOWN_USER
        elif not user.may_come_from(address):
            otherwise, own = Verdict.WRONG_ADDRESS, None
        # It replaces its kind's decoy, so that the order is always the same.
        return list((self._decoys | ({_kind(own): own} if own else {})).values()), otherwise


def _kind(password_hash: str) -> tuple[int, ...]:
    """Return what a hash costs to check: (memory in KiB, passes, lanes)."""
    match = _COST.match(password_hash)
    return tuple(int(number) for number in match.groups()) if match else ()


def _decoy(kind: tuple[int, ...]) -> str:
    """Return a hash of this kind that no password matches."""
    memory, passes, lanes = kind
    like = PasswordHasher(time_cost=passes, memory_cost=memory, parallelism=lanes, type=Type.ID)
    return like.hash(secrets.token_urlsafe(32))


def _seconds_to_check(password_hash: str) -> float:
    """Measure a check: how memory, passes and lanes add up depends on the machine."""
    return min(_measured(password_hash) for _ in range(_MEASUREMENTS))


def _measured(password_hash: str) -> float:
    # Processor time, of all threads: on a busy machine the wall clock could show ten times as much.
    began = time.process_time()
    _verify(password_hash, b"wrong")
    return time.process_time() - began


def verdict_due(began: float, ended: float, step: float) -> float:
    """Return when the verdict of a check that ran from ``began`` to ``ended`` is due, all in seconds.

    It is a whole number of steps after the beginning, and at least one.
    """
    return began + step * max(1, math.ceil((ended - began) / step))


class PasswordChecks:
    """The two threads in which passwords are checked."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._threads = ThreadPoolExecutor(CHECKS_AT_ONCE, thread_name_prefix="password")
        self._free = asyncio.Semaphore(CHECKS_AT_ONCE)
        self._running: set[asyncio.Task[bool]] = set()

    async def check(self, access: Access, name: str, address: Address, password: bytes) -> Verdict:
        """Check one password; wait while two others are being checked, and then until the verdict is due."""
        hashes, otherwise = access.hashes_to_check(name, address)
        await self._free.acquire()
        # In a task of its own, which keeps its place until the verdict is due even if asyncssh cancels this try: so the
        # time at which the next check begins does not give away what this one cost.
        task = asyncio.get_running_loop().create_task(self._check(hashes, password, access.verdict_step))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return Verdict.GRANTED if await asyncio.shield(task) else otherwise

    async def _check(self, hashes: list[str], password: bytes, step: float) -> bool:
        try:
            began = self._clock()
            loop = asyncio.get_running_loop()
            matches = await loop.run_in_executor(self._threads, _any_matches, hashes, password)
            ended = self._clock()
            await self._sleep(verdict_due(began, ended, step) - ended)
        finally:
            self._free.release()
        return matches

    def close(self) -> None:
        """Cancel the checks and stop the threads, without waiting for them."""
        for task in self._running:
            task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)


# How a password is written: SASLprep (RFC 4013), as RFC 4252 asks.

_PROHIBITED = (  # RFC 4013, section 2.3
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)
_NAMELESS = {"Cc": "control character", "Co": "private-use character", "Cs": "surrogate"}  # by Unicode's category


class Unprepared(ValueError):
    """A text cannot be prepared; the message names the character that is in the way."""


def prepare(text: str) -> str:
    """Return a password as SASLprep has it: one text, however a keyboard or a client encodes it.

    Compatible characters are unified, odd blanks become blanks, and soft hyphens are left out.

    Raises:
        Unprepared: it has a character that SASLprep does not allow, or not in that place.
    """
    if text.isascii() and text.isprintable():
        return text
    for character in text:
        if stringprep.in_table_a1(character):
            raise Unprepared(_named(character))
    kept = (" " if stringprep.in_table_c12(c) else c for c in text if not stringprep.in_table_b1(c))
    prepared = unicodedata.normalize("NFKC", "".join(kept))
    for character in prepared:
        if any(prohibits(character) for prohibits in _PROHIBITED):
            raise Unprepared(_named(character))
    _check_direction(prepared)
    return prepared


def _check_direction(text: str) -> None:
    """Check a text with right-to-left letters (RFC 3454, section 6).

    Raises:
        Unprepared: it also has left-to-right ones, or does not begin and end with right-to-left ones.
    """
    if not any(map(stringprep.in_table_d1, text)):
        return
    for character in text:
        if stringprep.in_table_d2(character):
            raise Unprepared(f"{_named(character)} beside right-to-left letters")
    for character in (text[0], text[-1]):
        if not stringprep.in_table_d1(character):
            raise Unprepared(f"{_named(character)} before or after right-to-left letters")


def _named(character: str) -> str:
    """Return the character itself if it can be printed, its code point and its name."""
    if "\udc80" <= character <= "\udcff":  # Python's surrogateescape for a byte that is not UTF-8
        return f"the byte 0x{ord(character) - 0xDC00:02X}, which is not UTF-8"
    kind = _NAMELESS.get(unicodedata.category(character), "unassigned code point")
    point = f"U+{ord(character):04X} {unicodedata.name(character, kind)}"
    return f"{character} ({point})" if character.isprintable() else point
