"""SQL over HTTP before real PostgreSQL: what requests can say, what is left of them, wakes, limits, hostile input, kills, take-overs."""

import contextlib
import json
import os
import signal
import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from tests.support.faults import eventually, in_thread, stop_database
from tests.support.overhttp import ask, http_pid, http_url, post, raw
from tests.support.server import MadeDatabase, Server
from torpor.pgwire.frames import frame
from torpor.pgwire.startup import StartupMessage

STRANGER = "203.0.113.7"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(
        http=True, http_port=0, freeze_after_s=1, page_after_s="never", stop_after_s="never", tls="remote", api_proxies="127.0.0.1"
    ) as server:
        yield server
        assert "Traceback" not in server.log, server.log[-6000:]


@pytest.fixture
def database(server: Server) -> Iterator[MadeDatabase]:
    made = server.create()
    yield made
    server.call("DELETE", f"/v1/databases/{made.name}?force=true")


def backends(database: MadeDatabase, statement: str) -> int:
    """How many backends run that statement now."""
    with psycopg.connect(database.url, autocommit=True) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE %s AND pid <> pg_backend_pid()", (statement + "%",)
        ).fetchone()
    assert row is not None
    return int(row[0])


def wakes(server: Server, database: MadeDatabase) -> list[tuple[str, str]]:
    """Why the database was woken of late, and from which tier."""
    return [(wake["reason"], wake["tier"]) for wake in server.call("GET", f"/v1/databases/{database.name}/wakes?limit=20")["wakes"]]


def test_a_request_wakes_and_then_the_database_sleeps(server: Server, database: MadeDatabase) -> None:
    stop_database(server, database)
    assert ask(server, database, "SELECT 1") == [["1"]]
    assert ("connection", "stopped") in wakes(server, database)
    server.wait_tier(database.name, "frozen")
    assert ask(server, database, "SELECT 2") == [["2"]]
    assert ("connection", "frozen") in wakes(server, database)
    # No connection is kept for long: nothing holds a database that is to be stopped.
    stop_database(server, database)


def test_nothing_is_left_for_the_next_request(server: Server, database: MadeDatabase) -> None:
    with httpx.Client(timeout=60, trust_env=False) as client:

        def rows(sql: str) -> list[list[str | None]]:
            answer = post(server, database, {"query": sql}, client=client)
            assert answer.status_code == 200, answer.text
            found: list[list[str | None]] = answer.json()["rows"]
            return found

        for turn in range(4):
            rows(f"SET application_name = 'turn {turn}'")
            rows("CREATE TEMPORARY TABLE scratch AS SELECT 1 AS one")
            rows("SELECT pg_advisory_lock(7)")
            rows("PREPARE left_over AS SELECT 1")
            rows("LISTEN news")
            left = (
                "SELECT current_setting('application_name'), to_regclass('scratch')::text, "
                "(SELECT count(*) FROM pg_prepared_statements), (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'), "
                "(SELECT count(*) FROM pg_listening_channels())"
            )
            assert rows(left) == [["", None, "0", "0", "0"]]
        # A transaction that is left open is nobody's afterwards.
        rows("BEGIN")
        assert rows("SELECT pg_current_xact_id_if_assigned() IS NULL") == [["t"]]
        assert post(server, database, {"query": "INSERT INTO nowhere VALUES (1)"}, client=client).status_code == 400
        assert rows("SELECT 1") == [["1"]]


def test_batches_are_transactions(server: Server, database: MadeDatabase) -> None:
    made = post(
        server,
        database,
        {"queries": [{"query": "CREATE TABLE t (a integer)"}, {"query": "INSERT INTO t SELECT generate_series(1, $1)", "params": [3]}]},
    )
    assert [one["command"] for one in made.json()["results"]] == ["CREATE", "INSERT"]
    assert made.json()["results"][1]["rowCount"] == 3
    failed = post(server, database, {"queries": [{"query": "DELETE FROM t"}, {"query": "SELECT 1 / (a - a) FROM t UNION SELECT 1 / 0"}]})
    assert (failed.status_code, failed.json()["code"]) == (400, "22012")
    assert ask(server, database, "SELECT count(*) FROM t") == [["3"]]
    # A constraint that is looked at when the transaction ends fails the whole of it.
    ask(server, database, "ALTER TABLE t ADD CONSTRAINT once UNIQUE (a) DEFERRABLE INITIALLY DEFERRED")
    late = post(server, database, {"query": "INSERT INTO t VALUES (1) RETURNING a"})
    assert (late.status_code, late.json()["code"], late.json()["constraint"]) == (400, "23505", "once")
    late = post(server, database, {"queries": [{"query": "INSERT INTO t VALUES (1)"}, {"query": "SELECT 1"}]})
    assert (late.status_code, late.json()["code"]) == (400, "23505")


