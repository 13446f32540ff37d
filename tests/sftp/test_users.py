"""Users, passwords, allow lists."""

from __future__ import annotations

import asyncio
import random
import re
import threading
from ipaddress import ip_address, ip_network

import pytest
from argon2 import PasswordHasher
from asyncssh.saslprep import SASLPrepError, saslprep

from server.errors import PickupPointError
from server.sftp import users as access
from server.sftp.users import (
    MAX_PASSWORD,
    MAX_SENT,
    VERDICT_STEP,
    Access,
    PasswordChecks,
    Unprepared,
    User,
    Verdict,
    hash_password,
    password_hash_problem,
    password_matches,
    prepare,
    verdict_due,
)

HASHER = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
HERE, THERE = ip_address("203.0.113.9"), ip_address("198.51.100.7")
LIST = (ip_network("203.0.113.0/24"),)


def user(name: str, password: str | None = "secret", keys: tuple[bytes, ...] = (), listed: bool = False) -> User:
    password_hash = HASHER.hash(password) if password else None
    return User(name, password_hash, frozenset(keys), LIST if listed else ())


@pytest.mark.parametrize(
    ("name", "address", "password", "verdict"),
    [
        ("triton", HERE, b"secret", Verdict.GRANTED),
        ("triton", HERE, b"Secret", Verdict.WRONG_PASSWORD),
        ("triton", THERE, b"secret", Verdict.WRONG_ADDRESS),
        ("nobody", HERE, b"secret", Verdict.UNKNOWN_USER),
        ("keyed", HERE, b"", Verdict.WRONG_PASSWORD),
        ("triton", HERE, b"s" * 5000, Verdict.WRONG_PASSWORD),
        ("triton", HERE, b"\xff", Verdict.WRONG_PASSWORD),
    ],
)
async def test_a_password_lets_in_only_its_own_user(
    name: str, address: object, password: bytes, verdict: Verdict
) -> None:
    """The right password of the right user from an allowed address, and nothing else."""
    it = Access([user("triton", listed=True), user("keyed", password=None, keys=(b"k",))])
    checks = PasswordChecks()
    assert await checks.check(it, name, address, password) is verdict  # type: ignore[arg-type]
    checks.close()


EXPENSIVE = PasswordHasher(time_cost=3, memory_cost=64, parallelism=1)
COST = re.compile(r"m=(\d+),t=(\d+)")


class Time:
    """A clock that only checks and waits move: a check by what its hash costs, a wait by its length."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.worked = 0.0  # of which in checks
        verify = access._verify

        def costly(password_hash: str, password: bytes) -> bool:
            memory, passes = map(int, COST.search(password_hash).groups())  # type: ignore[union-attr]
            self.now += memory * passes / 1000
            self.worked += memory * passes / 1000
            return verify(password_hash, password)

        monkeypatch.setattr(access, "_verify", costly)
        monkeypatch.setattr(access.time, "process_time", lambda: self.now)

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("password", [b"wrong", b"\xff", b"s" * 5000, "\u00b2".encode(), b""])
async def test_every_verdict_comes_after_the_same_time(monkeypatch: pytest.MonkeyPatch, password: bytes) -> None:
    """After one step, and the same work, whoever it is: a check of each configured kind, times VERDICT_STEP."""
    clock = Time(monkeypatch)
    expensive = User("expensive", EXPENSIVE.hash("secret"), frozenset(), ())
    it = Access([user("triton", listed=True), user("keyed", password=None, keys=(b"k",)), expensive])
    assert it.verdict_step == pytest.approx(VERDICT_STEP * (8 + 64 * 3) / 1000)
    checks = PasswordChecks(lambda: clock.now, clock.sleep)
    work = set()
    for name, address in (("triton", HERE), ("triton", THERE), ("nobody", HERE), ("keyed", HERE), ("expensive", HERE)):
        began, clock.worked = clock.now, 0.0
        assert await checks.check(it, name, address, password) is not Verdict.GRANTED
        assert clock.now - began == pytest.approx(it.verdict_step), name
        work.add(round(clock.worked, 6))
    assert len(work) == 1
    for name in ("triton", "expensive"):
        began = clock.now
        assert await checks.check(it, name, HERE, b"secret") is Verdict.GRANTED
        assert clock.now - began == pytest.approx(it.verdict_step)
    checks.close()


@pytest.mark.parametrize(
    ("took", "due"), [(0.0, 0.5), (0.1, 0.5), (0.5, 0.5), (0.51, 1.0), (1.3, 1.5)], ids=lambda it: f"{it}"
)
def test_a_check_that_takes_longer_is_answered_a_whole_step_later(took: float, due: float) -> None:
    """On a busy machine the verdict still shows nothing finer than a step."""
    assert verdict_due(100.0, 100.0 + took, 0.5) == 100.0 + due


async def test_a_check_keeps_its_place_until_its_verdict_though_nobody_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or when the next check begins would tell what the last one cost: asyncssh cancels a try for the next request."""
    waiting, clock = asyncio.Event(), Time(monkeypatch)

    async def sleep(seconds: float) -> None:
        waiting.set()
        await release.wait()

    release = asyncio.Event()
    it, checks = Access([user("triton")]), PasswordChecks(lambda: clock.now, sleep)
    first = [asyncio.ensure_future(checks.check(it, "triton", HERE, b"wrong")) for _ in range(2)]
    await waiting.wait()
    for task in first:
        task.cancel()
    await asyncio.wait(first)
    last = asyncio.ensure_future(checks.check(it, "triton", HERE, b"secret"))
    for _ in range(10):
        await asyncio.sleep(0)
    assert checks._free.locked()
    release.set()
    assert await last is Verdict.GRANTED
    checks.close()


