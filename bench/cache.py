"""The cache of results: hits over the wire beside the same statements on PostgreSQL over the direct path, and hits while it is stopped.

Two statements: one that looks up a row by its key, which is as little as a statement can be, and one that adds up 10,000 rows, as what is
worth a cache does. All ways are measured in turn within a second or two of each other, and a ratio is the median of the rounds' own.
"""

import statistics
import tempfile
from pathlib import Path

from bench import harness
from bench.harness import Result
from bench.rig import BenchServer, running, say
from bench.throughput import run_program
from tests.support.server import MadeDatabase

_BENCH = "cache"
_SCALE = 1
_CLIENTS = 8
_ROUNDS = 6
_STATEMENTS = {
    "one row by its key": "SELECT abalance FROM pgbench_accounts WHERE aid = 4711",
    "a sum over 10,000 rows": "SELECT bid, count(*), sum(abalance) FROM pgbench_accounts WHERE aid <= 10000 GROUP BY bid",
}
_WORDS = "/* ttl=3600 */ "
_MODES = ("simple", "extended", "prepared")
_HIT_MS = 0.3
_TIMES = 3.0


def measure() -> list[Result]:
    """Six rounds of a second for each statement, protocol, and way; then a stopped database."""
    with running(20, freeze_after_s="never", stop_after_s="never", page_after_s="never") as torpor:
        database = torpor.create("shop")
        say(f"filling pgbench tables, scale {_SCALE}")
        run_program("pgbench", "-i", "-q", "-I", "dtGvp", "-s", str(_SCALE), database.url)
        return _compare(torpor, database) + _asleep(torpor, database)


def _compare(torpor: BenchServer, database: MadeDatabase) -> list[Result]:
    direct = torpor.keyed(database)
    ways = {"cache": (direct.replace("?", "@pool?", 1), _WORDS), "PostgreSQL": (direct, "")}
    rates: dict[tuple[str, str, str], list[float]] = {}
    taken: dict[str, list[float]] = {}
    say(f"{_ROUNDS} rounds: {', '.join(_STATEMENTS)}; {', '.join(_MODES)}")
    for number in range(_ROUNDS):
        for name, statement in _STATEMENTS.items():
            for mode in _MODES:
                for way in list(ways) if number % 2 else list(reversed(ways)):
                    url, words = ways[way]
                    rates.setdefault((way, name, mode), []).append(_pgbench(url, words + statement, mode, _CLIENTS)[0])
            taken.setdefault(name, []).extend(_pgbench(ways["cache"][0], _WORDS + statement, "simple", 1)[1])
    results = [
        Result(_BENCH, f"hit p50, one client: {name}", "ms", harness.percentile(times, 50), _HIT_MS) for name, times in taken.items()
    ]
    for (way, name, mode), values in rates.items():
        if way == "cache":
            ratio = statistics.median(a / b for a, b in zip(values, rates["PostgreSQL", name, mode], strict=True))
            results.append(Result(_BENCH, f"hits / PostgreSQL, {mode}: {name}", "x", ratio, _TIMES, at_least=True))
    for (way, name, mode), values in rates.items():
        results.append(Result(_BENCH, f"{mode}: {name}", "/s", statistics.median(values), rival="" if way == "cache" else way))
    return results


def _asleep(torpor: BenchServer, database: MadeDatabase) -> list[Result]:
    """Hits on a database that is stopped, and stays so."""
    url = torpor.keyed(database).replace("?", "@pool?", 1)
    statement = _WORDS + next(iter(_STATEMENTS.values()))
    _pgbench(url, statement, "simple", 1)
    torpor.lay_down(database.name, "stopped")
    rate, taken = _pgbench(url, statement, "simple", _CLIENTS)
    tier = torpor.tier(database.name)
    if tier != "stopped":
        raise AssertionError(f"hits woke the database: it is {tier}")
    return [
        Result(_BENCH, "hits on a stopped database, which stays stopped", "/s", rate),
        Result(_BENCH, "such a hit, p50 of eight clients", "ms", harness.percentile(taken, 50)),
    ]


def _pgbench(url: str, statement: str, mode: str, clients: int, seconds: int = 1) -> tuple[float, list[float]]:
    """Statements a second, connecting not counted, and how long each took, in ms."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        script = Path(directory) / "script.sql"
        script.write_text(statement + ";\n")
        told = [
            "-n",
            "-f",
            str(script),
            "-M",
            mode,
            "-c",
            str(clients),
            "-j",
            "1",
            "-T",
            str(seconds),
            "-l",
            f"--log-prefix={directory}/log",
        ]
        out = run_program("pgbench", *told, url)
        lines = [line for path in Path(directory).glob("log*") for line in path.read_text().splitlines()]
    rate = next(float(line.split("=")[1].split()[0]) for line in out.splitlines() if line.startswith("tps"))
    return rate, [int(line.split()[2]) / 1000 for line in lines]


if __name__ == "__main__":
    harness.main(measure)
