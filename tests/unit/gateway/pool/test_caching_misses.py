"""Misses of the cache as scripts: who waits for whom, what is made anew, purged, written to; bounds, and hostile texts."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cachedpool import ROW, T60, T60S, UNIT, Shop, status, unit
from tests.support.pooling import S, X, b, brief, e, p, q
from torpor.gateway.cache.writes import FILE_BYTES, Writes, word_of
from torpor.gateway.pool.values import Limits
from torpor.model.fingerprint import fingerprint
from torpor.pgwire.frames import frame


@pytest.fixture
def shop() -> Shop:
    return Shop(Limits(size=2))


# -- one flight for many


def test_one_asks_for_all(shop: Shop) -> None:
    clients = [shop.opened_one() for _ in range(5)]
    for client in clients:
        client.say(q(T60S))
    assert [client.link.listens for client in clients] == [True, False, False, False, False]
    shop.settle()
    assert shop.ran == ["select 1"]
    assert [status(client.heard()) for client in clients] == ["miss", *["hit age=0s ttl=60s swr=300s"] * 4]
    assert all(client.link.listens for client in clients) and shop.all_idle()


def test_when_the_first_fails_each_goes_its_own_way(shop: Shop) -> None:
    clients = [shop.opened_one() for _ in range(4)]
    for client in clients:
        client.say(unit("/* ttl=60 */ fail"))
    shop.settle()
    assert [brief(client.heard()) for client in clients] == ["1 2 n E(XX000) ZI"] * 4
    assert shop.ran == ["fail"] * 4 and shop.all_idle()


@pytest.mark.parametrize("how", ["leaves", "is killed", "leaves while it queues"])
def test_when_the_first_is_lost_another_is_the_first(shop: Shop, how: str) -> None:
    clients = [shop.opened_one() for _ in range(4)]
    holders = [shop.opened_one(), shop.opened_one()] if how == "leaves while it queues" else []
    for holder in holders:
        holder.run("begin")
    for client in clients:
        client.say(q(T60))
    if how == "is killed":
        backend = clients[0].client.backend
        assert backend is not None
        shop.kill(backend)
        assert brief(clients[0].heard()) == "E(57P02)"
    else:
        clients[0].client.left()
    assert clients[1].client.session is not None and clients[1].client.session.flight is not None
    for holder in holders:
        holder.run("commit")
    shop.settle()
    assert [brief(client.heard()) for client in clients[1:]] == [ROW] * 3
    assert shop.ran.count("select 1") == 1 and shop.all_idle()


def test_who_waits_can_leave_and_can_cancel(shop: Shop) -> None:
    clients = [shop.opened_one() for _ in range(4)]
    clients[0].say(unit(T60))
    clients[1].say(unit(T60))
    clients[2].say(unit(T60), q("select 2"))
    clients[3].say(unit(T60))
    clients[1].client.left()
    shop.pool.cancel(clients[2].client)
    shop.settle()
    assert brief(clients[2].heard()) == "E(57014) ZI T D(select 2) C(SELECT 1) ZI"
    assert [brief(client.heard()) for client in (clients[0], clients[3])] == [UNIT] * 2
    assert shop.all_idle()


def test_nobody_waits_for_whom_does_not_read(shop: Shop) -> None:
    one, two = shop.opened_one(), shop.opened_one()
    one.say(q(T60))
    two.say(q(T60))
    backend = one.client.backend
    assert backend is not None
    for now in (0.0, 10.0):
        shop.now = now
        shop.pool.tick()
        assert not two.link.listens and shop.pool.next_tick_s() is not None, "it may take its time until it begins to answer"
    answer = shop.twins[backend].hear(backend.link.take())  # type: ignore[attr-defined]
    backend.received(answer[:7])
    for now in (11.0, 12.0, 13.5):
        shop.now = now
        shop.pool.tick()
    shop.settle()
    assert brief(two.heard()) == ROW
    backend.received(answer[7:])
    assert brief(one.heard()) == ROW and shop.all_idle()


def test_a_cancel_of_the_first_reaches_postgresql(shop: Shop) -> None:
    one = shop.opened_one()
    one.say(q(T60))
    shop.pool.cancel(one.client)
    assert shop.canceled == [one.client.backend]


def test_what_follows_in_a_pipeline_is_heard_in_order(shop: Shop) -> None:
    one = shop.opened_one()
    one.run(T60)
    said = one.ask(q(T60), unit("select 2"), unit(T60), q(T60))
    assert brief(said) == f"{ROW} 1 2 T D(select 2) C(SELECT 1) ZI {UNIT} {ROW}"
    said = one.ask(unit(T60), q("begin"), q(T60), q("commit"), q(T60))
    assert brief(said) == f"{UNIT} C(BEGIN) ZI {ROW}".replace("C(BEGIN) ZI", "C(BEGIN) ZT T D(select 1) C(SELECT 1) ZT C(COMMIT) ZI")


# -- stale ones


def test_stale_ones_are_made_anew_once_by_nobody(shop: Shop) -> None:
    clients = [shop.opened_one() for _ in range(3)]
    clients[0].ask(unit(T60S))
    shop.now = 100.0
    for client in clients:
        client.say(unit(T60S))
        assert "stale" in status(client.heard())
    assert shop.cache.view()["stale"] == 3
    shop.settle()
    assert shop.ran == ["select 1", "select 1"] and shop.all_idle()
    assert "hit" in status(clients[0].ask(unit(T60S)))
    assert len(shop.pool.clients) == 3


def test_a_backend_that_dies_while_it_makes_something_anew(shop: Shop) -> None:
    one = shop.opened_one()
    one.run(T60S)
    shop.now = 100.0
    one.say(q(T60S))
    (working,) = [backend for backend in shop.twins if backend.client is not None]
    shop.kill(working)
    assert "stale" in status(one.heard()) and shop.all_idle() and shop.pool.clients == {one.client}
    one.run(T60S)
    assert not shop.cache.refreshing, "not again at once"
    shop.now = 102.0
    one.run(T60S)
    assert "hit" in status(one.ask(q(T60S)))


def test_a_full_queue_only_delays_what_is_made_anew() -> None:
    shop = Shop(Limits(size=1, queue=1))
    one, holder, waiter = (shop.opened_one() for _ in range(3))
    one.run(T60S)
    shop.now = 100.0
    holder.run("begin")
    waiter.say(q("select 2"))
    assert "stale" in status(one.ask(q(T60S)))
    holder.run("commit")
    shop.settle()
    assert shop.all_idle() and shop.pool.clients == {one.client, holder.client, waiter.client}
    assert shop.ran.count("select 1") == 1


# -- purges and writes


@pytest.mark.parametrize(
    ("by", "values", "dropped"),
    [
        ("tag", ["a"], 2),
        ("tag", ["a", "b", "c"], 2),
        ("table", ["t"], 1),
        ("table", ["public.t", "other.t"], 1),
        ("statement", [fingerprint(b"select 7")], 1),
        ("all", [], 3),
    ],
)
def test_purges(shop: Shop, by: str, values: list[str], dropped: int) -> None:
    one = shop.opened_one()
    for text in ("/* ttl=60 tags=a,b */ select 1", "/* ttl=60 tags=b,a */ select x public.t", "/* ttl=60 */ select x public.u"):
        one.run(text)
    assert shop.cache.purge(by, values) == dropped
    assert shop.cache.view()["purged"] == dropped and shop.cache.view()["entries"] == 3 - dropped
    assert shop.cache.purge(by, values) == 0


@pytest.mark.parametrize(("by", "value"), [("tag", "x"), ("table", "t"), ("statement", ""), ("all", "")])
def test_what_is_on_its_way_is_purged_too(shop: Shop, by: str, value: str) -> None:
    text = "/* ttl=60 tags=x status */ select 1 public.t"
    one, two, late = (shop.opened_one() for _ in range(3))
    for each in (one, two):
        each.say(q(text))
    shop.cache.purge(by, [value or fingerprint(text.encode())])
    late.say(q(text))
    assert late.client.session is not None and late.client.session.awaits is None, "it mustn't be given what is older than the purge"
    shop.settle()
    assert status(one.heard()) == "miss"
    assert len(shop.ran) in (2, 3) and shop.all_idle()


@pytest.fixture
def counters(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "writes"
    path.write_bytes(bytes(FILE_BYTES))
    yield path


def count(path: Path, word: int) -> None:
    with path.open("r+b") as file:
        file.seek(8 * word)
        (value,) = struct.unpack("=Q", file.read(8))
        file.seek(8 * word)
        file.write(struct.pack("=Q", value + 1))


def test_a_write_drops_what_was_read_from_its_table(shop: Shop, counters: Path) -> None:
    shop.cache.rule({}, True)
    one = shop.opened_one()
    text = "/* ttl=60 swr=60 */ select 1 public.t"
    assert one.run(text) and shop.cache.view()["fills"] == 0, "nobody counts"
    shop.now = 20.0
    shop.cache.count_writes(Writes(os.open(counters, os.O_RDONLY)))
    one.run(text), one.run(text)
    assert shop.cache.view()["hits"] == 1
    count(counters, word_of(77))
    one.run(text)
    assert shop.cache.view()["hits"] == 2
    for word in (word_of(1), 0):
        count(counters, word)
        one.run(text)
        assert shop.cache.view()["hits"] == 2
    one.say(unit(text))
    count(counters, word_of(1))  # while the statement runs
    shop.settle()
    one.ask(unit(text))
    assert shop.cache.view()["hits"] == 2
    counters.write_bytes(b"short")
    one.run(text), one.run(text)
    assert shop.cache.view()["hits"] == 2
    shop.cache.rule({}, False)
    one.run(text), one.run(text)
    assert shop.cache.view()["hits"] == 3 + 1


def test_who_waited_is_not_given_what_is_older_than_a_write(shop: Shop, counters: Path) -> None:
    shop.cache.rule({}, True)
    shop.cache.count_writes(Writes(os.open(counters, os.O_RDONLY)))
    one, two = shop.opened_one(), shop.opened_one()
    text = "/* ttl=60 */ select 1 public.t"
    one.say(q(text))
    count(counters, word_of(1))
    two.say(q(text))
    shop.settle()
    assert shop.cache.view()["hits"] == 0 and len(shop.ran) == 2


def test_counters_of_another_file_cannot_be_compared(shop: Shop, counters: Path, tmp_path: Path) -> None:
    shop.cache.rule({}, True)
    shop.cache.count_writes(Writes(os.open(counters, os.O_RDONLY)))
    one = shop.opened_one()
    one.run(T60)
    shop.cache.count_writes(Writes(os.open(counters, os.O_RDONLY)))
    assert shop.cache.view()["entries"] == 1
    other = tmp_path / "other"
    other.write_bytes(bytes(FILE_BYTES))
    shop.cache.count_writes(Writes(os.open(other, os.O_RDONLY)))
    assert shop.cache.view()["entries"] == 0


# -- pinned clients, memory, hostile texts


def test_a_pinned_client_is_told_so(shop: Shop) -> None:
    one = shop.opened_one(auto=True)
    one.run("temp it")
    assert status(one.ask(q(T60S))) == "bypass (pinned)"
    assert shop.cache.view()["bypasses"] == {"pinned": 1}


def test_large_results_stream_through(shop: Shop) -> None:
    one = shop.opened_one()
    one.say(q("/* ttl=60 */ select big"))
    backend = one.client.backend
    assert backend is not None
    answer = shop.twins[backend].hear(backend.link.take())  # type: ignore[attr-defined]
    heard = 0
    for at in range(0, len(answer), 4096):
        backend.received(answer[at : at + 4096])
        heard += len(one.heard())
        if backend.watch is not None and at > 70_000:
            assert not backend.watch._pieces
    assert heard == len(answer) - len(frame(b"S", b"torpor.watched\0ok\0"))


@pytest.mark.parametrize("is_extended", [False, True])
def test_large_results_that_are_kept_are_served_in_pieces(monkeypatch: pytest.MonkeyPatch, is_extended: bool) -> None:
    shop = Shop(cache_bytes=16 << 20)
    one = shop.opened_one()
    said = unit("/* ttl=60 */ select big") if is_extended else q("/* ttl=60 */ select big")
    first = one.ask(said)
    sent: list[bytes] = []
    monkeypatch.setattr(one.link, "send", sent.append)
    one.say(said * 3)
    assert b"".join(sent) == first * 3 and len(first) > 100_000
    large = [id(piece) for piece in sent if len(piece) > 1_000]
    assert len(large) == 3 * len(set(large))


@pytest.mark.parametrize("text", ["set torpor.cache = off" + " " * 60_000 + "x", "reset" + " " * 60_000, "set torpor.cache" + " " * 60_000])
def test_settings_that_go_on_and_on(shop: Shop, text: str) -> None:
    one = shop.opened_one()
    one.say(q(text))
    one.say(p("", text) + b() + e() + S)
    assert not one.client.is_gone


def test_memory_is_bounded_and_the_cheapest_go_first() -> None:
    shop = Shop(Limits(size=1), cache_bytes=100_000)
    one = shop.opened_one()
    one.run("/* ttl=60 */ select dear")
    for number in range(300):
        one.run("/* ttl=60 */ select dear")
        one.run(f"/* ttl=60 */ select {number}")
    assert shop.cache._store.bytes <= 100_000
    assert shop.cache._shelf.evicted > 100
    assert shop.ran.count("select dear") == 1, "what is asked for stays"


@pytest.mark.parametrize(
    "text",
    [
        "/* ttl=60 /* */ */ select 1", "/* ttl=60", "/* ttl=60 " + "x" * 100_000 + " */ select 1", "/* ttl=99999999999 */ select 1",
        "/* ttl=-1 */ select 1", "/* ttl=60 tags=*/ select 1", "/* ttl=60 ttl=60 */ select 1", "/* ttl=60 tags=ä */ select 1",
        "/* ttl=60 tags=" + ",".join(f"t{n}" for n in range(17)) + " */ select 1", "/* ttl=60 tags=" + "a" * 65 + " */ select 1",
        "/* ttl=60\0 */ select 1", "/* ttl=٣ */ select 1", "/* swr=5 */ select 1",
    ],
)  # fmt: skip
def test_poisoned_comments_are_no_words(shop: Shop, text: str) -> None:
    one = shop.opened_one()
    for _ in range(2):
        one.say(q(text))
        shop.settle()
        one.say(p("", text.replace("\0", "x")), b(), e(), S)
        shop.settle()
    assert not one.client.is_gone and shop.cache.view()["entries"] == 0
    one.say(frame(b"Q", b"/* ttl=60 tags=\xff\xfe */ select 1\0"))
    assert shop.cache.view()["entries"] == 0
    one.say(X)


def test_cut_into_pieces_it_is_the_same(shop: Shop) -> None:
    one = shop.opened_one()
    said = q("SET torpor.cache = 'ttl=60'") + q("select 1") + unit("select 1") * 2 + q(T60) * 2
    for at in range(len(said)):
        one.say(said[at : at + 1])
        shop.settle()
    assert brief(one.heard()) == f"C(SET) ZI {ROW} {UNIT} {UNIT} {ROW} {ROW}"
    assert shop.cache.view()["hits"] == 2 and shop.ran == ["select 1"] * 3
