"""Exports over HTTP: what is asked for, what comes, and how one ends."""

import asyncio
from typing import Any

import httpx
import pytest

from tests.unit.api.conftest import Desk, TwinDatabases
from torpor.model.errors import DumpFailed
from torpor.model.workspace import AccessScope

PATH = "/v1/databases/shop/export"


async def closed(databases: TwinDatabases) -> int:
    """How often the newest export was closed, once that is known."""
    for _ in range(3000):
        if databases.exports[-1].closed:
            break
        await asyncio.sleep(0.01)
    return databases.exports[-1].closed


async def test_an_export_comes_as_it_is_made(client: httpx.AsyncClient, databases: TwinDatabases, desk: Desk) -> None:
    await client.post("/v1/databases", json={"name": "shop"})
    answer = await client.post(PATH, json={"format": "custom", "schema_only": True})
    assert answer.status_code == 200
    assert answer.content == b"--format=custom --no-owner --no-privileges --schema-only" * 3 + b" end"
    assert await closed(databases) == 1
    assert (await client.post(PATH, json={"owners": True})).content == b"--format=plain" * 3 + b" end"
    record = next(one for one in desk.records() if one.action == "database.export")
    assert (record.target, record.detail) == ("shop", "format=custom, schema_only=True")


@pytest.mark.parametrize("body", [{"schema_only": True, "data_only": True}, {"format": "tar"}, {"format": "plain; id"}, {"role": "x"}])
async def test_what_can_not_be_asked_for(client: httpx.AsyncClient, databases: TwinDatabases, body: Any) -> None:
    await client.post("/v1/databases", json={"name": "shop"})
    answer = await client.post(PATH, json=body)
    assert (answer.status_code, answer.json()["error"]["kind"]) == (400, "invalid_request")
    assert databases.exports == []


async def test_one_that_fails_in_its_middle_is_not_taken_for_whole(client: httpx.AsyncClient, databases: TwinDatabases, capfd: Any) -> None:
    await client.post("/v1/databases", json={"name": "shop"})
    databases.lets_go = False
    with pytest.raises(httpx.RemoteProtocolError):
        async with client.stream("POST", PATH) as answer:
            databases.exports[-1].failure = DumpFailed("it went away")
            databases.exports[-1].go.set()
            async for _ in answer.aiter_raw():
                pass
    assert await closed(databases) == 1
    assert (await client.get("/v1/host")).status_code == 200
    said = capfd.readouterr().err
    assert "it went away" in said and "Traceback" not in said


async def test_it_ends_when_its_client_leaves(client: httpx.AsyncClient, databases: TwinDatabases) -> None:
    await client.post("/v1/databases", json={"name": "shop"})
    databases.lets_go = False
    async with client.stream("POST", PATH) as answer:
        await anext(answer.aiter_raw())
        assert databases.exports[-1].closed == 0
    assert await closed(databases) == 1


async def test_readers_export_nothing(client: httpx.AsyncClient, databases: TwinDatabases, desk: Desk) -> None:
    await client.post("/v1/databases", json={"name": "shop"})
    headers = {"Authorization": f"Bearer {desk.key(AccessScope.READ).secret}"}
    assert (await client.post(PATH, headers=headers)).status_code == 403
    assert databases.exports == []
