"""The use cases on caches: rules are checked, replaced and kept, purges mean something, and workers hear of every change."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.fleet import House, make_database, make_id
from torpor.base.clock import SystemClock
from torpor.control.caching import Caching, fingerprint_of
from torpor.model.cache import MAX_PURGED_AT_ONCE, MAX_RULES, CacheRule, PurgeBy
from torpor.model.errors import Conflict, DatabaseNotFound, InvalidRequest
from torpor.model.names import DatabaseId
from torpor.model.pool import PoolView
from torpor.storage.writes import WriteCounters

SHOP = make_id(1)
STATEMENT = "SELECT *  FROM users\nWHERE id = 1"


class Pools:
    """Remember what they were told."""

    def __init__(self) -> None:
        self.changed: list[DatabaseId] = []
        self.emptied: list[DatabaseId] = []
        self.purged: list[tuple[PurgeBy, list[str]]] = []

    def view(self, id: DatabaseId) -> PoolView | None:
        return None

    def cache_changed(self, id: DatabaseId) -> None:
        self.changed.append(id)

    def contents_changed(self, id: DatabaseId) -> None:
        self.emptied.append(id)

    async def purge(self, id: DatabaseId, by: PurgeBy, values: Sequence[str]) -> int:
        self.purged.append((by, list(values)))
        return 2


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path, SystemClock())
    made.catalog.add_database(make_database(1))
    made.fleet.add(make_database(1))
    yield made
    made.catalog.close()


@pytest.fixture
def pools() -> Pools:
    return Pools()


@pytest.fixture
def caching(house: House, pools: Pools, tmp_path: Path) -> Caching:
    return Caching(house.catalog, house.fleet, pools, WriteCounters(tmp_path / "writes"))


def test_what_holds_is_kept_and_told(caching: Caching, house: House, pools: Pools) -> None:
    caching.set_on_write(SHOP, True)
    status = caching.set_rule(SHOP, STATEMENT, "ttl=60 tags=users")
    rule = CacheRule(fingerprint_of(STATEMENT), "ttl=60 tags=users", "SELECT * FROM users WHERE id = 1")
    assert (status.on_write, status.rules) == (True, (rule,))
    assert house.catalog.databases()[0].cache == house.fleet.by_id(SHOP).database.cache
    caching.set_rule(SHOP, rule.fingerprint, "ttl=5")
    assert caching.show(SHOP).rules == (CacheRule(rule.fingerprint, "ttl=5"),)
    assert caching.remove_rule(SHOP, "select * from USERS where id = 99").rules == ()
    assert pools.changed == [SHOP] * 4
    assert house.catalog.databases()[0].cache == replace(house.fleet.by_id(SHOP).database.cache, on_write=True)


def test_what_says_nothing_is_refused(caching: Caching) -> None:
    for words in ("", "ttl", "ttl=-1", "swr=5", "ttl=1 tags=a b", "ttl=1; DROP"):
        with pytest.raises(InvalidRequest, match="these words"):
            caching.set_rule(SHOP, STATEMENT, words)
    with pytest.raises(InvalidRequest, match="is empty"):
        caching.set_rule(SHOP, " \n", "ttl=1")
    with pytest.raises(InvalidRequest, match="no rule"):
        caching.remove_rule(SHOP, STATEMENT)
    with pytest.raises(DatabaseNotFound):
        caching.show(make_id(7))


def test_rules_are_bounded(caching: Caching) -> None:
    for n in range(MAX_RULES):
        caching.set_rule(SHOP, f"{n:016x}", "ttl=1")
    with pytest.raises(Conflict, match="can have 50 rules"):
        caching.set_rule(SHOP, STATEMENT, "ttl=1")
    caching.set_rule(SHOP, "0" * 16, "ttl=2")  # one that is there can be changed


async def test_purges_mean_something(caching: Caching, pools: Pools) -> None:
    assert await caching.purge(SHOP, PurgeBy.ALL, ()) == 2
    assert await caching.purge(SHOP, PurgeBy.TABLE, ["users", "app.note"]) == 2
    assert await caching.purge(SHOP, PurgeBy.STATEMENT, [STATEMENT, "f" * 16]) == 2
    assert pools.purged == [
        (PurgeBy.ALL, []), (PurgeBy.TABLE, ["users", "app.note"]), (PurgeBy.STATEMENT, [fingerprint_of(STATEMENT), "f" * 16]),
    ]  # fmt: skip
    for by, values in ((PurgeBy.ALL, ["x"]), (PurgeBy.TAG, []), (PurgeBy.TAG, [""]), (PurgeBy.TABLE, ["x" * 201])):
        with pytest.raises(InvalidRequest):
            await caching.purge(SHOP, by, values)
    with pytest.raises(InvalidRequest, match="at most 100"):
        await caching.purge(SHOP, PurgeBy.TAG, ["x"] * (MAX_PURGED_AT_ONCE + 1))


def test_another_volume_is_another_content(caching: Caching, pools: Pools, tmp_path: Path) -> None:
    counters = WriteCounters(tmp_path / "writes")
    path = counters.prepare(SHOP)
    assert path is not None
    before = path.read_bytes()
    caching.contents_changed(SHOP)
    assert pools.emptied == [SHOP] and path.read_bytes() != before
    counters.prepare(make_id(2))
    caching.sweep()
    assert [each.name for each in (tmp_path / "writes").iterdir()] == [SHOP]
