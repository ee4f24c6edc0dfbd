"""The wake log, over a real catalog."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from torpor.catalog.catalog import Catalog
from torpor.insights import wakes as module
from torpor.insights.wakes import KEPT_IN_MEMORY, WakeLog
from torpor.model.database import Database, DatabaseState, Wake
from torpor.model.names import DatabaseId
from torpor.model.sleep import Tier, WakeReason

SHOP, OTHER = DatabaseId("dshopshopshop"), DatabaseId("dotherotherot")


def wake(n: int, id: DatabaseId = SHOP, tier: Tier = Tier.FROZEN, elapsed_ms: float = 3.0) -> Wake:
    return Wake(id, float(n), WakeReason.TRAFFIC, tier, "", elapsed_ms)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    catalog = Catalog.open(tmp_path / "catalog.sqlite")
    catalog.add_database(Database(SHOP, "shop", DatabaseState.READY, 18, 1, 0.0))
    catalog.add_database(Database(OTHER, "other", DatabaseState.READY, 18, 1, 0.0))
    yield catalog
    catalog.close()


def log_over(catalog: Catalog) -> WakeLog:
    return WakeLog(catalog.save_wakes, catalog.wakes, catalog.last_wakes())


def times(wakes: Sequence[Wake]) -> list[float]:
    return [wake.at for wake in wakes]


def test_nothing_is_known_of_a_stranger(catalog: Catalog) -> None:
    log = log_over(catalog)
    assert (log.recent(SHOP, 5), log.last(SHOP), log.count(SHOP), log.pending, log.flush()) == ((), None, 0, 0, 0)


def test_wakes_are_at_hand_before_they_are_written(catalog: Catalog) -> None:
    log = log_over(catalog)
    for n in range(5):
        log.record(wake(n))
    assert times(log.recent(SHOP, 3)) == [4, 3, 2]
    assert times(log.recent(SHOP, 100)) == [4, 3, 2, 1, 0]
    assert log.recent(SHOP, 0) == ()
    assert (log.last(SHOP), log.count(SHOP), log.count(OTHER), log.pending) == (wake(4), 5, 0, 5)
    assert catalog.wakes(SHOP, 10) == []
    assert log.flush() == 5
    assert log.pending == 0
    assert len(catalog.wakes(SHOP, 10)) == 5


def test_memory_is_bounded_and_older_wakes_are_read_back(catalog: Catalog) -> None:
    log = log_over(catalog)
    for n in range(50):
        log.record(wake(n))
    assert len(log._recent[SHOP]) == KEPT_IN_MEMORY
    assert times(log.recent(SHOP, 40)) == list(range(49, 9, -1))
    assert log.count(SHOP) == 50


def test_the_next_torpor_goes_on_counting(catalog: Catalog) -> None:
    first = log_over(catalog)
    for n in range(3):
        first.record(wake(n))
    first.flush()
    second = log_over(catalog)
    assert (second.count(SHOP), second.last(SHOP)) == (3, wake(2))
    second.record(wake(3))
    assert times(second.recent(SHOP, 10)) == [3, 2, 1, 0]
    assert second.count(SHOP) == 4


def test_a_failed_flush_keeps_what_is_pending_within_bounds(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_batch: Sequence[Wake]) -> None:
        raise OSError("full")

    monkeypatch.setattr(module, "MAX_PENDING", 10)
    log = WakeLog(fail, catalog.wakes, {})
    for n in range(30):
        log.record(wake(n))
    with pytest.raises(OSError, match="full"):
        log.flush()
    assert log.pending == 10


def test_forgetting_drops_only_that_database(catalog: Catalog) -> None:
    log = log_over(catalog)
    log.record(wake(1))
    log.record(wake(2, OTHER))
    log.forget(SHOP)
    log.forget(SHOP)
    assert (log.count(SHOP), log.last(SHOP), log.recent(SHOP, 5), log.pending) == (0, None, (), 1)
    log.flush()
    assert (len(catalog.wakes(OTHER, 5)), catalog.wakes(SHOP, 5)) == (1, [])


def test_the_histogram_tells_tiers_and_reasons_apart(catalog: Catalog) -> None:
    log = log_over(catalog)
    log.record(wake(1, elapsed_ms=0.4))
    log.record(wake(2, elapsed_ms=4096))
    log.record(wake(3, elapsed_ms=9999))
    log.record(wake(4, tier=Tier.STOPPED, elapsed_ms=40))
    assert log.histogram.counts("frozen", "traffic") == (1, *[0] * 11, 1, 1)
    assert sum(log.histogram.counts("stopped", "traffic")) == 1
    text = "\n".join(log.histogram.lines())
    assert 'torpor_wake_duration_ms_bucket{tier="stopped",reason="traffic",le="64"} 1' in text
    assert 'le="4096"' in text
