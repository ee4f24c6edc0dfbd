"""Major upgrades over HTTP: what is refused before anything is asked, and what is passed on."""

import httpx

from tests.unit.api.conftest import TwinDatabases
from torpor.model.sleep import SleepOverrides


async def test_upgrade(client: httpx.AsyncClient, databases: TwinDatabases) -> None:
    await databases.create("shop", 17, SleepOverrides())
    begun = await client.post("/v1/databases/shop/upgrade", json={"to": 18})
    assert (begun.status_code, begun.json()["kind"]) == (202, "upgrade")
    assert (await client.post("/v1/databases/shop/upgrade", json={"to": 18, "check": True})).status_code == 202
    assert (await client.post("/v1/databases/shop/upgrade/undo")).json()["kind"] == "undo"
    assert (await client.post("/v1/databases/other/upgrade", json={"to": 18})).status_code == 404
    for wrong in ({}, {"to": "18"}, {"to": 18, "fast": True}):
        assert (await client.post("/v1/databases/shop/upgrade", json=wrong)).status_code == 400
