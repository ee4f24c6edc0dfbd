"""The data directory: one owner at a time, and what it tells others."""

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from torpor.daemon.directory import DataDirectory, instance_name
from torpor.model.errors import AlreadyRunning, BinariesMissing, DataDirectoryUnusable


@pytest.fixture
def place() -> Iterator[Path]:
    """Short, and reachable by every user."""
    directory = Path(tempfile.mkdtemp(prefix="torpor-dir-", dir="/var/tmp"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_made_with_what_lies_in_it(place: Path) -> None:
    directory = DataDirectory(place / "deep/data")
    try:
        path = directory.path
        assert {name: mode(path / name) for name in ("run", "logs", "native", "conf")} == {
            "run": 0o700,
            "logs": 0o700,
            "native": 0o755,
            "conf": 0o755,
        }
        assert mode(path) & 0o011 == 0o011
        assert mode(path / "lock") == 0o600
        assert str(path) in repr(directory)
    finally:
        directory.close()


def test_one_torpor_at_a_time(place: Path) -> None:
    first = DataDirectory(place)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(AlreadyRunning, match=str(place)):
        DataDirectory(place)
    assert len(os.listdir("/proc/self/fd")) == before
    first.close()
    DataDirectory(place).close()


def test_a_path_that_is_too_long_for_sockets(place: Path) -> None:
    longest = 107 - len("/run/dabcdefghijkl/door.sock")
    fits = place / ("x" * (longest - len(str(place)) - 1))
    DataDirectory(fits).close()
    with pytest.raises(DataDirectoryUnusable, match="too long"):
        DataDirectory(Path(f"{fits}y"))
    assert os.listdir(place) == [fits.name]


@pytest.mark.parametrize("name", ["data", "run"])
def test_a_file_is_in_the_way(place: Path, name: str) -> None:
    (place / name).touch()
    with pytest.raises(DataDirectoryUnusable, match="can't be used"):
        DataDirectory(place / "data" if name == "data" else place)


@pytest.mark.root
def test_computes_must_reach_it(place: Path) -> None:
    parent = place / "closed"
    parent.mkdir(mode=0o700)
    with pytest.raises(DataDirectoryUnusable, match=str(parent)) as caught:
        DataDirectory(parent / "data")
    assert f"chmod o+x {parent}" in caught.value.hint
    parent.chmod(0o701)
    DataDirectory(parent / "data").close()  # and the lock was given back


def test_the_instance_is_named_after_the_place(place: Path) -> None:
    link = place / "link"
    (place / "data").mkdir()
    link.symlink_to(place / "data")
    directory = DataDirectory(place / "data")
    assert directory.instance == instance_name(link) != instance_name(place)
    assert directory.instance.startswith("torpor-")
    directory.close()


@pytest.fixture
def directory(place: Path) -> Iterator[DataDirectory]:
    made = DataDirectory(place)
    yield made
    made.close()


def test_the_library_is_published_once_per_version(directory: DataDirectory, place: Path) -> None:
    built = place / "libtorpor.so"
    built.write_bytes(b"one")
    first = directory.publish_library(built)
    assert (first.read_bytes(), mode(first)) == (b"one", 0o755)
    about = first.stat()
    assert directory.publish_library(built) == first
    assert first.stat().st_ino == about.st_ino, "running computes have it open"
    built.write_bytes(b"two")
    second = directory.publish_library(built)
    assert second != first
    assert (first.read_bytes(), second.read_bytes()) == (b"one", b"two")
    assert len(os.listdir(place / "native")) == 2


def test_a_published_library_that_lost_its_bytes_is_published_again(directory: DataDirectory, place: Path) -> None:
    """As an older Torpor, which didn't sync it, could leave it at a power cut: there by name, and empty."""
    built = place / "libtorpor.so"
    built.write_bytes(b"one")
    first = directory.publish_library(built)
    first.write_bytes(b"")
    assert directory.publish_library(built) == first
    assert (first.read_bytes(), mode(first)) == (b"one", 0o755)


def test_a_library_that_was_not_built(directory: DataDirectory, place: Path) -> None:
    with pytest.raises(BinariesMissing, match=r"libtorpor\.so"):
        directory.publish_library(place / "libtorpor.so")


def test_configuration_is_rewritten(directory: DataDirectory) -> None:
    conf = directory.write_configuration(18, {"postgresql.conf": "a", "pg_hba.conf": "b"})
    (conf / "postgresql.conf").write_text("somebody's change")
    assert directory.write_configuration(18, {"postgresql.conf": "a", "pg_hba.conf": "b"}) == conf
    assert {path.name: (path.read_text(), mode(path)) for path in conf.iterdir()} == {
        "postgresql.conf": ("a", 0o644),
        "pg_hba.conf": ("b", 0o644),
    }
    assert directory.write_configuration(17, {}) != conf


def test_announce_and_retract(directory: DataDirectory, place: Path) -> None:
    assert directory.previous_door_port() == 0
    directory.announce("http://127.0.0.1:7480", "127.0.0.1", 7432, "1.2.3", "/ca.crt")
    assert json.loads((place / "api.json").read_text()) == {
        "url": "http://127.0.0.1:7480",
        "door": "127.0.0.1:7432",
        "door_port": 7432,
        "pid": os.getpid(),
        "version": "1.2.3",
        "tls_authority": "/ca.crt",
        "token_file": str(place / "token"),
    }
    assert mode(place / "api.json") == 0o644
    assert directory.previous_door_port() == 7432
    directory.retract()
    directory.retract()
    assert not (place / "api.json").exists()
    assert directory.previous_door_port() == 0


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"null",
        b"{}",
        b'{"door_port": null}',
        b'{"door_port": "x"}',
        b'{"door_port": []}',
        b"\xff\xfe",
        b'{"door_port": 1e999}',
    ],
)
def test_an_announcement_that_is_garbage(directory: DataDirectory, place: Path, text: bytes) -> None:
    (place / "api.json").write_bytes(text)
    assert directory.previous_door_port() == 0
