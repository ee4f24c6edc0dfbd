"""The pool of a database by the API: changed part by part, null goes back, and what is out of range is refused by name."""

import httpx

from tests.unit.api.test_operations import make, refused


async def test_a_pool_is_set_and_changed_part_by_part(client: httpx.AsyncClient) -> None:
    await make(client, name="shop", pool={"mode": "auto", "size": 5})
    shown = (await client.get("/v1/databases/shop")).json()
    assert shown["pool_overrides"] == {"mode": "auto", "size": 5, "role_size": None, "queue": None}
    changed = (await client.patch("/v1/databases/shop", json={"pool": {"size": None, "queue": 7}})).json()
    assert changed["pool_overrides"] == {"mode": "auto", "size": None, "role_size": None, "queue": 7}
    assert changed["pool_policy"] == {"mode": "auto", "size": 20, "role_size": 0, "queue": 7}
    same = (await client.patch("/v1/databases/shop", json={"freeze_after_s": 9})).json()
    assert same["pool_overrides"] == changed["pool_overrides"]


async def test_what_is_out_of_range_is_refused(client: httpx.AsyncClient) -> None:
    await make(client, name="shop")
    for pool in ({"mode": "on"}, {"size": 0}, {"queue": -1}, {"role_size": 10_001}, {"sizes": 1}):
        refused(await client.patch("/v1/databases/shop", json={"pool": pool}), 400, "invalid_request")
