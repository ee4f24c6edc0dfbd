"""What shipping the log costs: pgbench's TPC-B under a Torpor that keeps histories, beside one that doesn't.

Both run the same work in turns of some seconds, so that both meet the same neighbours; a ratio is the median of the rounds' own. How far
the history is behind is asked twice a second meanwhile.
"""

import statistics
import threading
import time

from bench import harness
from bench.harness import Result
from bench.rig import BenchServer, running, say
from bench.throughput import run_program
from tests.support.histories import back_up
from tests.support.server import MadeDatabase

_BENCH = "shipping"
_SCALE = 10
_CLIENTS = 4
_TURN_S = 4
_ROUNDS = 20
_LATER_BASES = "import torpor.control.history as h; h._BASE_EVERY_BYTES = 1 << 40; "  # they have figures of their own


def measure() -> list[Result]:
    """20 rounds of four seconds each."""
    behind: list[float] = []
    rates: dict[str, list[float]] = {"with": [], "without": []}
    with running(freeze_after_s="never") as plain, running(uid_base=750_000, freeze_after_s="never") as keeping:
        keeping.stop()
        keeping.prelude = _LATER_BASES
        del keeping.settings["history_store"]  # the directory that is usual
        keeping.start()
        ways = [("with", keeping, keeping.create("shop")), ("without", plain, plain.create("shop"))]
        say(f"filling pgbench tables, scale {_SCALE}")
        for _, _, database in ways:
            run_program("pgbench", "-i", "-q", "-s", str(_SCALE), database.url)
        back_up(keeping, "shop")
        for _, _, database in ways:
            _turn(database)
        say(f"{_ROUNDS} rounds")
        for number in range(_ROUNDS):
            for way, server, database in ways if number % 2 else reversed(ways):
                rates[way].append(_watched(server, database, behind))
    overhead = 100 * (1 - statistics.median(a / b for a, b in zip(rates["with"], rates["without"], strict=True)))
    return [
        Result(_BENCH, "overhead on pgbench TPC-B", "%", overhead, 5.0),
        Result(_BENCH, "TPC-B with a history", "/s", statistics.median(rates["with"])),
        Result(_BENCH, "TPC-B without one", "/s", statistics.median(rates["without"])),
        Result(_BENCH, "behind while it runs, max", "s", max(behind), 5.0),
    ]


def _turn(database: MadeDatabase) -> float:
    out = run_program("pgbench", "-n", "-M", "prepared", "-c", str(_CLIENTS), "-j", "2", "-T", str(_TURN_S), database.url)
    return next(float(line.split("=")[1].split()[0]) for line in out.splitlines() if line.startswith("tps"))


def _watched(server: BenchServer, database: MadeDatabase, behind: list[float]) -> float:
    """A turn, with a look at how far behind the history is, where there is one: to look costs the same in both ways."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.5):
            if (history := server.view(database.name)["history"]) is not None:
                behind.append(time.time() - history["shipped_at"])

    looking = threading.Thread(target=look)
    looking.start()
    try:
        return _turn(database)
    finally:
        over.set()
        looking.join()


if __name__ == "__main__":
    harness.main(measure)
