"""Real drivers log in, against the twin's backend."""

import asyncio
import sys
from typing import Any

import asyncpg
import pg8000.native
import psycopg
import pytest

from tests.unit.door.twin import PASSWORD, Twin, open_door
from torpor.door.listener import Door

WRONG = "not it"


def arguments(door: Door, user: str, password: str, database: str) -> dict[str, Any]:
    host, port = door.address
    return {"host": host, "port": port, "user": user, "password": password, "database": database}


def with_psycopg(door: Door, user: str, password: str, database: str, **more: Any) -> None:
    given = arguments(door, user, password, database)
    given["dbname"] = given.pop("database")
    psycopg.connect(**given, **more, connect_timeout=40).close()


def with_pg8000(door: Door, user: str, password: str, database: str) -> None:
    pg8000.native.Connection(**arguments(door, user, password, database), timeout=60).close()


async def with_asyncpg(door: Door, user: str, password: str, database: str) -> None:
    connection = await asyncpg.connect(**arguments(door, user, password, database), timeout=60)
    connection.terminate()


async def connect(driver: str, door: Door, user: str = "app", password: str = PASSWORD, database: str = "shop") -> None:
    if driver == "asyncpg":
        await with_asyncpg(door, user, password, database)
    else:
        await asyncio.to_thread(with_psycopg if driver == "psycopg" else with_pg8000, door, user, password, database)


DRIVERS = ["psycopg", "asyncpg", "pg8000"]


@pytest.mark.parametrize("relay", [False, True])
@pytest.mark.parametrize("user", ["app", "old"])
@pytest.mark.parametrize("database", ["shop", "blog"])
@pytest.mark.parametrize("driver", DRIVERS)
async def test_drivers_log_in(driver: str, database: str, user: str, relay: bool) -> None:
    twin = Twin()
    async with open_door(twin, relay=relay) as door:
        await connect(driver, door, user, database=database)
        assert len(twin.computes[database].sessions) == 1


@pytest.mark.parametrize(
    ("user", "password", "database", "text"),
    [
        ("app", WRONG, "shop", 'password authentication failed for user "app"'),
        ("old", WRONG, "shop", 'password authentication failed for user "old"'),
        ("stranger", PASSWORD, "shop", 'password authentication failed for user "stranger"'),
        ("nologin", PASSWORD, "shop", 'role "nologin" is not permitted to log in'),
        ("app", PASSWORD, "nowhere", 'database "nowhere" does not exist'),
    ],
)
@pytest.mark.parametrize("driver", DRIVERS)
async def test_drivers_understand_refusals(driver: str, user: str, password: str, database: str, text: str) -> None:
    twin = Twin()
    async with open_door(twin) as door:
        with pytest.raises((psycopg.OperationalError, asyncpg.PostgresError, pg8000.native.DatabaseError)) as caught:
            await connect(driver, door, user, password, database)
        assert text in str(caught.value)
        assert twin.wakes == []


@pytest.mark.parametrize("version", ["3.0", "3.2", "latest"])
@pytest.mark.parametrize("database", ["shop", "blog"])
async def test_libpq_agrees_on_every_protocol_version(version: str, database: str) -> None:
    twin = Twin()
    async with open_door(twin) as door:
        await asyncio.to_thread(with_psycopg, door, "app", PASSWORD, database, max_protocol_version=version)
        (session,) = twin.computes[database].sessions
        assert session.startup.minor == (2 if database == "shop" and version != "3.0" else 0)


@pytest.mark.parametrize("options", ["endpoint=shop", "--cluster=shop", "-c geqo=off endpoint=shop"])
async def test_libpq_routes_by_options(options: str) -> None:
    twin = Twin()
    async with open_door(twin) as door:
        await asyncio.to_thread(with_psycopg, door, "app", PASSWORD, "inner", options=options)
        (session,) = twin.shop.sessions
        assert session.startup.parameters["database"] == "inner"
        assert session.startup.parameters.get("options") == ("-c geqo=off" if "geqo" in options else None)


async def test_libpq_that_requires_scram_or_refuses_to_go_without_encryption_says_why() -> None:
    async with open_door(Twin()) as door:
        await asyncio.to_thread(with_psycopg, door, "app", PASSWORD, "shop", require_auth="scram-sha-256")
        with pytest.raises(psycopg.OperationalError, match="server does not support SSL"):
            await asyncio.to_thread(with_psycopg, door, "app", PASSWORD, "shop", sslmode="require")
        with pytest.raises(psycopg.OperationalError, match="handshake"):
            await asyncio.to_thread(with_psycopg, door, "app", PASSWORD, "shop", sslmode="require", sslnegotiation="direct")
        with pytest.raises(psycopg.OperationalError, match=r"channel binding"):
            await asyncio.to_thread(with_psycopg, door, "app", PASSWORD, "shop", channel_binding="require")


async def test_libpq_pings_without_logging_in() -> None:
    async with open_door(Twin()) as door:
        host, port = door.address
        # In a process of its own: psycopg pings with the interpreter locked, and the door would never get to answer.
        script = f"import psycopg.pq; print(psycopg.pq.PGconn.ping('host={host} port={port} dbname=shop user=app'.encode()) == 0)"
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
        assert output == b"True\n"
