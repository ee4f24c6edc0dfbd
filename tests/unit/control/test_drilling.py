"""Which database is verified next, and as of when; what a history must hold; what a failure means. Pure."""

import random
import struct
from collections import Counter

import pytest

from torpor.catalog.drills import Candidate
from torpor.compute.checking import Damaged, Overtaxed
from torpor.compute.recovery import MomentNotReached, RecoveryFailed
from torpor.control.drilling import Impossible, choose, choose_moment, gap, is_cut, judge
from torpor.model.drills import FAULTS, DrillCause, DrillResult
from torpor.model.errors import (
    BinariesMissing,
    ComputeLost,
    HistoryCorrupt,
    HistoryFull,
    HistoryMissing,
    HistoryRefused,
    HistoryUnreachable,
    KeyFileUnusable,
    PoolFull,
)
from torpor.model.history import History, Moment, Shipped, line_of
from torpor.model.names import DatabaseId
from torpor.storage.archive.retention import Base, BaseFacts, LogPiece, spans

ID = DatabaseId("daaaaaaaaaaaa")
NOW, DAY_S = 1_800_000_000.0, 86_400.0
LINE = line_of(1, 1)
OLD_LINE = line_of(0, 1)


def base(number: int, start: int, stop: int, line: int = LINE) -> Base:
    return Base(number, BaseFacts(line, start, stop, NOW + stop, 18), 1000, 100)


def piece(start: int, end: int, line: int = LINE) -> LogPiece:
    return LogPiece(line, start, end, 10, NOW + end)


def history(shipped: int | None, run: int = 1) -> History:
    at = Shipped(1, 1 << 20, shipped, NOW + shipped, b"") if shipped is not None else None
    return History(ID, b"", run, at, None, NOW, 0)


def test_who_was_verified_long_ago_or_never_is_likelier() -> None:
    chance = random.Random(7)
    candidates = [
        Candidate(DatabaseId("never")),
        Candidate(DatabaseId("month"), NOW - 30 * DAY_S, NOW - 30 * DAY_S),
        Candidate(DatabaseId("today"), NOW - 3600, NOW - 3600),
    ]
    found = Counter(str(chosen.id) for _ in range(1000) if (chosen := choose(candidates, chance, NOW, 900)) is not None)
    assert found["never"] > 900 > found["month"] > found["today"]
    assert choose([], chance, NOW, 900) is None


def test_all_are_verified_in_the_end() -> None:
    """Hour by hour, with as many databases as days: each has had its turn after three times as many drills."""
    chance = random.Random(3)
    verified: dict[str, float | None] = dict.fromkeys(map(str, range(30)))
    now = NOW
    for _ in range(90):
        now += 3600
        candidates = [Candidate(DatabaseId(name), at, at) for name, at in verified.items()]
        chosen = choose(candidates, chance, now, 900)
        assert chosen is not None
        verified[chosen.id] = now
    assert all(at is not None for at in verified.values())


def test_what_was_not_possible_a_moment_ago_waits_unless_there_is_no_other() -> None:
    chance = random.Random(1)
    just_tried = Candidate(DatabaseId("tried"), None, NOW - 60)
    other = Candidate(DatabaseId("other"), NOW - 60, NOW - 60)
    assert {choose([just_tried, other], chance, NOW, 900) for _ in range(50)} == {other}
    assert choose([just_tried], chance, NOW, 900) == just_tried
    assert choose([just_tried, other], chance, NOW + 1000, 900) == just_tried


def test_moments_of_all_kinds_and_of_all_spans() -> None:
    bases = [base(1, 0, 10, OLD_LINE), base(2, 100, 110)]
    pieces = [piece(0, 50, OLD_LINE), piece(100, 300)]
    found, chance = spans(bases, pieces), random.Random(5)
    moments = [choose_moment(found, history(300), chance) for _ in range(300)]
    assert Moment() in moments
    positions = [moment.lsn for moment in moments if moment.lsn is not None]
    assert all(10 <= at <= 50 or 110 <= at <= 300 for at in positions) and min(positions) < 50 and max(positions) > 250
    times = [moment.at - NOW for moment in moments if moment.at is not None]
    assert all(10 <= at <= 50 or 110 <= at <= 300 for at in times) and len(times) > 50
    late = [choose_moment(found, history(290), chance) for _ in range(300)]  # the span goes as far as what was shipped, or further
    assert max(moment.at for moment in late if moment.at is not None) <= NOW + 300
    with pytest.raises(HistoryMissing):
        choose_moment([], history(None), chance)


