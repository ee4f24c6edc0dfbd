"""When bases are taken, what can be restored, and by which way: the decisions, without stores and clocks."""

from dataclasses import replace

import pytest

from tests.support.fleet import make_id
from torpor.cli.moments import parse_at
from torpor.compute.recovery import recovery_options
from torpor.control.history import expires_at, is_base_due, windows
from torpor.control.restore import position_of, routes
from torpor.control.shipping import fingerprint, page_before
from torpor.model.errors import HistoryMissing, InvalidRequest
from torpor.model.history import History, Moment, Shipped, line_of, read_moment, timeline_of
from torpor.storage.archive.retention import Base, BaseFacts, LogPiece, Retention, spans

MB = 1 << 20
NOW = 1_800_000_000.0
DAY = 86_400.0
SHIPPED = Shipped(1, MB, 100 * MB, NOW, b"")
NEW = History(make_id(1), b"key", 1, SHIPPED)
OLD = replace(NEW, base_at=NOW - 3600, base_lsn=90 * MB)


@pytest.mark.parametrize(
    ("history", "awake_s", "idle_s", "freeze_after_s", "due"),
    [
        (replace(NEW, shipped=None), 100, 100, 5, False),  # nothing is shipped yet
        (NEW, 1, 0.5, 5, False),
        (NEW, 3, 2.1, 5, True),  # it is about to fall asleep for the first time
        (NEW, 3, 0.6, 1, True),
        (NEW, 3, 2.1, None, True),
        (NEW, 61, 0, 5, True),
        (replace(NEW, run=2), 1, 0, 5, True),  # what was can't be restored beyond the break, so at once
        (OLD, 1000, 1000, 5, False),
        (replace(OLD, base_at=NOW - DAY), 100, 0, 5, True),
        (replace(OLD, base_at=NOW - DAY), 1, 0, 5, False),
        (replace(OLD, base_at=NOW - DAY, base_lsn=100 * MB), 100, 100, 5, False),  # nothing was written since
        (replace(OLD, base_at=NOW + 2 * DAY), 100, 0, 5, True),  # the clock was set back
        (replace(OLD, shipped=replace(SHIPPED, lsn=90 * MB + 1024 * MB)), 1, 0, 5, True),
    ],
)
def test_when_a_base_is_due(history: History, awake_s: float, idle_s: float, freeze_after_s: float | None, due: bool) -> None:
    assert is_base_due(history, awake_s, idle_s, freeze_after_s, NOW) is due


def base(number: int, ended_at: float, lsn: int, line: int = 1) -> Base:
    return Base(number, BaseFacts(line, lsn, lsn + 100, ended_at, 18), 20 * MB, 2 * MB)


def test_when_something_expires() -> None:
    retention = Retention(7 * DAY, 30)
    assert expires_at([], retention) is None
    assert expires_at([base(1, NOW, MB)], retention) is None
    assert expires_at([base(1, NOW, MB), base(2, NOW + DAY, 2 * MB)], retention) == NOW + 8 * DAY


RUN_1, RUN_2 = line_of(1, 1), line_of(2, 1)
BASES = [base(1, NOW, 10 * MB, RUN_1), base(2, NOW + 100, 20 * MB, RUN_1), base(3, NOW + 300, 22 * MB, RUN_2)]
PIECES = [
    LogPiece(RUN_1, 10 * MB, 15 * MB, at=NOW + 50),
    LogPiece(RUN_1, 15 * MB, 21 * MB, at=NOW + 120),
    LogPiece(RUN_1, 21 * MB, 24 * MB, at=NOW + 200),
    LogPiece(RUN_1, 24 * MB, 30 * MB, at=NOW + 9000),
    LogPiece(RUN_2, 22 * MB, 23 * MB, at=NOW + 310),
]
HISTORY = History(make_id(1), b"key", 2, Shipped(1, MB, 23 * MB, NOW + 400, b""))


