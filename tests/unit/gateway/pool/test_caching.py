"""The cache in the pool's engine as scripts: what clients hear, and what reaches PostgreSQL."""

import struct

import pytest

from tests.support.cachedpool import ROW, T60, T60S, UNIT, Shop, status, unit
from tests.support.pooling import H, S, b, brief, c, d, e, p, q
from torpor.gateway.pool.values import Limits
from torpor.model.fingerprint import fingerprint
from torpor.pgwire.frames import frame


@pytest.fixture
def shop() -> Shop:
    return Shop(Limits(size=2))


# -- hits and misses


def test_a_hit_touches_nothing(shop: Shop) -> None:
    one, two = shop.opened_one(name="one"), shop.opened_one(name="two")
    assert one.run(T60) == ROW
    for backend in list(shop.twins):
        shop.kill(backend)
    assert (one.run(T60), two.run(T60)) == (ROW, ROW)
    assert not shop.twins and not shop.opened, "nothing was woken"
    assert shop.cache.view() | {"bytes": 0} == {
        "entries": 1, "bytes": 0, "hits": 2, "stale": 0, "misses": 1, "bypasses": {}, "fills": 1, "evicted": 0, "purged": 0,
        "shared": 0, "skipped": 0,
    }  # fmt: skip


def test_without_words_nothing_is_kept(shop: Shop) -> None:
    one = shop.opened_one()
    for text in ("select 1", "/* hello */ select 1", "/* ttl */ select 1", "-- ttl=60\nselect 1", "select /* ttl=60 */ 1"):
        one.run(text)
        one.run(text)
    assert len(shop.ran) == 10
    assert not shop.cache.view()["entries"]


def test_the_status_is_told(shop: Shop) -> None:
    one = shop.opened_one()
    said = [status(one.ask(q(T60S)))]
    for at in (7.0, 60.0, 60.5, 1000.0):
        shop.now = at
        said.append(status(one.ask(q(T60S))))
    assert said == ["miss", "hit age=7s ttl=60s swr=300s", "stale age=60s ttl=60s swr=300s", "hit age=0s ttl=60s swr=300s", "miss"]
    assert brief(one.ask(q(T60S))) == "T D(select 1) C(SELECT 1) N(00000) ZI"
    one.run("begin")
    assert status(one.ask(q(T60S))) == "bypass (in a transaction)"
    one.run("commit")
    for text, reason in (
        ("/* ttl=60 status */ insert x", "not a read"),
        ("/* ttl=60 status */ select volatile", "volatile now"),
        ("/* ttl=60 status */ with insert", "writes"),
        ("/* ttl=60 status */ select 1;select 2", "several statements"),
        ("/* ttl=60 status */ select notice", "notices"),
        ("/* ttl=60 status */ select big", "too large"),
        ("/* ttl=x status */ select 1", "bad words"),
    ):
        for _ in range(2):
            assert f"bypass ({reason})" in status(one.ask(q(text))).split(", ")
    assert shop.all_idle()


def test_volatile_ones_are_kept_if_forced(shop: Shop) -> None:
    one = shop.opened_one()
    for _ in range(3):
        one.run("/* ttl=60 force */ select volatile")
    assert shop.ran == ["select volatile"]
    one.run("/* ttl=60 force */ with insert")
    one.run("/* ttl=60 force */ with insert")
    assert len(shop.ran) == 3, "what writes is never kept"


def test_a_mark_lasts_for_some_seconds_only(shop: Shop) -> None:
    one = shop.opened_one()
    one.run("/* ttl=60 */ select volatile")
    (backend,) = shop.twins
    one.run("/* ttl=60 */ select volatile")
    assert shop.cache.view()["bypasses"] == {"volatile": 2}
    shop.now = 11.0
    one.run("/* ttl=60 */ select volatile")
    assert shop.cache.view()["bypasses"] == {"volatile": 3} and len(shop.twins[backend].ran) == 3


def test_errors_are_not_kept(shop: Shop) -> None:
    one = shop.opened_one()
    assert brief(one.ask(q("/* ttl=60 status */ select 1;fail"))) == "T D(select 1) C(SELECT 1) E(XX000) N(00000) ZI"
    for _ in range(2):
        assert brief(one.ask(unit("/* ttl=60 */ fail"))) == "1 2 n E(XX000) ZI"
        assert brief(one.ask(unit("/* ttl=60 */ bad"))) == "E(42601) ZI"
    assert not shop.cache.view()["entries"]


def test_a_backend_without_signs_fills_nothing() -> None:
    shop = Shop(signs=False)
    one = shop.opened_one()
    assert status(one.ask(q(T60S))) == "bypass (no signs)"
    assert status(one.ask(q(T60S))) == "bypass (no signs)"
    assert not shop.cache.view()["fills"]


# -- the extended protocol


