"""Passwords: who is let in, and that a no costs the same whoever asks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import bcrypt
import pytest

from celery_lookout.web import users
from celery_lookout.web.users import Passwords, TooManyLogins, bcrypt_matches


def hashed(password: bytes, cost: int = 4) -> bytes:
    return bcrypt.hashpw(password, bcrypt.gensalt(cost))


CHEAP, DEAR = hashed(b"one"), hashed(b"two", 5)
USERS = {b"ann": CHEAP}
TWO_COSTS = {b"ann": CHEAP, b"bob": DEAR}


class Counted:
    """bcrypt, and what it was asked: the cost of each comparison."""

    def __init__(self) -> None:
        self.costs: list[int] = []

    def __call__(self, password: bytes, compared: bytes) -> bool:
        self.costs.append(int(compared[4:6]))
        return bcrypt_matches(password, compared)


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture
def passwords(counted: Counted) -> Iterator[Passwords]:
    passwords = Passwords(counted)
    yield passwords
    passwords.close()


async def test_a_user_with_the_right_password_is_let_in(passwords: Passwords) -> None:
    assert await passwords.allow(TWO_COSTS, b"ann", b"one")
    assert await passwords.allow(TWO_COSTS, b"bob", b"two")


@pytest.mark.parametrize(
    ("name", "password"),
    [(b"ann", b"two"), (b"ann", b""), (b"Ann", b"one"), (b"", b"one"), (b"eve", b"one"), (b"ann", b"one\0")],
)
async def test_all_others_are_not(passwords: Passwords, name: bytes, password: bytes) -> None:
    assert not await passwords.allow(TWO_COSTS, name, password)
    assert not await passwords.allow(TWO_COSTS, name, password)  # as remembered


async def test_a_stranger_who_knows_a_password_is_not_let_in(passwords: Passwords) -> None:
    assert not await passwords.allow(USERS, b"eve", b"one")
    assert not await passwords.allow(USERS, b"eve", b"one")


async def test_unknown_names_cost_what_wrong_passwords_cost(passwords: Passwords, counted: Counted) -> None:
    for name in (b"ann", b"eve"):
        counted.costs.clear()
        for password in (b"wrong", b"wrong", b"worse"):
            assert not await passwords.allow(USERS, name, password)
        assert counted.costs == [4, 4], name


async def test_with_users_of_two_costs_some_strangers_cost_either(passwords: Passwords, counted: Counted) -> None:
    for number in range(40):
        assert not await passwords.allow(TWO_COSTS, b"eve%d" % number, b"wrong")
    assert set(counted.costs) == {4, 5}
    counted.costs.clear()
    for attempt in range(3):  # else who asks twice sees that there is no such user
        await passwords.allow(TWO_COSTS, b"mallory", b"wrong%d" % attempt)
    assert len(set(counted.costs)) == 1


async def test_a_right_password_is_compared_once(passwords: Passwords, counted: Counted) -> None:
    for _ in range(3):
        assert await passwords.allow(USERS, b"ann", b"one")
    assert len(counted.costs) == 1


async def test_a_changed_hash_is_compared_anew(passwords: Passwords, counted: Counted) -> None:
    assert await passwords.allow(USERS, b"ann", b"one")
    assert not await passwords.allow({b"ann": hashed(b"new")}, b"ann", b"one")
    assert not await passwords.allow({b"bob": CHEAP}, b"ann", b"one")
    assert await passwords.allow({b"ann": hashed(b"new")}, b"ann", b"new")


async def test_what_is_remembered_has_no_password_and_no_end(
    passwords: Passwords, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(users, "MOST_REMEMBERED", 3)
    assert await passwords.allow(USERS, b"ann", b"one")
    for number in range(9):
        assert not await passwords.allow(USERS, b"ann", b"wrong%d" % number)
    assert len(passwords._wrong) == 3
    assert all(b"wrong" not in remembered and len(remembered) == 32 for remembered in passwords._wrong)
    counted.costs.clear()
    assert await passwords.allow(USERS, b"ann", b"one")
    assert counted.costs == [], "wrong passwords pushed out a right one"


async def test_of_long_passwords_the_first_72_bytes_count_as_in_go(passwords: Passwords) -> None:
    long = {b"ann": hashed(b"x" * 72)}
    assert await passwords.allow(long, b"ann", b"x" * 72)
    assert await passwords.allow(long, b"ann", b"x" * 200)
    assert not await passwords.allow(long, b"ann", b"x" * 71)


async def test_one_at_a_time_is_compared_and_few_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "MOST_WAITING", 3)
    go, running, together = threading.Event(), threading.Semaphore(0), []

    def slow(password: bytes, compared: bytes) -> bool:
        together.append(password)
        running.release()
        assert go.wait(30)
        return False

    passwords = Passwords(slow)
    asked = [asyncio.ensure_future(passwords.allow(USERS, b"ann", b"%d" % number)) for number in range(3)]
    assert await asyncio.to_thread(running.acquire, timeout=30)
    with pytest.raises(TooManyLogins):
        await passwords.allow(USERS, b"ann", b"more")
    assert len(together) == 1
    go.set()
    assert await asyncio.gather(*asked) == [False] * 3
    assert not await passwords.allow(USERS, b"ann", b"more")  # room again
    passwords.close()