def test_runs_are_told_apart() -> None:
    assert timeline_of(RUN_2) == 1
    assert RUN_1 < RUN_2
    shown = windows(spans(BASES, PIECES), HISTORY)
    assert [(view.from_at, view.to_at) for view in shown] == [(NOW, NOW + 9000), (NOW + 300, NOW + 400)]
    assert [view.to_lsn for view in shown] == ["0/1E00000", "0/1700000"]


@pytest.mark.parametrize(
    ("moment", "number", "until"),
    [
        (Moment(), 3, 23 * MB),
        (Moment(at=NOW + 99), 1, 30 * MB),  # later pieces may hold it, too: the store's clock may be off
        (Moment(at=NOW + 100), 2, 30 * MB),
        (Moment(at=NOW + 350), 3, 23 * MB),
        (Moment(at=NOW + 400), 3, 23 * MB),  # nothing was written since, and that is known
        (Moment(lsn=12 * MB), 1, 15 * MB),
        (Moment(lsn=21 * MB - 1), 2, 21 * MB),
        (Moment(lsn=29 * MB), 2, 30 * MB),
    ],
)
def test_the_way_to_a_moment(moment: Moment, number: int, until: int) -> None:
    (route,) = routes(BASES, PIECES, HISTORY, moment)
    assert (route.base.number, route.until) == (number, until)


def test_a_transaction_may_be_after_any_base() -> None:
    assert [route.base.number for route in routes(BASES, PIECES, HISTORY, Moment(before_transaction=800))] == [3, 2, 1]


@pytest.mark.parametrize("moment", [Moment(at=NOW - 1), Moment(at=NOW + 10_000), Moment(lsn=MB), Moment(lsn=40 * MB)])
def test_what_the_history_does_not_hold(moment: Moment) -> None:
    with pytest.raises(HistoryMissing, match="can't be restored"):
        routes(BASES, PIECES, HISTORY, moment)


def test_what_is_no_moment() -> None:
    for at, lsn, transaction in ((1.0, "0/0", None), (None, "x", None), (None, None, 1)):
        with pytest.raises(InvalidRequest):
            read_moment(at, lsn, transaction)


def test_one_target_and_it_comes_last() -> None:
    """PostgreSQL takes an empty one that comes after it for a second target."""
    for moment, name in ((Moment(at=NOW), "time"), (Moment(lsn=MB), "lsn"), (Moment(before_transaction=5), "xid")):
        options = [(key, value) for key, value in recovery_options(moment) if key.startswith("recovery_target") and "_t" in key]
        targets = [(key, value) for key, value in options if key in ("recovery_target_time", "recovery_target_lsn", "recovery_target_xid")]
        assert [key for key, value in targets if value] == [f"recovery_target_{name}"]
    assert not any(value for key, value in recovery_options(Moment()) if key in ("recovery_target_time", "recovery_target_lsn"))


def test_pages_and_files() -> None:
    assert [page_before(lsn) for lsn in (0, 1, 8192, 8193, 16384)] == [0, 0, 0, 8192, 8192]
    assert fingerprint(b"a", 0) != fingerprint(b"a", 8192)
    assert position_of("000000010000000000000017", MB) == 0x1700000
    assert position_of("000000020000000300000FFF", MB) == 0x3FFF00000


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("now", NOW),
        ("10 minutes ago", NOW - 600),
        ("an hour ago", NOW - 3600),
        ("1.5 days ago", NOW - 1.5 * DAY),
        ("30s ago", NOW - 30),
        ("2027-01-15 08:00:00+00", NOW),
        ("2027-01-15 08:00:00", NOW),
        ("2027-01-15T10:00:00+02:00", NOW),
        ("2027-01-15 10:00:00.5+02", NOW + 0.5),
        ("2027-01-15 08:00:00 UTC", NOW),
    ],
)
def test_moments_as_people_type_them(text: str, at: float) -> None:
    assert parse_at(text, NOW) == pytest.approx(at)


@pytest.mark.parametrize("text", ["", "yesterday", "10 parsecs ago", "25:00", "2027-13-01", "ago"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="is no"):
        parse_at(text, NOW)
