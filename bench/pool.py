"""The pool of connections: read-only pgbench of 16 clients over 4 backends, simple, extended and prepared, with its latencies and new
connections, beside PgBouncer in transaction mode; and what idle pooled clients cost.

Two databases with the same content, one under Torpor, the other's cluster without it. All ways are measured in turn within a second or
two of each other, and a ratio is the median of the rounds' own ratios. What the poolers themselves took of the processors for each
transaction is told, too, since other work on the machine disturbs that less than seconds. `PGBOUNCER` names another PgBouncer than the
one in the path: before 1.21 it breaks prepared statements in transaction mode, so that row is left out then.
"""

import contextlib
import os
import re
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg

from bench import harness
from bench.harness import Result
from bench.rig import BenchServer, running, say
from bench.throughput import pgbouncer, run_program
from tests.support.server import MadeDatabase
from torpor.base.processes import start_ticks

_BENCH = "pool"
_SCALE = 10
_CLIENTS, _BACKENDS = 16, 4
_ROUNDS = 6
_WARM_UP_S = 3
_MODES = ("simple", "extended", "prepared")
_TORPOR, _RIVAL = "Torpor", "PgBouncer"
_IDLE = 10_000
_SPARE_FILES = 500
_PREPARED_SINCE = (1, 21)


def measure() -> list[Result]:
    """Six rounds of a second for each way and protocol; then 10,000 idle clients."""
    limits: dict[str, Any] = {"pool_size": _BACKENDS, "pool_max_clients": 50_000, "max_connections_per_address": 50_000}
    with running(20, freeze_after_s="never", stop_after_s="never", **limits) as torpor:
        door, direct = (torpor.create(name) for name in ("one", "two"))
        say(f"filling pgbench tables, scale {_SCALE}")
        for database in (door, direct):
            run_program("pgbench", "-i", "-q", "-I", "dtGvp", "-s", str(_SCALE), database.url)
        return _compare(torpor, door, direct) + _idle(torpor, door)


def _compare(torpor: BenchServer, door: MadeDatabase, direct: MadeDatabase) -> list[Result]:
    program = os.environ.get("PGBOUNCER") or shutil.which("pgbouncer", path="/usr/local/bin:/usr/sbin:/usr/bin")
    pooled = torpor.keyed(door).replace("?", "@pool?", 1)
    keys = torpor.keyed(direct).partition("?")[2]
    secret = torpor.verifier(direct)
    torpor.lay_down(direct.name, "stopped")
    rates: dict[tuple[str, str], list[float]] = {}
    times: dict[tuple[str, str], list[float]] = {}
    costs: dict[tuple[str, str], list[float]] = {}
    modes: tuple[str, ...] = _MODES
    rival = _RIVAL
    with contextlib.ExitStack() as rivals:
        bare = rivals.enter_context(torpor.bare(direct))
        ways = {_TORPOR: pooled}
        if program:
            version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
            rival = f"PgBouncer {version}"
            if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < _PREPARED_SINCE:
                modes = tuple(mode for mode in _MODES if mode != "prepared")
            url = rivals.enter_context(pgbouncer(program, torpor.data_dir, bare, direct, "transaction", secret))
            ways[rival] = f"{url}?{keys}"
        else:
            say("PgBouncer isn't installed (apt-get install pgbouncer): its rows are missing")
        for url in ways.values():
            _pgbench(url, "simple", _WARM_UP_S)
        say(f"{_ROUNDS} rounds: {', '.join(ways)}")
        for number in range(_ROUNDS):
            turn = list(ways.items()) if number % 2 else list(reversed(ways.items()))
            for mode in modes:
                for way, url in turn:
                    before = _processor_s(torpor, way, program)
                    rate, taken = _pgbench(url, mode)
                    cost = (_processor_s(torpor, way, program) - before) / len(taken)
                    costs.setdefault((way, mode), []).append(cost * 1e6)
                    rates.setdefault((way, mode), []).append(rate)
                    times.setdefault((way, mode), []).extend(taken)
            for way, url in turn:
                rates.setdefault((way, "connections"), []).append(_connections(url))
    return _rows(rates, times, costs, rival)


_Figures = dict[tuple[str, str], list[float]]


