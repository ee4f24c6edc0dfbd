"""Torpor is upgraded in place again and again, under clients that connect, ask and leave, and pgbench on open connections.

Counted: errors of any kind. Measured: connect to first row, of the connections that were begun while neither Torpor accepted, of those
that were begun from the start of the next Torpor to a moment after the end of the old one, and of all others. 40 more databases sleep, each
with an open connection, and are adopted each time.
"""

import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime

from bench import harness
from bench.harness import Result
from bench.rig import BenchServer, Client, first_row, postgres, running, say

_BENCH = "upgrade"
_UPGRADES = 10
_CLIENTS = 4
_SLEEPERS = 40
_AFTERWARDS_S = 0.5
_APART_S = 2.0
_ONE = "SELECT 1"
_LOGGED = re.compile(r"^(\S+Z) \[info +\] (handing over|handed over) ", re.MULTILINE)


def measure() -> list[Result]:
    """Ten upgrades."""
    with running(warm_pool_size=0, page_after_s="never", stop_after_s="never", freeze_after_s=2) as torpor, ExitStack() as open_ones:
        say(f"{_SLEEPERS} sleepers")
        for _ in range(_SLEEPERS):
            database = torpor.create()
            open_ones.enter_context(Client(database.url)).ask(_ONE)
            torpor.lay_down(database.name, "frozen")
        busy = torpor.create(freeze_after_s="never")
        upgrades: list[tuple[float, float]] = []
        with _pgbench(busy.url) as bench, _Clients([torpor.create(freeze_after_s="never").url for _ in range(_CLIENTS)]) as clients:
            time.sleep(_APART_S)
            for number in range(_UPGRADES):
                say(f"upgrade {number + 1} of {_UPGRADES}")
                began = time.time()
                assert torpor.take_over() == 0
                upgrades.append((began, time.time() + _AFTERWARDS_S))
                time.sleep(_APART_S)
        failed = _failures(bench)
        gaps = _gaps(torpor)
        samples = clients.samples
    waited = [ms for at, ms in samples if any(begin <= at <= end for begin, end in gaps)]
    during = [ms for at, ms in samples if any(begin <= at <= end for begin, end in upgrades)]
    otherwise = [ms for at, ms in samples if not any(begin <= at <= end for begin, end in upgrades)]
    return [
        Result(_BENCH, f"errors in {len(samples)} connections", "", len(clients.errors), 0),
        Result(_BENCH, "failures of pgbench on open connections", "", failed, 0),
        *harness.latencies(_BENCH, "neither accepts", [(end - begin) * 1000 for begin, end in gaps]),
        *harness.latencies(_BENCH, "to first row, begun while neither accepted", waited or [0.0]),
        *harness.latencies(_BENCH, "to first row, begun during an upgrade", during),
        *harness.latencies(_BENCH, "to first row, otherwise", otherwise),
    ]


class _Clients:
    """Each connects, asks and leaves in a tight loop. `samples` are when each connection was begun (epoch) and what it took (ms)."""

    def __init__(self, urls: list[str]) -> None:
        self.samples: list[tuple[float, float]] = []
        self.errors: list[str] = []
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(url,), daemon=True) for url in urls]

    def __enter__(self) -> "_Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self, url: str) -> None:
        while not self._stopped.is_set():
            at = time.time()
            try:
                self.samples.append((at, first_row(url, _ONE)))
            except (RuntimeError, AssertionError) as error:
                self.errors.append(str(error))
                say(f"error: {error}")


@contextmanager
def _pgbench(url: str) -> Iterator["subprocess.Popen[str]"]:
    program = str(postgres().bindir / "pgbench")
    subprocess.run([program, "-i", "-q", "-s", "2", "--unlogged-tables", url], check=True, capture_output=True)
    command = [program, "-n", "-S", "-c", "2", "-R", "200", "-T", "600", url]
    bench = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield bench
    finally:
        bench.send_signal(signal.SIGALRM)  # its own alarm: it ends in order


def _failures(bench: "subprocess.Popen[str]") -> int:
    said, complaints = bench.communicate(timeout=60)
    found = re.search(r"number of failed transactions: (\d+)", said)
    if found is None or bench.returncode:
        say(f"pgbench: {complaints.strip()}")
        return 1 + complaints.count("error")
    return int(found[1])


def _gaps(torpor: BenchServer) -> list[tuple[float, float]]:
    """From when the old one lets go to when the next one serves, as both logged it."""
    times = [(datetime.fromisoformat(at).timestamp(), what) for at, what in _LOGGED.findall(torpor.log)]
    begins = [at for at, what in times if what == "handing over"]
    ends = [at for at, what in times if what == "handed over"]
    return list(zip(begins, ends, strict=True))


if __name__ == "__main__":
    harness.main(measure)
