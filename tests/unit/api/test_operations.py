"""What a client of the API sees, over real HTTP."""

from dataclasses import replace
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from torpor.model.sleep import SleepOverrides, Tier
from torpor.model.workspace import AccessScope


async def make(client: httpx.AsyncClient, **fields: object) -> Any:
    answer = await client.post("/v1/databases", json=fields)
    assert answer.status_code == 201, answer.text
    return answer.json()


def refused(answer: httpx.Response, status: int, kind: str) -> dict[str, str]:
    assert answer.status_code == status, answer.text
    error: dict[str, str] = answer.json()["error"]
    assert set(error) == {"kind", "message", "hint", "sqlstate"}
    assert error["kind"] == kind
    assert error["message"]
    assert len(error["sqlstate"]) == 5
    return error


async def test_create_show_list_delete(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/databases", json={"name": "shop", "major": 17})
    assert (answer.status_code, answer.headers["location"]) == (201, "/v1/databases/shop")
    assert answer.json()["database"]["major"] == 17
    assert answer.json()["credentials"]["password"] == "secret"
    assert answer.headers["cache-control"] == "no-store"
    assert (await client.get("/v1/databases/shop")).json()["database"]["name"] == "shop"
    assert [d["name"] for d in (await client.get("/v1/databases")).json()["databases"]] == ["shop"]
    gone = await client.delete("/v1/databases/shop")
    assert (gone.status_code, gone.content) == (204, b"")
    refused(await client.get("/v1/databases/shop"), 404, "database_not_found")


async def test_a_body_may_be_left_out(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/databases")
    assert answer.status_code == 201
    assert answer.json()["database"]["name"] == "made-up-0"


async def test_pages(client: httpx.AsyncClient) -> None:
    for name in ("a", "b", "c"):
        await make(client, name=name)
    first = (await client.get("/v1/databases", params={"limit": 2})).json()
    assert ([d["name"] for d in first["databases"]], first["next"]) == (["a", "b"], "b")
    second = (await client.get("/v1/databases", params={"limit": 2, "after": "b"})).json()
    assert ([d["name"] for d in second["databases"]], second["next"]) == (["c"], None)
    assert (await client.get("/v1/databases", params={"search": "c"})).json()["databases"][0]["name"] == "c"
    assert (await client.get("/v1/databases", params={"tier": "stopped"})).json()["databases"] == []


async def test_patch_changes_only_what_it_names(client: httpx.AsyncClient, databases: Any) -> None:
    await make(client, name="shop", freeze_after_s=5, stop_after_s="never")
    assert databases.overrides["shop"] == SleepOverrides(5.0, None, "never")
    answer = await client.patch("/v1/databases/shop", json={"freeze_after_s": None, "page_after_s": 9.5})
    assert answer.json()["overrides"] == {"freeze_after_s": None, "page_after_s": 9.5, "stop_after_s": "never"}
    await client.patch("/v1/databases/shop", json={})
    assert databases.overrides["shop"] == SleepOverrides(None, 9.5, "never")


async def test_sleep_and_wake(client: httpx.AsyncClient) -> None:
    await make(client, name="shop")
    assert (await client.post("/v1/databases/shop/sleep")).json()["tier"] == "frozen"
    assert (await client.post("/v1/databases/shop/sleep", json={"tier": "stopped", "force": True})).json()["tier"] == "stopped"
    assert (await client.post("/v1/databases/shop/wake")).json()["wake"]["tier"] == "stopped"
    assert (await client.post("/v1/databases/shop/wake")).json() == {"wake": None}
    refused(await client.post("/v1/databases/shop/sleep", json={"tier": "awake"}), 400, "invalid_request")


async def test_passwords_wakes_and_host(client: httpx.AsyncClient) -> None:
    await make(client, name="shop")
    assert (await client.post("/v1/databases/shop/password")).json()["expires_at"] is None
    ticket = await client.post("/v1/databases/shop/tickets")
    assert (ticket.status_code, ticket.json()["expires_at"] > 0) == (201, True)
    assert len((await client.get("/v1/databases/shop/wakes?limit=3")).json()["wakes"]) == 3
    assert (await client.get("/v1/host")).json()["tiers"] == {"awake": 1, "stopped": 2}


async def test_delete_in_use_needs_force(client: httpx.AsyncClient, databases: Any) -> None:
    await make(client, name="shop")
    databases.views["shop"] = replace(databases.views["shop"], connections=2, tier=Tier.AWAKE)
    assert refused(await client.delete("/v1/databases/shop"), 409, "database_in_use")["hint"]
    assert (await client.delete("/v1/databases/shop?force=true")).status_code == 204


async def test_errors_of_the_use_cases_keep_their_status(client: httpx.AsyncClient) -> None:
    await make(client, name="shop")
    refused(await client.post("/v1/databases", json={"name": "shop"}), 409, "database_exists")
    refused(await client.post("/v1/databases", json={"name": "No Good"}), 400, "invalid_name")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 60_000, "not"),
        (b"[]", "expected `object`"),
        (b'{"nmae": "shop"}', "unknown field `nmae`"),
        (b'{"name": 7}', "expected `str | null`"),
        (b'{"major": "18"}', "$.major"),
        (b'{"freeze_after_s": "soon"}', "$.freeze_after_s"),
        (b'{"freeze_after_s": -1}', "freeze_after_s must be between"),
        (b'{"freeze_after_s": 1e999}', "not"),
    ],
)
async def test_bad_bodies(client: httpx.AsyncClient, body: bytes, says: str) -> None:
    error = refused(await client.post("/v1/databases", content=body), 400, "invalid_request")
    assert says in error["message"]