async def test_two_checks_run_at_once_and_none_on_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty logins at once keep two threads busy, and the event loop is free."""
    running, most, threads = 0, 0, set()
    lock = threading.Lock()
    verify = access._verify

    def watching(password_hash: str, password: bytes) -> bool:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            threads.add(threading.current_thread())
        result = verify(password_hash, password)
        with lock:
            running -= 1
        return result

    it, checks = Access([user("triton")]), PasswordChecks()
    monkeypatch.setattr(access, "_verify", watching)
    found = await asyncio.gather(*(checks.check(it, "triton", HERE, b"secret") for _ in range(20)))
    checks.close()
    assert set(found) == {Verdict.GRANTED}
    assert most <= 2
    assert threading.main_thread() not in threads


def test_who_may_connect_is_known_before_key_exchange_only_when_every_user_has_a_list() -> None:
    """One user without a list opens the port to everybody; listed addresses stay exempt from bans."""
    closed = Access([user("triton", listed=True)])
    assert closed.may_connect(HERE)
    assert not closed.may_connect(THERE)
    half = Access([user("triton", listed=True), user("ops")])
    assert half.may_connect(THERE)
    assert half.is_listed(HERE)
    assert not half.is_listed(THERE)


def test_a_key_belongs_to_one_user_and_an_address() -> None:
    """Another user's key, or the right key from elsewhere, is not known."""
    it = Access([user("triton", keys=(b"one",), listed=True), user("ops", keys=(b"two",))])
    assert it.check_key("triton", HERE, b"one") is Verdict.GRANTED
    assert it.check_key("triton", THERE, b"one") is Verdict.WRONG_ADDRESS
    assert it.check_key("triton", THERE, b"two") is Verdict.UNKNOWN_KEY  # who holds it is not told about addresses
    assert it.check_key("nobody", HERE, b"one") is Verdict.UNKNOWN_USER


def test_hashes_are_argon2id_of_reasonable_cost() -> None:
    """Our own hash is good; other kinds, broken ones and ones that would use up the memory are reported."""
    assert password_hash_problem(hash_password("x")) == ""
    assert "$argon2id$v=19$m=19456,t=2,p=1$" in hash_password("x")
    assert "Argon2id" in password_hash_problem("$2b$12$abc")
    assert "cannot be checked" in password_hash_problem("$argon2id$v=19$m=8,t=1,p=1$broken")
    assert "too expensive" in password_hash_problem(hash_password("x").replace("m=19456", "m=9999999"))


