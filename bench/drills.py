"""What a restore drill takes of the machine, and what a neighbour feels of it: processor time of its processes (the kernel's counters of
its cgroup) and of Torpor itself, its memory, and the neighbour's small transactions with a drill beside them and without.

The neighbour writes a row and commits, over and over, with one client. Turns with and without a drill follow each other.
TORPOR_BENCH_DRILL_MB is how large the database is that is verified.
"""

import os
import threading
import time
from pathlib import Path

from bench import harness
from bench.harness import Result, percentile
from bench.rig import BenchServer, Client, running, say
from tests.support.histories import back_up, wait_shipped
from torpor.base.cgroups import layout_from_mounts
from torpor.base.limits import Limiter
from torpor.control.drills import CPU, MEMORY_BYTES
from torpor.daemon.directory import instance_name

_BENCH = "drills"
_MB = int(os.environ.get("TORPOR_BENCH_DRILL_MB", "100"))
_ROWS = _MB * 1000  # of a kilobyte each
_FILL = "CREATE TABLE rows (id int PRIMARY KEY, note text); ALTER TABLE rows ALTER note SET STORAGE PLAIN"
_WRITE = "INSERT INTO rows SELECT id, repeat(md5(id::text), 30) FROM generate_series({first}, {last}) AS id"
_ROUNDS = 2
_ALONE_S = 20.0
_LOOK_S = 0.05
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class _Neighbour(threading.Thread):
    """Its transactions, in ms, one after the other with pauses between."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._client = Client(url)
        self._client.ask("CREATE TABLE IF NOT EXISTS counted (number int); INSERT INTO counted VALUES (0)")
        self._stopped = threading.Event()
        self.took: list[float] = []

    def run(self) -> None:
        while not self._stopped.wait(0.002):
            began = time.perf_counter()
            self._client.ask("UPDATE counted SET number = number + 1")
            self.took.append((time.perf_counter() - began) * 1000)

    def turn(self) -> list[float]:
        """What it took since the last turn."""
        took, self.took = self.took, []
        return took

    def close(self) -> None:
        """End it."""
        self._stopped.set()
        self.join()
        self._client.close()


class _Watch(threading.Thread):
    """What the kernel counts of a drill's processes, which are made anew for each part of it."""

    def __init__(self, torpor: BenchServer, known: set[str]) -> None:
        super().__init__(daemon=True)
        self._instance, self._known = instance_name(torpor.data_dir), known
        self._layout = layout_from_mounts(Path("/proc/self/mountinfo").read_text())
        self._stopped = threading.Event()
        self.cpu_s, self._seen_s, self.memory_bytes = 0.0, 0.0, 0

    def run(self) -> None:
        while not self._stopped.wait(_LOOK_S):
            for name in self._names():
                kernel = Limiter(self._layout.below(name))
                used_s, memory = kernel.cpu_load().used_ns / 1e9, kernel.memory_load().used_bytes
                self.cpu_s += used_s - self._seen_s if used_s >= self._seen_s else used_s
                self._seen_s, self.memory_bytes = used_s, max(self.memory_bytes, memory)

    def _names(self) -> set[str]:
        """Cgroups of computes that no database has. Only looked at: who made one would hold up its removal."""
        prefix = f"{self._instance}."
        found = {name for root in self._layout.roots for name in os.listdir(root) if name.startswith(prefix)}
        return {name for name in found if name.removeprefix(prefix) not in self._known}

    def close(self) -> None:
        """End it."""
        self._stopped.set()
        self.join()


def measure() -> list[Result]:
    """Drills on a database beside one that writes."""
    with running(pool_gib=_MB // 100 + 6, freeze_after_s="never", stop_after_s="never") as torpor:
        torpor.stop()
        del torpor.settings["history_store"]
        torpor.start()
        shop, quiet = torpor.create("shop"), torpor.create("quiet")
        say(f"filling {_MB} MB")
        with Client(shop.url) as client:
            client.ask(_FILL)
            client.ask(_WRITE.format(first=1, last=_ROWS))
            back_up(torpor, "shop")
            client.ask(_WRITE.format(first=_ROWS + 1, last=_ROWS + _ROWS // 10))
        wait_shipped(torpor, "shop")
        neighbour = _Neighbour(quiet.url)
        neighbour.start()
        try:
            return _rounds(torpor, neighbour, {shop.id, quiet.id})
        finally:
            neighbour.close()


def _rounds(torpor: BenchServer, neighbour: _Neighbour, known: set[str]) -> list[Result]:
    alone, beside, shares, own, memory, took = (list[float]() for _ in range(6))
    for number in range(_ROUNDS):
        say(f"round {number + 1}")
        time.sleep(2)
        neighbour.turn()
        idle_s, began = _cpu_of(torpor.pid), time.monotonic()
        time.sleep(_ALONE_S)
        idle = (_cpu_of(torpor.pid) - idle_s) / (time.monotonic() - began)
        alone += neighbour.turn()
        watch = _Watch(torpor, known)
        watch.start()
        used_s, began = _cpu_of(torpor.pid), time.monotonic()
        job = torpor.call("POST", "/v1/databases/shop/drills")
        while job["state"] == "running":
            time.sleep(0.2)
            job = torpor.call("GET", f"/v1/jobs/{job['id']}")
        elapsed = time.monotonic() - began
        watch.close()
        beside += neighbour.turn()
        if job["state"] != "done":
            raise RuntimeError(f"the drill failed: {job['error']}")
        shares.append(watch.cpu_s / elapsed)
        own.append((_cpu_of(torpor.pid) - used_s) / elapsed - idle)
        memory.append(watch.memory_bytes)
        took.append(elapsed)
    return [
        Result(_BENCH, "processors used by its processes, max", "", max(shares), CPU * 1.1),
        Result(_BENCH, "processors used by Torpor for it, max", "", max(own), 0.1),
        Result(_BENCH, "memory of its processes, max", "MB", max(memory) / 1e6, MEMORY_BYTES / 1e6),
        Result(_BENCH, f"a drill on {_MB} MB", "s", max(took)),
        Result(_BENCH, "a neighbour's transaction without, p50", "ms", percentile(alone, 50)),
        Result(_BENCH, "with, p50", "ms", percentile(beside, 50)),
        Result(_BENCH, "a neighbour's transaction without, p99", "ms", percentile(alone, 99)),
        Result(_BENCH, "with, p99", "ms", percentile(beside, 99)),
        Result(_BENCH, "p99 with, of that without", "x", percentile(beside, 99) / percentile(alone, 99), 1.5),
    ]


def _cpu_of(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


if __name__ == "__main__":
    harness.main(measure)
