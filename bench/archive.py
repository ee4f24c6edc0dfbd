"""Archiving a database and bringing it back: one as it was made, and one of some hundred MB; the store is a directory on the same disk.

TORPOR_BENCH_ARCHIVE_MB makes the second one another size.
"""

import os
import time
from statistics import median

from bench import harness
from bench.harness import Result
from bench.rig import BenchServer, Client, running, say
from tests.support.faults import eventually

_BENCH = "archive"
_MB = int(os.environ.get("TORPOR_BENCH_ARCHIVE_MB", "500"))
_ROUNDS = 5
_FILL = "CREATE TABLE rows AS SELECT id, md5(id::text) || repeat(md5((id + 1)::text), 30) AS note FROM generate_series(1, %d) AS id"


def measure() -> list[Result]:
    """Each is archived and brought back by a connection, some times."""
    with running(pool_gib=_MB // 100 + 10, freeze_after_s="never", stop_after_s="never", size_disk_gb=_MB / 100 + 10) as torpor:
        torpor.stop()
        del torpor.settings["history_store"]
        torpor.start()
        results = []
        for name, megabytes, what in (("fresh", 0, "a fresh database"), ("shop", _MB, f"{_MB} MB")):
            shop = torpor.create(name)
            if megabytes:
                say(f"filling {megabytes} MB")
                with Client(shop.url) as client:
                    client.ask(_FILL % (megabytes * 1000))
            away, back, stored = [], [], 0
            for number in range(_ROUNDS if not megabytes else 2):
                say(f"{what}, round {number + 1}")
                began = time.monotonic()
                stored = _archive(torpor, name)
                away.append(time.monotonic() - began)
                began = time.monotonic()
                with Client(shop.url) as client:
                    client.ask("SELECT 1")
                    back.append(time.monotonic() - began)
            results += [
                Result(_BENCH, f"{what}: until it is archived, p50", "s", median(away)),
                Result(_BENCH, f"{what}: from connecting to the first row, p50", "s", median(back)),
                Result(_BENCH, f"{what}: in the store", "MB", stored / 1e6),
            ]
        return results


def _archive(torpor: BenchServer, name: str) -> int:
    """Until it is archived; bytes in the store. Asked again while a base of its history is being taken."""
    eventually(lambda: not torpor.view(name)["database"]["connections"])

    def done() -> dict[str, str]:
        job = torpor.call("POST", f"/v1/databases/{name}/archive")
        eventually(lambda: torpor.call("GET", f"/v1/jobs/{job['id']}")["state"] != "running", 600)
        return dict(torpor.call("GET", f"/v1/jobs/{job['id']}")["result"])

    return int(eventually(done, 120)["stored_bytes"])


if __name__ == "__main__":
    harness.main(measure)