@pytest.mark.parametrize(
    ("asked", "heard"),
    [
        ([unit(T60)], [UNIT]),
        ([p("", T60) + b() + e() + S], ["1 2 D(select 1) C(SELECT 1) ZI"]),
        ([p("a", T60) + S, b("a") + d("", "P") + e() + S], ["1 ZI", "2 T D(select 1) C(SELECT 1) ZI"]),
        ([p("a", T60) + d("a") + S, b("a") + e() + S], ["1 t T ZI", "2 D(select 1) C(SELECT 1) ZI"]),
        ([p("a", T60) + d("a") + H, b("a") + e() + S], ["1 t T", "2 D(select 1) C(SELECT 1) ZI"]),
        ([p("", T60) + H + S, d("") + H + S, b() + H + e() + H + S], ["1 ZI", "t T ZI", "2 D(select 1) C(SELECT 1) ZI"]),
        ([p("a", T60) + d("a") + b("a") + e() + S], ["1 t T 2 D(select 1) C(SELECT 1) ZI"]),
        ([p("a", T60) + d("a") + b("a", "x") + d("x", "P") + e("x") + S], ["1 t T 2 T D(select 1) C(SELECT 1) ZI"]),
    ],
)
def test_drivers_are_served_asleep(shop: Shop, asked: list[bytes], heard: list[str]) -> None:
    one = shop.opened_one()
    first = [brief(one.ask(each)) for each in asked]
    assert first == heard
    shop.close_all()
    two = shop.opened_one()
    if H in asked[0]:  # what it is told of the statement ends with its first result: that is kept when it is asked for again
        assert [brief(two.ask(each)) for each in asked] == heard
        shop.close_all()
        two = shop.opened_one()
    for _ in range(2):
        assert [brief(two.ask(each)) for each in asked] == heard
        assert not shop.twins and not shop.opened
        for name in list(two.client.statements):
            assert brief(two.ask(c(name.decode()) + H)) == "3"
            assert brief(two.ask(S)) == "ZI"
    assert two.run("select 2").endswith("D(select 2) C(SELECT 1) ZI")


def test_what_was_prepared_by_the_cache_works_without_it(shop: Shop) -> None:
    one, two = shop.opened_one(), shop.opened_one()
    for talker in (one, two):
        assert brief(talker.ask(p("a", T60) + d("a") + S)) == "1 t T ZI"
    two.run("begin")
    assert brief(two.ask(b("a") + e() + S)) == "2 D(select 1) C(SELECT 1) ZT"
    two.run("commit")
    assert brief(two.ask(p("a", "select 2") + S)) == "E(42P05) ZI"
    assert brief(two.ask(c("a"), b("a"), e(), S)) == "3 E(26000) ZI"


def test_parameters_and_formats_are_part_of_it(shop: Shop) -> None:
    one = shop.opened_one()
    binds = [
        bytes(6),
        struct.pack("!HHi1sH", 0, 1, 1, b"1", 0),
        struct.pack("!HHi1sH", 0, 1, 1, b"2", 0),
        struct.pack("!HHi1sHH", 0, 1, 1, b"2", 1, 1),
    ]
    for _ in range(2):
        for rest in binds:
            assert brief(one.ask(p("", T60), frame(b"B", b"\0\0" + rest), e(), S)) == "1 2 D(select 1) C(SELECT 1) ZI"
    assert len(shop.ran) == 4


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (p("", T60S) + b() + frame(b"E", b"\0\0\0\0\5") + S, "row limit"),
        (p("", T60S) + b() + e() + e() + S, "a portal"),
        (p("", T60S) + b() + e() + H, "flush"),
        (p("", T60S) + b() + e() + p("", T60S) + b() + e() + S, "several statements"),
        (p("", T60S) + d("", "P") + S, "a portal"),
    ],
)
def test_what_is_no_unit_goes_by(shop: Shop, said: bytes, reason: str) -> None:
    one = shop.opened_one()
    for _ in range(2):
        assert f"bypass ({reason})" in status(one.ask(said))
        one.ask(S)
    assert not shop.cache.view()["entries"]


def test_columns_that_have_changed_are_not_served_to_whom_was_told_others(shop: Shop) -> None:
    one, two = shop.opened_one(), shop.opened_one()
    one.ask(p("a", T60) + d("a") + S)
    two.ask(p("a", T60) + d("a") + S)
    one.ask(b("a") + e() + S)
    session = two.client.session
    assert session is not None
    body, columns, _ = session.told[b"a"]
    before = len(shop.ran)
    session.told[b"a"] = (body, columns + b"older", -1.0)
    assert brief(two.ask(b("a") + e() + S)) == "E(0A000) ZI"
    assert brief(two.ask(c("a") + p("a", T60) + d("a") + b("a") + e() + S)) == "3 1 t T 2 D(select 1) C(SELECT 1) ZI"
    assert len(shop.ran) == before
    session.told[b"a"] = (body, columns + b"newer", 1.0)
    assert brief(two.ask(b("a") + e() + S)) == "2 D(select 1) C(SELECT 1) ZI"
    assert len(shop.ran) == before + 1, "what is kept may be older than what it was told"


