"""Bounded, fair, and found by what it can be purged by: the store of results. And what comments say."""

import random

import pytest

from torpor.gateway.cache.comments import leading_words, may_read
from torpor.gateway.cache.store import Entry, Shelf, Store
from torpor.model.cachewords import MAX_TAGS, Words, read_words
from torpor.model.fingerprint import fingerprint


def entry(key: object, size: int = 1_000, *, cost_ms: float = 1.0, expires_at: float = 1e9, tags: tuple[str, ...] = ()) -> Entry:
    return Entry(key, bytes(size), made_at=0.0, expires_at=expires_at, cost_ms=cost_ms, tags=tags)


def kept(shelf: Shelf) -> set[object]:
    return set(shelf.entries)


def test_bytes_are_counted_and_bounded() -> None:
    store = Store(64_000)
    shelf = store.shelf()
    for number in range(500):
        assert shelf.put(entry(number, number))
        assert store.bytes == shelf.bytes == sum(each.size for each in shelf.entries.values()) <= 64_000
    assert shelf.evicted > 300
    assert not shelf.put(entry("large", 4_000)), "one has a sixteenth at most"
    assert shelf.purge("all", ()) == len(range(500)) - shelf.evicted
    assert store.bytes == shelf.bytes == 0


def test_who_has_most_loses_first() -> None:
    store = Store(100_000)
    greedy, modest = store.shelf(), store.shelf()
    for number in range(5):
        modest.put(entry(number, cost_ms=0.01))
    for number in range(500):
        greedy.put(entry(number, cost_ms=1000.0))
    assert len(modest.entries) == 5 and modest.evicted == 0
    for number in range(500):
        modest.put(entry(number))
    assert 0.8 < greedy.bytes / modest.bytes < 1.25


def test_what_is_dear_or_asked_for_stays_but_not_for_ever() -> None:
    store = Store(60_000)
    shelf = store.shelf()
    shelf.put(entry("dear", cost_ms=500.0))
    shelf.put(entry("asked for"))
    for number in range(100):
        found = shelf.get("asked for", 0.0)
        assert found is not None
        shelf.hit(found)
        shelf.put(entry(number))
    assert {"dear", "asked for"} <= kept(shelf)
    for number in range(100_000):
        shelf.put(entry(number))
        if not {"dear", "asked for"} & kept(shelf):
            break
    assert not {"dear", "asked for"} & kept(shelf), "what nobody asks for any more goes in the end"


def test_what_has_expired_is_not_served_and_makes_room() -> None:
    store = Store(1 << 20)
    shelf = store.shelf()
    for number in range(100):
        shelf.put(entry(number, expires_at=float(number)))
    assert shelf.get(50, 50.0) is None and shelf.get(51, 50.0) is not None
    store.expire(90.0)
    assert kept(shelf) == set(range(91, 100))


def test_indexes_follow(seed: int = 1) -> None:
    chance = random.Random(seed)
    store = Store(80_000)
    shelf = store.shelf()
    for number in range(3_000):
        tags = tuple(chance.sample("abcdef", chance.randint(0, 3)))
        shelf.put(entry(chance.randint(0, 60), chance.randint(0, 3_000), cost_ms=chance.random(), tags=tags))
        if number % 100 == 0:
            wanted = chance.sample("abcdef", 2)
            doomed = {key for key, each in shelf.entries.items() if set(each.tags) & set(wanted)}
            before = kept(shelf)
            assert shelf.purge("tag", wanted) == sum(bool(key in doomed) for key in before)
            assert kept(shelf) == before - doomed
        assert len(shelf._order) <= 2 * len(shelf.entries) + 65 and len(shelf._expiries) <= 2 * len(shelf.entries) + 65
    shelf.purge("all", ())
    assert not shelf._by and store.bytes == 0


def test_what_is_replaced_is_found_no_longer() -> None:
    shelf = Store(1 << 20).shelf()
    shelf.put(entry("key", tags=("a",)))
    shelf.put(entry("key", tags=("b",)))
    assert shelf.purge("tag", ["a"]) == 0 and shelf.purge("tag", ["b"]) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ttl=60", Words(60)),
        ("  swr=300\ttl=60\n tags=b,a,b force status ", None),
        ("swr=300 ttl=60 tags=b,a,b force status", Words(60, 300, ("a", "b"), True, True)),
        ("ttl=0", Words(0)),
        ("ttl", None), ("", None), ("ttl=60 ttl=60", None), ("ttl=60 foo", None), ("ttl=60 force=1", None), ("ttl=1e3", None),
        ("ttl=60 tags", None), ("ttl=60 tags=", None), ("ttl=60 tags=a,,b", None), ("ttl=60 tags=a b", None), ("ttl=99999999", None),
        ("ttl=60 tags=" + ",".join(f"t{n}" for n in range(MAX_TAGS + 1)), None), ("ttl=²", None), ("ttl=60" + " " * 2_000, None),
    ],
)  # fmt: skip
def test_words(text: str, words: Words | None) -> None:
    assert read_words(text) == words


@pytest.mark.parametrize(
    ("text", "ttl_s"),
    [
        (b"/* ttl=60 */ select 1", 60), (b"/*ttl=60*/select 1", 60), (b" \n\t/* ttl=60 */ select 1", 60), (b"/* ttl=60 */", 60),
        (b"select 1 /* ttl=60 */", None), (b"/* hello */ /* ttl=60 */ select 1", None), (b"-- x\n/* ttl=60 */ select 1", None), (b"", None),
        (b"/* see ttl=5 of it */ select 1", -1), (b"/* ttl=60 /* a */ */ select 1", -1), (b"/* ttl=60 select 1", -1),
        (b"/*+ SeqScan(a) */", None),
        (b"/* ttl=60" + b"x" * 5_000 + b" */ select 1", -1), (b"/* subttl=60 */ select 1", None), (b" " * 5_000 + b"/* ttl=60 */", None),
    ],
)  # fmt: skip
def test_comments(text: bytes, ttl_s: int | None) -> None:
    found = leading_words(text)
    assert (found.ttl_s if found is not None else None) == ttl_s


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        (b"select 1", True), (b"SELECT\n1", True), (b"/* a */ -- b\n (( select 1))", True), (b"with x as (select 1) select", True),
        (b"values (1)", True), (b"table t", True), (b"selection", False), (b"insert into t", False), (b"", False), (b"/* select 1", False),
        (b"explain select 1", False), (b"begin", False), (b"/*" + b"*" * 50_000, False), (b"(" * 50_000, False), (b"select$1", False),
    ],
)  # fmt: skip
def test_what_may_read(text: bytes, reads: bool) -> None:
    assert may_read(text) is reads


def test_fingerprints() -> None:
    same = [
        b"SELECT a FROM t WHERE b = 1 AND c = 'x'",
        b"select  a\nfrom t where b=2 and c = 'it''s' ;",
        b"/* ttl=60 /* x */ */ select a from t where b = $1 and c = E'\\'' -- end",
        b"select a from t where b = 1.5e-3 and c = $tag$ ' $tag$",
        b"select a from T where B = 0x1f AND c = ''",
    ]
    assert len({fingerprint(text) for text in same}) == 1
    others = [b'select "A" from t', b"select a from t", b"select a from t where b = 1", b"select ab from t", b"select a b from t", b""]
    assert len({fingerprint(text) for text in [*others, same[0]]}) == len(others) + 1
    chance = random.Random(7)
    for _ in range(300):
        text = bytes(chance.choice(b"'\"$/*-eE\\a1 ;.(\xff\0\n") for _ in range(chance.randint(0, 200)))
        assert len(fingerprint(text)) == 16
