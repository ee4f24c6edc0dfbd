"""A point select over HTTP, beside a psycopg connection for each select and one that stays open; then rows a second of a large result.

One client, one after the other: what a function pays that asks once. With TLS left out on both sides.
"""

import http.client
import json
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import psycopg

from bench import harness
from bench.harness import Result, percentile
from bench.rig import running, say

_BENCH = "http"
_SAMPLES = 1000
_WARM_UP = 50
_ROWS = 300_000
_SELECT = "SELECT title FROM book WHERE id = $1"
_FILL = (
    "CREATE TABLE book AS SELECT n AS id, md5(n::text) AS title FROM generate_series(1, 10000) AS n; ALTER TABLE book ADD PRIMARY KEY (id)"
)


def measure() -> list[Result]:
    """1000 samples of each, turn by turn."""
    with running(http="true", http_port=0) as torpor:
        database = torpor.create("shop")
        with psycopg.connect(database.url, autocommit=True) as connection:
            connection.execute(_FILL)
        facts = json.loads((torpor.data_dir / "api.json").read_text())
        address = urlsplit(facts["http"])
        host, port = str(address.hostname), int(address.port or 0)
        headers = {"Neon-Connection-String": database.url, "Neon-Raw-Text-Output": "true", "Neon-Array-Mode": "true"}

        def request(connection: http.client.HTTPConnection, sql: str, *params: object) -> bytes:
            connection.request("POST", "/sql", json.dumps({"query": sql, "params": params}), headers)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise RuntimeError(body.decode())
            return body

        kept = http.client.HTTPConnection(host, port)
        opened = psycopg.connect(database.url, autocommit=True)

        def over_http(number: int) -> None:
            request(kept, _SELECT, number)

        def over_new_http(number: int) -> None:
            fresh = http.client.HTTPConnection(host, port)
            request(fresh, _SELECT, number)
            fresh.close()

        def connect_each(number: int) -> None:
            with psycopg.connect(database.url, autocommit=True) as connection:
                connection.execute("SELECT title FROM book WHERE id = %s", (number,)).fetchall()

        def stays_open(number: int) -> None:
            opened.execute("SELECT title FROM book WHERE id = %s", (number,)).fetchall()

        ways = {"kept": over_http, "new": over_new_http, "connect": connect_each, "open": stays_open}
        samples: dict[str, list[float]] = {name: [] for name in ways}
        say(f"{_SAMPLES} point selects each way")
        for number in range(_SAMPLES + _WARM_UP):
            for name, way in ways.items():
                elapsed = _timed(way, number % 10_000 + 1)
                if number >= _WARM_UP:
                    samples[name].append(elapsed)
        say(f"{_ROWS} rows over HTTP")
        began = time.perf_counter()
        size = len(request(kept, f"SELECT n, md5(n::text) FROM generate_series(1, {_ROWS}) AS n"))
        rate = _ROWS / (time.perf_counter() - began)
        began = time.perf_counter()
        opened.execute(f"SELECT n, md5(n::text) FROM generate_series(1, {_ROWS}) AS n").fetchall()
        rival = _ROWS / (time.perf_counter() - began)
        kept.close()
        opened.close()
    return [
        *harness.latencies(_BENCH, "point select", samples["kept"]),
        *(Result(_BENCH, f"point select, a TCP connection each, p{p}", "ms", percentile(samples["new"], p)) for p in (50, 99)),
        *(
            Result(_BENCH, f"point select p{p}", "ms", percentile(samples["connect"], p), rival="psycopg, a connection each")
            for p in (50, 99)
        ),
        *(
            Result(_BENCH, f"point select p{p}", "ms", percentile(samples["open"], p), rival="psycopg, one open connection")
            for p in (50, 99)
        ),
        Result(_BENCH, f"large result of {size >> 20} MiB", "rows/s", rate),
        Result(_BENCH, "large result", "rows/s", rival, rival="psycopg, one open connection"),
    ]


def _timed(way: Callable[[int], None], number: int) -> float:
    began = time.perf_counter()
    way(number)
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    harness.main(measure)
