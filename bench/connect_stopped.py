"""A new connection to a stopped database until its first row, against a bare start of the same PostgreSQL on its own Unix socket.

The bare start is the best there could be: same binaries, cluster and configuration, no login, a look for readiness every millisecond.
"""

import time

from bench import harness
from bench.harness import Result, percentile
from bench.rig import FILL, Bare, Client, first_row, running, say

_BENCH = "connect_stopped"
_SAMPLES = 200
_DATABASES = 8


def measure() -> list[Result]:
    """200 samples of each, over eight databases."""
    stopped: list[float] = []
    bare: list[float] = []
    steps: dict[str, list[float]] = {}
    with running(freeze_after_s="never", page_after_s="never", stop_after_s="never") as torpor:
        databases = [torpor.create(f"db{number}") for number in range(_DATABASES)]
        for database in databases:
            with Client(database.url) as client:
                client.ask(FILL)
            torpor.lay_down(database.name, "stopped")
        bares = [torpor.bare(database, tcp=False) for database in databases]
        say(f"{_SAMPLES} connections to stopped databases, and bare starts")
        for number in range(_SAMPLES + _DATABASES):
            turn = number % _DATABASES
            sample = first_row(databases[turn].url)
            wake = torpor.view(databases[turn].name)["recent_wakes"][0]
            torpor.lay_down(databases[turn].name, "stopped")
            rival = _bare_start(bares[turn])
            if number >= _DATABASES:  # warm-up
                stopped.append(sample)
                bare.append(rival)
                for step in wake["steps"]:
                    steps.setdefault(step["name"], []).append(step["elapsed_ms"])
    return [
        *harness.latencies(_BENCH, "to first row", stopped, p50=60, p99=150),
        *(Result(_BENCH, f"of that, {name} p50", "ms", percentile(values, 50)) for name, values in steps.items()),
        *(Result(_BENCH, f"to first row p{p}", "ms", percentile(bare, p), rival="bare start, own socket, no login") for p in (50, 99)),
    ]


def _bare_start(bare: Bare) -> float:
    began = time.perf_counter()
    try:
        bare.start()
        bare.wait_ready()
        return (time.perf_counter() - began) * 1000 + first_row(bare.socket_url)
    finally:
        bare.stop()


if __name__ == "__main__":
    harness.main(measure)
