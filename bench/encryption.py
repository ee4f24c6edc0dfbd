"""What an encrypted pool costs: pgbench's TPC-B on one, beside a pool that isn't.

Both run the same work in turns of some seconds, so that both meet the same neighbours; a ratio is the median of the rounds' own. How fast
the kernel's cipher is (with the processor's AES instructions, or without) decides most of it.
"""

import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from bench import harness
from bench.harness import Result, percentile
from bench.rig import BenchServer, running, say
from bench.throughput import run_program
from tests.support.server import MadeDatabase

_BENCH = "encryption"
_SCALE = 10
_CLIENTS = 4
_TURN_S = 4
_ROUNDS = 10
_LARGE_MB = 128
_WAYS = ("encrypted", "clear")


def measure() -> list[Result]:
    """10 rounds of four seconds each."""
    times: dict[str, list[float]] = {way: [] for way in _WAYS}
    ratios: dict[str, list[float]] = {"p50": [], "p99": [], "rate": [], "large writes": []}
    with (
        running(encrypted=True, freeze_after_s="never") as encrypted,
        running(uid_base=750_000, freeze_after_s="never") as clear,
    ):
        servers = {"encrypted": encrypted, "clear": clear}
        databases = {way: servers[way].create("shop") for way in _WAYS}
        say(f"filling pgbench tables, scale {_SCALE}")
        for database in databases.values():
            run_program("pgbench", "-i", "-q", "-s", str(_SCALE), database.url)
            _turn(database)
        say(f"{_ROUNDS} rounds")
        for number in range(_ROUNDS):
            round_times: dict[str, list[float]] = {}
            large: dict[str, float] = {}
            for way in _WAYS if number % 2 else reversed(_WAYS):
                round_times[way] = _turn(databases[way])
                large[way] = _large_write(servers[way])
                times[way] += round_times[way]
            for name, percent in (("p50", 50), ("p99", 99)):
                ratios[name].append(percentile(round_times["encrypted"], percent) / percentile(round_times["clear"], percent))
            ratios["rate"].append(len(round_times["encrypted"]) / len(round_times["clear"]))
            ratios["large writes"].append(large["clear"] / large["encrypted"])
    return [
        *(Result(_BENCH, f"TPC-B, encrypted to clear, {name}", "x", statistics.median(values)) for name, values in ratios.items()),
        *harness.latencies(_BENCH, "TPC-B, encrypted", times["encrypted"]),
        *(Result(_BENCH, f"TPC-B p{p}", "ms", percentile(times["clear"], p), rival="a pool that isn't encrypted") for p in (50, 99)),
    ]


def _turn(database: MadeDatabase) -> list[float]:
    """How long each transaction took, in ms."""
    with tempfile.TemporaryDirectory(prefix="torpor-bench-log-", dir="/dev/shm") as directory:
        run_program(
            *("pgbench", "-n", "-M", "prepared", "-c", str(_CLIENTS), "-j", "2", "-T", str(_TURN_S)),
            *("-l", f"--log-prefix={directory}/log", database.url),
        )
        return [int(line.split()[2]) / 1000 for log in Path(directory).iterdir() for line in log.read_text().splitlines()]


def _large_write(server: BenchServer) -> float:
    """How long it takes to write and sync some MB in one go, in s."""
    file = server.data_dir / "volumes/large"
    began = time.monotonic()
    try:
        subprocess.run(
            ["dd", "if=/dev/urandom", f"of={file}", "bs=1M", f"count={_LARGE_MB}", "conv=fsync"], check=True, stderr=subprocess.DEVNULL
        )
        return time.monotonic() - began
    finally:
        os.unlink(file)


if __name__ == "__main__":
    harness.main(measure)
