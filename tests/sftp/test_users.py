"""Users, passwords, allow lists."""

from __future__ import annotations

import asyncio
import threading
from ipaddress import ip_address, ip_network

import pytest
from argon2 import PasswordHasher

from server.sftp import users as access
from server.sftp.users import Access, PasswordChecks, User, Verdict, hash_password, password_hash_problem

HASHER = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
HERE, THERE = ip_address("203.0.113.9"), ip_address("198.51.100.7")
LIST = (ip_network("203.0.113.0/24"),)


def user(name: str, password: str | None = "secret", keys: tuple[bytes, ...] = (), listed: bool = False) -> User:
    password_hash = HASHER.hash(password) if password else None
    return User(name, password_hash, frozenset(keys), LIST if listed else ())


@pytest.mark.parametrize(
    ("name", "address", "password", "verdict"),
    [
        ("triton", HERE, "secret", Verdict.GRANTED),
        ("triton", HERE, "Secret", Verdict.WRONG_PASSWORD),
        ("triton", THERE, "secret", Verdict.WRONG_ADDRESS),
        ("nobody", HERE, "secret", Verdict.UNKNOWN_USER),
        ("keyed", HERE, "", Verdict.WRONG_PASSWORD),
        ("triton", HERE, "s" * 5000, Verdict.WRONG_PASSWORD),
        ("triton", HERE, "\udcff", Verdict.WRONG_PASSWORD),
    ],
)
async def test_a_password_lets_in_only_its_own_user(
    name: str, address: object, password: str, verdict: Verdict
) -> None:
    """The right password of the right user from an allowed address, and nothing else."""
    it = Access([user("triton", listed=True), user("keyed", password=None, keys=(b"k",))])
    checks = PasswordChecks()
    assert await checks.check(it, name, address, password) is verdict  # type: ignore[arg-type]
    checks.close()


async def test_every_wrong_login_costs_one_check_of_the_same_hash_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown users, users without a password and wrong addresses are checked against a decoy that costs the same."""
    seen: list[str] = []
    matches = access._matches

    def counting(password_hash: str, password: str) -> bool:
        seen.append(password_hash.rsplit("$", 2)[0])
        return matches(password_hash, password)

    monkeypatch.setattr(access, "_matches", counting)
    it = Access([user("triton", listed=True), user("keyed", password=None, keys=(b"k",))])
    checks = PasswordChecks()
    for name, address in (("triton", HERE), ("triton", THERE), ("nobody", HERE), ("keyed", HERE)):
        assert await checks.check(it, name, address, "wrong") is not Verdict.GRANTED
    checks.close()
    assert len(seen) == 4
    assert set(seen) == {"$argon2id$v=19$m=8,t=1,p=1"}


async def test_two_checks_run_at_once_and_none_on_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty logins at once keep two threads busy, and the event loop is free."""
    running, most, threads = 0, 0, set()
    lock = threading.Lock()
    matches = access._matches

    def watching(password_hash: str, password: str) -> bool:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            threads.add(threading.current_thread())
        result = matches(password_hash, password)
        with lock:
            running -= 1
        return result

    monkeypatch.setattr(access, "_matches", watching)
    it, checks = Access([user("triton")]), PasswordChecks()
    found = await asyncio.gather(*(checks.check(it, "triton", HERE, "secret") for _ in range(20)))
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
    assert it.knows_key("triton", HERE, b"one")
    assert not it.knows_key("triton", THERE, b"one")
    assert not it.knows_key("triton", HERE, b"two")
    assert not it.knows_key("nobody", HERE, b"one")


def test_hashes_are_argon2id_of_reasonable_cost() -> None:
    """Our own hash is good; other kinds, broken ones and ones that would use up the memory are reported."""
    assert password_hash_problem(hash_password("x")) == ""
    assert "$argon2id$v=19$m=19456,t=2,p=1$" in hash_password("x")
    assert "Argon2id" in password_hash_problem("$2b$12$abc")
    assert "cannot be checked" in password_hash_problem("$argon2id$v=19$m=8,t=1,p=1$broken")
    assert "too expensive" in password_hash_problem(hash_password("x").replace("m=19456", "m=9999999"))
