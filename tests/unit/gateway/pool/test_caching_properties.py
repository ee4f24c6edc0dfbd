"""Whatever clients say, in whatever pieces, and however they take turns: with the cache each hears what it would hear without."""

from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.pooling import H, House, S, Twin, b, brief, c, d, e, p, q
from torpor.gateway.cache.store import Store
from torpor.gateway.pool.engine import Pool
from torpor.gateway.pool.values import Limits

_WORDS = st.sampled_from(["/* ttl=2 swr=3 tags=t */ ", "/* ttl=9 force */ ", "", "/* ttl=0 */ ", "/* ttl=x */ "])
_TEXTS = st.builds(
    "{}{}".format,
    _WORDS,
    st.sampled_from(
        ["select 1", "select 1", "select 2 public.t", "select volatile", "fail", "bad", "begin", "commit", "rollback", "with insert"]
    ),
)
_NAMES = st.sampled_from(["", "a", "b"])
_PORTALS = st.sampled_from(["", "x"])
_EXTENDED = st.one_of(
    st.builds(p, _NAMES, _TEXTS),
    st.builds(b, _NAMES, _PORTALS),
    st.builds(d, _NAMES),
    st.builds(d, _PORTALS, st.just("P")),
    st.builds(e, _PORTALS),
    st.builds(c, _NAMES),
    st.builds(c, _PORTALS, st.just("P")),
)
_PAIRS = st.tuples(_NAMES, _TEXTS)
_READS = st.tuples(
    _NAMES,
    st.sampled_from(["/* ttl=2 swr=3 tags=t */ select 1", "/* ttl=2 swr=3 tags=t */ select 2 public.t", "/* ttl=9 */ select volatile"]),
)


def _whole(pairs: st.SearchStrategy[tuple[str, str]]) -> st.SearchStrategy[bytes]:
    """What drivers say to run one statement."""
    return st.one_of(
        pairs.map(lambda pair: q(pair[1])),
        pairs.map(lambda pair: c(pair[0]) + p(*pair) + b(pair[0]) + e() + S),
        pairs.map(lambda pair: p("", pair[1]) + b() + d("", "P") + e() + S),
        pairs.map(lambda pair: c(pair[0]) + S + p(*pair) + d(pair[0]) + S + b(pair[0]) + e() + S),
        pairs.map(lambda pair: c(pair[0]) + p(*pair) + d(pair[0]) + b(pair[0]) + d("", "P") + e() + S),
        pairs.map(lambda pair: p(*pair) + S + b(pair[0], "x") + d("x", "P") + e("x") + S),
        pairs.map(lambda pair: b(pair[0]) + e() + S),
        pairs.map(lambda pair: c(pair[0]) + p(*pair) + d(pair[0]) + H + b(pair[0]) + e() + S),
        pairs.map(lambda pair: p("", pair[1]) + H + S + d("") + H + S + b() + H + e() + H + S),
    )


_BATCH = st.one_of(
    _whole(_READS),
    _whole(_READS),
    _whole(_READS),
    st.lists(_whole(_READS), min_size=2, max_size=4).map(b"".join),
    st.lists(_whole(_PAIRS), min_size=1, max_size=4).map(b"".join),
    st.lists(_EXTENDED, min_size=1, max_size=8).map(lambda messages: b"".join(messages) + S),
    st.lists(_TEXTS.filter(lambda text: "bad" not in text), min_size=1, max_size=2).map(lambda texts: q(";".join(texts))),
    st.just(S),
    st.just(q("SET torpor.cache = 'ttl=5 swr=1'")),
    st.just(q("RESET torpor.cache")),
)
_PROGRAM = st.lists(_BATCH, max_size=6)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    programs=st.lists(_PROGRAM, min_size=1, max_size=3),
    size=st.integers(1, 2),
    cuts=st.lists(st.integers(1, 90), min_size=1, max_size=20),
    turns=st.lists(st.integers(0, 9), min_size=1, max_size=30),
    is_cut=st.booleans(),
)
def test_each_hears_what_it_would_hear_without(
    programs: list[list[bytes]], size: int, cuts: list[int], turns: list[int], is_cut: bool
) -> None:
    house = House(Limits(size=size))
    house.pool = Pool("shop", house, Limits(size=size), lambda: house.now, Store(20_000))
    cache = house.pool.caching
    talkers = [house.join() for _ in programs]
    house.settle()
    for talker in talkers:
        talker.heard()
    pieces = [deque(_cut([*program, q("rollback")], cuts) if is_cut else [*program, q("rollback")]) for program in programs]
    order = deque(turns)
    while any(pieces):
        ready = [number for number, left in enumerate(pieces) if left and talkers[number].link.listens]
        assert ready, "somebody who waits must be served when the others are done"
        turn = order[0]
        order.rotate(-1)
        house.now += turn / 4
        if turn == 7:
            cache.purge("tag", ["t"])
        number = ready[turn % len(ready)]
        talkers[number].say(pieces[number].popleft())
        if turn % 4 or not any(left and talkers[n].link.listens for n, left in enumerate(pieces)):
            house.settle()
    house.settle()
    for talker, program in zip(talkers, programs, strict=True):
        alone = Twin(1)
        expected = b"".join(alone.hear(batch) for batch in [*program, q("rollback")])
        assert brief(talker.heard()) == brief(expected)
        assert talker.client.backend is None
    assert not (cache._flights or cache._running or cache._resumable or cache.refreshing)
    assert house.pool.clients == {talker.client for talker in talkers}
    assert house.pool.discards == 0


def _cut(batches: list[bytes], cuts: list[int]) -> list[bytes]:
    data = b"".join(batches)
    pieces, at, turn = [], 0, 0
    while at < len(data):
        size = cuts[turn % len(cuts)]
        pieces.append(data[at : at + size])
        at, turn = at + size, turn + 1
    return pieces