async def test_unknown_fields_are_answered_with_the_known_ones(client: httpx.AsyncClient) -> None:
    await make(client, name="shop")
    error = refused(await client.patch("/v1/databases/shop", json={"name": "x"}), 400, "invalid_request")
    assert error["hint"] == "known fields: freeze_after_s, page_after_s, stop_after_s, ttl_s, size, pool"


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=many", "tier=dead", "page=2", "limit=1&limit=2", "&&", "after=%ff"])
async def test_bad_queries(client: httpx.AsyncClient, query: str) -> None:
    refused(await client.get(f"/v1/databases?{query}"), 400, "invalid_request")


async def test_body_limit(client: httpx.AsyncClient) -> None:
    async def parts() -> Any:
        for _ in range(100):
            yield b" " * 1024

    padded = b'{"name": "fits"' + b" " * (64 * 1024 - 16) + b"}"
    assert (await client.post("/v1/databases", content=padded)).status_code == 201
    refused(await client.post("/v1/databases", content=padded + b" "), 413, "request_too_large")
    refused(await client.post("/v1/databases", content=parts()), 413, "request_too_large")


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/databases/", "/v1/databases/a/b/c", "/v2/databases", "/docs/../token", "/docs/x.js", "/%00"]
)
async def test_unknown_paths(client: httpx.AsyncClient, path: str) -> None:
    refused(await client.get(path), 404, "unknown_path")


async def test_wrong_methods(client: httpx.AsyncClient) -> None:
    for method, path, allowed in (
        ("PUT", "/v1/databases", "POST, GET"),
        ("POST", "/v1/databases/shop", "GET, PATCH, DELETE"),
        ("DELETE", "/docs", "GET"),
        ("HEAD", "/v1/host", "GET"),
    ):
        answer = await client.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    refused(await client.put("/v1/databases"), 405, "wrong_method")


async def test_hostile_names_reach_only_the_use_case(client: httpx.AsyncClient) -> None:
    for name in ("..%2f..", "%00", "%0a", "a%20b", "%F0%9F%90%A6", "x" * 5000):
        answer = await client.get(f"/v1/databases/{name}/logs")
        assert answer.status_code == 404
        assert answer.json()["error"]["kind"] in ("database_not_found", "unknown_path")


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer wrong", "Basic test-token-0123456789", "test-token-0123456789", "Bearer täst".encode()],
)
async def test_without_the_token_nothing_is_told(stranger: httpx.AsyncClient, header: Any) -> None:
    headers = {} if header is None else {"Authorization": header}
    for method, path in (("GET", "/v1/databases"), ("POST", "/v1/databases"), ("GET", "/metrics"), ("GET", "/v1/databases/x/logs")):
        answer = await stranger.request(method, path, headers=headers)
        assert "Bearer" in refused(answer, 401, "unauthorized")["hint"]
        assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_the_scheme_is_not_case_sensitive(stranger: httpx.AsyncClient) -> None:
    assert (await stranger.get("/v1/host", headers={"Authorization": "bearer test-token-0123456789"})).status_code == 200


async def test_health_is_open(stranger: httpx.AsyncClient) -> None:
    assert (await stranger.get("/healthz")).json()["status"] == "ok"
    assert (await stranger.head("/healthz")).content == b""


async def test_metrics_count_requests(client: httpx.AsyncClient) -> None:
    await client.get("/v1/host")
    await client.get("/nowhere")
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    (family,) = text_string_to_metric_families(answer.text)
    counted = {(s.labels["operation"], s.labels["status"]): s.value for s in family.samples}
    assert counted == {("showHost", "200"): 1, ("none", "404"): 1}


async def test_unexpected_faults_tell_nothing_of_the_inside(client: httpx.AsyncClient, databases: Any, capsys: Any) -> None:
    async def fail() -> None:
        raise RuntimeError("secret inside")

    databases.trouble = fail
    answer = await client.post("/v1/databases")
    refused(answer, 500, "internal_error")
    assert "secret inside" not in answer.text
    assert "secret inside" in capsys.readouterr().err
    assert (await client.get("/v1/host")).status_code == 200


async def test_a_size_is_given_changed_part_by_part_and_shown(client: httpx.AsyncClient) -> None:
    await make(client, name="shop", size={"max_cpu": 4, "connections": 20})
    answer = await client.patch("/v1/databases/shop", json={"size": {"max_cpu": None, "disk_bytes": 1 << 30}})
    assert answer.status_code == 200, answer.text
    shown = (await client.get("/v1/databases/shop/size")).json()
    assert {name: value for name, value in shown["overrides"].items() if value is not None} == {"connections": 20, "disk_bytes": 1 << 30}
    assert shown["size"]["max_cpu"] == 2
    assert shown["decisions"][0]["inputs"]["withheld"] == 0.61
    error = refused(await client.patch("/v1/databases/shop", json={"size": {"max_cpu": 0}}), 400, "invalid_request")
    assert error["message"] == "max_cpu must be between 0.05 and 1024, not 0"
    refused(await client.patch("/v1/databases/shop", json={"size": {"cpu": 1}}), 400, "invalid_request")


async def test_who_holds_a_key_can_not_take_more_of_the_host_than_usual(client: httpx.AsyncClient, desk: Any) -> None:
    headers = {"Authorization": f"Bearer {desk.key(AccessScope.WRITE).secret}"}
    asked = {"name": "shop", "size": {"max_cpu": 4}}
    error = refused(await client.post("/v1/databases", json=asked, headers=headers), 403, "forbidden")
    assert error["message"].startswith("max_cpu above the usual size")
    asked["size"] = {"max_cpu": 1}
    assert (await client.post("/v1/databases", json=asked, headers=headers)).status_code == 201
    refused(await client.patch("/v1/databases/shop", json={"size": {"disk_bytes": 1 << 45}}, headers=headers), 403, "forbidden")
