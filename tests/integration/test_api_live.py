"""The HTTP verbs against real databases: what they answer is what then is."""

import contextlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.faults import eventually, put_to_sleep, refusal_of, stop_database
from tests.support.pace import in_time
from tests.support.server import MadeDatabase, Server


@pytest.fixture
def database(torpor: Server) -> Iterator[MadeDatabase]:
    made = torpor.create()
    yield made
    with contextlib.suppress(HTTPError):
        torpor.call("DELETE", f"/v1/databases/{made.name}?force=true")


def connect(url: str) -> "psycopg.Connection[tuple[object, ...]]":
    return psycopg.connect(url, autocommit=True, connect_timeout=40)


def get(server: Server, path: str) -> str:
    with urlopen(Request(server.api_url + path, headers={"Authorization": f"Bearer {server.token}"}), timeout=60) as answer:
        text: str = answer.read().decode()
        return text


# -- making and removing


def test_created_database_is_what_the_answer_says(torpor: Server) -> None:
    made = torpor.call("POST", "/v1/databases", {"name": "answered", "freeze_after_s": 30, "stop_after_s": "never"})
    view, credentials = made["database"], made["credentials"]
    assert (view["name"], view["tier"], view["connections"]) == ("answered", "awake", 0)
    with connect(credentials["url"]) as connection:
        who = connection.execute("SELECT current_user, current_database(), current_setting('server_version_num')::int / 10000").fetchone()
        assert who == (credentials["role"], "answered", view["major"])
        row = connection.execute("SELECT rolsuper, rolcreatedb, rolcreaterole FROM pg_roles WHERE rolname = current_user").fetchone()
        assert row == (False, True, True)
        owner = connection.execute("SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'answered'").fetchone()
        assert owner == ("answered",)
        # Of the warm pool nothing remains to be seen.
        assert connection.execute("SELECT count(*) FROM pg_roles WHERE rolname = 'warm'").fetchone() == (0,)
    detail = torpor.view("answered")
    assert detail["overrides"] == {"freeze_after_s": 30, "page_after_s": None, "stop_after_s": "never"}
    assert detail["database"]["url"] == credentials["url"].replace(f":{credentials['password']}@", "@")
    torpor.call("DELETE", "/v1/databases/answered?force=true")


@pytest.mark.parametrize(
    "name",
    ["", "Shop", "1shop", "-shop", "shop-", "sh_op", "shöp", "a" * 64, "postgres", "torpor", "pg-x", "replication", "a.b", "a b", "../x"],
)
def test_bad_names_are_refused(torpor: Server, name: str) -> None:
    before = torpor.call("GET", "/v1/host")["databases"]
    status, error = torpor.refusal("POST", "/v1/databases", {"name": name})
    assert status == 400
    assert error["kind"] in ("invalid_name", "invalid_request")
    assert error["message"]
    assert torpor.call("GET", "/v1/host")["databases"] == before


def test_longest_and_shortest_name(torpor: Server) -> None:
    for name in ("a", "b" + "-" * 61 + "c"):
        database = torpor.create(name)
        with connect(database.url) as connection:
            assert connection.execute("SELECT current_database()").fetchone() == (name,)
        torpor.call("DELETE", f"/v1/databases/{name}?force=true")


def test_of_many_creates_of_one_name_one_wins(torpor: Server) -> None:
    def create(_: int) -> tuple[int, object]:
        try:
            return 201, torpor.create("wanted")
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(create, range(8)))
    winners = [made for status, made in answers if status == 201]
    assert len(winners) == 1
    assert all(status == 409 and "database_exists" in str(text) for status, text in answers if status != 201)
    (winner,) = winners
    assert isinstance(winner, MadeDatabase)
    with connect(winner.url) as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("wanted",)
    torpor.call("DELETE", "/v1/databases/wanted?force=true")

    def only_the_pool_is_left() -> bool:
        ids = {database["id"] for database in torpor.call("GET", "/v1/databases?limit=1000")["databases"]}
        volumes = {path.name for path in (torpor.data_dir / "volumes").iterdir()} - {".templates"}
        return bool(len(volumes - ids) == torpor.call("GET", "/v1/host")["warm"] == torpor.settings["warm_pool_size"])

    eventually(only_the_pool_is_left)  # the losers left nothing


@pytest.mark.slow
def test_twenty_creates_at_once(torpor: Server) -> None:
    with ThreadPoolExecutor(20) as pool:
        made = list(pool.map(lambda _: torpor.create(), range(20)))
    assert len({database.name for database in made}) == len({database.id for database in made}) == 20
    for database in made:
        with connect(database.url) as connection:
            assert connection.execute("SELECT current_database()").fetchone() == (database.name,)
    owners = {(torpor.data_dir / "volumes" / database.id).stat().st_uid for database in made}
    assert len(owners) == (20 if os.geteuid() == 0 else 1)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda d: torpor.call("DELETE", f"/v1/databases/{d.name}?force=true"), made))


