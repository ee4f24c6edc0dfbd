"""A new connection to a paged database until its first row (login with SCRAM included), against an awake one and bare PostgreSQL.

zram swap is there, so the memory really goes. All three are measured in turn with the same client (libpq); the bare PostgreSQL is
the same cluster with the same configuration on TCP, where it checks the same password.
"""

import time

from bench import harness
from bench.harness import Result, percentile
from bench.rig import FILL, Client, Zram, first_row, running, say

_BENCH = "connect_paged"
_SAMPLES = 300
_DATABASES = 6


def measure() -> list[Result]:
    """300 samples of each, over six databases."""
    paged: list[float] = []
    awake: list[float] = []
    second: list[float] = []
    direct: list[float] = []
    swapped = []
    with Zram() as zram, running(freeze_after_s="never", page_after_s="never", stop_after_s="never") as torpor:
        zram.add(2)
        databases = [torpor.create(f"db{number}") for number in range(_DATABASES)]
        other = torpor.create("other")
        for database in [*databases, other]:
            with Client(database.url) as client:
                client.ask(FILL)
        torpor.lay_down(other.name, "stopped")
        with torpor.bare(other) as bare:
            say(f"{_SAMPLES} connections to paged and awake databases and to bare PostgreSQL")
            for number in range(_SAMPLES + _DATABASES):
                database = databases[number % _DATABASES]
                torpor.wait_alone(database.name)
                torpor.lay_down(database.name, "paged")
                time.sleep(0.02)
                if number % 50 == 0:
                    swapped.append(torpor.view(database.name)["database"]["swap_bytes"])
                samples = [first_row(url) for url in (database.url, database.url, database.url, bare.url)]
                if number >= _DATABASES:  # warm-up
                    for kept, sample in zip((paged, second, awake, direct), samples, strict=True):
                        kept.append(sample)
    ratio = percentile(paged, 50) / percentile(awake, 50)
    return [
        *harness.latencies(_BENCH, "to first row", paged, p50=10, p99=40),
        Result(_BENCH, "p50, times that of an awake one", "x", ratio, 2),
        *(Result(_BENCH, f"to first row p{p}", "ms", percentile(awake, p), rival="awake, through the door") for p in (50, 99)),
        *(Result(_BENCH, f"to first row p{p}", "ms", percentile(direct, p), rival="bare PostgreSQL, TCP and SCRAM") for p in (50, 99)),
        *(Result(_BENCH, f"second connection after the wake p{p}", "ms", percentile(second, p)) for p in (50, 99)),
        Result(_BENCH, "memory swapped out per database", "MB", percentile(swapped, 50) / 1e6),
    ]


if __name__ == "__main__":
    harness.main(measure)
