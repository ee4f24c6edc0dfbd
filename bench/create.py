"""`POST /v1/databases` until the first row over the URL that it answered with, from a warm pool; and CREATE DATABASE in one PostgreSQL.

The rival shares one cluster among all: no isolation, no sleep, no password of its own. The pool is full again before each round.
"""

import time

from bench import harness
from bench.harness import Result, percentile
from bench.rig import BenchServer, Client, elapsed_ms, first_row, running, say

_BENCH = "create"
_WARM = 8
_ROUNDS = 15
_ONE = "SELECT 1"


def measure() -> list[Result]:
    """120 samples of each, after one round of warm-up."""
    whole: list[float] = []
    posts: list[float] = []
    rival: list[float] = []
    with running(warm_pool_size=_WARM, page_after_s="never", stop_after_s="never", freeze_after_s=2) as torpor:
        big = torpor.create("big")
        torpor.lay_down(big.name, "stopped")
        with torpor.bare(big) as bare, Client(bare.url) as admin:
            for number in range(_ROUNDS + 1):
                say(f"round {number} of {_ROUNDS}")
                _wait_full(torpor)
                names = [f"db{number}x{one}" for one in range(_WARM)]
                samples = [_create(torpor, name) for name in names]
                rivals = [_create_inside(admin, bare.url, name) for name in names]
                for name in names:
                    torpor.call("DELETE", f"/v1/databases/{name}?force=true")
                    admin.ask(f"DROP DATABASE {name} WITH (FORCE)")
                if number:
                    posts += [post for post, _ in samples]
                    whole += [both for _, both in samples]
                    rival += rivals
    return [
        *harness.latencies(_BENCH, "to first row", whole, p50=60, p99=200),
        *(Result(_BENCH, f"of that, the POST p{p}", "ms", percentile(posts, p)) for p in (50, 99)),
        *(Result(_BENCH, f"to first row p{p}", "ms", percentile(rival, p), rival="CREATE DATABASE in one PostgreSQL") for p in (50, 99)),
    ]


def _wait_full(torpor: BenchServer) -> None:
    deadline = time.monotonic() + 60
    while torpor.call("GET", "/v1/host")["warm"] < _WARM:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the warm pool does not fill: {torpor.log[-2000:]}")
        time.sleep(0.2)
    time.sleep(0.3)  # what filled it has come to rest


def _create(torpor: BenchServer, name: str) -> tuple[float, float]:
    began = time.perf_counter()
    made = torpor.create(name)
    post = (time.perf_counter() - began) * 1000
    both = post + first_row(made.url, _ONE)
    time.sleep(0.05)
    return post, both


def _create_inside(admin: Client, url: str, name: str) -> float:
    made = elapsed_ms(lambda: admin.ask(f"CREATE DATABASE {name}"))
    return made + first_row(f"{url.rpartition('/')[0]}/{name}", _ONE)


if __name__ == "__main__":
    harness.main(measure)