def test_a_description_that_no_longer_fits_is_forgotten(shop: Shop) -> None:
    one, two = shop.opened_one(), shop.opened_one()
    for client in (one, two):
        assert brief(client.ask(p("a", T60) + d("a") + S)) == "1 t T ZI"
    two.say(b("a") + e() + S)
    backend = two.client.backend
    assert backend is not None
    answer = shop.twins[backend].hear(backend.link.take())  # type: ignore[attr-defined]
    backend.received(answer.replace(b"\0\0select 1", b"\0\1select 1"))  # one column more than it was told
    shop.close_all()
    three = shop.opened_one()
    assert brief(three.ask(p("a", T60) + d("a") + S)) == "1 t T ZI"
    assert shop.twins, "PostgreSQL was asked"
    one.ask(p("f", "/* ttl=60 */ fail") + d("f") + S)
    assert brief(one.ask(b("f") + e() + S)) == "2 E(XX000) ZI"
    shop.close_all()
    three.ask(p("f", "/* ttl=60 */ fail") + d("f") + S)
    assert shop.twins


# -- whose it is


def test_roles_settings_and_parameters_have_entries_of_their_own(shop: Shop) -> None:
    clients = [
        shop.opened_one(role="ann"), shop.opened_one(role="bob"), shop.opened_one(role="ann", search_path="x"), shop.opened_one(role="ann")
    ]  # fmt: skip
    clients[3].run("SET timezone = 'CET'")
    for turn in range(1, 3):
        for client in clients:
            client.run(T60)
        assert shop.cache.view()["hits"] == 4 * (turn - 1)
    same = shop.opened_one(role="ann", name="another name")
    same.run(T60)
    assert shop.cache.view()["hits"] == 5


def test_many_settings_do_not_mix(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torpor.gateway.pool.caching._MOST_SCOPES", 2)
    one, two = shop.opened_one(), shop.opened_one(role="bob")
    for zone in ("A", "B", "C", "D"):
        one.run(f"SET timezone = '{zone}'")
        one.run(T60)
        two.run(T60)
    scopes = {entry.key[0] for entry in shop.cache._shelf.entries.values()}  # type: ignore[index]
    assert len(scopes) == 5


# -- the session's setting, and rules


@pytest.mark.parametrize("extended", [False, True])
def test_the_setting_of_the_session(shop: Shop, extended: bool) -> None:
    one = shop.opened_one()

    def say(text: str) -> str:
        return brief(one.ask(unit(text) if extended else q(text)))

    ok = "1 2 n C(SET) ZI" if extended else "C(SET) ZI"
    assert say("SET torpor.cache = 'ttl=60 tags=x'") == ok
    say("select 1"), say("select 1"), say("/* ttl=0 */ select 1"), say("/* ttl=0 */ select 1")
    assert shop.ran == ["select 1"] * 3
    assert shop.cache.purge("tag", ["x"]) == 1
    assert say("reset TORPOR.cache;") == ok
    say("select 1"), say("select 1")
    assert len(shop.ran) == 5
    assert say("set session torpor.cache to 'ttl=60 nonsense'") == ok
    say("select 1"), say("select 1")
    assert shop.cache.view()["bypasses"] == {"bad words": 2}
    say("set torpor.cache to 'ttl=60'"), say("DISCARD ALL")
    say("select 1"), say("select 1")
    assert len(shop.ran) == 10 and shop.cache.view()["entries"] in (0, 1)
    one.run("begin")
    if not extended:
        assert say("SET torpor.cache = 'ttl=60'") == "C(SET) ZT"
    one.run("commit")
    assert not any("torpor" in text for text in shop.ran)


def test_the_setting_of_the_startup_message(shop: Shop) -> None:
    one = shop.opened_one()
    shop.cache.start_with(one.client, "ttl=60")
    one.run("select 1"), one.run("select 1")
    one.run("set torpor.cache = off"), one.run("select 1")
    assert len(shop.ran) == 2
    one.run("RESET ALL")
    one.run("select 1")
    assert len(shop.ran) == 3


def test_rules_by_fingerprint_are_the_last_to_be_asked(shop: Shop) -> None:
    one = shop.opened_one()
    shop.cache.rule({fingerprint(b"select 7"): "ttl=60 tags=r", fingerprint(b"select volatile"): "nonsense"}, False)
    one.run("select 1"), one.run("select 1"), one.run("select 2"), one.run("select volatile")
    one.ask(unit("select 1")), one.ask(unit("select 1"))
    one.run("/* ttl=0 */ select 1")
    assert shop.ran == ["select 1", "select 2", "select volatile", "select 1", "select 1"]
    assert shop.cache.purge("tag", ["r"]) == 3
    shop.cache.rule({}, False)
    assert not shop.pool.cares
