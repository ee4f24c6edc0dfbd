"""A branch of a small and of a large database: until its first row, what its parent notices, what it takes of the disk.

Both parents are awake and the large one is written to while they are branched, in turns, so that both meet the same neighbours. What a
parent notices is the longest time between two answers that a client sees, which asks a thousandth of a second after each answer, in a
process of its own, while a branch is made; the same while none is made is shown beside it. (Clients that never pause would keep both
processors of a small machine busy, and be what is measured.) TORPOR_BENCH_LARGE_GB makes the large one smaller than 20 GB.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from bench import harness
from bench.harness import Result, percentile
from bench.rig import FILL, BenchServer, Client, first_row, running, say
from tests.support.branching import branch
from tests.support.server import MadeDatabase

_BENCH = "branch"
_LARGE_GB = float(os.environ.get("TORPOR_BENCH_LARGE_GB", "20"))
_ROUNDS = 50
_FRESH = 20
_ROWS_A_GB = 250_000  # of four kilobytes each, two to a page
_LOOP = """
import sys, time
from bench.rig import Client
with Client(sys.argv[1]) as client:
    print(flush=True)
    last = time.monotonic()
    while time.monotonic() < float(sys.argv[3]) and not sys.stdin.closed:
        client.ask(sys.argv[2])
        now = time.monotonic()
        if now - last > 0.002:
            print(last, now, flush=True)
        last = now
        time.sleep(0.001)
"""
_READ = "SELECT note FROM visits WHERE id = 42"
_WRITE = "UPDATE visits SET note = md5(note) WHERE id = 43"


def measure() -> list[Result]:
    """50 branches of each parent, after one that is not counted."""
    times: dict[str, list[float]] = {"small": [], "large": []}
    posts: dict[str, list[float]] = {"small": [], "large": []}
    gaps: dict[str, list[float]] = {"small": [], "large": []}
    quiet: dict[str, list[float]] = {"reads": [], "commits": []}
    writes: list[float] = []
    gib = int(_LARGE_GB * 3) + 20
    with running(pool_gib=gib, size_disk_gb=gib, freeze_after_s=3600, page_after_s="never", stop_after_s="never") as torpor:
        small, large = torpor.create("small"), torpor.create("large")
        for parent in (small, large):
            with Client(parent.url) as client:
                client.ask(FILL)
        say(f"filling {_LARGE_GB:g} GB")
        _fill(large, _LARGE_GB)
        with _loop(small, _READ) as reads, _loop(large, _READ) as large_reads, _loop(large, _WRITE) as commits:
            for number in range(_ROUNDS + 1):
                say(f"branch {number} of {_ROUNDS}")
                for name, parent, seen in (("small", small, reads), ("large", large, large_reads)):
                    began = time.monotonic()
                    made = branch(torpor, parent.name)
                    post = time.monotonic()
                    row = first_row(made.url, _READ)
                    if number:
                        posts[name].append((post - began) * 1000)
                        times[name].append((post - began) * 1000 + row)
                        gaps[name].append(_longest(seen, began, post))
                        if name == "large":
                            writes.append(_longest(commits, began, post))
                    torpor.call("DELETE", f"/v1/databases/{made.name}?force=true")
                    time.sleep(0.3)
                    began = time.monotonic()
                    time.sleep(0.15)
                    quiet["reads"].append(_longest(reads, began, time.monotonic()))
                    quiet["commits"].append(_longest(commits, began, time.monotonic()))
        disk = _disk(torpor, large)
    ratio = percentile(times["large"], 50) / percentile(times["small"], 50)
    return [
        *harness.latencies(_BENCH, "50 MB parent, to first row", times["small"], p50=150),
        *harness.latencies(_BENCH, f"{_LARGE_GB:g} GB parent, to first row", times["large"], p50=150),
        *(Result(_BENCH, f"of that, the POST p50, {name} parent", "ms", percentile(posts[name], 50)) for name in posts),
        Result(_BENCH, "large to small, p50", "x", ratio, 1.3),
        *harness.latencies(_BENCH, "pause of the small parent", gaps["small"], p99=20),
        *harness.latencies(_BENCH, "pause of the large parent", gaps["large"], p99=20),
        *harness.latencies(_BENCH, "pause of a writer in the large parent", writes),
        *(
            Result(_BENCH, f"longest gap between {what} p{p}", "ms", percentile(found, p), rival="no branch being made")
            for what, found in quiet.items()
            for p in (50, 99)
        ),
        Result(_BENCH, "disk of a fresh branch", "MB", disk / 1e6, 2),
    ]


def _fill(database: MadeDatabase, gigabytes: float) -> None:
    """Real rows, in two sessions at once. Nothing else touches them later: a vacuum of 20 GB would be what is measured."""
    with Client(database.url) as client:
        client.ask("CREATE TABLE bulk (id bigint, filling text) WITH (autovacuum_enabled = off)")
        client.ask("ALTER TABLE bulk ALTER filling SET STORAGE PLAIN")
    rows = int(gigabytes * _ROWS_A_GB)
    starts = range(0, rows, _ROWS_A_GB // 4)

    def fill(mine: range) -> None:
        with Client(database.url) as client:
            for first in mine:
                last = min(rows, first + _ROWS_A_GB // 4) - 1
                client.ask(f"INSERT INTO bulk SELECT id, repeat(md5(id::text), 120) FROM generate_series({first}, {last}) AS id")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(fill, (starts[::2], starts[1::2])))


class _Seen:
    """What a loop of queries noticed: when each that took longer than 2 ms began and ended."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def between(self, began: float, ended: float) -> Iterator[float]:
        """How long those took that overlap with this time."""
        for line in self.file.read_text().splitlines():
            first, _, last = line.partition(" ")
            if last and float(last) > began and float(first) < ended:
                yield float(last) - float(first)


def _longest(seen: _Seen, began: float, ended: float) -> float:
    time.sleep(0.02)  # a gap is told when it is over
    return max(seen.between(began, ended), default=0.002) * 1000


@contextmanager
def _loop(database: MadeDatabase, query: str) -> Iterator[_Seen]:
    file = Path(f"/dev/shm/torpor-bench-{os.getpid()}-{database.id}-{query[:1]}")
    try:
        with file.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", _LOOP, database.url, query, json.dumps(time.monotonic() + 7200)], stdout=output
            )
            try:
                while not file.stat().st_size:
                    time.sleep(0.01)
                yield _Seen(file)
            finally:
                process.kill()
                process.wait()
    finally:
        file.unlink(missing_ok=True)


def _disk(torpor: BenchServer, parent: MadeDatabase) -> float:
    """What branches take of the pool beyond what they share, once they are stopped."""
    torpor.lay_down(parent.name, "stopped")
    before = torpor.pool_used_bytes()
    for _ in range(_FRESH):
        torpor.lay_down(branch(torpor, parent.name).name, "stopped")
    return (torpor.pool_used_bytes() - before) / _FRESH


if __name__ == "__main__":
    harness.main(measure)