def _rows(rates: _Figures, times: _Figures, costs: _Figures, rival: str) -> list[Result]:
    results = []
    for (way, what), values in rates.items():
        if way != _TORPOR:
            continue
        if (rival, what) in rates:
            ratio = statistics.median(a / b for a, b in zip(values, rates[rival, what], strict=True))
            results.append(Result(_BENCH, f"{_TORPOR} / {rival}, {what}", "x", ratio, 1.0, at_least=True))
    for (way, what), values in rates.items():
        metric = "new connections with one query" if what == "connections" else f"read-only pgbench, {what}"
        results.append(Result(_BENCH, metric, "/s", statistics.median(values), rival="" if way == _TORPOR else way))
    for (way, mode), taken in times.items():
        limit = harness.percentile(times[rival, mode], 99) if way == _TORPOR and (rival, mode) in times else None
        value = harness.percentile(taken, 99)
        whose = "" if way == _TORPOR else way
        results.append(Result(_BENCH, f"query p50, {mode}", "ms", harness.percentile(taken, 50), rival=whose))
        results.append(Result(_BENCH, f"query p99, {mode}", "ms", value, limit, rival=whose))
    for (way, mode), taken in costs.items():
        whose = "" if way == _TORPOR else way
        results.append(
            Result(_BENCH, f"the pooler's own processor time for a transaction, {mode}", "µs", statistics.median(taken), rival=whose)
        )
    return results


def _processor_s(torpor: BenchServer, way: str, program: str | None) -> float:
    """What the workers of Torpor's pool, or PgBouncer, have used so far."""
    ticks = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            worker = b"torpor.gateway.pool.worker" in words and _parent(process) == torpor.pid
            if worker if way == _TORPOR else words[0] == os.fsencode(program or "") and _parent(process) == os.getpid():
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _pgbench(url: str, mode: str, seconds: int = 1) -> tuple[float, list[float]]:
    """Transactions a second, connecting not counted, and how long each took, in ms."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        told = ["-n", "-S", "-M", mode, "-c", str(_CLIENTS), "-j", "2", "-T", str(seconds), "-l", f"--log-prefix={directory}/log"]
        out = run_program("pgbench", *told, url)
        lines = [line for path in Path(directory).iterdir() for line in path.read_text().splitlines()]
    return _rate(out), [int(line.split()[2]) / 1000 for line in lines]


def _connections(url: str) -> float:
    """New connections a second, each with one query."""
    return _rate(run_program("pgbench", "-n", "-S", "-C", "-M", "simple", "-c", str(_CLIENTS), "-j", "2", "-T", "1", url))


def _rate(out: str) -> float:
    return next(float(line.split("=")[1].split()[0]) for line in out.splitlines() if line.startswith("tps"))


def _idle(torpor: BenchServer, database: MadeDatabase) -> list[Result]:
    """What idle clients cost, and whether the database sleeps below them."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(_IDLE, hard - _SPARE_FILES)
    url = f"{torpor.keyed(database)}".replace("?", "@pool?", 1)
    say(f"{count} idle clients")
    with contextlib.ExitStack() as clients:
        clients.enter_context(psycopg.connect(url))
        time.sleep(1)
        before = _memory(torpor)
        for _ in range(count):
            clients.enter_context(psycopg.connect(url))
        time.sleep(2)
        after = _memory(torpor)
        began = time.perf_counter()
        torpor.lay_down(database.name, "stopped")
        slept_s = time.perf_counter() - began
        began = time.perf_counter()
        with psycopg.connect(url) as one:
            one.execute("SELECT 1")
        woken_ms = (time.perf_counter() - began) * 1000
    return [
        Result(_BENCH, f"memory of an idle pooled client, of {count}", "kB", (after - before) / count / 1000, 10.0),
        Result(_BENCH, "time until the database below them is stopped", "s", slept_s),
        Result(_BENCH, "first statement of one, from stopped, with its login", "ms", woken_ms),
    ]


def _memory(torpor: BenchServer) -> float:
    """What Torpor and the workers of its pool have in memory, in bytes."""
    total = 0.0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            own = int(process.name) == torpor.pid or (b"torpor.gateway.pool.worker" in words and _parent(process) == torpor.pid)
            if own and start_ticks(int(process.name)) is not None:
                total += int((process / "statm").read_text().split()[1]) * resource.getpagesize()
    return total


def _parent(process: Path) -> int:
    return int((process / "stat").read_text().rpartition(")")[2].split()[1])


if __name__ == "__main__":
    harness.main(measure)
