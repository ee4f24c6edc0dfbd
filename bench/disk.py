"""Disk per new database on a reflink pool: what 50 of them take of it once they are stopped. The rival is a full copy."""

from pathlib import Path

from bench import harness
from bench.harness import Result
from bench.rig import Client, running, say

_BENCH = "disk"
_DATABASES = 50


def measure() -> list[Result]:
    """One run; nothing here is a matter of chance."""
    with running() as torpor:
        first = torpor.create("first")  # makes the template, too
        torpor.lay_down(first.name, "stopped")
        copied = sum(file.stat().st_blocks * 512 for file in _files(torpor.data_dir / "volumes" / first.id))
        before = torpor.pool_used_bytes()
        say(f"making {_DATABASES} databases")
        for number in range(_DATABASES):
            database = torpor.create(f"db{number}")
            with Client(database.url) as client:
                assert client.ask("SELECT 1") == "1"
            torpor.lay_down(database.name, "stopped")
        each = (torpor.pool_used_bytes() - before) / _DATABASES
    return [
        Result(_BENCH, "per new database", "MB", each / 1e6, 2),
        Result(_BENCH, "per new database", "MB", copied / 1e6, rival="a full copy"),
    ]


def _files(directory: Path) -> list[Path]:
    return [file for file in directory.rglob("*") if file.is_file()]


if __name__ == "__main__":
    harness.main(measure)
