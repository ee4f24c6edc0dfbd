"""The cache by headers, over HTTP: what it serves, what it says, whom it doesn't wake."""

from collections.abc import Iterator

import httpx
import pytest

from tests.support.faults import eventually, stop_database
from tests.support.overhttp import ask, http_url, post
from tests.support.server import MadeDatabase, Server

ASKS = {"cache-control": "max-age=600, stale-while-revalidate=600", "cache-tags": "books,home"}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(http=True, http_port=0, freeze_after_s="never", stop_after_s="never") as server:
        yield server
        assert "Traceback" not in server.log, server.log[-6000:]


@pytest.fixture
def database(server: Server) -> Iterator[MadeDatabase]:
    made = server.create()
    ask(server, made, "CREATE TABLE book AS SELECT generate_series(1, 3) AS n")
    yield made
    server.call("DELETE", f"/v1/databases/{made.name}?force=true")


def asked(server: Server, database: MadeDatabase, sql: str, *params: object, **headers: str) -> tuple[str, list[list[str | None]]]:
    """What the cache said, and the rows."""
    answer = post(
        server, database, {"query": sql, "params": list(params)}, ASKS | {name.replace("_", "-"): text for name, text in headers.items()}
    )
    assert answer.status_code == 200, answer.text
    return answer.headers["torpor-cache"], answer.json()["rows"]


def test_what_the_cache_says(server: Server, database: MadeDatabase) -> None:
    count = "SELECT count(*) FROM book WHERE n > $1"
    assert asked(server, database, count, 1) == ("miss", [["2"]])
    assert asked(server, database, count, 1) == ("hit", [["2"]])
    assert asked(server, database, count, 2) == ("miss", [["1"]])
    ask(server, database, "INSERT INTO book VALUES (4)")
    assert asked(server, database, count, 1) == ("hit", [["2"]])
    answer = post(server, database, {"query": count, "params": [1]}, ASKS)
    assert answer.headers["cache-status"].startswith("Torpor; hit; ttl=")
    assert int(answer.headers["age"]) >= 0
    # Whom nobody asks isn't told anything, and has what there is now.
    answer = post(server, database, {"query": count, "params": [1]})
    assert (answer.json()["rows"], answer.headers.get("torpor-cache"), answer.headers.get("cache-status")) == ([["3"]], None, None)


def test_what_is_stale_is_served_and_made_anew(server: Server, database: MadeDatabase) -> None:
    words = {"cache_control": "stale-while-revalidate=600"}
    assert asked(server, database, "SELECT count(*) FROM book", **words) == ("miss", [["3"]])
    ask(server, database, "INSERT INTO book VALUES (4)")
    seen = set()

    def look() -> bool:
        """A hit while it is a second old, then stale once or more, and at last what there is."""
        verdict, rows = asked(server, database, "SELECT count(*) FROM book", **words)
        seen.add((verdict, rows[0][0]))
        return rows == [["4"]]

    eventually(look)
    assert ("stale", "3") in seen
    assert not {verdict for verdict, _ in seen} - {"hit", "stale"}


def test_what_goes_past_it(server: Server, database: MadeDatabase) -> None:
    for sql, reason in (
        ("SELECT random() IS NULL", "volatile random"),
        ("INSERT INTO book VALUES (7) RETURNING n", "not a read"),
        ("SELECT n FROM book WHERE n = 1 FOR UPDATE", "locks rows"),
        ("SHOW search_path", "not a read"),
    ):
        for _ in range(2):
            verdict, _ = asked(server, database, sql)
            assert verdict.startswith(f"bypass ({reason}"), verdict


def test_what_over_http_goes_past_it(server: Server, database: MadeDatabase) -> None:
    batch = post(server, database, {"queries": [{"query": "SELECT 1"}]}, ASKS)
    assert (batch.status_code, batch.headers["torpor-cache"]) == (200, "bypass (in a transaction)")
    keyed = post(server, database, {"query": "SELECT 1"}, ASKS | {"idempotency-key": "a"})
    assert (keyed.status_code, keyed.headers["torpor-cache"]) == (200, "bypass (in a transaction)")
    for tags in ("*/ DROP TABLE book; /*", "a force", ",".join(f"t{n}" for n in range(17)), "x" * 65):
        assert asked(server, database, "SELECT count(*) FROM book", cache_tags=tags) == ("bypass (bad words)", [["3"]])
    direct = post(server, database, {"query": "SELECT count(*) FROM book"}, ASKS, url=database.url + "?options=pool%3Doff")
    assert (direct.json()["rows"], direct.headers["torpor-cache"]) == ([["3"]], "bypass (not pooled)")
    wrong = post(server, database, {"query": "SELECT nothing FROM book"}, ASKS)
    assert (wrong.status_code, wrong.json()["position"]) == (400, "8")


def test_a_hit_wakes_nobody_and_needs_the_password(server: Server, database: MadeDatabase) -> None:
    count = "SELECT count(*) FROM book"
    assert asked(server, database, count)[0] == "miss"
    assert asked(server, database, count)[0] == "hit"  # by now nothing of the miss is under way
    stop_database(server, database)
    for _ in range(3):
        assert asked(server, database, count) == ("hit", [["3"]])
    wrong = post(server, database, {"query": count}, ASKS, url=database.url.replace(":", ":x", 2).replace(":x", ":", 1))
    assert (wrong.status_code, wrong.json()["code"]) == (400, "28P01")
    assert server.tier(database.name) == "stopped"


def test_prismas_other_address(server: Server, database: MadeDatabase) -> None:
    boundary = {"content-type": "multipart/form-data; boundary=x"}
    # The package can't send headers: its users write the words into the statement, and ask for the pool by the database's name.
    own = "/* ttl=600 status */ SELECT max(n) AS n FROM book"
    ways = [(database.name, "SELECT count(*)::integer AS n FROM book", ASKS), (f"{database.name}@auto", own, {})]
    body = (
        '--x\r\ncontent-disposition: form-data; name="urn:prisma:query:descriptor"\r\ncontent-type: application/json\r\n\r\n'
        '{"query": "%s", "parameters": []}\r\n--x--\r\n'
    )
    _, _, rest = database.url.partition("://")
    user, _, password = rest.partition("@")[0].partition(":")
    with httpx.Client(base_url=http_url(server), auth=(user, password), timeout=90, trust_env=False) as client:
        verdicts = []
        for name, sql, headers in [way for way in ways for _ in range(2)]:
            answer = client.post(f"/v0/statement?db={name}", content=body % sql, headers=boundary | headers)
            assert '["3"]' in answer.text, answer.text
            verdicts.append(answer.headers["torpor-cache"])
    assert verdicts == ["miss", "hit", "miss", "hit"]