@pytest.mark.parametrize(
    ("hashed", "typed"),
    [
        ("correct horse", "correct horse"),
        ("10 m\u00b2", "10 m2"),
        ("10 m2", "10 m\u00b2"),
        ("5 \u00b5m", "5 \u03bcm"),
        ("no\u00a0break", "no break"),
        ("soft\u00adhyphen", "softhyphen"),
        ("zw\u00f6lf", "zwo\u0308lf"),
        ("zwo\u0308lf", "zw\u00f6lf"),
        ("\u1f82" * MAX_PASSWORD, "\u03b1\u0313\u0300\u0345" * MAX_PASSWORD),
        ("\ufeffbom", "bom"),
        ("\u05e9\u05dc\u05d5\u05dd", "\u05e9\u05dc\u05d5\u05dd"),
    ],
)
def test_one_password_has_one_hash_however_it_is_spelt(
    hashed: str, typed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A keyboard, an editor or a system may send the same word in other characters."""
    monkeypatch.setattr(access, "_HASHER", HASHER)
    password_hash = hash_password(hashed)
    assert password_matches(password_hash, typed.encode())
    assert password_matches(password_hash, hashed.encode())
    assert not password_matches(password_hash, typed.encode() + b"x")


@pytest.mark.parametrize("password", ["m\u00b2", "zwo\u0308lf", "\U0001f600 smile", "tab\tbetween"])
def test_a_hash_of_a_text_that_was_not_prepared_stays_valid(password: str) -> None:
    """Earlier versions hashed what was typed, as other tools do."""
    assert password_matches(HASHER.hash(password), password.encode())


@pytest.mark.parametrize("password", [b"m\xfcller", b"\xed\xa0\x80", b"x" * (MAX_SENT + 1), b""])
def test_what_is_no_text_or_too_long_matches_nothing(password: bytes) -> None:
    """Not even a hash of just these bytes."""
    assert not password_matches(HASHER.hash(password), password)


@pytest.mark.parametrize(
    ("password", "told"),
    [
        ("smile \U0001f600", "\U0001f600 (U+1F600 GRINNING FACE)"),
        ("tab\tbetween", "U+0009 control character"),
        ("\u0378", "U+0378 unassigned code point"),
        ("\ue000", "U+E000 private-use character"),
        ("\u2028", "U+2028 LINE SEPARATOR"),
        ("m\u00fcller".encode("latin-1").decode("utf-8", "surrogateescape"), "the byte 0xFC, which is not UTF-8"),
        ("\u05e9\u05dca", "a (U+0061 LATIN SMALL LETTER A) beside right-to-left letters"),
        ("\u05e9\u05dc1", "1 (U+0031 DIGIT ONE) before or after right-to-left letters"),
        ("\u00ad", "the password is empty"),
        ("\ufdfa" * 60, f"longer than {MAX_PASSWORD} characters"),  # each is 18 when it is prepared
        ("x" * 1025, f"longer than {MAX_PASSWORD} characters"),
    ],
)
def test_a_password_that_not_every_client_sends_alike_is_refused_by_name(password: str, told: str) -> None:
    """Before anybody is given it: the sentence names the character, and has a command that makes a better one."""
    with pytest.raises(PickupPointError) as error:
        hash_password(password)
    assert told in str(error.value)
    assert error.value.hint == "openssl rand -base64 24 | pickup-point hash-password"


def test_passwords_are_prepared_as_asyncssh_prepares_them() -> None:
    """Its clients may do so before they send; two implementations of RFC 4013 agree on 3,000 texts."""
    dice = random.Random(4013)
    ranges = [(0, 0x250), (0x300, 0x370), (0x590, 0x700), (0x1E00, 0x2100), (0xFB00, 0xFFFF), (0x1F000, 0x1F700)]
    agreed = {True: 0, False: 0}
    for _ in range(3000):
        low, high = dice.choice(ranges)
        letters = [*map(chr, dice.choices(range(low, high), k=dice.randrange(4))), *dice.choices("a1 \u05d0", k=1)]
        text = "".join(dice.sample(letters, len(letters)))
        try:
            expected: str | None = saslprep(text)
        except SASLPrepError:
            expected = None
        try:
            found: str | None = prepare(text)
        except Unprepared:
            found = None
        assert found == expected, ascii(text)
        agreed[found is not None] += 1
    assert min(agreed.values()) > 300
