"""The contract of the catalog, on real files."""

import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.pace import in_time
from torpor.catalog.catalog import KEPT_WAKES, Catalog
from torpor.model.database import ComputeRecord, Database, DatabaseState, Role, Step, Wake
from torpor.model.errors import Conflict, DatabaseExists, DatabaseNotFound
from torpor.model.names import DatabaseId
from torpor.model.pool import NO_POOL_OVERRIDES, PoolMode, PoolOverrides
from torpor.model.sleep import SleepOverrides, Tier, WakeReason
from torpor.model.traffic import Traffic

SHOP, OTHER, GONE = DatabaseId("dshopshopshop"), DatabaseId("dotherotherot"), DatabaseId("dgonegonegone")
OVERRIDES = SleepOverrides(2.5, "never", 60)


def database(id: DatabaseId = SHOP, name: str | None = "shop", state: DatabaseState = DatabaseState.READY, uid: int = 1000) -> Database:
    return Database(id, name, state, 18, uid, 1_700_000_000.25)


def wake(id: DatabaseId = SHOP, at: float = 1.5) -> Wake:
    return Wake(id, at, WakeReason.CONNECTION, Tier.PAGED, "from 127.0.0.1\n'", 4.25, (Step("thaw", 1.0), Step("hand over", 3.25)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalog.sqlite"


@pytest.fixture
def catalog(path: Path) -> Iterator[Catalog]:
    opened = Catalog.open(path)
    yield opened
    opened.close()


def reopened(catalog: Catalog, path: Path) -> Catalog:
    catalog.close()
    catalog.__init__(Catalog.open(path)._connection)  # type: ignore[misc]  # so that the fixture closes it
    return catalog


def test_a_new_catalog_is_empty_and_private(catalog: Catalog, path: Path) -> None:
    assert (catalog.databases(), catalog.computes(), catalog.last_wakes(), catalog.traffic()) == ([], [], {}, {})
    catalog.add_database(database())
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}


def test_a_catalog_that_others_could_read_is_made_private(catalog: Catalog, path: Path) -> None:
    path.chmod(0o644)
    reopened(catalog, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_databases_come_back_as_they_were(catalog: Catalog, path: Path) -> None:
    wanted = [
        database(),
        Database(OTHER, None, DatabaseState.WARM, 17, 1001, 1_700_000_001, OVERRIDES),
    ]
    for each in wanted:
        catalog.add_database(each)
    assert reopened(catalog, path).databases() == wanted


def test_branches_come_back_as_they_were(catalog: Catalog, path: Path) -> None:
    """Also when their parent is gone."""
    catalog.add_database(database())
    branch = replace(database(OTHER, "try", DatabaseState.BRANCHING), parent=SHOP, branched_at=2.5, expires_at=9.5)
    catalog.add_database(branch)
    catalog.remove_database(SHOP)
    assert reopened(catalog, path).databases() == [branch]
    catalog.set_branched(OTHER, 3.5)
    catalog.set_expiry(OTHER, None)
    assert catalog.databases() == [replace(branch, branched_at=3.5, expires_at=None)]
    with pytest.raises(DatabaseNotFound):
        catalog.set_expiry(SHOP, 1.0)


def test_a_name_is_given_once(catalog: Catalog) -> None:
    catalog.add_database(database())
    with pytest.raises(DatabaseExists, match="'shop' exists already"):
        catalog.add_database(database(OTHER))
    with pytest.raises(DatabaseExists):
        catalog.add_database(database(SHOP, "another"))
    assert catalog.databases() == [database()]


def test_nameless_databases_do_not_collide(catalog: Catalog) -> None:
    catalog.add_database(database(SHOP, None, DatabaseState.WARM))
    catalog.add_database(database(OTHER, None, DatabaseState.WARM))
    assert len(catalog.databases()) == 2


def test_states_are_durable(catalog: Catalog, path: Path) -> None:
    catalog.add_database(database(state=DatabaseState.MAKING))
    for state in DatabaseState:
        catalog.set_state(SHOP, state)
        assert reopened(catalog, path).databases()[0].state is state
    with pytest.raises(DatabaseNotFound):
        catalog.set_state(GONE, DatabaseState.READY)


def test_claiming_names_a_warm_database_in_one_step(catalog: Catalog) -> None:
    catalog.add_database(database())
    catalog.add_database(database(OTHER, None, DatabaseState.WARM))
    with pytest.raises(DatabaseExists):
        catalog.claim(OTHER, "shop", OVERRIDES)
    assert catalog.databases()[0] == database(OTHER, None, DatabaseState.WARM)
    catalog.claim(OTHER, "fresh", OVERRIDES)
    claimed = catalog.databases()[0]
    assert (claimed.name, claimed.state, claimed.overrides) == ("fresh", DatabaseState.CLAIMING, OVERRIDES)
    with pytest.raises(Conflict):
        catalog.claim(OTHER, "again", OVERRIDES)
    with pytest.raises(Conflict):
        catalog.claim(GONE, "again", OVERRIDES)


def test_overrides_are_replaced_whole(catalog: Catalog) -> None:
    catalog.add_database(database())
    catalog.set_overrides(SHOP, OVERRIDES)
    assert catalog.databases()[0].overrides == OVERRIDES
    catalog.set_overrides(SHOP, SleepOverrides())
    assert catalog.databases()[0].overrides == SleepOverrides()
    with pytest.raises(DatabaseNotFound):
        catalog.set_overrides(GONE, OVERRIDES)


def test_a_pool_is_replaced_whole(catalog: Catalog) -> None:
    pool = PoolOverrides(PoolMode.AUTO, 5, 0, None)
    catalog.add_database(replace(database(), pool=pool))
    catalog.add_database(database(OTHER, None, DatabaseState.WARM))
    assert catalog.databases()[1].pool == pool
    catalog.set_pool(SHOP, NO_POOL_OVERRIDES)
    assert catalog.databases()[1] == database()
    catalog.claim(OTHER, "fresh", OVERRIDES, pool=pool)
    assert catalog.databases()[0].pool == pool
    with pytest.raises(DatabaseNotFound):
        catalog.set_pool(GONE, pool)


def test_removing_takes_everything_along(catalog: Catalog) -> None:
    catalog.add_database(database())
    catalog.save_roles(SHOP, [Role("shop", "SCRAM-SHA-256$x", True)])
    catalog.record_compute(ComputeRecord(SHOP, 1, 2, "boot"))
    catalog.save_wakes([wake()])
    catalog.add_traffic({SHOP: Traffic(1, 2)})
    catalog.remove_database(SHOP)
    catalog.remove_database(SHOP)
    assert (catalog.databases(), catalog.computes(), catalog.last_wakes(), catalog.traffic()) == ([], [], {}, {})
    catalog.add_database(database())
    assert catalog.roles(SHOP) is None
    assert catalog.wakes(SHOP, 10) == []


def test_free_uid_fills_the_first_gap(catalog: Catalog) -> None:
    assert catalog.free_uid(1000) == 1000
    for n, uid in enumerate([999, 1000, 1001, 1001, 1003, 1004]):
        catalog.add_database(database(DatabaseId(f"d{n}"), f"x{n}", uid=uid))
    assert [catalog.free_uid(base) for base in (999, 1000, 1001, 1002, 1003, 1004, 2000)] == [1002, 1002, 1002, 1002, 1005, 1005, 2000]


def test_roles_are_unknown_until_saved_and_after_forgetting(catalog: Catalog, path: Path) -> None:
    roles = [Role("shop", "SCRAM-SHA-256$x", True, 1.5), Role("Odd \"näme'", None, False, rules=True)]
    assert catalog.roles(SHOP) is None
    catalog.add_database(database())
    assert catalog.roles(SHOP) is None
    catalog.save_roles(SHOP, roles)
    assert reopened(catalog, path).roles(SHOP) == {role.name: role for role in roles}
    assert catalog.knows_roles(SHOP) and not catalog.knows_roles(GONE)
    assert [catalog.role(SHOP, role.name) for role in roles] == roles
    catalog.save_roles(SHOP, roles[:1])
    assert catalog.roles(SHOP) == {"shop": roles[0]}
    assert (catalog.role(SHOP, roles[1].name), catalog.role(OTHER, "shop")) == (None, None)
    catalog.save_roles(SHOP, [])
    assert catalog.roles(SHOP) == {}
    catalog.forget_roles(SHOP)
    catalog.forget_roles(SHOP)
    assert reopened(catalog, path).roles(SHOP) is None
    catalog.forget_roles(GONE)
    with pytest.raises(DatabaseNotFound):
        catalog.save_roles(GONE, roles)
    assert catalog.roles(GONE) is None


def test_equal_roles_are_not_written_again_and_tickets_never(catalog: Catalog) -> None:
    catalog.add_database(database())
    plain = [Role("a", "v", True), Role("b", "v", True)]
    catalog.save_roles(SHOP, plain)
    before = catalog._connection.total_changes()
    catalog.save_roles(SHOP, [Role("b", "v", True, tickets=("t",)), Role("a", "v", True)])
    assert catalog._connection.total_changes() == before
    assert catalog.roles(SHOP) == {role.name: role for role in plain}


def test_computes(catalog: Catalog, path: Path) -> None:
    catalog.add_database(database())
    catalog.record_compute(ComputeRecord(SHOP, 1, 2, "boot"))
    catalog.record_compute(ComputeRecord(SHOP, 3, 4, "boot"))
    assert reopened(catalog, path).computes() == [ComputeRecord(SHOP, 3, 4, "boot")]
    catalog.forget_compute(SHOP)
    catalog.forget_compute(SHOP)
    assert catalog.computes() == []
    with pytest.raises(DatabaseNotFound):
        catalog.record_compute(ComputeRecord(GONE, 1, 2, "boot"))


def test_wakes_are_counted_and_the_newest_kept(catalog: Catalog, path: Path) -> None:
    catalog.add_database(database())
    catalog.add_database(database(OTHER, "other"))
    catalog.save_wakes([])
    catalog.save_wakes([wake(at=n) for n in range(KEPT_WAKES + 30)] + [wake(GONE)])
    catalog.save_wakes([wake(at=1000)])
    reopened(catalog, path)
    assert [w.at for w in catalog.wakes(SHOP, 3)] == [1000, KEPT_WAKES + 29, KEPT_WAKES + 28]
    assert len(catalog.wakes(SHOP, 10_000)) == KEPT_WAKES
    assert catalog.wakes(SHOP, 1) == [wake(at=1000)]
    assert catalog.wakes(OTHER, 5) == catalog.wakes(GONE, 5) == []
    assert catalog.last_wakes() == {SHOP: (KEPT_WAKES + 31, wake(at=1000))}


def test_traffic_adds_up(catalog: Catalog, path: Path) -> None:
    catalog.add_database(database())
    catalog.add_traffic({})
    catalog.add_traffic({SHOP: Traffic(1, 2), GONE: Traffic(9, 9)})
    catalog.add_traffic({SHOP: Traffic(10, 2**40)})
    assert reopened(catalog, path).traffic() == {SHOP: Traffic(11, 2 + 2**40)}


def test_repr_tells_the_file(catalog: Catalog, path: Path) -> None:
    assert repr(catalog) == f"<Catalog {path}>"


def test_ten_thousand_databases_load_fast(catalog: Catalog, path: Path) -> None:
    with catalog.transaction():
        for n in range(10_000):
            catalog.add_database(database(DatabaseId(f"d{n:012}"), f"tenant-{n}", uid=1000 + n))
            catalog.save_roles(DatabaseId(f"d{n:012}"), [Role("owner", "SCRAM-SHA-256$" + "x" * 100, True)])
        catalog.save_wakes([wake(DatabaseId(f"d{n:012}")) for n in range(10_000)])
    catalog.close()

    start = time.perf_counter()
    fresh = Catalog.open(path)
    opened = time.perf_counter()
    assert len(fresh.databases()) == 10_000
    loaded = time.perf_counter()
    assert len(fresh.last_wakes()) == 10_000
    woken = time.perf_counter()
    assert fresh.free_uid(1000) == 11_000
    found = time.perf_counter()
    fresh.close()
    times = [f"{took * 1000:.0f} ms" for took in (opened - start, loaded - opened, woken - loaded, found - woken)]
    print("open, databases, last_wakes, free_uid:", times)
    assert in_time(loaded - opened, 0.5), times
    assert in_time(found - woken, 0.1), times
