"""Branches of databases that are used, asleep, stopped: whole, of their own, and nothing to each other. The parent goes on."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from urllib.error import HTTPError

import psycopg
import pytest

from tests.support.branching import acknowledged, branch, branch_and_check, check_pages, check_prefix, connect, load
from tests.support.faults import assert_nothing_half_made, put_to_sleep, refusal_of, stop_database
from tests.support.server import MadeDatabase, Server

pytestmark = [pytest.mark.integration]

_ROUNDS = 4
_AT_ONCE = 3


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(freeze_after_s=60, page_after_s="never", stop_after_s="never") as server:
        yield server
        assert "Traceback" not in server.log, server.log[-6000:]


@pytest.fixture
def shop(server: Server) -> Iterator[MadeDatabase]:
    made = server.create()
    with connect(made.url) as connection:
        connection.execute("CREATE TABLE things AS SELECT id, md5(id::text) AS note FROM generate_series(1, 500) AS id")
        connection.execute("ALTER TABLE things ADD PRIMARY KEY (id)")
        connection.execute("CREATE ROLE app LOGIN PASSWORD 'app'; GRANT SELECT ON things TO app")
    yield made
    remove(server, made)


def remove(server: Server, database: MadeDatabase) -> None:
    """Whether or not it is there still."""
    try:
        server.call("DELETE", f"/v1/databases/{database.name}?force=true")
    except HTTPError as error:
        with error:
            assert error.code == 404


def things(url: str) -> object:
    with connect(url) as connection:
        return connection.execute("SELECT count(*), current_user::text, current_database()::text FROM things").fetchone()


@pytest.mark.parametrize("tier", ["awake", "frozen", pytest.param("paged", marks=pytest.mark.root), "stopped"])
def test_branch_of_a_database_in_every_tier(server: Server, shop: MadeDatabase, tier: str) -> None:
    """The parent stays where it is, the branch is whole and of its own."""
    if tier == "stopped":
        stop_database(server, shop)
    elif tier != "awake":
        put_to_sleep(server, shop, tier)
    wakes = server.view(shop.name)["database"]["wakes"]
    made = branch(server, shop.name)
    assert server.tier(shop.name) == tier
    assert server.view(shop.name)["database"]["wakes"] == wakes
    assert things(made.url) == (500, made.name, made.name)
    with connect(made.url) as theirs, connect(shop.url) as ours:
        theirs.execute("DELETE FROM things WHERE id <= 100")
        ours.execute("DELETE FROM things WHERE id > 499")
        assert theirs.execute("SELECT count(*) FROM things").fetchone() == (400,)
        assert ours.execute("SELECT count(*) FROM things").fetchone() == (499,)
    remove(server, shop)
    assert things(made.url) == (400, made.name, made.name)
    stop_database(server, made)
    check_pages(server, made)
    remove(server, made)
    assert_nothing_half_made(server)


def test_passwords(server: Server, shop: MadeDatabase) -> None:
    """Who knows those of the parent gets in only where they were kept; the parent's stay."""
    fresh, kept = branch(server, shop.name), branch(server, shop.name, keep_passwords=True)
    assert fresh.password not in ("", shop.password)
    assert kept.password == ""
    for password in (shop.password, "app"):
        assert refusal_of(fresh.url_as(fresh.name, password))[0] == "28P01"
    assert refusal_of(fresh.url_as("app", "app"))[0] == "28P01"
    for role, password in ((kept.name, shop.password), ("app", "app")):
        with connect(kept.url_as(role, password)) as connection:
            assert connection.execute("SELECT count(*) FROM things").fetchone() == (500,)
    for role, password in ((shop.name, shop.password), ("app", "app")):
        connect(shop.url_as(role, password)).close()
    remove(server, fresh)
    remove(server, kept)


def test_every_branch_under_load_holds_a_prefix(server: Server, shop: MadeDatabase) -> None:
    """pgbench and four clients that note each acknowledged commit go on; branches are made several at once, one of them of a branch."""
    with load(shop) as inserters, ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda number: branch_and_check(server, shop, inserters, number % 5 == 0), range(_ROUNDS * _AT_ONCE)))
    with connect(shop.url) as connection:
        check_prefix(connection, acknowledged(inserters), acknowledged(inserters))
    assert_nothing_half_made(server)


