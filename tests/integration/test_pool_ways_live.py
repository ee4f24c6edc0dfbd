"""Who is pooled: by what the database is set to, and by the port; and that both outlive branches, restarts and upgrades of Torpor."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.faults import eventually
from tests.support.server import MadeDatabase, Server

pytestmark = pytest.mark.integration

SUPPORT = Path(__file__).parents[1] / "support"
_MODE = "SELECT coalesce(current_setting('torpor.pool', true), 'off')"


@pytest.fixture(scope="module")
def torpor() -> Iterator[Server]:
    with Server(pool_port=0, tls="allow") as server:
        yield server
        assert "Traceback" not in server.log, server.log[-6000:]


def is_pooled(url: str, **options: Any) -> bool:
    """Whether a new connection is."""
    with psycopg.connect(url, autocommit=True, **options) as connection:
        return connection.execute(_MODE).fetchone() == ("on",)


def pool_port(torpor: Server) -> int:
    """As Torpor shows it."""
    shown = torpor.call("GET", "/v1/host")["pool_door"]
    assert f"pooled     {shown}" in torpor.log
    return int(shown.rpartition(":")[2])


def at_pool_port(torpor: Server, database: MadeDatabase) -> str:
    """Its URL there."""
    return database.url.replace(f":{torpor.door_port}/", f":{pool_port(torpor)}/")


def test_a_database_is_set_to_auto(torpor: Server) -> None:
    made = torpor.create(pool={"mode": "auto", "size": 1})
    assert torpor.view(made.name)["database"]["pool_mode"] == "auto"
    assert not is_pooled(made.url, options="pool=off")
    with psycopg.connect(made.url, autocommit=True) as one, psycopg.connect(made.url, autocommit=True) as two:
        assert one.execute(_MODE).fetchone() == ("on",)
        assert one.execute("SELECT pg_backend_pid()").fetchone() == two.execute("SELECT pg_backend_pid()").fetchone()
        one.execute("CREATE TEMPORARY TABLE mine (a integer)")
        assert one.execute("SELECT count(*) FROM mine").fetchone() == (0,)
        pinned = eventually(lambda: (torpor.view(made.name)["database"]["pool"] or {}).get("pinned_clients", []))
        assert [each["because"] for each in pinned] == ["CREATE TEMPORARY"]
        torpor.call("PATCH", f"/v1/databases/{made.name}", {"pool": {"mode": "off"}})
        assert one.execute("SELECT count(*) FROM mine").fetchone() == (0,), "it holds for new connections"
        assert not is_pooled(made.url)
        assert is_pooled(made.url, options="pool=auto")
    torpor.call("PATCH", f"/v1/databases/{made.name}", {"pool": {"mode": None, "size": None}})
    assert not is_pooled(made.url)


def test_migrations_just_work_where_all_is_auto(torpor: Server) -> None:
    """Django's; Drizzle's are in test_drivers_elsewhere.py."""
    made = torpor.create(pool={"mode": "auto"})
    command: list[str | Path] = [sys.executable, SUPPORT / "django_migrations.py", made.url]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr
    assert eventually(lambda: torpor.view(made.name)["database"]["pool"])["transactions"] > 0


def test_a_branch_is_pooled_as_its_parent(torpor: Server) -> None:
    made = torpor.create(pool={"mode": "auto", "queue": 5})
    branched = torpor.call("POST", f"/v1/databases/{made.name}/branches", {})
    shown = torpor.view(branched["database"]["name"])
    assert shown["pool_policy"] == {"mode": "auto", "size": 20, "role_size": 0, "queue": 5}
    assert is_pooled(branched["credentials"]["url"])


def test_every_connection_at_the_pools_port_is_pooled(torpor: Server) -> None:
    made = torpor.create()
    url = at_pool_port(torpor, made)
    assert not is_pooled(made.url)
    assert is_pooled(url) and is_pooled(url, sslmode="require") and is_pooled(url, options="pool=auto")
    with pytest.raises(psycopg.OperationalError, match="pool=off"):
        psycopg.connect(url, options="pool=off")
    with psycopg.connect(url, autocommit=True) as one:
        timer = threading.Timer(0.3, one.cancel_safe)
        timer.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            one.execute("SELECT pg_sleep(600)")
        timer.join()


def test_a_database_cannot_be_called_as_the_pool_of_another(torpor: Server) -> None:
    made = torpor.create()
    name = f"{made.name}-pooler"
    status, error = torpor.refusal("POST", "/v1/databases", {"name": name})
    assert (status, error["kind"]) == (400, "invalid_name") and f'pool of "{made.name}"' in error["message"]
    status, _ = torpor.refusal("POST", f"/v1/databases/{made.name}/branches", {"name": name})
    assert status == 400


def test_both_outlive_a_take_over_and_a_restart(torpor: Server) -> None:
    made = torpor.create(pool={"mode": "auto", "role_size": 3})
    url, port = at_pool_port(torpor, made), pool_port(torpor)
    assert torpor.take_over() == 0
    assert pool_port(torpor) == port
    assert is_pooled(url) and is_pooled(made.url)
    torpor.stop()
    torpor.settings["pool_port"] = port
    torpor.start()
    assert pool_port(torpor) == port
    assert is_pooled(url) and is_pooled(made.url)
    assert torpor.view(made.name)["pool_overrides"] == {"mode": "auto", "size": None, "role_size": 3, "queue": None}
