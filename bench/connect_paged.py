"""A new connection to a paged database until its first row (login with SCRAM included), against an awake one and bare PostgreSQL.

zram swap is there, so the memory really goes. All are measured in turn with the same client (libpq); the bare PostgreSQL is a cluster
with the same content and configuration on TCP, which checks the same kind of password. Every other turn the client has its SCRAM keys
already (libpq 18, and poolers), which shows what is left without its own hashing of the password.
"""

import time
from collections import defaultdict

from bench import harness
from bench.harness import Result, percentile
from bench.rig import FILL, Client, Zram, first_row, running, say

_BENCH = "connect_paged"
_TURNS = 100
_DATABASES = 6


def measure() -> list[Result]:
    """300 samples of each way to log in, over six databases."""
    took: dict[tuple[str, bool], list[float]] = defaultdict(list)
    swapped: list[float] = []
    with Zram() as zram, running(freeze_after_s="never", page_after_s="never", stop_after_s="never") as torpor:
        zram.add(2)
        databases = [torpor.create(f"db{number}") for number in range(_DATABASES)]
        other = torpor.create("other")
        for database in [*databases, other]:
            with Client(database.url) as client:
                client.ask(FILL)
        torpor.lay_down(other.name, "stopped")
        with torpor.bare(other) as bare:
            urls = {database.name: (database.url, torpor.keyed(database)) for database in databases}
            bare_urls = (bare.url, torpor.keyed(other, bare.url))
            say(f"{_TURNS * _DATABASES} connections to paged and awake databases and to bare PostgreSQL")
            for turn in range(-2, _TURNS):
                keyed = bool(turn % 2)
                for name in urls:
                    torpor.wait_alone(name)
                    torpor.lay_down(name, "paged")
                    time.sleep(0.02)
                    if turn == 0:
                        swapped.append(torpor.view(name)["database"]["swap_bytes"])
                    for way in ("paged", "second", "awake", "bare"):
                        sample = first_row(bare_urls[keyed] if way == "bare" else urls[name][keyed])
                        if turn >= 0:  # the first are warm-up
                            took[way, keyed].append(sample)

    def row(way: str, keyed: bool, percent: float, label: str, rival: str = "") -> Result:
        return Result(
            _BENCH, f"{label}{', SCRAM keys kept' if keyed else ''} p{percent}", "ms", percentile(took[way, keyed], percent), rival=rival
        )

    ratio = percentile(took["paged", False], 50) / percentile(took["awake", False], 50)
    return [
        *harness.latencies(_BENCH, "to first row", took["paged", False], p50=10, p99=40),
        Result(_BENCH, "p50, times that of an awake one", "x", ratio, 2),
        *(row("paged", True, percent, "to first row") for percent in (50, 99)),
        *(row("second", keyed, 50, "the next connection after the wake") for keyed in (False, True)),
        *(row("awake", keyed, percent, "to first row", "awake, through the door") for keyed in (False, True) for percent in (50, 99)),
        *(row("bare", keyed, percent, "to first row", "bare PostgreSQL, TCP and SCRAM") for keyed in (False, True) for percent in (50, 99)),
        Result(_BENCH, "memory swapped out per database", "MB", percentile(swapped, 50) / 1e6),
    ]


if __name__ == "__main__":
    harness.main(measure)