def test_reset(server: Server, shop: MadeDatabase) -> None:
    """A branch is again what its parent is now, and stays who it was."""
    made = branch(server, shop.name)
    server.call("PUT", f"/v1/databases/{made.name}/access", {"allow": ["127.0.0.0/8"]})
    with connect(made.url) as connection:
        connection.execute("DELETE FROM things; CREATE TABLE mine (x int)")
    with connect(shop.url) as connection:
        connection.execute("INSERT INTO things SELECT id, 'new' FROM generate_series(501, 510) AS id")
        before = server.view(made.name)["database"]
        put_to_sleep(server, shop)
        view = server.call("POST", f"/v1/databases/{made.name}/reset", {"force": True})
    assert (view["id"], view["parent"]) == (made.id, shop.name)
    assert view["branched_at"] > before["branched_at"]
    assert things(made.url) == (510, made.name, made.name), "with the same password"
    with connect(made.url) as connection, pytest.raises(psycopg.errors.UndefinedTable):
        connection.execute("SELECT * FROM mine")
    assert server.call("GET", f"/v1/databases/{made.name}/access")["allow"] == ["127.0.0.0/8"]
    stop_database(server, made)
    check_pages(server, made)
    # A session that is open is only ended by force.
    with closing(connect(made.url)) as connection:
        status, error = server.refusal("POST", f"/v1/databases/{made.name}/reset", {})
        assert (status, error["kind"]) == (409, "database_in_use")
        assert connection.execute("SELECT 1").fetchone() == (1,)
        server.call("POST", f"/v1/databases/{made.name}/reset", {"force": True})
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    status, error = server.refusal("POST", f"/v1/databases/{shop.name}/reset", {})
    assert (status, error["kind"]) == (409, "conflict")
    assert_nothing_half_made(server)
    remove(server, made)


def test_lineage(server: Server, shop: MadeDatabase) -> None:
    """It is told as long as it is known, and the end of a parent is nothing to its branches."""
    child = branch(server, shop.name, ttl_s=3600)
    grandchild = branch(server, child.name)
    assert server.view(grandchild.name)["lineage"] == [child.name, shop.name]
    assert [one["name"] for one in server.call("GET", f"/v1/databases/{shop.name}/branches")["branches"]] == [child.name]
    view = server.view(child.name)["database"]
    assert 0 < view["expires_at"] - time.time() <= 3600
    assert server.view(grandchild.name)["database"]["expires_at"] is None
    remove(server, child)
    assert server.view(grandchild.name)["lineage"] == [child.id]
    status, error = server.refusal("POST", f"/v1/databases/{grandchild.name}/reset", {})
    assert (status, error["kind"]) == (409, "conflict")
    assert "was removed" in error["message"]
    assert things(grandchild.url) == (500, grandchild.name, grandchild.name)
    remove(server, grandchild)


def test_one_name_is_given_once(server: Server, shop: MadeDatabase) -> None:
    """Of two at once one gets it; a name that something inside has already is told."""

    def ask(_: int) -> int:
        try:
            branch(server, shop.name, "twin")
        except HTTPError as error:
            with error:
                return error.code
        return 201

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(ask, range(2))) == [201, 409]
    server.call("DELETE", "/v1/databases/twin?force=true")
    with connect(shop.url) as connection:
        connection.execute("CREATE DATABASE inside")
    status, error = server.refusal("POST", f"/v1/databases/{shop.name}/branches", {"name": "inside"})
    assert (status, error["kind"]) == (409, "conflict")
    assert "inside" in error["message"]
    assert_nothing_half_made(server)


def test_parent_that_is_removed_meanwhile(server: Server, shop: MadeDatabase) -> None:
    """The branch is whole or not there."""
    parents = [branch(server, shop.name) for _ in range(4)]
    for n, parent in enumerate(parents):
        if n % 2:
            stop_database(server, parent)
        made: list[MadeDatabase] = []
        refused: list[int] = []

        def ask(parent: MadeDatabase = parent, made: list[MadeDatabase] = made, refused: list[int] = refused) -> None:
            try:
                made.append(branch(server, parent.name))
            except HTTPError as error:
                with error:
                    refused.append(error.code)

        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(0.03 * n)
        remove(server, parent)
        thread.join()
        assert len(made) + len(refused) == 1
        assert set(refused) <= {404, 409, 503}
        for one in made:
            assert things(one.url) == (500, one.name, one.name)
            remove(server, one)
    assert_nothing_half_made(server)


def test_two_resets_at_once(server: Server, shop: MadeDatabase) -> None:
    """One is done, the other too or refused; the branch is whole."""
    made = branch(server, shop.name)

    def ask(_: int) -> int:
        try:
            server.call("POST", f"/v1/databases/{made.name}/reset", {"force": True})
        except HTTPError as error:
            with error:
                return error.code
        return 200

    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(ask, range(3)))
    assert 200 in answers
    assert set(answers) <= {200, 409}
    assert things(made.url) == (500, made.name, made.name)
    assert_nothing_half_made(server)
    remove(server, made)
