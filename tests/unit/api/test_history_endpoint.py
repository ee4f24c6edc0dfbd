"""Histories over HTTP: what is refused before anything is asked, and what is passed on."""

import httpx

from tests.unit.api.conftest import Desk, TwinDatabases
from torpor.model.sleep import SleepOverrides


async def test_of_a_database(client: httpx.AsyncClient, databases: TwinDatabases) -> None:
    await databases.create("shop", None, SleepOverrides())
    assert (await client.get("/v1/databases/shop/history")).json()["bases"] == 8
    assert (await client.get("/v1/databases/shop/backups")).json()["bases"][0]["number"] == 8
    assert (await client.post("/v1/databases/shop/backups")).status_code == 202
    assert (await client.get("/v1/databases/other/history")).status_code == 404


async def test_retention_is_changed_in_parts(client: httpx.AsyncClient, databases: TwinDatabases) -> None:
    await databases.create("shop", None, SleepOverrides())
    path = "/v1/databases/shop/history"
    assert (await client.patch(path, json={"keep_days": 2})).json()["keep_s"] == 2 * 86_400
    kept = (await client.patch(path, json={"keep_bases": 4})).json()
    assert (kept["keep_s"], kept["keep_bases"]) == (2 * 86_400, 4)
    assert (await client.patch(path, json={"keep_days": None})).json()["keep_s"] == 7 * 86_400
    for wrong in ({"keep_days": -1}, {"keep_bases": 0}, {"keep": 1}):
        assert (await client.patch(path, json=wrong)).status_code == 400


async def test_moments(client: httpx.AsyncClient, databases: TwinDatabases) -> None:
    await databases.create("shop", None, SleepOverrides())
    begun = await client.post("/v1/databases/shop/branches/past", json={"name": "then", "lsn": "0/16B3748"})
    assert (begun.status_code, begun.json()["name"]) == (202, "then")
    assert (await client.post("/v1/databases/shop/restore", json={"at": 1.0})).status_code == 202
    assert (await client.post("/v1/databases/shop/restore/undo")).json()["kind"] == "undo"
    for wrong in ({}, {"at": 1.0, "lsn": "0/0"}, {"lsn": "nowhere"}, {"before_transaction": 1}):
        assert (await client.post("/v1/databases/shop/restore", json=wrong)).status_code == 400


async def test_a_sleep_leaves_nothing_behind(client: httpx.AsyncClient, desk: Desk, databases: TwinDatabases) -> None:
    made = await databases.create("shop", None, SleepOverrides())
    await client.post("/v1/databases/shop/sleep", json={"tier": "frozen"})
    assert desk.histories.asked == [("before_sleep", made.database.id), ("settle", made.database.id)]


async def test_without_histories(client: httpx.AsyncClient, desk: Desk, databases: TwinDatabases) -> None:
    await databases.create("shop", None, SleepOverrides())
    desk.services.histories = None
    answer = await client.get("/v1/databases/shop/history")
    assert (answer.status_code, answer.json()["error"]["kind"]) == (409, "conflict")
    assert "history_store" in answer.json()["error"]["hint"]
    assert (await client.post("/v1/databases/shop/sleep", json={"tier": "frozen"})).status_code == 200
