"""A query on an open connection of a frozen database, and the same on the awake one.

Four databases, put to sleep in turn through the API; the pause before each query is random, so that no sample meets the sleep itself.
"""

import random
import time

from bench import harness
from bench.harness import Result
from bench.rig import FILL, Client, elapsed_ms, running, say

_SAMPLES = 600


def measure() -> list[Result]:
    """600 samples of each."""
    chance = random.Random(1)
    frozen: list[float] = []
    awake: list[float] = []
    with running(freeze_after_s="never", page_after_s="never", stop_after_s="never") as torpor:
        databases = [torpor.create(f"db{number}") for number in range(4)]
        clients = [Client(database.url) for database in databases]
        for client in clients:
            client.ask(FILL)
        say(f"{_SAMPLES} queries on frozen and awake databases")
        for number in range(_SAMPLES + 20):
            database, client = databases[number % 4], clients[number % 4]
            torpor.lay_down(database.name, "frozen")
            time.sleep(chance.uniform(0.005, 0.03))
            first = elapsed_ms(client.ask)
            time.sleep(chance.uniform(0.005, 0.03))
            second = elapsed_ms(client.ask)
            if number >= 20:  # warm-up
                frozen.append(first)
                awake.append(second)
        for database, client in zip(databases, clients, strict=True):
            newest = torpor.view(database.name)["recent_wakes"][0]
            assert (newest["reason"], newest["tier"]) == ("traffic", "frozen"), newest
            client.close()
    rival = [Result("frozen_query", f"query p{percent}", "ms", harness.percentile(awake, percent), rival="awake") for percent in (50, 99)]
    return harness.latencies("frozen_query", "query", frozen, p50=2, p99=15) + rival


if __name__ == "__main__":
    harness.main(measure)
