"""Access lists over HTTP: who may see and change which, what is refused, and that they last."""

from typing import Any

import httpx
import pytest

from tests.unit.api.test_operations import make, refused
from torpor.base.tasks import TaskOwner
from torpor.catalog.access import AccessRecords
from torpor.control.access import AccessControl
from torpor.model.access import GLOBAL, AccessBook, AccessList, ListScope
from torpor.model.workspace import AccessScope


async def test_lists_are_replaced_whole_and_in_force_at_once(client: httpx.AsyncClient, desk: Any) -> None:
    assert (await client.get("/v1/access")).json()["allow"] == []
    answer = await client.put("/v1/access", json={"allow": ["10.0.0.0/8", "10.0.0.0/8", "::1"], "deny": ["10.1.2.3/32"]})
    assert answer.status_code == 200, answer.text
    assert (answer.json()["allow"], answer.json()["deny"], answer.json()["closed"]) == (["10.0.0.0/8", "::1"], ["10.1.2.3"], 0)
    assert desk.books[-1].bars("10.1.2.3", "", "") is not None
    assert desk.books[-1].bars("10.1.2.4", "", "") is None
    assert (await client.get("/v1/access")).json()["version"] == answer.json()["version"]
    (record,) = [record for record in desk.records() if record.action == "access.replace" and "version" in record.detail]
    assert "allow=2 deny=1 closed=0" in record.detail
    assert (await client.put("/v1/access")).json()["deny"] == []
    assert desk.books[-1].bars("10.1.2.3", "", "") is None


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"allow": ["10.0.0.1/8"]}, "no address or network"),
        ({"deny": ["example.com"]}, "no address or network"),
        ({"deny": "10.0.0.1"}, "request body"),
        ({"refuse": []}, "request body"),
    ],
)
async def test_odd_lists_change_nothing(client: httpx.AsyncClient, desk: Any, body: object, words: str) -> None:
    before = len(desk.books)
    assert words in refused(await client.put("/v1/access", json=body), 400, "invalid_request")["message"]
    assert len(desk.books) == before


async def test_whoever_is_slower_is_told(client: httpx.AsyncClient) -> None:
    version = (await client.get("/v1/access")).json()["version"]
    assert (await client.put("/v1/access", json={"deny": ["10.0.0.1"], "version": version})).status_code == 200
    refused(await client.put("/v1/access", json={"deny": ["10.0.0.2"], "version": version}), 409, "conflict")
    assert (await client.get("/v1/access")).json()["deny"] == ["10.0.0.1"]


async def test_ten_thousand_networks_fit_into_one_request(client: httpx.AsyncClient) -> None:
    networks = [f"{10 + n // 65536}.{n // 256 % 256}.{n % 256}.0/24" for n in range(10_000)]
    answer = await client.put("/v1/access", json={"deny": networks})
    assert answer.status_code == 200, answer.text[:200]
    assert len(answer.json()["deny"]) == 10_000
    too_many = await client.put("/v1/access", json={"deny": [f"1.{n // 65536}.{n // 256 % 256}.{n % 256}" for n in range(20_001)]})
    refused(too_many, 400, "invalid_request")


async def test_scopes(client: httpx.AsyncClient, desk: Any) -> None:
    await make(client, name="shop")
    for scope, path, expected in (
        (AccessScope.READ, "/v1/databases/shop/access", (200, 403)),
        (AccessScope.WRITE, "/v1/databases/shop/access", (200, 403)),
        (AccessScope.ADMIN, "/v1/databases/shop/access", (200, 200)),
        (AccessScope.ADMIN, "/v1/workspaces/default/access", (200, 200)),
        (AccessScope.WRITE, "/v1/workspaces/default/access", (200, 403)),
        (AccessScope.ADMIN, "/v1/access", (403, 403)),
    ):
        headers = {"Authorization": f"Bearer {desk.key(scope).secret}"}
        got = await client.get(path, headers=headers), await client.put(path, json={"deny": ["10.0.0.1"]}, headers=headers)
        assert tuple(answer.status_code for answer in got) == expected, (scope, path, got[0].text, got[1].text)
    refused(await client.get("/v1/databases/nowhere/access"), 404, "database_not_found")
    refused(await client.put("/v1/workspaces/nowhere/access", json={}), 404, "workspace_not_found")


async def test_they_last_and_go_with_their_database(desk: Any) -> None:
    records = AccessRecords(desk.catalog.connection)
    records.replace(GLOBAL, AccessList(("10.0.0.0/8",), ()))
    records.replace((ListScope.DATABASE, "dgone"), AccessList((), ("10.0.0.1", "10.0.0.2")))
    books: list[AccessBook] = []
    control = AccessControl(records, type("Nobody", (), {"with_sessions": lambda self: []})(), TaskOwner("x"), books.append)
    assert books[-1].bars("192.0.2.1", "", "") is not None
    assert control.show((ListScope.DATABASE, "dgone")).deny == ("10.0.0.1", "10.0.0.2")
    control.forget((ListScope.DATABASE, "dgone"))
    control.forget((ListScope.DATABASE, "dgone"))
    assert books[-1].bars("10.0.0.1", "", "dgone") is None
    records.replace((ListScope.DATABASE, "dgone"), AccessList())
    assert set(records.lists()) == {GLOBAL}
