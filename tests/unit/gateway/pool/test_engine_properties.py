"""Whatever clients say, in whatever pieces, and however they take turns: each hears what it would hear from a PostgreSQL of its own."""

from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.pooling import House, Remembered, S, Twin, b, brief, c, d, e, p, q
from torpor.gateway.pool.values import Limits

_TEXTS = st.sampled_from(["select 1", "select 2", "fail", "bad", "begin", "commit", "rollback"])
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
_BATCH = st.one_of(
    st.lists(_EXTENDED, min_size=1, max_size=8).map(lambda messages: b"".join(messages) + S),
    st.lists(_TEXTS.filter(lambda text: text != "bad"), min_size=1, max_size=3).map(lambda texts: q(";".join(texts))),
    st.just(S),
    st.tuples(_NAMES, _TEXTS).map(lambda pair: p(*pair) + b(pair[0]) + e() + S),
    st.lists(st.tuples(_NAMES, _TEXTS), min_size=2, max_size=4).map(
        lambda pairs: b"".join(p(*pair) + b(pair[0]) + e() + S for pair in pairs)
    ),
)
_PROGRAM = st.lists(_BATCH, max_size=6)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    programs=st.lists(_PROGRAM, min_size=1, max_size=3),
    size=st.integers(1, 2),
    cuts=st.lists(st.integers(1, 60), min_size=1, max_size=20),
    turns=st.lists(st.integers(0, 5), min_size=1, max_size=30),
)
def test_each_hears_what_it_would_hear_alone(programs: list[list[bytes]], size: int, cuts: list[int], turns: list[int]) -> None:
    house = House(Limits(size=size))
    talkers = [house.join() for _ in programs]
    house.settle()
    for talker in talkers:
        talker.heard()
    pieces = [deque(_cut([*program, q("rollback")], cuts)) for program in programs]
    order = deque(turns)
    while any(pieces):
        ready = [number for number, left in enumerate(pieces) if left and talkers[number].link.listens]
        assert ready, "somebody who waits must be served when the others are done"
        turn = order[0]
        order.rotate(-1)
        number = ready[turn % len(ready)]
        talkers[number].say(pieces[number].popleft())
        if turn % 2 or not any(left and talkers[n].link.listens for n, left in enumerate(pieces)):
            house.settle()
    house.settle()
    for talker, program in zip(talkers, programs, strict=True):
        alone = Twin(1)
        expected = b"".join(alone.hear(batch) for batch in [*program, q("rollback")])
        assert brief(talker.heard()) == brief(expected)
        assert talker.client.backend is None
    assert house.pool.discards == 0


@settings(max_examples=25, deadline=None, derandomize=True)
@given(cuts=st.lists(st.integers(1, 9), min_size=1, max_size=30))
def test_answers_may_come_in_pieces(cuts: list[int]) -> None:
    house = House(Limits(size=1))
    talker = house.join()
    house.settle()
    talker.ask(p("a", "select 1"), S)
    talker.say(p("b", "select 1"), b("a"), d("", "P"), e(), S, q("begin;select 2;commit"))
    (backend,) = house.twins
    link = backend.link
    assert isinstance(link, Remembered)
    for piece in _cut([house.twins[backend].hear(link.take())], cuts):
        backend.received(piece)
    assert brief(talker.heard()) == (
        "1 2 T D(select 1) C(SELECT 1) ZI C(BEGIN) T D(select 2) C(SELECT 1) C(commit) ZI".replace("C(commit)", "C(COMMIT)")
    )
    assert talker.client.backend is None


def _cut(batches: list[bytes], cuts: list[int]) -> list[bytes]:
    data = b"".join(batches)
    pieces, at, turn = [], 0, 0
    while at < len(data):
        size = cuts[turn % len(cuts)]
        pieces.append(data[at : at + size])
        at, turn = at + size, turn + 1
    return pieces