def test_forms_of_answers(server: Server, database: MadeDatabase) -> None:
    query = {
        "query": "SELECT 7 AS n, 2.50::float8 AS f, '{\"a\": [1]}'::jsonb AS j, ARRAY[1, NULL] AS l, false AS b, 1::int8 AS big, "
        "$1::jsonb AS p",
        "params": [{"deep": [1.10, None]}],
    }
    typed = post(server, database, query, {"Neon-Raw-Text-Output": "false", "Neon-Array-Mode": "false"}).json()
    assert typed["rows"] == [{"n": 7, "f": 2.5, "j": {"a": [1]}, "l": [1, None], "b": False, "big": "1", "p": {"deep": [1.1, None]}}]
    assert post(server, database, query).json()["rows"] == [["7", "2.5", '{"a": [1]}', "{1,NULL}", "f", "1", '{"deep": [1.1, null]}']]
    exact = b'{"query": "SELECT $1::jsonb, $2::numeric", "params": [{"deep": 1.10}, 12345678901234567890.120]}'
    assert post(server, database, exact).json()["rows"] == [['{"deep": 1.10}', "12345678901234567890.120"]]
    assert ask(server, database, "SELECT $1::text[]", ["a,b", 'c"d', "e\\f", None, "{}"]) == [['{"a,b","c\\"d","e\\\\f",NULL,"{}"}']]
    assert post(server, database, {"query": ""}).json()["rows"] == []
    host, _, port = http_url(server).removeprefix("http://").rpartition(":")
    basic = httpx.BasicAuth(database.name, database.password)
    with httpx.Client(auth=basic, timeout=60, trust_env=False) as client:
        answer = client.post(f"http://{host}:{port}/sql?db={database.name}", json={"query": "SELECT current_user AS me"})
    assert answer.json()["rows"] == [{"me": database.name}]


def test_what_is_refused_says_why(server: Server, database: MadeDatabase) -> None:
    wrong = database.url.replace(database.password, "wrong")
    nowhere = database.url.replace(f"/{database.name}", "/nowhere")
    cases = [
        (post(server, database, {"query": "SELECT 1"}, url=wrong), 400, "28P01"),
        (post(server, database, {"query": "SELECT 1"}, url=nowhere), 400, "3D000"),
        (post(server, database, {"query": "SELECT 1"}, url="https://example.com"), 400, "28000"),
        (post(server, database, {"query": "SELECT 1"}, url=f"postgresql://{database.name}@h/{database.name}"), 401, "28000"),
        (post(server, database, b"{"), 400, "22023"),
        (post(server, database, b"[]"), 400, "22023"),
        (post(server, database, b'{"query": ' + b"[" * 100_000), 400, "22023"),
        (post(server, database, {"query": "SELECT $1", "params": json.loads("[" * 300 + "]" * 300)}), 400, "22023"),
        (post(server, database, {"query": "SELECT 'a\0b'"}), 400, "22023"),
        (post(server, database, {"query": "SELECT $1", "params": ["a\0b"]}), 400, "22023"),
        (post(server, database, {"query": "SELECT 1; SELECT 2"}), 400, "42601"),
        (post(server, database, {"query": "SELECT $1::integer"}), 400, "08P01"),
        (post(server, database, {"query": "COPY (SELECT 1) TO STDOUT"}), 400, "0A000"),
        (post(server, database, {"query": "COPY pg_class FROM STDIN"}), 400, "42501"),
        (post(server, database, {"queries": []}), 400, "22023"),
        (post(server, database, {"queries": [{"query": "SELECT 1"}]}, {"Neon-Batch-Isolation-Level": "Chaos"}), 400, "22023"),
        (post(server, database, {"query": "SELECT 1"}, {"Torpor-Statement-Timeout": "soon"}), 400, "22023"),
        (post(server, database, {"query": "SELECT pg_sleep(60)"}, {"Torpor-Statement-Timeout": "50ms"}), 400, "57014"),
        (post(server, database, {"query": "SELECT pg_terminate_backend(pg_backend_pid())"}), 400, "57P01"),
    ]
    for answer, status, code in cases:
        told = answer.json()
        assert (answer.status_code, told["code"]) == (status, code), answer.text
        assert told["message"], told
        assert database.password not in answer.text
    assert len(ask(server, database, "SELECT $1::text", "x" * (1 << 20))[0][0] or "") == 1 << 20