def test_deleting_asks_before_it_ends_connections(torpor: Server, database: MadeDatabase) -> None:
    path = f"/v1/databases/{database.name}"
    with connect(database.url) as connection:
        status, error = torpor.refusal("DELETE", path)
        assert (status, error["kind"]) == (409, "database_in_use")
        assert connection.execute("SELECT 1").fetchone() == (1,)
        torpor.call("DELETE", f"{path}?force=true")
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    assert not (torpor.data_dir / "volumes" / database.id).exists()
    assert not (torpor.data_dir / "run" / database.id).exists()
    for method, tail in (("GET", ""), ("DELETE", ""), ("POST", "/wake"), ("GET", "/wakes"), ("GET", "/logs")):
        status, error = torpor.refusal(method, path + tail)
        assert (status, error["kind"]) == (404, "database_not_found")
    assert refusal_of(database.url)[0] == "3D000"
    again = torpor.create(database.name)
    assert again.id != database.id
    assert refusal_of(database.url)[0] == "28P01"  # the old password is not the new one's
    connect(again.url).close()


@pytest.mark.parametrize("tier", ["awake", "frozen"])
def test_deleting_waits_for_sessions_that_are_just_ending(torpor: Server, tier: str) -> None:
    """The client knows that it has closed its connection before the backend, and so Torpor, does."""
    for _ in range(3):
        database = torpor.create()
        with connect(database.url), connect(database.url) as connection:
            connection.execute("CREATE TEMP TABLE takes AS SELECT generate_series(1, 10000)")
            if tier == "frozen":
                put_to_sleep(torpor, database)
        torpor.call("DELETE", f"/v1/databases/{database.name}")


@pytest.mark.parametrize("tier", ["frozen", "stopped"])
def test_sleeper_is_deleted_without_waking(torpor: Server, database: MadeDatabase, tier: str) -> None:
    def wakes() -> int:
        return sum(f"database={database.name} tier=awake" in line for line in torpor.log.splitlines())

    put_to_sleep(torpor, database, tier)
    before = wakes()
    assert before
    torpor.call("DELETE", f"/v1/databases/{database.name}")
    assert wakes() == before
    assert not (torpor.data_dir / "volumes" / database.id).exists()


# -- sleeping and waking


def test_new_idle_times_take_effect_at_once(torpor: Server) -> None:
    database = torpor.create(freeze_after_s="never")
    path = f"/v1/databases/{database.name}"
    time.sleep(1.5)
    assert torpor.tier(database.name) == "awake"
    detail = torpor.call("PATCH", path, {"freeze_after_s": 0.3})
    assert detail["policy"]["freeze_after_s"] == 0.3
    assert in_time(torpor.wait_tier(database.name, "frozen"), 2.5)
    assert torpor.view(database.name)["next_step"] is None
    torpor.call("PATCH", path, {"stop_after_s": 0.2})
    assert in_time(torpor.wait_tier(database.name, "stopped"), 4)
    detail = torpor.call("PATCH", path, {"freeze_after_s": None, "stop_after_s": None})
    assert detail["overrides"] == {"freeze_after_s": None, "page_after_s": None, "stop_after_s": None}
    assert detail["policy"]["stop_after_s"] is None
    for wrong in ({"freeze_after_s": 0}, {"freeze_after_s": "soon"}, {"page_after_s": True}, {"idle": 3}):
        assert torpor.refusal("PATCH", path, wrong)[0] == 400
    torpor.call("DELETE", path)


@pytest.mark.root
def test_new_idle_time_pages_out_at_once(torpor: Server, database: MadeDatabase) -> None:
    torpor.wait_tier(database.name, "frozen")
    torpor.call("PATCH", f"/v1/databases/{database.name}", {"page_after_s": 0.2})
    assert in_time(torpor.wait_tier(database.name, "paged"), 4)


def test_wake_answers_with_its_trace(torpor: Server, database: MadeDatabase) -> None:
    path = f"/v1/databases/{database.name}"
    torpor.call("PATCH", path, {"freeze_after_s": 300})  # else it may be asleep again when it is asked once more
    put_to_sleep(torpor, database, "stopped")
    wake = torpor.call("POST", f"{path}/wake")["wake"]
    assert (wake["reason"], wake["tier"]) == ("api", "stopped")
    assert [step["name"] for step in wake["steps"]] == ["queue", "prepare", "spawn", "enter", "ready"]
    assert sum(step["elapsed_ms"] for step in wake["steps"]) <= wake["elapsed_ms"] + 0.1
    assert torpor.call("POST", f"{path}/wake")["wake"] is None
    assert torpor.call("GET", f"{path}/wakes?limit=1")["wakes"] == [wake]
    assert torpor.view(database.name)["database"]["last_wake"] == wake


