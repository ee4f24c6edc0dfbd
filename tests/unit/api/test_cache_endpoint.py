"""The cache of a database by the API: shown, changed, purged; who may; what the audit log says."""

import httpx
import pytest

from tests.unit.api.conftest import Desk
from tests.unit.api.test_operations import make, refused
from torpor.model.cache import PurgeBy
from torpor.model.fingerprint import fingerprint

STATEMENT = "SELECT * FROM users WHERE id = 1"


async def test_rules_and_on_write_are_changed_and_shown(client: httpx.AsyncClient) -> None:
    await make(client, name="shop")
    assert (await client.get("/v1/databases/shop/cache")).json()["on_write"] is False
    assert (await client.patch("/v1/databases/shop/cache", json={"on_write": True})).json()["on_write"] is True
    changed = await client.put("/v1/databases/shop/cache/rules", json={"statement": STATEMENT, "words": "ttl=60"})
    digits = fingerprint(STATEMENT.encode())
    assert changed.json()["rules"] == [{"fingerprint": digits, "words": "ttl=60", "statement": STATEMENT}]
    shown = (await client.get("/v1/databases/shop/cache")).json()
    assert (shown["on_write"], len(shown["rules"]), shown["figures"]["hits"]) == (True, 1, 0)
    assert (await client.delete(f"/v1/databases/shop/cache/rules/{digits}")).json()["rules"] == []


async def test_purges_are_recorded_and_not_counted_against_a_rate(client: httpx.AsyncClient, desk: Desk) -> None:
    await make(client, name="shop")
    answer = await client.post("/v1/databases/shop/cache/purge", json={"by": "table", "values": ["users", "audit.log"]})
    assert answer.json() == {"dropped": 3}
    assert (await client.post("/v1/databases/shop/cache/purge", json={"by": "all"})).json() == {"dropped": 3}
    assert desk.caching.purged == [(PurgeBy.TABLE, ("users", "audit.log")), (PurgeBy.ALL, ())]
    said = [record.detail for record in desk.records() if record.action == "cache.purge" and "dropped" in record.detail]
    assert len(said) == 2 and all("dropped=3" in detail for detail in said)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "", {}),
        ("PATCH", "", {"on_write": "yes"}),
        ("PUT", "/rules", {"statement": STATEMENT}),
        ("POST", "/purge", {"by": "name", "values": ["x"]}),
        ("POST", "/purge", {"by": "tag", "values": "users"}),
    ],
)
async def test_bad_bodies_are_refused(client: httpx.AsyncClient, method: str, path: str, body: object) -> None:
    await make(client, name="shop")
    refused(await client.request(method, f"/v1/databases/shop/cache{path}", json=body), 400, "invalid_request")


async def test_a_database_that_is_not_there(client: httpx.AsyncClient) -> None:
    refused(await client.get("/v1/databases/nowhere/cache"), 404, "database_not_found")
    refused(await client.post("/v1/databases/nowhere/cache/purge", json={"by": "all"}), 404, "database_not_found")
