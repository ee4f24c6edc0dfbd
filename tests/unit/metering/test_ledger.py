"""The ledger of traffic."""

from collections.abc import Mapping

import pytest

from torpor.metering.ledger import TrafficLedger
from torpor.model.names import DatabaseId
from torpor.model.traffic import Traffic

A, B = DatabaseId("daaaaaaaaaaaa"), DatabaseId("dbbbbbbbbbbbb")


class Shelf:
    """Adds up as the catalog does; refuses when told."""

    def __init__(self) -> None:
        self.totals: dict[DatabaseId, Traffic] = {}
        self.saves = 0
        self.broken = False

    def save(self, amounts: Mapping[DatabaseId, Traffic]) -> None:
        if self.broken:
            raise OSError("disk full")
        self.saves += 1
        for id, amount in amounts.items():
            self.totals[id] = self.totals.get(id, Traffic()) + amount


def test_amounts_are_saved_once() -> None:
    shelf = Shelf()
    ledger = TrafficLedger(shelf.save, {})
    ledger.note(A, Traffic(10, 20))
    ledger.note(A, Traffic(15, 20))
    ledger.note(B, Traffic(1, 1))
    assert ledger.flush() == 2
    assert shelf.totals == {A: Traffic(15, 20), B: Traffic(1, 1)}
    ledger.note(A, Traffic(15, 20))
    assert ledger.flush() == 0
    assert shelf.saves == 1, "nothing is written when nothing happened"
    ledger.note(A, Traffic(16, 22))
    assert ledger.flush() == 1
    assert shelf.totals[A] == Traffic(16, 22)


def test_earlier_runs_are_told_apart() -> None:
    ledger = TrafficLedger(Shelf().save, {A: Traffic(100, 200)})
    ledger.note(A, Traffic(1, 2))
    ledger.flush()
    assert ledger.past(A) == Traffic(100, 200)
    assert ledger.past(B) == Traffic()


def test_what_could_not_be_saved_stays_pending() -> None:
    shelf = Shelf()
    ledger = TrafficLedger(shelf.save, {})
    ledger.note(A, Traffic(10, 20))
    shelf.broken = True
    with pytest.raises(OSError, match="disk full"):
        ledger.flush()
    ledger.note(A, Traffic(11, 20))
    shelf.broken = False
    assert ledger.flush() == 1
    assert shelf.totals == {A: Traffic(11, 20)}


def test_a_database_that_is_gone_is_forgotten() -> None:
    shelf = Shelf()
    ledger = TrafficLedger(shelf.save, {A: Traffic(1, 1)})
    ledger.note(A, Traffic(10, 20))
    ledger.forget(A)
    ledger.forget(A)
    assert ledger.flush() == 0
    assert ledger.past(A) == Traffic()
    assert repr(ledger) == "<TrafficLedger of 0 databases, 0 pending>"
