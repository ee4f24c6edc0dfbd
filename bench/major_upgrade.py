"""A database of 50 MB, and one of 1 GB, upgraded from PostgreSQL 17 to 18: how long all of it takes, and how long nobody gets in.

Each round upgrades, takes that back, and removes what was kept. Away is what a client sees that connects, asks and leaves all the time: the
longest time between two answers while a job goes on. TORPOR_BENCH_MAJOR_GB makes the large one smaller or larger.
"""

import os
import threading
import time
from typing import Any

import psycopg

from bench import harness
from bench.harness import Result
from bench.rig import BenchServer, Client, first_row, running, say
from tests.support.server import MadeDatabase

_BENCH = "major_upgrade"
_GB = float(os.environ.get("TORPOR_BENCH_MAJOR_GB", "1"))
_ROUNDS = 5
_FROM, _TO = 17, 18
_ROWS_A_GB = 1_000_000  # of a kilobyte each
_ROW = "SELECT note FROM rows WHERE id = 42"
_AGAIN_S = 0.01


def measure() -> list[Result]:
    """Five rounds with each."""
    results = []
    with running(pool_gib=int(_GB * 6) + 10, freeze_after_s="never", stop_after_s="never", size_disk_gb=_GB * 4 + 10) as torpor:
        for name, gigabytes in (("small", 0.05), ("large", _GB)):
            database = torpor.create(name, major=_FROM)
            say(f"filling {gigabytes:g} GB")
            _fill(database, gigabytes)
            whole, away, undone = [], [], []
            for number in range(_ROUNDS):
                say(f"round {number + 1} of {_ROUNDS}")
                took, gap, result = _timed(torpor, database, "upgrade", {"to": _TO, "force": True})
                whole.append(took)
                away.append(gap)
                undone.append(_timed(torpor, database, "upgrade/undo", {"force": True})[1])
                torpor.call("DELETE", f"/v1/databases/{result['before']}?force=true")
            what = f"{gigabytes * 1000:.0f} MB, {_FROM} to {_TO}"
            results += harness.latencies(_BENCH, f"{what}, all of it", [1000 * s for s in whole])
            results += harness.latencies(_BENCH, f"{what}, away", [1000 * s for s in away])
            results += harness.latencies(_BENCH, f"{what}, away for an undo", [1000 * s for s in undone])
    return results


def _fill(database: MadeDatabase, gigabytes: float) -> None:
    with Client(database.url) as client:
        client.ask("CREATE TABLE rows (id int PRIMARY KEY, note text)")
        client.ask("ALTER TABLE rows ALTER note SET STORAGE PLAIN")
        rows = int(gigabytes * _ROWS_A_GB)
        client.ask(f"INSERT INTO rows SELECT id, repeat(md5(id::text), 30) FROM generate_series(1, {rows}) AS id")


def _timed(torpor: BenchServer, database: MadeDatabase, verb: str, body: object) -> tuple[float, float, dict[str, str]]:
    """Seconds until the job has ended, the longest without an answer meanwhile, and the job's result."""
    began = time.monotonic()
    with _Knocking(database) as knocking:
        job: Any = torpor.call("POST", f"/v1/databases/{database.name}/{verb}", body)
        while job["state"] == "running":
            time.sleep(0.05)
            job = torpor.call("GET", f"/v1/jobs/{job['id']}")
        if job["state"] != "done":
            raise RuntimeError(f"it failed: {job['error']}")
        ended = time.monotonic()
        knocking.wait_answer(ended)
    return ended - began, knocking.longest, dict(job["result"])


class _Knocking:
    """A client that connects, asks and leaves, all the time."""

    def __init__(self, database: MadeDatabase) -> None:
        self.longest = 0.0
        self._database = database
        self._answered = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "_Knocking":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def wait_answer(self, since: float) -> None:
        """Until there was one after that moment."""
        while self._answered < since:
            time.sleep(_AGAIN_S)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                first_row(self._database.url, _ROW)
            except (psycopg.Error, RuntimeError, OSError):
                time.sleep(_AGAIN_S)
                continue
            now = time.monotonic()
            self.longest, self._answered = max(self.longest, now - self._answered), now
            time.sleep(_AGAIN_S)


if __name__ == "__main__":
    harness.main(measure)