def test_list_knows_tiers_pages_and_search(torpor: Server) -> None:
    made = [torpor.create(f"listed-{number}") for number in range(3)]
    put_to_sleep(torpor, made[1], "stopped")
    page = torpor.call("GET", "/v1/databases?search=listed-&limit=2")
    assert ([d["name"] for d in page["databases"]], page["next"]) == (["listed-0", "listed-1"], "listed-1")
    page = torpor.call("GET", "/v1/databases?search=listed-&limit=2&after=listed-1")
    assert ([d["name"] for d in page["databases"]], page["next"]) == (["listed-2"], None)
    stopped = torpor.call("GET", "/v1/databases?search=listed-&tier=stopped")["databases"]
    assert [d["name"] for d in stopped] == ["listed-1"]
    for database in made:
        torpor.call("DELETE", f"/v1/databases/{database.name}")


# -- passwords


@pytest.mark.parametrize("tier", ["awake", "frozen", "stopped"])
def test_reset_password_counts_at_once(torpor: Server, database: MadeDatabase, tier: str) -> None:
    with contextlib.ExitStack() as kept:
        open_connection = None
        if tier == "stopped":
            stop_database(torpor, database)
        else:
            open_connection = kept.enter_context(connect(database.url))
            if tier == "frozen":
                put_to_sleep(torpor, database)
        fresh = torpor.call("POST", f"/v1/databases/{database.name}/password")
        assert refusal_of(database.url)[0] == "28P01"
        connect(fresh["url"]).close()
        if open_connection is not None:
            assert open_connection.execute("SELECT 1").fetchone() == (1,)
    stop_database(torpor, database)
    assert refusal_of(database.url)[0] == "28P01"
    connect(fresh["url"]).close()


def test_ticket_works_beside_the_password_and_wakes_nothing(torpor: Server, database: MadeDatabase) -> None:
    stop_database(torpor, database)
    wakes = torpor.view(database.name)["database"]["wakes"]
    ticket = torpor.call("POST", f"/v1/databases/{database.name}/tickets")
    after = torpor.view(database.name)["database"]
    assert (after["tier"], after["wakes"]) == ("stopped", wakes)
    assert 50 < ticket["expires_at"] - time.time() <= 60
    assert ticket["password"] != database.password
    connect(ticket["url"]).close()
    connect(database.url).close()
    with connect(database.url) as connection:
        connection.execute("CREATE ROLE app LOGIN PASSWORD 'app'")
    assert refusal_of(database.url_as("app", ticket["password"]))[0] == "28P01"  # it is the owner's alone


# -- logs and metrics


def test_followed_log_tells_what_happens(torpor: Server, database: MadeDatabase) -> None:
    request = Request(
        f"{torpor.api_url}/v1/databases/{database.name}/logs?follow=true&lines=0", headers={"Authorization": f"Bearer {torpor.token}"}
    )
    with urlopen(request, timeout=60) as stream, connect(database.url) as connection:
        with pytest.raises(psycopg.errors.UndefinedTable):
            connection.execute("SELECT * FROM nowhere_to_be_found")
        while "nowhere_to_be_found" not in (line := stream.readline().decode()):
            assert line
    assert f"{database.name}@{database.name}" in line
    assert "nowhere_to_be_found" in get(torpor, f"/v1/databases/{database.name}/logs?lines=20")


def test_metrics_parse_and_count_wakes(torpor: Server, database: MadeDatabase) -> None:
    def samples() -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        families = text_string_to_metric_families(get(torpor, "/metrics"))
        return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}

    labels = {("tier", "stopped"), ("reason", "connection")}
    key = ("torpor_wake_duration_ms_count", frozenset(labels))
    below_a_minute = ("torpor_wake_duration_ms_bucket", frozenset(labels | {("le", "+Inf")}))
    stop_database(torpor, database)
    before = samples()
    with connect(database.url):
        after = samples()
        assert after[key] == before.get(key, 0) + 1
        assert after[below_a_minute] == after[key]
        own = frozenset({("database", database.name)})
        assert after["torpor_database_connections", own] == 1
        assert after["torpor_database_memory_bytes", own] > 0
    handed = ("torpor_door_logins_total", frozenset({("outcome", "handed_over")}))
    assert after[handed] == before.get(handed, 0) + 1
    buckets = sorted(float(dict(label)["le"]) for name, label in after if name == "torpor_wake_duration_ms_bucket" and labels <= label)
    assert buckets == [*(2.0**n for n in range(13)), float("inf")]
