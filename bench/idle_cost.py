"""What Torpor itself costs with 10,000 stopped databases and nobody connected: processor, start-up, memory. And with none, to compare."""

import time
from pathlib import Path

from bench import harness
from bench.harness import Result, percentile
from bench.rig import BenchServer, running, say
from torpor.catalog.catalog import Catalog
from torpor.model.database import Database, DatabaseState, Role
from torpor.model.names import DatabaseId
from torpor.pgwire.scram import make_verifier

_BENCH = "idle_cost"
_DATABASES = 10_000
_WATCHED_S = 30.0
_STARTS = 3


def measure() -> list[Result]:
    """30 s of idling and three starts of each."""
    with running() as torpor:
        say(f"{_WATCHED_S:g} s with no databases")
        none = _idle_percent(torpor)
        none_resident = _resident_mb(torpor)
        torpor.stop()
        say(f"writing {_DATABASES} databases into the catalog")
        _fill(torpor.data_dir)
        starts = []
        for number in range(_STARTS):
            began = time.perf_counter()
            torpor.start()
            starts.append(time.perf_counter() - began)
            if number < _STARTS - 1:
                torpor.stop()
        assert torpor.call("GET", "/v1/host")["databases"] == _DATABASES
        say(f"{_WATCHED_S:g} s with {_DATABASES} databases")
        idle = _idle_percent(torpor)
        resident = _resident_mb(torpor)
    return [
        Result(_BENCH, "processor, 10,000 stopped databases", "% of a core", idle, 1),
        Result(_BENCH, "start-up with 10,000, median", "s", percentile(starts, 50), 5),
        Result(_BENCH, "start-up with 10,000, slowest", "s", max(starts)),
        Result(_BENCH, "resident memory with 10,000", "MB", resident),
        Result(_BENCH, "processor", "% of a core", none, rival="Torpor with no databases"),
        Result(_BENCH, "resident memory", "MB", none_resident, rival="Torpor with no databases"),
    ]


def _fill(data_dir: Path) -> None:
    verifier = make_verifier("a password")
    catalog = Catalog.open(data_dir / "catalog.sqlite")
    try:
        for number in range(_DATABASES):
            id = DatabaseId("d" + "".join("abcdefghijklmnopqrstuvwxyz234567"[(number >> 5 * place) & 31] for place in range(12)))
            database = Database(id, f"db{number}", DatabaseState.READY, 18, 700_000 + number, 1.7e9 + number)
            catalog.add_database(database)
            catalog.save_roles(id, [Role(f"db{number}", verifier, True)])
            (data_dir / "volumes" / id / "data").mkdir(parents=True)
    finally:
        catalog.close()


def _idle_percent(torpor: BenchServer) -> float:
    time.sleep(3)  # what the start left to do
    before, began = _cpu_ns(torpor.pid), time.perf_counter()
    time.sleep(_WATCHED_S)
    return (_cpu_ns(torpor.pid) - before) / (time.perf_counter() - began) / 1e9 * 100


def _cpu_ns(pid: int) -> int:
    """Time on a processor, of all threads, exact to the nanosecond (/proc/pid/stat counts ticks of 10 ms)."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir())


def _resident_mb(torpor: BenchServer) -> float:
    text = Path(f"/proc/{torpor.pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmRSS")) / 1e6


if __name__ == "__main__":
    harness.main(measure)
