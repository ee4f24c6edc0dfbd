"""Restoring a database to a moment: 1 GB of it, and 1 GB of log after its base, as a branch; and how long its progress stands still.

TORPOR_BENCH_RESTORE_GB makes both smaller. The history is a directory on the same disk.
"""

import os
import time

from bench import harness
from bench.harness import Result
from bench.rig import BenchServer, Client, running, say
from tests.support.histories import back_up, wait_shipped

_BENCH = "restore"
_GB = float(os.environ.get("TORPOR_BENCH_RESTORE_GB", "1"))
_ROWS = int(_GB * 1_000_000)  # of a kilobyte each
_WRITE = "INSERT INTO rows SELECT id, repeat(md5((id + {seed})::text), 30) FROM generate_series(1, {rows}) AS id"
_LATER_BASES = "import torpor.control.history as h; h._BASE_EVERY_BYTES = 1 << 40; "
_ROUNDS = 3


def measure() -> list[Result]:
    """Three restores to the last moment of the log."""
    with running(pool_gib=int(_GB * 12) + 10, freeze_after_s="never", stop_after_s="never", size_disk_gb=_GB * 10 + 10) as torpor:
        torpor.stop()
        torpor.prelude = _LATER_BASES  # else the second gigabyte of log would begin with a base of its own
        del torpor.settings["history_store"]
        torpor.start()
        shop = torpor.create("shop")
        with Client(shop.url) as client:
            say(f"filling {_GB:g} GB")
            client.ask("CREATE TABLE rows (id int, note text)")
            client.ask("ALTER TABLE rows ALTER note SET STORAGE PLAIN")  # as large as it looks
            client.ask(_WRITE.format(seed=0, rows=_ROWS))
            began = time.monotonic()
            back_up(torpor, "shop")
            base_s = time.monotonic() - began
            say(f"writing {_GB:g} GB of log")
            start = int(client.ask("SELECT pg_current_wal_lsn() - '0/0'") or 0)
            seed = 0
            while int(client.ask("SELECT pg_current_wal_lsn() - '0/0'") or 0) - start < _GB * (1 << 30):
                client.ask(_WRITE.format(seed=seed, rows=20_000))
                seed += 20_000
        wait_shipped(torpor, "shop")
        at, took, still = time.time() - 0.5, [], []
        for number in range(_ROUNDS):
            say(f"restore {number + 1}")
            elapsed, longest = _restore(torpor, f"then-{number}", at)
            took.append(elapsed)
            still.append(longest)
            torpor.call("DELETE", f"/v1/databases/then-{number}?force=true")
        view = torpor.call("GET", "/v1/databases/shop/history")
    return [
        Result(_BENCH, f"to a moment, {_GB:g} GB and {_GB:g} GB of log, max", "s", max(took), 60.0),
        Result(_BENCH, "longest time without progress", "s", max(still), 5.0),
        Result(_BENCH, f"a base of {_GB:g} GB", "s", base_s),
        Result(_BENCH, "the history in the store", "MB", (view["base_bytes"] + view["log_bytes"]) / 1e6),
    ]


def _restore(torpor: BenchServer, name: str, at: float) -> tuple[float, float]:
    """Seconds until it is usable, and the longest in which its progress stood still."""
    began = changed = time.monotonic()
    job = torpor.call("POST", "/v1/databases/shop/branches/past", {"name": name, "at": at})["job"]
    seen, longest = -1, 0.0
    while job["state"] == "running":
        time.sleep(0.05)
        job = torpor.call("GET", f"/v1/jobs/{job['id']}")
        if job["done"] != seen:
            seen, longest, changed = job["done"], max(longest, time.monotonic() - changed), time.monotonic()
    if job["state"] != "done":
        raise RuntimeError(f"the restore failed: {job['error']}")
    return time.monotonic() - began, longest


if __name__ == "__main__":
    harness.main(measure)