def test_hostile_requests(server: Server, database: MadeDatabase) -> None:
    head = b"POST /sql HTTP/1.1\r\nHost: x\r\n"
    url = b"Neon-Connection-String: " + database.url.encode() + b"\r\n"
    assert b" 404 " in raw(server, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").split(b"\r\n")[0]
    assert b" 405 " in raw(server, b"GET /sql HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").split(b"\r\n")[0]
    assert b" 401 " in raw(server, head + b"Content-Length: 0\r\nConnection: close\r\n\r\n").split(b"\r\n")[0]
    assert b" 413 " in raw(server, head + url + b"Content-Length: 99999999999\r\nConnection: close\r\n\r\n").split(b"\r\n")[0]
    assert b" 426 " in raw(server, b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").split(b"\r\n")[0]
    # Heads that are too large, too many, or no heads at all end the connection.
    assert b" 431 " in raw(server, head + b"X-Long: " + b"x" * 100_000).split(b"\r\n")[0]
    assert b" 431 " in raw(server, head + b"".join(b"X-%d: x\r\n" % n for n in range(200)) + b"\r\n").split(b"\r\n")[0]
    assert b" 400 " in raw(server, b"\0\1\2\3nonsense\r\n\r\n").split(b"\r\n")[0]
    assert not raw(server, b"\x16\x03\x01\0\x05hello").startswith(b"HTTP")
    body = b'{"query": "SELECT 1"}'
    twice = head + url + b"Content-Length: %d\r\n" % len(body) + b"\r\n" + body
    assert raw(server, twice + twice.replace(b"Host: x", b"Host: x\r\nConnection: close")).count(b"HTTP/1.1 200 ") == 2
    # What asks to become another protocol than a WebSocket is answered as it is.
    upgrade = b"Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    assert b" 200 " in raw(server, head + upgrade + url + b"Content-Length: %d\r\n\r\n" % len(body) + body).split(b"\r\n")[0]
    assert ask(server, database, "SELECT 1") == [["1"]]


def test_who_leaves_takes_the_statement_along(server: Server, database: MadeDatabase) -> None:
    sleep = "SELECT pg_sleep(600)"
    host, _, port = http_url(server).removeprefix("http://").rpartition(":")
    body = json.dumps({"query": sleep}).encode()
    with socket.create_connection((host, int(port)), timeout=30) as sock:
        sock.sendall(
            b"POST /sql HTTP/1.1\r\nHost: x\r\nNeon-Connection-String: %b\r\nContent-Length: %d\r\n\r\n%b"
            % (database.url.encode(), len(body), body)
        )
        eventually(lambda: backends(database, sleep) == 1)
    eventually(lambda: backends(database, sleep) == 0)


def test_large_results_stream_in_little_memory(server: Server, database: MadeDatabase) -> None:
    """100 MB, of which the client reads the first bytes, then nothing for a while, then all. Another never reads on."""
    assert ask(server, database, "SELECT 1") == [["1"]]
    pid = http_pid(server)
    assert pid is not None
    before = _resident_bytes(pid)
    sql = "SELECT n, repeat('x', 20000) FROM generate_series(1, 5000) AS n"
    headers = {"Neon-Connection-String": database.url, "Neon-Array-Mode": "true", "Neon-Raw-Text-Output": "true"}
    with (
        httpx.Client(timeout=90, trust_env=False) as client,
        client.stream("POST", http_url(server) + "/sql", json={"query": sql}, headers=headers) as answer,
        client.stream("POST", http_url(server) + "/sql", json={"query": sql}, headers=headers) as _unread,
    ):
        pieces = answer.iter_raw()
        size = len(next(pieces))
        eventually(lambda: backends(database, sql) == 2)
        assert _resident_bytes(pid) - before < 40 << 20
        for piece in pieces:
            size += len(piece)
        assert size > 100_000_000
        assert _resident_bytes(pid) - before < 60 << 20
    # An error after the beginning can't be told any more: the answer is cut off, never taken for a whole one.
    with pytest.raises(httpx.RemoteProtocolError):
        post(server, database, {"query": "SELECT repeat('x', 1000), 1 / (5000 - n) FROM generate_series(1, 9000) AS n"})


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) << 10


def test_a_key_makes_a_retry_safe(server: Server, database: MadeDatabase) -> None:
    ask(server, database, "CREATE TABLE paid (id serial, note text)")
    insert = {"query": "INSERT INTO paid (note) VALUES ($1) RETURNING id", "params": ["once"]}
    first = post(server, database, insert, {"Idempotency-Key": "a"})
    again = post(server, database, insert, {"Idempotency-Key": "a"})
    assert (again.status_code, again.content, again.headers["idempotency-replayed"]) == (200, first.content, "true")
    other = post(server, database, {**insert, "params": ["twice"]}, {"Idempotency-Key": "a"})
    assert (other.status_code, other.json()["code"]) == (422, "22023")
    failed = post(server, database, {"query": "INSERT INTO paid VALUES (1 / 0)"}, {"Idempotency-Key": "b"})
    assert failed.json()["code"] == "22012"
    batch = {"queries": [insert, {"query": "SELECT count(*) FROM paid"}]}
    assert post(server, database, batch, {"Idempotency-Key": "c"}).json()["results"][1]["rows"] == [["2"]]
    assert post(server, database, batch, {"Idempotency-Key": "c"}).json()["results"][1]["rows"] == [["2"]]
    ended = post(server, database, {"query": "COMMIT"}, {"Idempotency-Key": "d"})
    assert (ended.status_code, ended.json()["code"]) == (400, "25000")
    # Another role's key of the same name is another key; who can't log in learns nothing.
    assert (
        post(server, database, insert, {"Idempotency-Key": "a"}, url=database.url.replace(database.password, "wrong")).json()["code"]
        == "28P01"
    )
    # What was written down outlives the process.
    pid = http_pid(server)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: http_pid(server) not in (None, pid))
    assert post(server, database, insert, {"Idempotency-Key": "a"}).headers["idempotency-replayed"] == "true"
    assert ask(server, database, "SELECT count(*) FROM paid") == [["2"]]


