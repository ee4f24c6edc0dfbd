"""The guard before real PostgreSQL: true addresses through a load balancer, failed logins, access lists that end live sessions, limits
that stay exact over a kill of Torpor, and names that poison nothing."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from urllib.request import Request, urlopen

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.balancer import Balancer
from tests.support.faults import eventually, in_thread, put_to_sleep, runs
from tests.support.faults import refusal_of as refusal
from tests.support.pace import in_time
from tests.support.server import MadeDatabase, Server

BALANCER = "127.0.0.2"
PENALTY_S = 3  # long enough for what a busy machine does meanwhile
ONE, OTHER = "203.0.113.7", "2001:db8:0:1::7"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(
        freeze_after_s=1,
        page_after_s="never",
        stop_after_s="never",
        log_format="json",
        tls="off",
        proxy_protocol_from=BALANCER,
        failed_login_penalty_s=PENALTY_S,
        max_connections_per_address=4,
    ) as server:
        yield server
        assert "Traceback" not in server.log, server.log[-6000:]


@pytest.fixture(autouse=True)
def no_lists(server: Server) -> Iterator[None]:
    """Also after a test that failed."""
    yield
    server.call("PUT", "/v1/access", {})
    server.call("PUT", "/v1/workspaces/default/access", {})


@pytest.fixture
def database(server: Server) -> Iterator[MadeDatabase]:
    made = server.create()
    yield made
    server.call("DELETE", f"/v1/databases/{made.name}?force=true")


@pytest.fixture
def one(server: Server) -> Iterator[Balancer]:
    with Balancer(("127.0.0.1", server.door_port), BALANCER, ONE) as balancer:
        yield balancer


@pytest.fixture
def other(server: Server) -> Iterator[Balancer]:
    with Balancer(("127.0.0.1", server.door_port), BALANCER, OTHER) as balancer:
        yield balancer


def connect(url: str) -> "psycopg.Connection[tuple[object, ...]]":
    # With sslmode=prefer libpq tries again without TLS after each refusal: one failure too many.
    return psycopg.connect(url, autocommit=True, connect_timeout=40, sslmode="disable")


def refusal_of(url: str) -> tuple[str, str]:
    """SQLSTATE and text, of one attempt."""
    return refusal(f"{url}?sslmode=disable")


def ask(connection: "psycopg.Connection[tuple[object, ...]]", query: str) -> object:
    row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


def metrics(server: Server) -> dict[str, float]:
    request = Request(f"{server.api_url}/metrics", headers={"Authorization": f"Bearer {server.token}"})
    with urlopen(request, timeout=60) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}


def events(server: Server, name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in server.log.splitlines() if f'"event": "{name}"' in line]


def torpor(server: Server, *arguments: str) -> str:
    command = [sys.executable, "-c", "from torpor.cli import main; main()", *arguments]
    environment = {**server.environment(), "TORPOR_API_URL": server.api_url, "TORPOR_API_TOKEN": server.token}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_true_address_is_seen_by_everybody(server: Server, database: MadeDatabase, one: Balancer, other: Balancer) -> None:
    for balancer, source in ((one, ONE), (other, OTHER)):
        with connect(balancer.url(database.url)) as connection:
            assert ask(connection, "SELECT host(inet_client_addr())") == source
            assert ask(connection, "SELECT host(client_addr) FROM pg_stat_activity WHERE pid = pg_backend_pid()") == source
            put_to_sleep(server, database)
            ask(connection, "SELECT 1")
            wake = server.view(database.name)["recent_wakes"][0]
            assert (wake["reason"], wake["detail"]) == ("traffic", source)

    def is_logged() -> bool:
        """After it was told; and when many were refused before, there is a line each second only."""
        refusal_of(one.url(database.url).replace(database.password, "wrong"))
        return any(entry["client"] == ONE and database.name in str(entry["who"]) for entry in events(server, "login refused"))

    eventually(is_logged)
    offenders = {(one["address"], one["reason"], one["target"]) for one in server.call("GET", "/v1/host")["refused"]}
    assert (ONE, "wrong_password", database.name) in offenders


def test_a_cancel_request_works_through_a_balancer(server: Server, database: MadeDatabase, one: Balancer) -> None:
    with connect(one.url(database.url)) as connection:
        began = time.monotonic()
        runner, failures = in_thread(lambda: connection.execute("SELECT pg_sleep(20)"))
        eventually(lambda: runs(server, database, "pg_sleep"))
        # Not get_cancel(): it keeps the interpreter, which the balancer's threads need.
        connection.cancel_safe()
        runner.join(40)
        assert isinstance(failures[0], psycopg.errors.QueryCanceled)
        assert in_time(time.monotonic() - began, 10)


def test_strangers_can_not_say_where_they_come_from(server: Server, one: Balancer, database: MadeDatabase) -> None:
    with (
        Balancer(("127.0.0.1", server.door_port), "127.0.0.3", ONE) as liar,
        pytest.raises(psycopg.OperationalError),
    ):
        connect(liar.url(database.url))
    eventually(lambda: any(entry["client"] == "127.0.0.3" for entry in events(server, "login refused")))
    refused = next(entry for entry in events(server, "login refused") if entry["client"] == "127.0.0.3")
    assert refused["error"] == "a PROXY header isn't taken from this address"


def test_wrong_passwords_cost_time_and_wake_nothing(server: Server, database: MadeDatabase, one: Balancer, other: Balancer) -> None:
    put_to_sleep(server, database)
    wrong = one.url(database.url).replace(database.password, "wrong")
    assert refusal_of(wrong)[0] == "28P01"
    began = time.monotonic()
    sqlstate, text = refusal_of(one.url(database.url))
    assert sqlstate == "28T01", text
    assert server.tier(database.name) == "frozen"
    connect(other.url(database.url)).close()  # another address isn't concerned
    eventually(lambda: _logs_in(one.url(database.url)))
    took_s = time.monotonic() - began
    assert took_s > 0.5
    assert in_time(took_s, PENALTY_S + 3)
    assert refusal_of(wrong)[0] == "28P01"  # and it is forgotten
    eventually(lambda: _logs_in(one.url(database.url)))


def test_a_list_ends_the_sessions_that_it_forbids(server: Server, database: MadeDatabase, one: Balancer, other: Balancer) -> None:
    with contextlib.ExitStack() as stack:
        awake, frozen, allowed, busy = (stack.enter_context(connect(balancer.url(database.url))) for balancer in (one, one, other, one))
        second = server.create()
        stack.callback(server.call, "DELETE", f"/v1/databases/{second.name}?force=true")
        asleep = stack.enter_context(connect(one.url(second.url)))
        put_to_sleep(server, second)
        busy.pgconn.send_query(b"SELECT pg_sleep(60)")
        before = len(events(server, "session closed"))
        began = time.monotonic()
        said = torpor(server, "access", "deny", "203.0.113.0/24")
        assert "deny   203.0.113.0/24" in said
        for connection in (awake, frozen, asleep, busy):
            eventually(lambda c=connection: _is_closed(c))  # type: ignore[misc]
        assert in_time(time.monotonic() - began, 3)  # the command line's own start is part of it
        assert ask(allowed, "SELECT 1") == 1
        sqlstate, text = refusal_of(one.url(database.url))
        assert sqlstate == "28000"
        assert "203.0.113.0/24 is on the deny list of this Torpor" in text
        eventually(lambda: len(events(server, "session closed")) >= before + 4)
        closed = events(server, "session closed")[before:]
        assert {entry["client"] for entry in closed} == {ONE}
        assert {entry["database"] for entry in closed} == {database.name, second.name}
        assert {entry["by"] for entry in closed} == {"host"}
        assert len(closed) == 4
        eventually(lambda: server.view(database.name)["database"]["connections"] == 1)
        eventually(lambda: server.view(second.name)["database"]["connections"] == 0)
        assert torpor(server, "access", "remove", "203.0.113.0/24").startswith("no access lists for all databases")
        connect(one.url(database.url)).close()


def test_lists_of_a_database_and_a_workspace(server: Server, database: MadeDatabase, one: Balancer, other: Balancer) -> None:
    torpor(server, "access", "allow", "2001:db8::/32", "--database", database.name)
    assert refusal_of(one.url(database.url))[1].count("it is not on the allow list of the database") == 1
    connect(other.url(database.url)).close()
    torpor(server, "access", "deny", "2001:db8:0:1::/64", "--workspace", "default")
    assert refusal_of(other.url(database.url))[1].count("is on the deny list of the workspace") == 1
    # Over a kill they hold on; a database that is made anew begins without.
    server.kill()
    server.start()
    assert refusal_of(other.url(database.url))[0] == "28000"
    torpor(server, "access", "remove", "2001:db8:0:1::/64", "--workspace", "default")
    connect(other.url(database.url)).close()
    assert refusal_of(one.url(database.url))[0] == "28000"
    name = database.name
    # The session may come to its end more slowly on a busy machine than anybody would wait for.
    eventually(lambda: not server.view(name)["database"]["connections"])
    server.call("DELETE", f"/v1/databases/{name}")
    again = server.create(name)
    connect(one.url(again.url)).close()
    status, error = server.refusal("PUT", f"/v1/databases/{name}/access", {"deny": ["203.0.113.7/24"]})
    assert (status, error["kind"]) == (400, "invalid_request")
    shown = server.call("GET", f"/v1/databases/{name}/access")
    status, error = server.refusal("PUT", f"/v1/databases/{name}/access", {"version": "not this"})
    assert (status, error["kind"]) == (409, "conflict")
    assert shown["version"] == server.call("PUT", f"/v1/databases/{name}/access", {"version": shown["version"]})["version"]


def test_limits_count_true_addresses_exactly_also_after_a_kill(
    server: Server, database: MadeDatabase, one: Balancer, other: Balancer
) -> None:
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(connect(one.url(database.url))) for _ in range(4)]
        sqlstate, text = refusal_of(one.url(database.url))
        assert sqlstate == "53300"
        assert text.startswith(f"there are too many connections from {ONE} (4)")
        connect(other.url(database.url)).close()
        eventually(lambda: metrics(server)["torpor_door_connections"] == 4)
        put_to_sleep(server, database)
        server.kill()
        server.start()
        # The kernel says that they come from the balancer. We know better.
        assert server.tier(database.name) == "frozen"
        assert metrics(server)["torpor_door_connections"] == 4
        assert metrics(server)["torpor_door_addresses"] == 1
        assert refusal_of(one.url(database.url))[0] == "53300"
        connect(other.url(database.url)).close()
        assert [ask(connection, "SELECT 1") for connection in kept] == [1] * 4
        kept[0].close()
        eventually(lambda: _logs_in(one.url(database.url)))
        torpor(server, "access", "deny", ONE)
        for connection in kept[1:]:
            eventually(lambda c=connection: _is_closed(c))  # type: ignore[misc]
        torpor(server, "access", "remove", ONE)
    eventually(lambda: metrics(server)["torpor_door_connections"] == 0)
    eventually(lambda: metrics(server)["torpor_door_addresses"] == 0)
    eventually(lambda: metrics(server)["torpor_door_entering"] == 0)


def test_names_poison_nothing(server: Server, database: MadeDatabase) -> None:
    evil = 'x\x1b[31m\n# HELP forged\nforged 1"} \u202e' + "y" * 200
    for user, wanted in ((evil, database.name), (database.name, evil), (database.name, f"{database.name}.{evil}")):
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(host="127.0.0.1", port=server.door_port, user=user, dbname=wanted, password="x", sslmode="disable")
    eventually(lambda: _logs_in(database.url))
    with psycopg.connect(database.url, application_name=evil[:60], autocommit=True) as connection:
        connection.execute("SELECT 1")
        shown = torpor(server, "top", "--once")
    metrics(server)  # parses
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    log = server.log
    assert "\x1b" not in log
    assert "\u202e" not in log
    for line in log.splitlines():
        if line.startswith("{"):
            json.loads(line)
        assert not line.startswith("forged")
    assert events(server, "login refused")


def _is_closed(connection: "psycopg.Connection[tuple[object, ...]]") -> bool:
    try:
        connection.pgconn.consume_input()
    except psycopg.OperationalError:
        return True
    return connection.pgconn.status != psycopg.pq.ConnStatus.OK


def _logs_in(url: str) -> bool:
    try:
        connect(url).close()
    except psycopg.OperationalError:
        return False
    return True
