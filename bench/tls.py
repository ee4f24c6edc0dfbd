"""Encrypted sessions: read-only pgbench, its latencies and its connection rate through Torpor's relay, PgBouncer and PostgreSQL itself,
all with TLS; and how fast a sleeper wakes while others' encrypted sessions take all that they can get.

Two databases with the same content, one under Torpor, the other's cluster without it. All ways are measured in turn within a second or
two of each other, and a ratio is the median of the rounds' own ratios. Everybody has the same certificate (ECDSA P-256).
"""

import contextlib
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench import harness
from bench.harness import Result
from bench.rig import BenchServer, Client, elapsed_ms, plain, postgres, running, say
from bench.throughput import pgbench, pgbouncer, run_program
from tests.support.server import MadeDatabase

_BENCH = "tls"
_SCALE = 10
_CLIENTS = 4
_ROUNDS = 10
_MODES = ("prepared", "simple")
_WAKES = 200
_TORPOR = "Torpor"
_RIVALS = ("PgBouncer, session mode", "direct")
_IN_CLEAR = "Torpor, in the clear"


def measure() -> list[Result]:
    """Ten rounds of a second for each way, protocol and question; then 200 wakes for each kind of neighbour."""
    with running(tls="allow", freeze_after_s="never", page_after_s="never", stop_after_s="never") as torpor:
        door, direct = (torpor.create(name) for name in ("one", "two"))
        say(f"filling pgbench tables, scale {_SCALE}")
        for database in (door, direct):
            run_program("pgbench", "-i", "-q", "-I", "dtGvp", "-s", str(_SCALE), database.url)
        results = _compare(torpor, door, direct)
        return results + _wakes(torpor, door)


def _compare(torpor: BenchServer, door: MadeDatabase, direct: MadeDatabase) -> list[Result]:
    program = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        say("PgBouncer isn't installed (apt-get install pgbouncer): its rows are missing")
    certificate = (torpor.data_dir / "tls" / "server.crt", torpor.data_dir / "tls" / "server.key")
    keyed_door, keyed_direct = torpor.keyed(door), torpor.keyed(direct)
    secret = torpor.verifier(direct)
    torpor.lay_down(direct.name, "stopped")
    rates: dict[tuple[str, str], list[float]] = {}
    times: dict[tuple[str, str], list[float]] = {}
    with contextlib.ExitStack() as rivals:
        bare = rivals.enter_context(torpor.bare(direct, tls=certificate))
        query = keyed_direct.partition("?")[2]
        ways = {
            _TORPOR: f"{keyed_door}&sslmode=require",
            "direct": f"{bare.url}?{query}&sslmode=require",
            _IN_CLEAR: keyed_door + "&sslmode=disable",
        }
        if program:
            url = rivals.enter_context(pgbouncer(program, torpor.data_dir, bare, direct, "session", secret, certificate))
            ways["PgBouncer, session mode"] = f"{url}&{query}"
        for url in ways.values():
            pgbench(url, "simple")  # warm-up
        say(f"{_ROUNDS} rounds: {', '.join(ways)}")
        for number in range(_ROUNDS):
            turn = list(ways.items())
            for mode in _MODES:
                for way, url in turn if number % 2 else reversed(turn):
                    rates.setdefault((way, mode), []).append(pgbench(url, mode))
            for way, url in turn if number % 2 else reversed(turn):
                if way != _IN_CLEAR:
                    times.setdefault((way, "simple"), []).extend(_latencies(url))
                    rates.setdefault((way, "connections"), []).append(_connections(url))
    return _rows(rates, times)


def _rows(rates: dict[tuple[str, str], list[float]], times: dict[tuple[str, str], list[float]]) -> list[Result]:
    results = []
    for what in (*_MODES, "connections"):
        for rival in _RIVALS:
            if (rival, what) in rates:
                pairs = zip(rates[_TORPOR, what], rates[rival, what], strict=True)
                ratio = statistics.median(a / b for a, b in pairs)
                target = 1.0 if rival.startswith("PgBouncer") and what in _MODES else None
                results.append(Result(_BENCH, f"encrypted, Torpor / {rival}, {what}", "x", ratio, target, at_least=True))
    for (way, what), values in rates.items():
        metric = "new encrypted connections with one query" if what == "connections" else f"encrypted read-only pgbench, {what}"
        if way == _IN_CLEAR:
            metric = f"read-only pgbench, {what}"
        results.append(Result(_BENCH, metric, "/s", statistics.median(values), rival="" if way == _TORPOR else way))
    for (way, _), values in times.items():
        for percent in (50, 99):
            metric = f"encrypted query p{percent}, {_CLIENTS} clients at full speed"
            results.append(Result(_BENCH, metric, "ms", harness.percentile(values, percent), rival="" if way == _TORPOR else way))
    return results


def _latencies(url: str) -> list[float]:
    """Of each transaction of a second of pgbench, in ms."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        run_program(
            "pgbench", "-n", "-S", "-M", "simple", "-c", str(_CLIENTS), "-j", "2", "-T", "1", "-l", f"--log-prefix={directory}/log", url
        )
        lines = [line for path in Path(directory).iterdir() for line in path.read_text().splitlines()]
    return [int(line.split()[2]) / 1000 for line in lines]


def _connections(url: str) -> float:
    """New connections a second, each with one query."""
    out = run_program("pgbench", "-n", "-S", "-C", "-M", "simple", "-c", "2", "-j", "2", "-T", "1", url)
    return next(float(line.split("=")[1].split()[0]) for line in out.splitlines() if line.startswith("tps"))


def _wakes(torpor: BenchServer, busy: MadeDatabase) -> list[Result]:
    """A query on the open encrypted connection of a frozen database: alone, beside encrypted bulk, beside the same in the clear."""
    quiet = torpor.create("quiet")
    results = []
    with Client(f"{plain(quiet.url)}?sslmode=require") as client:
        for neighbour, options in (("alone", None), ("beside encrypted bulk", "require"), ("beside bulk in the clear", "disable")):
            say(f"{_WAKES} wakes {neighbour}")
            with _bulk(busy, options) if options else contextlib.nullcontext():
                taken = []
                chance = random.Random(1)
                for number in range(_WAKES + 10):
                    torpor.lay_down(quiet.name, "frozen")
                    time.sleep(chance.uniform(0.005, 0.02))
                    took = elapsed_ms(lambda: client.ask("SELECT 1"))
                    if number >= 10:
                        taken.append(took)
            for percent in (50, 99):
                results.append(
                    Result(_BENCH, f"encrypted query on a frozen database {neighbour} p{percent}", "ms", harness.percentile(taken, percent))
                )
    return results


@contextlib.contextmanager
def _bulk(database: MadeDatabase, sslmode: str) -> Iterator[None]:
    """A session that pours out rows as fast as they go."""
    copy = "COPY (SELECT a.* FROM pgbench_accounts AS a, generate_series(1, 1000000)) TO STDOUT"
    url = f"{plain(database.url)}?sslmode={sslmode}"
    process = subprocess.Popen([str(postgres().bindir / "psql"), "-qX", url, "-c", copy], stdout=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        yield
        assert process.poll() is None, "the neighbour gave up"
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    harness.main(measure)
