"""The records of restore drills: bounded, and gone with their database."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.fleet import make_database
from torpor.catalog.catalog import Catalog
from torpor.catalog.drills import KEPT, Candidate, DrillRecords
from torpor.catalog.histories import HistoryRecords
from torpor.model.database import DatabaseState
from torpor.model.drills import DrillCause, DrillResult, DrillView
from torpor.model.history import History

ONE, OTHER = make_database(1), make_database(2)
PASSED = DrillView("db1", DrillResult.PASSED, 100.0, 110.0, "the newest", 3, 1 << 30, 1 << 20, 5, 1000, ("checksums", "amcheck", "rows"))
FAILED = replace(PASSED, result=DrillResult.FAILED, ended_at=120.0, cause=DrillCause.LOG_GAP, detail="a gap", hint="a base", checked=())
AWAY = replace(FAILED, result=DrillResult.NOT_POSSIBLE, ended_at=130.0, cause=DrillCause.STORE, base=None)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    found = Catalog.open(tmp_path / "catalog.sqlite")
    for database in (ONE, OTHER):
        found.add_database(database)
    yield found
    found.close()


def test_what_was_found(catalog: Catalog) -> None:
    drills = DrillRecords(catalog.connection)
    for drill in (PASSED, FAILED, AWAY):
        assert drills.add(ONE.id, drill)
    assert drills.of(ONE.id, "db1") == [AWAY, FAILED, PASSED]
    assert drills.last(ONE.id, "db1") == FAILED, "the last one that said something"
    assert drills.last(OTHER.id, "db2") is None
    assert drills.results() == {ONE.id: DrillResult.FAILED}
    assert drills.add(OTHER.id, PASSED)
    assert [(id, drill.result) for id, drill in drills.last_of_all()] == [
        (OTHER.id, DrillResult.PASSED),
        (ONE.id, DrillResult.NOT_POSSIBLE),
    ]


def test_few_are_kept_and_the_last_that_said_something(catalog: Catalog) -> None:
    drills = DrillRecords(catalog.connection)
    drills.add(ONE.id, PASSED)
    drills.add(OTHER.id, PASSED)
    for number in range(3 * KEPT):
        drills.add(ONE.id, replace(AWAY, ended_at=200.0 + number))
    kept = drills.of(ONE.id, "db1")
    assert len(kept) == KEPT + 1 and kept[-1] == PASSED and kept[0].ended_at == 200.0 + 3 * KEPT - 1
    assert len(drills.of(OTHER.id, "db2")) == 1


def test_they_go_with_their_database(catalog: Catalog) -> None:
    drills = DrillRecords(catalog.connection)
    drills.add(ONE.id, PASSED)
    catalog.set_state(ONE.id, DatabaseState.DELETING)
    assert not drills.add(ONE.id, FAILED), "it was removed while the drill went on"
    catalog.remove_database(ONE.id)
    assert not drills.results() and not drills.add(ONE.id, FAILED)


def test_candidates(catalog: Catalog) -> None:
    drills, histories = DrillRecords(catalog.connection), HistoryRecords(catalog.connection)
    assert drills.candidates() == []
    for database in (ONE, OTHER):
        histories.add(database.id, b"key")
    assert drills.candidates() == [], "nothing was stored yet"
    histories.save([History(ONE.id, b"key", 1, None, None, 50.0, 7), History(OTHER.id, b"key", 2)])
    assert sorted(drills.candidates(), key=lambda each: each.id) == [Candidate(ONE.id), Candidate(OTHER.id)]
    drills.add(ONE.id, PASSED)
    drills.add(ONE.id, AWAY)
    assert Candidate(ONE.id, PASSED.ended_at, AWAY.ended_at) in drills.candidates()
    catalog.set_state(ONE.id, DatabaseState.DELETING)
    assert drills.candidates() == [Candidate(OTHER.id)]
