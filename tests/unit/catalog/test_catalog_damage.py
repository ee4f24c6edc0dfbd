"""What the catalog does when it is killed, damaged, foreign or out of reach."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from torpor.catalog import schema
from torpor.catalog.catalog import Catalog
from torpor.model.database import Database, DatabaseState
from torpor.model.errors import CatalogUnusable, PoolFull
from torpor.model.names import DatabaseId

NOBODY = 65534

WRITER = """
import sys
from pathlib import Path
from torpor.catalog.catalog import Catalog
from torpor.model.database import *
from torpor.model.sleep import *
catalog = Catalog.open(Path(sys.argv[1]))
n = 0
while True:
    id = f"{sys.argv[2]}-{n}"
    catalog.add_database(Database(id, id, DatabaseState.MAKING, 18, n, 0.0))
    catalog.save_roles(id, [Role("a", "v", True), Role("b", "v", True)])
    catalog.save_wakes([Wake(id, 1.0, WakeReason.CREATED, Tier.STOPPED, "", 1.0)] * 3)
    catalog.set_state(id, DatabaseState.READY)
    print(n, flush=True)
    n += 1
"""


def database(n: int) -> Database:
    return Database(DatabaseId(f"d{n}"), f"x{n}", DatabaseState.READY, 18, n, float(n))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalog.sqlite"


def filled(path: Path, count: int = 500) -> None:
    catalog = Catalog.open(path)
    for n in range(count):
        catalog.add_database(database(n))
    catalog.close()


def refusal(path: Path) -> str:
    """The text of the refusal: one sentence that names the file."""
    with pytest.raises(CatalogUnusable) as caught:
        Catalog.open(path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 15
    return str(caught.value)


def test_killed_while_writing_nothing_confirmed_is_lost(path: Path) -> None:
    for life, lines in enumerate((1, 7, 40)):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path), f"life{life}"], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(lines):
                writer.stdout.readline()
            writer.send_signal(signal.SIGKILL)
            confirmed = lines + len(writer.stdout.read().split())
        catalog = Catalog.open(path)
        kept = {d.id: d for d in catalog.databases() if d.id.startswith(f"life{life}")}
        assert confirmed <= len(kept) <= confirmed + 1
        for n in range(confirmed):
            id = DatabaseId(f"life{life}-{n}")
            assert kept[id].state is DatabaseState.READY
            assert set(catalog.roles(id) or ()) == {"a", "b"}
            assert catalog.last_wakes()[id][0] == 3
        for id in kept:  # what wasn't confirmed is whole or not there
            assert set(catalog.roles(id) or ()) in (set(), {"a", "b"})
            assert len(catalog.wakes(id, 10)) in (0, 3)
        catalog.close()


def test_a_first_start_that_was_killed_is_no_obstacle(path: Path) -> None:
    Path(f"{path}.new").write_bytes(b"half")
    filled(path, 1)
    assert not Path(f"{path}.new").exists()


@pytest.mark.parametrize("content", [b"garbage" * 1000, b"SQLite format 3\0" + b"\xff" * 5000, b"x"])
def test_garbage(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert "damaged" in refusal(path)
    assert path.read_bytes() == content


def test_an_empty_file_is_not_taken_for_a_new_catalog(path: Path) -> None:
    path.write_bytes(b"")
    assert "damaged: it is empty" in refusal(path)


def test_a_truncated_file(path: Path) -> None:
    filled(path)
    os.truncate(path, path.stat().st_size // 2)
    assert "damaged" in refusal(path)


def test_an_overwritten_page(path: Path) -> None:
    filled(path)
    with path.open("r+b") as file:
        file.seek(4096 * 3)
        file.write(b"\xff" * 4096)
    assert "damaged" in refusal(path)


def test_a_stray_log_is_not_replayed_into_a_new_catalog(path: Path) -> None:
    Path(f"{path}-wal").write_bytes(b"old")
    assert "is missing, but catalog.sqlite-wal" in refusal(path)
    assert not path.exists()


def test_a_newer_schema(path: Path) -> None:
    filled(path, 1)
    connection = apsw.Connection(str(path))
    connection.pragma("user_version", 999)
    connection.close()
    assert "newer Torpor (schema 999, this one knows" in refusal(path)


def test_a_foreign_sqlite_file(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE bookmarks (url)")
    connection.close()
    assert "not a catalog of Torpor" in refusal(path)


def test_a_missing_directory(tmp_path: Path) -> None:
    refusal(tmp_path / "missing" / "catalog.sqlite")


def test_a_directory_in_its_place(path: Path) -> None:
    path.mkdir()
    refusal(path)


def test_another_program_that_keeps_it_locked(path: Path) -> None:
    filled(path, 1)
    connection = apsw.Connection(str(path))
    connection.execute("BEGIN IMMEDIATE")
    catalog = Catalog.open(path)
    with pytest.raises(CatalogUnusable, match="another program"):
        catalog.add_database(database(99))
    connection.execute("ROLLBACK")
    catalog.add_database(database(99))
    catalog.close()
    connection.close()


def test_a_full_disk_is_a_lack_of_room(path: Path) -> None:
    filled(path, 1)
    catalog = Catalog.open(path)
    catalog._connection.pragma("max_page_count", 1)
    with pytest.raises(PoolFull):
        for n in range(1, 5000):
            catalog.add_database(database(n))
    catalog.close()
    reopened = Catalog.open(path)
    assert reopened.databases()[0] == database(0)
    reopened.close()


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A catalog in a directory that anybody may enter, while we are nobody in particular: root may write everywhere."""
    directory = Path(tempfile.mkdtemp(dir="/var/tmp"))
    directory.chmod(0o755)
    filled(directory / "catalog.sqlite", 1)
    root = os.geteuid() == 0
    if root:
        for each in (directory, *directory.iterdir()):
            os.chown(each, NOBODY, NOBODY)
        os.seteuid(NOBODY)
    try:
        yield directory / "catalog.sqlite"
    finally:
        if root:
            os.seteuid(0)
        directory.chmod(0o755)
        shutil.rmtree(directory)


def test_a_read_only_file(unprivileged: Path) -> None:
    unprivileged.chmod(0o400)
    assert "can't be written" in refusal(unprivileged)


def test_an_unreadable_file(unprivileged: Path) -> None:
    unprivileged.chmod(0)
    assert "can't be opened" in refusal(unprivileged)


def test_a_read_only_directory(unprivileged: Path) -> None:
    unprivileged.parent.chmod(0o555)
    refusal(unprivileged)


def test_a_failing_migration_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(path, 3)
    known = schema.migrations()
    monkeypatch.setattr(schema, "migrations", lambda: (*known, "ALTER TABLE databases ADD COLUMN extra; CREATE TABLE broken ("))
    with pytest.raises(apsw.SQLError):
        Catalog.open(path)
    monkeypatch.setattr(schema, "migrations", lambda: (*known, "CREATE TABLE extra (x) STRICT, WITHOUT ROWID"))
    with pytest.raises(apsw.SQLError):
        Catalog.open(path)
    monkeypatch.setattr(schema, "migrations", lambda: (*known, "ALTER TABLE databases ADD COLUMN extra TEXT"))
    catalog = Catalog.open(path)
    assert catalog.databases() == [database(n) for n in range(3)]
    assert catalog._connection.pragma("user_version") == len(known) + 1
    catalog.close()
