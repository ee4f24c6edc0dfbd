"""What must be kept, what can be restored, and by which pieces."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torpor.model.errors import HistoryMissing
from torpor.storage.archive.retention import (
    Base,
    BaseFacts,
    LogPiece,
    Retention,
    Span,
    base_for,
    bases_to_keep,
    chain,
    log_to_drop,
    spans,
)


def base(number: int, start: int = 0, stop: int = 0, at: float = 0.0, timeline: int = 1) -> Base:
    return Base(number, BaseFacts(timeline, start, stop, at, 18), 1000, 100)


def log(*ends: int, timeline: int = 1, at: float = 0.0) -> list[LogPiece]:
    return [LogPiece(timeline, start, end, 10, at) for start, end in itertools.pairwise(ends)]


def numbers(bases: list[Base]) -> list[int]:
    return [base.number for base in bases]


def test_a_chain_is_in_order_without_needless_pieces() -> None:
    pieces = [LogPiece(1, 20, 30), LogPiece(1, 0, 10), LogPiece(1, 5, 25), LogPiece(1, 8, 12), LogPiece(2, 10, 40)]
    assert chain(pieces, 1, 0) == [LogPiece(1, 0, 10), LogPiece(1, 5, 25), LogPiece(1, 20, 30)]
    assert chain(pieces, 1, 6, 20) == [LogPiece(1, 5, 25)]
    assert chain(pieces, 1, 10, 10) == []
    assert chain(pieces, 3, 0) == []


def test_a_gap_is_named() -> None:
    with pytest.raises(HistoryMissing, match="0/A to 0/1E"):
        chain([*log(0, 10), *log(20, 30)], 1, 0, 30)
    assert chain([*log(0, 10), *log(20, 30)], 1, 0) == log(0, 10)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 10)), max_size=25),
    st.integers(0, 45),
    st.none() | st.integers(0, 50),
)
def test_chains(stretches: list[tuple[int, int]], start: int, end: int | None) -> None:
    pieces = [LogPiece(1, at, at + length) for at, length in stretches]
    covered = {lsn for piece in pieces for lsn in range(piece.start_lsn, piece.end_lsn)}
    reach = start
    while reach in covered:
        reach += 1
    if end is not None and end > reach:
        with pytest.raises(HistoryMissing):
            chain(pieces, 1, start, end)
        return
    found = chain(pieces, 1, start, end)
    reached = start
    for piece in found:
        assert piece.start_lsn <= reached < piece.end_lsn
        reached = piece.end_lsn
    assert reached >= reach if end is None else reached >= end


def test_what_can_be_restored() -> None:
    pieces = [*log(0, 10, 20, at=7.0), *log(30, 40, at=9.0)]
    assert spans([base(3, 30, 45, 9.5), base(2, 32, 35, 8.0), base(1, 5, 8, 3.0)], pieces) == [
        Span(1, 1, 8, 20, 3.0, 7.0),
        Span(2, 1, 35, 40, 8.0, 9.0),
    ]
    assert spans([base(1, 50, 50, 3.0)], pieces) == [Span(1, 1, 50, 50, 3.0, 3.0)]  # made while it slept: no log is needed


def test_which_base_restores_a_moment() -> None:
    bases = [base(1, 0, 10, 100.0), base(2, 20, 30, 200.0), base(3, 40, 50, 150.0)]  # the clock went back in between
    assert base_for(bases) == bases[2]
    assert base_for(bases, lsn=49) == bases[1]
    assert base_for(bases, at=160.0) == bases[2]
    assert base_for(bases, at=120.0) == bases[0]
    assert base_for(bases, at=99.0) is None
    assert base_for([]) is None


def test_the_window_needs_one_base_before_it() -> None:
    bases = [base(number, at=number * 100.0) for number in range(1, 6)]
    assert numbers(bases_to_keep(bases, Retention(150.0, 99), 520.0)) == [3, 4, 5]
    assert numbers(bases_to_keep(bases, Retention(0.0, 99), 520.0)) == [5]
    assert numbers(bases_to_keep(bases, Retention(1e9, 99), 520.0)) == [1, 2, 3, 4, 5]
    assert numbers(bases_to_keep(bases, Retention(1e9, 2), 520.0)) == [4, 5]
    assert numbers(bases_to_keep(bases, Retention(0.0, 0), 1e9)) == [5]
    assert numbers(bases_to_keep(bases, Retention(0.0, 1), 1e9, pinned=[2, 77])) == [2, 5]


@settings(deadline=None)
@given(st.lists(st.floats(0, 100), max_size=8), st.floats(0, 50), st.integers(1, 9), st.floats(0, 200))
def test_each_moment_of_the_window_stays(times: list[float], window_s: float, most: int, now: float) -> None:
    bases = [base(number, at=at) for number, at in enumerate(sorted(times), 1)]
    kept = bases_to_keep(bases, Retention(window_s, most), now)
    assert len(kept) <= most
    assert bool(kept) == bool(bases)
    if bases:
        assert kept[-1] == bases[-1]
    if len(kept) < most:
        for moment in [now - window_s, now, *(at for at in times if at >= now - window_s)]:
            assert base_for(kept, at=moment) == base_for(bases, at=moment)


def test_log_that_no_base_needs_goes() -> None:
    pieces = [*log(0, 10, 20, 30, 40), LogPiece(2, 30, 50)]
    assert log_to_drop(pieces, [base(2, 25, 28)]) == log(0, 10, 20)
    assert log_to_drop(pieces, [base(1, 5, 12), base(2, 25, 28)], only_itself=[1]) == []
    assert log_to_drop(pieces, [base(1, 0, 10), base(2, 35, 38)], only_itself=[1]) == log(10, 20, 30)
    assert log_to_drop(pieces, [base(1, 35, 38, timeline=2)]) == log(0, 10, 20, 30, 40)
    assert log_to_drop(pieces, []) == []  # the first base is being made


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 10), st.booleans()), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 8)), max_size=25),
)
def test_what_is_dropped_was_of_no_use(made: list[tuple[int, int, bool]], stretches: list[tuple[int, int]]) -> None:
    bases = [base(number, start, start + length) for number, (start, length, _) in enumerate(made, 1)]
    alone = [number for number, (_, _, only_itself) in enumerate(made, 1) if only_itself]
    pieces = [LogPiece(1, at, at + length) for at, length in stretches]
    gone = log_to_drop(pieces, bases, alone)
    left = [piece for piece in pieces if piece not in gone]
    before, after = spans(bases, pieces), spans(bases, left)
    assert [span.base for span in before] == [span.base for span in after]
    for was, now in zip(before, after, strict=True):
        assert was.base in alone or was == now
