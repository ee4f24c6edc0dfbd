"""What is in the store and not here, over HTTP: what is refused before anything is asked, and what is passed on."""

import httpx

from tests.unit.api.conftest import Desk, TwinDatabases
from torpor.model.sleep import SleepOverrides

PATH = "/v1/recovery"


async def test_list_and_recover(client: httpx.AsyncClient, desk: Desk) -> None:
    assert (await client.get(PATH)).json()["databases"][0]["name"] == "shop"
    begun = await client.post(PATH, json={"database": "shop", "name": "shop-2", "at": 1.0})
    assert (begun.status_code, begun.json()["name"], begun.json()["job"]["kind"]) == (202, "shop-2", "recover")
    assert (await client.post(PATH, json={"database": "other"})).status_code == 404
    for wrong in ({}, {"database": "shop", "at": 1.0, "lsn": "0/0"}, {"database": "s" * 64}, {"database": "shop", "force": True}):
        assert (await client.post(PATH, json=wrong)).status_code == 400
    records = [(one.action, one.target) for one in desk.records()]
    assert ("database.recover", "shop") in records


async def test_forget(client: httpx.AsyncClient, desk: Desk) -> None:
    assert (await client.post(f"{PATH}/forget", json={"database": "shop", "force": True})).status_code == 204
    assert desk.recovery.forgotten == [("shop", True)]
    assert ("database.forget", "shop") in [(one.action, one.target) for one in desk.records()]


async def test_without_a_store(client: httpx.AsyncClient, desk: Desk) -> None:
    desk.services.recovery = None
    answer = await client.get(PATH)
    assert (answer.status_code, "history_store" in answer.json()["error"]["hint"]) == (409, True)


async def test_a_removal_that_leaves_keys_in_the_store_says_so(client: httpx.AsyncClient, desk: Desk, databases: TwinDatabases) -> None:
    for name, has_keys in (("shop", False), ("other", True)):
        await databases.create(name, None, SleepOverrides())
        desk.recovery.has_keys = has_keys
        assert (await client.delete(f"/v1/databases/{name}?force=true")).status_code == 204
    details = {one.target: one.detail for one in desk.records() if one.action == "database.delete"}
    assert "the store still has its keys" not in details["shop"]
    assert "the store still has its keys" in details["other"]