def test_gaps() -> None:
    one, two = base(1, 100, 110), base(2, 200, 210)
    whole = [piece(100, 180), piece(150, 220), piece(220, 300)]
    assert gap([one, two], whole, history(300)) == ""
    assert "0/B4" in gap([one, two], [whole[0], piece(190, 300)], history(300))
    assert "0/DC" in gap([one, two], whole[:2], history(300)), "the last pieces, of which it is known that they were stored"
    assert "0/64" in gap([one], [], history(300)), "all of it"
    assert gap([], [], history(300)) == ""


def test_what_may_be_missing() -> None:
    first = base(1, 100, 110)
    assert gap([first], [piece(100, 105)], history(105)) == "", "a base whose own log is still on its way"
    assert gap([first], [], history(None)) == ""
    old = [base(1, 0, 10, OLD_LINE), base(2, 40, 50, OLD_LINE)]
    assert gap(old, [piece(0, 20, OLD_LINE)], history(None)) == "", (
        "the end of an earlier run was lost before it was stored, and that is known"
    )
    assert gap(old, [piece(5, 50, OLD_LINE)], history(None)) != "", "not so its beginning"


def record(length: int) -> bytes:
    return struct.pack("<I", length) + bytes(60)


def test_a_record_that_the_log_ends_in() -> None:
    at = 8192 * 10 + 1000
    assert is_cut(record(500), at, at + 499) and not is_cut(record(500), at, at + 600) and not is_cut(record(500), at, at + 5000)
    assert is_cut(record(500), at, at + 20), "not even its header is there"
    assert is_cut(record(20_000), at, at + 20_000 + 2 * 24), "which has headers of two or three pages in it"
    assert not is_cut(record(20_000), at, at + 20_000 + 5 * 40)
    assert is_cut(bytes(64), at, at + 500), "zeros to the end of a page"
    assert not is_cut(bytes(64), at, at + 50_000), "zeros where the log goes on for long"
    assert not is_cut(b"\xff" * 4 + bytes(60), at, at + (5 << 30)), "nonsense"
    page = struct.pack("<HH", 0xD118, 0) + bytes(20) + record(500)
    assert is_cut(page, 8192 * 10, 8192 * 10 + 24 + 499) and not is_cut(page, 8192 * 10, 8192 * 10 + 24 + 600)
    first = struct.pack("<HH", 0xD118, 2) + bytes(36) + record(500)
    assert is_cut(first, 8192 * 128, 8192 * 128 + 40 + 499) and not is_cut(first, 8192 * 128, 8192 * 128 + 40 + 600)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (Damaged(DrillCause.CHECKSUMS, "x"), DrillCause.CHECKSUMS),
        (HistoryCorrupt("x"), DrillCause.STORED_DAMAGED),
        (HistoryMissing("x"), DrillCause.STORED_MISSING),
        (KeyFileUnusable("x"), DrillCause.KEY),
        (MomentNotReached("x"), DrillCause.LOG_UNREADABLE),
        (RecoveryFailed("PANIC: could not locate a valid checkpoint record"), DrillCause.RECOVERY),
        (Impossible(DrillCause.BUSY, "x"), DrillCause.BUSY),
        (Overtaxed("x"), DrillCause.MEMORY),
        (HistoryUnreachable("x"), DrillCause.STORE),
        (HistoryRefused("x"), DrillCause.STORE),
        (HistoryFull("x"), DrillCause.STORE),
        (PoolFull("x"), DrillCause.POOL),
        (BinariesMissing("x"), DrillCause.HOST),
        (ComputeLost("x"), DrillCause.HOST),
        (OSError(5, "Input/output error"), DrillCause.HOST),
    ],
)
def test_what_a_failure_means(error: Exception, cause: DrillCause) -> None:
    verdict = judge(error)
    assert verdict.cause is cause and verdict.detail and verdict.hint
    assert (verdict.result is DrillResult.FAILED) == (cause in FAULTS)