def test_a_killed_process_ends_requests_cleanly_and_comes_again(server: Server, database: MadeDatabase) -> None:
    ask(server, database, "CREATE TABLE paid (id serial, note text)")
    slow = {"queries": [{"query": "INSERT INTO paid (note) VALUES ('slow')"}, {"query": "SELECT pg_advisory_xact_lock(7)"}]}
    answers: list[int] = []
    with psycopg.connect(database.url, autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(7)")
        request, failures = in_thread(lambda: answers.append(post(server, database, slow, {"Idempotency-Key": "slow"}).status_code))
        eventually(lambda: backends(database, "SELECT pg_advisory_xact_lock(7)") == 1)
        pid = http_pid(server)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        request.join(60)
    assert not answers
    assert isinstance(failures[0], httpx.TransportError)
    again = eventually(lambda: _answered(server, database, slow))
    assert again is not None
    assert again.status_code == 200, again.text
    assert post(server, database, slow, {"Idempotency-Key": "slow"}).headers.get("idempotency-replayed") == "true"
    assert ask(server, database, "SELECT count(*) FROM paid") == [["1"]]


def _answered(server: Server, database: MadeDatabase, body: object) -> httpx.Response | None:
    """The answer to a request with a key; None while the process isn't there again, or the transaction that was cut off still runs."""
    with contextlib.suppress(httpx.TransportError):
        answer = post(server, database, body, {"Idempotency-Key": "slow"})
        return answer if answer.status_code not in (409, 503) else None
    return None


def test_the_door_sees_the_true_address(server: Server, database: MadeDatabase) -> None:
    """Access lists are the door's. A trusted proxy names the client; from another machine it must have come encrypted."""
    forwarded = {"X-Forwarded-For": STRANGER, "X-Forwarded-Proto": "https"}
    seen = ask(server, database, "SELECT host(inet_client_addr())", headers=forwarded)
    assert seen == [[STRANGER]]
    server.call("PUT", "/v1/access", {"deny": [f"{STRANGER}/32"]})
    try:
        refused = post(server, database, {"query": "SELECT 1"}, headers=forwarded)
        assert (refused.status_code, refused.json()["code"]) == (400, "28000")
        assert STRANGER in refused.json()["message"]
        assert ask(server, database, "SELECT host(inet_client_addr())") == [["127.0.0.1"]]
    finally:
        server.call("PUT", "/v1/access", {})


def test_the_door_takes_no_header_without_the_secret(server: Server, database: MadeDatabase) -> None:
    addresses = socket.inet_aton(STRANGER) + socket.inet_aton("127.0.0.1") + struct.pack("!HH", 5, 5)
    for secret in (b"", b"guess", b"0" * 64):
        rest = addresses + struct.pack("!BH", 0xE0, len(secret)) + secret
        with socket.create_connection(("127.0.0.1", server.door_port), timeout=30) as sock:
            sock.sendall(b"\r\n\r\n\0\r\nQUIT\n" + struct.pack("!BBH", 0x21, 0x11, len(rest)) + rest)
            heard = sock.recv(10_000)
        assert heard.startswith(b"E") and b"PROXY header isn't taken" in heard


def test_only_pages_of_admitted_origins_may_ask(server: Server, database: MadeDatabase) -> None:
    page, query = {"Origin": "https://app.example.com"}, {"query": "CREATE TABLE made (a integer)"}
    with httpx.Client(timeout=60, trust_env=False) as client:
        asked = client.options(http_url(server) + "/sql", headers={**page, "Access-Control-Request-Method": "POST"})
    assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (204, "https://app.example.com")
    assert "neon-connection-string" in asked.headers["access-control-allow-headers"]
    refused = post(server, database, query, page)
    assert (refused.status_code, refused.json()["code"]) == (403, "42501")
    assert "access-control-allow-origin" not in refused.headers
    # What a connection brings along isn't the database's own word.
    options = f"{database.url}{'&' if '?' in database.url else '?'}options=-c%20torpor.http_origins%3D*"
    assert post(server, database, query, page, url=options).status_code == 403
    ask(server, database, f"ALTER DATABASE \"{database.name}\" SET torpor.http_origins = 'https://other.example, https://App.example.com'")
    made = post(server, database, query, page)
    assert (made.status_code, made.headers["access-control-allow-origin"]) == (200, "https://app.example.com")
    assert post(server, database, query, {"Origin": "https://evil.example"}).status_code == 403


@pytest.mark.root
def test_the_process_may_next_to_nothing(server: Server) -> None:
    pid = eventually(lambda: http_pid(server))
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    uid = str(int(str(server.settings["uid_base"])) - 2)
    assert status["Uid"].split() == [uid] * 4
    assert status["Gid"].split() == [uid] * 4
    assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {0}
    assert status["NoNewPrivs"].strip() == "1"
    assert not status["Groups"].strip()


def test_requests_can_be_pooled(server: Server, database: MadeDatabase) -> None:
    url = f"{database.url}{'&' if '?' in database.url else '?'}options=pool%3Don"
    made = post(server, database, {"queries": [{"query": "CREATE TABLE t (a integer)"}, {"query": "INSERT INTO t VALUES (1)"}]}, url=url)
    assert made.status_code == 200, made.text
    insert = {"query": "INSERT INTO t VALUES ($1) RETURNING a", "params": [2]}
    first, again = (post(server, database, insert, {"Idempotency-Key": "pooled"}, url=url) for _ in range(2))
    assert (first.status_code, first.content, again.headers.get("idempotency-replayed")) == (200, again.content, "true")
    assert post(server, database, {"query": "SELECT count(*) FROM t"}, url=url).json()["rows"] == [["2"]]
    assert post(server, database, {"query": "SELECT 1 / 0"}, url=url).json()["code"] == "22012"


def test_https_has_the_certificates_of_the_door(server: Server, database: MadeDatabase) -> None:
    """And is asked of clients on other machines."""
    context = ssl.create_default_context(cafile=json.loads((server.data_dir / "api.json").read_text())["tls_authority"])
    url = http_url(server).replace("http:", "https:") + "/sql"
    with httpx.Client(verify=context, timeout=60, trust_env=False) as client:
        answer = client.post(url, json={"query": "SELECT 1 AS one"}, headers={"Neon-Connection-String": database.url})
    assert answer.json()["rows"] == [{"one": 1}]
    refused = post(server, database, {"query": "SELECT 1"}, {"X-Forwarded-For": STRANGER})
    assert (refused.status_code, refused.json()["code"]) == (403, "28000")


def test_a_killed_torpor_takes_it_along_and_brings_it_back(server: Server, database: MadeDatabase) -> None:
    url, pid = http_url(server), http_pid(server)
    assert pid is not None
    server.settings["http_port"] = int(url.rpartition(":")[2])
    server.kill()
    eventually(lambda: not Path(f"/proc/{pid}").exists())
    server.start()
    assert http_url(server) == url
    assert ask(server, database, "SELECT 1") == [["1"]]


def test_web_sockets_that_misbehave(server: Server, database: MadeDatabase) -> None:
    address = http_url(server).replace("http:", "ws:")
    startup = StartupMessage({"user": database.name, "database": database.name}).encode()
    right = frame(b"p", database.password.encode() + b"\0")
    refused: dict[str, list[str | bytes]] = {
        "text": ["hello"],
        "nonsense": [b"GET / HTTP/1.1\r\n\r\n"],
        "no password": [startup + frame(b"Q", b"SELECT 1\0")],
        "a long password": [startup + frame(b"p", b"x" * 100_000 + b"\0")],
        "wrong password": [startup + frame(b"p", b"wrong\0")],
    }
    for what, said in refused.items():
        with connect(f"{address}/v2") as socket:
            for word in said:
                socket.send(word)
            heard = b"".join(part if isinstance(part, bytes) else part.encode() for part in socket)
            assert b"\0C08P01\0" in heard or b"\0C28P01\0" in heard, (what, heard)
    # Byte by byte is fine; what is too large isn't.
    with connect(f"{address}/v2") as socket:
        for byte in startup + right:
            socket.send(bytes((byte,)))
        socket.send(frame(b"Q", b"SELECT 'here'\0"))
        heard = b""
        while b"here" not in heard:
            part = socket.recv(timeout=60)
            heard += part if isinstance(part, bytes) else b""
        with pytest.raises(ConnectionClosed) as closed:
            socket.send(bytes(17 << 20))
            while True:
                socket.recv(timeout=60)
        # One that is still sending when the connection ends may miss the word.
        assert closed.value.rcvd is None or closed.value.rcvd.code == 1009
    # Prisma's sessions say who they are first, and what comes must be what is expected.
    strangers: list[list[str]] = [["x"], ['{"username": "a"}'], [json.dumps({"username": "a", "password": "b"}), "urn:other", "{}"]]
    for messages in strangers:
        session = connect(f"{address}/v0/session?db={database.name}", subprotocols=[Subprotocol("prisma-postgres-1.0")])
        with contextlib.suppress(ConnectionClosed), session as socket:  # it is closed with a word on why
            for message in messages:
                socket.send(message)
            while "error" not in str(socket.recv(timeout=60)):
                pass
    with pytest.raises(InvalidStatus):
        connect(f"{address}/v0/session")
    # Those that leave in the middle take their statements along.
    slow = "SELECT pg_sleep(601)"
    with connect(f"{address}/v0/session?db={database.name}", subprotocols=[Subprotocol("prisma-postgres-1.0")]) as socket:
        socket.send(json.dumps({"username": database.name, "password": database.password}))
        socket.send("urn:prisma:query:descriptor")
        socket.send(json.dumps({"query": slow}))
        eventually(lambda: backends(database, slow) == 1)
    eventually(lambda: backends(database, slow) == 0)


def test_the_next_torpor_has_the_listener(server: Server, database: MadeDatabase) -> None:
    url, pid = http_url(server), http_pid(server)
    assert server.take_over() == 0
    assert http_url(server) == url
    assert ask(server, database, "SELECT 1") == [["1"]]
    assert http_pid(server) not in (None, pid)
