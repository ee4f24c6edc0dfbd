"""A hundred stopped databases woken at the same instant by a hundred clients, against a hundred bare starts of the same clusters.

Three rounds. A round's clients are made ready first and let go together; each counts from that instant to its first row.
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg

from bench import harness
from bench.harness import Result, percentile
from bench.rig import FILL, QUERY, Bare, BenchServer, Client, first_row, running, say
from tests.support.server import MadeDatabase

_BENCH = "wake_storm"
_DATABASES = 100
_ROUNDS = 3


def measure() -> list[Result]:
    """Three storms of each."""
    storm: list[float] = []
    refused: list[str] = []
    bare: list[float] = []
    with running(pool_gib=40, freeze_after_s="never", page_after_s="never", stop_after_s="never") as torpor:
        say(f"making {_DATABASES} databases")
        with ThreadPoolExecutor(3) as hands:
            databases = list(hands.map(lambda number: _make(torpor, f"db{number}"), range(_DATABASES)))
            for number in range(_ROUNDS):
                say(f"storm {number + 1} of {_ROUNDS}")
                for answer in asyncio.run(_storm([database.url for database in databases])):
                    storm.append(answer) if isinstance(answer, float) else refused.append(str(answer))
                list(hands.map(lambda database: torpor.lay_down(database.name, "stopped"), databases))
        bares = [torpor.bare(database, tcp=False) for database in databases]
        say("the same with bare PostgreSQL")
        try:
            bare = _bare_storm(bares)
        finally:
            for one in bares:
                one.stop()
    return [
        *harness.latencies(_BENCH, "to first row", storm, p99=6000),
        Result(_BENCH, "refused or not answered", "", len(refused), 0),
        Result(_BENCH, "answered", "", len(storm), _ROUNDS * _DATABASES, at_least=True),
        *(Result(_BENCH, f"to first row p{p}", "ms", percentile(bare, p), rival="bare starts, own sockets, no login") for p in (50, 99)),
    ]


def _make(torpor: BenchServer, name: str) -> MadeDatabase:
    database = torpor.create(name)
    with Client(database.url) as client:
        client.ask(FILL)
    torpor.lay_down(database.name, "stopped")
    return database


async def _storm(urls: list[str]) -> list[float | BaseException]:
    began = time.perf_counter()

    async def come(url: str) -> float:
        async with await psycopg.AsyncConnection.connect(url, connect_timeout=30) as connection:
            row = await (await connection.execute(QUERY)).fetchone()
            assert row is not None
            return (time.perf_counter() - began) * 1000

    return await asyncio.gather(*(come(url) for url in urls), return_exceptions=True)


def _bare_storm(bares: list[Bare]) -> list[float]:
    began = time.perf_counter()
    for bare in bares:
        bare.start()
    took = []
    for bare in bares:
        bare.wait_ready(0.005)
        first_row(bare.socket_url)
        took.append((time.perf_counter() - began) * 1000)
    return took


if __name__ == "__main__":
    harness.main(measure)
