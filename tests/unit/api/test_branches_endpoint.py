"""Branches over HTTP: what is asked, answered, refused and recorded."""

import httpx
import pytest

from tests.unit.api.conftest import Desk
from torpor.model.workspace import AccessScope


@pytest.fixture
async def shop(client: httpx.AsyncClient) -> None:
    assert (await client.post("/v1/databases", json={"name": "shop"})).status_code == 201


@pytest.mark.usefixtures("shop")
async def test_a_branch_is_made_listed_and_reset(client: httpx.AsyncClient, desk: Desk) -> None:
    made = await client.post("/v1/databases/shop/branches", json={"name": "shop-try", "ttl_s": 3600})
    assert made.status_code == 201
    assert made.headers["location"] == "/v1/databases/shop-try"
    assert made.json()["database"]["parent"] == "shop"
    assert made.json()["credentials"]["password"] == "secret"
    listed = (await client.get("/v1/databases/shop/branches")).json()["branches"]
    assert [one["name"] for one in listed] == ["shop-try"]
    before = listed[0]["branched_at"]
    reset = await client.post("/v1/databases/shop-try/reset", json={"force": True})
    assert reset.status_code == 200
    assert reset.json()["branched_at"] > before
    done = [record for record in desk.records() if record.result == "done" and record.action in ("database.branch", "database.reset")]
    assert [(record.action, record.target) for record in done] == [("database.branch", "shop"), ("database.reset", "shop-try")]
    assert "name=shop-try" in done[0].detail
    assert "ttl_s=3600" in done[0].detail


@pytest.mark.usefixtures("shop")
async def test_a_time_to_live_is_changed(client: httpx.AsyncClient, desk: Desk) -> None:
    answer = await client.patch("/v1/databases/shop", json={"ttl_s": 3600})
    assert answer.json()["database"]["expires_at"] > 0
    assert (await client.patch("/v1/databases/shop", json={"freeze_after_s": 9})).json()["database"]["expires_at"] > 0
    assert (await client.patch("/v1/databases/shop", json={"ttl_s": None})).json()["database"]["expires_at"] is None
    assert (await client.patch("/v1/databases/shop", json={"ttl_s": 1})).json()["error"]["kind"] == "invalid_request"
    assert "ttl_s=3600" in next(
        record.detail for record in desk.records() if record.result == "done" and record.action == "database.update"
    )


@pytest.mark.usefixtures("shop")
async def test_kept_passwords_and_names_that_are_made_up(client: httpx.AsyncClient, desk: Desk) -> None:
    made = (await client.post("/v1/databases/shop/branches", json={"keep_passwords": True})).json()
    assert made["credentials"] is None
    assert f"name={made['database']['name']}" in desk.records()[-1].detail


@pytest.mark.usefixtures("shop")
async def test_what_is_refused(client: httpx.AsyncClient, stranger: httpx.AsyncClient, desk: Desk) -> None:
    for path in ("/v1/databases/nobody/branches", "/v1/databases/nobody/reset"):
        assert (await client.post(path, json={})).status_code == 404
    assert (await client.post("/v1/databases/shop/branches", json={"name": "Shop"})).status_code == 400
    assert (await client.post("/v1/databases/shop/branches", json={"nme": "x"})).status_code == 400
    assert (await client.post("/v1/databases/shop/branches", json={"name": "shop"})).status_code == 409
    headers = {"Authorization": f"Bearer {desk.key(AccessScope.WRITE).secret}"}
    greedy = {"name": "big", "size": {"max_cpu": 1000}}
    assert (await stranger.post("/v1/databases/shop/branches", json=greedy, headers=headers)).status_code == 403
    foreign = desk.workspaces.create("other")
    headers = {"Authorization": f"Bearer {desk.key(AccessScope.ADMIN, foreign.name).secret}"}
    assert (await stranger.post("/v1/databases/shop/branches", json={}, headers=headers)).status_code == 404
    assert (await stranger.get("/v1/databases/shop/branches", headers=headers)).status_code == 404
