"""Records of exchanges of volumes: what is known of one that was cut off, and which majors both have once it is done."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from torpor.catalog.catalog import Catalog
from torpor.catalog.rewinds import RewindRecords
from torpor.model.database import Database, DatabaseState
from torpor.model.errors import DatabaseNotFound
from torpor.model.names import DatabaseId

SHOP, KEPT = DatabaseId("dshopshopshop"), DatabaseId("dkeptkeptkept")


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    opened = Catalog.open(tmp_path / "catalog.sqlite")
    opened.add_database(Database(SHOP, "shop", DatabaseState.READY, 17, 1000, 1.0))
    opened.add_database(Database(KEPT, "shop-before-18", DatabaseState.BRANCHING, 18, 1001, 1.0))
    yield opened
    opened.close()


def test_an_exchange_that_was_cut_off(catalog: Catalog) -> None:
    records = RewindRecords(catalog.connection)
    records.begin(SHOP, KEPT, True, (18, 17))
    assert records.unfinished() == [(SHOP, KEPT, True, (18, 17))]
    assert records.kept(SHOP) is None
    records.finish(SHOP)
    assert (records.unfinished(), records.kept(SHOP)) == ([], KEPT)
    records.begin(SHOP, KEPT, False, (17, 18))
    assert records.unfinished() == [(SHOP, KEPT, False, (17, 18))]
    records.forget(SHOP)
    assert records.kept(SHOP) is None


def test_one_that_an_older_torpor_has_begun_changes_no_majors(catalog: Catalog) -> None:
    catalog.connection.execute("INSERT INTO rewinds (database_id, kept_id, is_made) VALUES (?, ?, 1)", (SHOP, KEPT))
    assert RewindRecords(catalog.connection).unfinished() == [(SHOP, KEPT, True, None)]


def test_majors(catalog: Catalog) -> None:
    with catalog.transaction():
        catalog.set_major(SHOP, 18)
        catalog.set_major(KEPT, 17)
    assert {database.id: database.major for database in catalog.databases()} == {SHOP: 18, KEPT: 17}
    with pytest.raises(DatabaseNotFound):
        catalog.set_major(DatabaseId("dgonegonegone"), 18)
