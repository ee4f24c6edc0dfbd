"""A cache that shares: what is found in a store by another worker, who waits for it, and what doesn't come from there."""

from collections import deque
from collections.abc import Sequence

import pytest

from tests.support.cachedpool import ROW, T60, T60S, UNIT, Shop, status, unit
from tests.support.pooling import S, X, b, brief, d, e, p, q
from torpor.gateway.pool.sharing import Found, Sharing

SECRET = b"s" * 32


class Twin:
    """A store in memory, that answers when it is told to."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.asked: deque[tuple[Sequence[bytes], Found]] = deque()
        self.is_there = True

    def get(self, names: Sequence[bytes], found: Found) -> bool:
        if self.is_there:
            self.asked.append((names, found))
        return self.is_there

    def put(self, name: bytes, value: bytes, life_ms: int) -> None:
        assert life_ms > 0
        if self.is_there:
            self.values[name] = value

    def answer(self, silent: bool = False) -> None:
        while self.asked:
            names, found = self.asked.popleft()
            found(None if silent else [self.values.get(name) for name in names])


class SharingShop(Shop):
    """A worker's pool that shares."""

    def __init__(self, twin: Twin, wall_s: float = 1000.0, secret: bytes = SECRET) -> None:
        super().__init__()
        self.twin, self.wall_s = twin, wall_s
        self.cache.share(Sharing(twin, secret, lambda: self.wall_s + self.now))

    def settle(self, connect: bool = True) -> None:
        super().settle(connect)
        while self.twin.asked:
            self.twin.answer()
            super().settle(connect)


@pytest.fixture
def twin() -> Twin:
    return Twin()


@pytest.fixture
def first(twin: Twin) -> SharingShop:
    return SharingShop(twin)


def test_another_worker_finds_it_as_old_as_it_is(first: SharingShop, twin: Twin) -> None:
    client = first.opened_one()
    assert status(client.ask(q(T60S))) == "miss" and len(twin.values) == 1
    second = SharingShop(twin, 1005.0)
    other = second.opened_one()
    heard = other.ask(q(T60S))
    assert status(heard) == "hit age=5s ttl=60s swr=300s" and brief(heard) == ROW.replace("ZI", "N(00000) ZI") and not second.ran
    assert status(other.ask(q(T60S))) == "hit age=5s ttl=60s swr=300s" and second.cache.figures.shared == 1
    assert second.cache.purge("tag", ["b"]) == 1  # it can be found by its tags
    stale = SharingShop(twin, 1100.0)
    assert status(stale.opened_one().ask(q(T60S))) == "stale age=100s ttl=60s swr=300s" and stale.ran == ["select 1"]
    late = SharingShop(twin, 3000.0)
    assert status(late.opened_one().ask(q(T60S))) == "miss" and late.ran == ["select 1"]
    assert all(shop.all_idle() for shop in (first, second, stale, late))


def test_drivers_that_ask_twice_are_served_without_a_backend(first: SharingShop, twin: Twin) -> None:
    client = first.opened_one()
    text = "/* ttl=60 */ select 1"
    ask = [p("a", text) + d("a") + S, b("a") + e() + S]
    answers = [brief(client.ask(each)) for each in ask]
    second = SharingShop(twin)
    other = second.opened_one()
    assert [brief(other.ask(each)) for each in ask] == answers and not second.ran
    assert brief(client.ask(unit(text))) == UNIT
    third = SharingShop(twin)
    assert brief(third.opened_one().ask(unit(text))) == UNIT and not third.ran


def test_who_asks_the_same_waits_for_one_answer(first: SharingShop, twin: Twin) -> None:
    first.opened_one().ask(q(T60S))
    second = SharingShop(twin)
    clients = [second.opened_one() for _ in range(4)]
    for client in clients:
        client.say(q(T60S))
    assert len(twin.asked) == 1 and not any(client.link.listens for client in clients)
    clients[0].client.left()
    second.pool.cancel(clients[1].client)
    assert brief(clients[1].heard()) == "E(57014) ZI"
    clients[2].say(b"garbage")  # behind what it waits for
    second.settle()
    assert clients[2].client.is_gone and status(clients[3].heard()).startswith("hit") and not second.ran and second.all_idle()


@pytest.mark.parametrize("how", ["silent", "away", "empty", "spoilt", "another secret"])
def test_without_it_postgres_is_asked_once(first: SharingShop, twin: Twin, how: str) -> None:
    first.opened_one().ask(q(T60S))
    if how == "empty":
        twin.values.clear()
    if how == "spoilt":
        twin.values = {name: value[:-1] + b"x" for name, value in twin.values.items()}
    twin.is_there = how != "away"
    second = SharingShop(twin, secret=b"o" * 32 if how == "another secret" else SECRET)
    clients = [second.opened_one() for _ in range(3)]
    for client in clients:
        client.say(q(T60S))
    twin.answer(silent=how == "silent")
    second.settle()
    assert sorted(status(client.heard())[:4] for client in clients) == ["hit ", "hit ", "miss"] and second.ran == ["select 1"]
    assert second.cache.figures.skipped == (how == "silent") + 1 * (how == "away") and second.all_idle()


def test_what_was_purged_meanwhile_is_not_taken(first: SharingShop, twin: Twin) -> None:
    first.opened_one().ask(q(T60S))
    second = SharingShop(twin)
    client = second.opened_one()
    client.say(q(T60S))
    second.cache.share(Sharing(twin, b"new" * 11, lambda: 1000.0))  # what Torpor says before each purge
    second.cache.purge("tag", ["a"])
    second.settle()
    assert status(client.heard()) == "miss" and second.ran == ["select 1"]


def test_nobody_gets_what_another_may_see(first: SharingShop, twin: Twin) -> None:
    first.opened_one().ask(q(T60))
    for named in ({"role": "bob"}, {"options": "-c search_path=x"}):
        second = SharingShop(twin)
        second.opened_one(**named).ask(q(T60))
        assert second.ran == ["select 1"], named
    second = SharingShop(twin)
    client = second.opened_one()
    client.ask(q("SET timezone TO 'Asia/Tokyo'"))
    client.ask(q(T60))
    assert second.ran[-1] == "select 1"
    client = second.opened_one()
    client.ask(q(T60) + X)
    assert second.ran[-1] == "select 1" and len(second.ran) == 2


def test_where_writes_count_nothing_is_shared(twin: Twin) -> None:
    shop = SharingShop(twin)
    shop.cache.rule({}, True)
    shop.opened_one().ask(q(T60))
    assert shop.ran == ["select 1"] and not twin.values and not twin.asked


def test_what_is_not_a_result_is_not_shared(first: SharingShop, twin: Twin) -> None:
    client = first.opened_one()
    for text in ("/* ttl=60 */ select volatile", "/* ttl=60 */ fail", "/* ttl=60 */ insert", "select 1"):
        client.ask(q(text))
    assert not twin.values
