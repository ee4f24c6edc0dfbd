"""What the audit log is told of requests, and what happens when it can't be told."""

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.unit.api.conftest import TOKEN, Desk
from torpor.api import logtail
from torpor.api.server import ApiServer
from torpor.model.audit import AuditResult
from torpor.model.errors import ComputeStartFailed, PoolFull
from torpor.model.sleep import SleepOverrides
from torpor.model.workspace import DEFAULT_WORKSPACE, AccessScope


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


async def test_outcomes(client: httpx.AsyncClient, databases: Any, desk: Desk) -> None:
    async def fail() -> None:
        raise RuntimeError("inside")

    async def fail_kindly() -> None:
        raise ComputeStartFailed("no room")

    await client.post("/v1/databases", json={"name": "shop", "freeze_after_s": 9})
    await client.post("/v1/databases", json={"name": "shop"})
    await client.post("/v1/databases")
    databases.trouble = fail
    await client.post("/v1/databases")
    databases.trouble = fail_kindly
    await client.post("/v1/databases")
    await client.delete("/v1/databases/unknown%0a%1b")
    ended = [record for record in desk.records() if record.result is not AuditResult.BEGUN]
    assert [(record.target, record.result, record.detail) for record in ended] == [
        ("shop", "done", "name=shop, freeze_after_s=9.0"),
        ("shop", "refused", "database_exists; name=shop"),
        ("made-up-0", "done", ""),
        ("", "failed", "internal_error"),
        ("", "failed", "compute_start_failed"),
        ("unknown??", "refused", "database_not_found"),
    ]
    assert {record.workspace for record in ended[:5]} == {DEFAULT_WORKSPACE} and ended[5].workspace is None


async def test_what_cannot_be_recorded_is_not_done(client: httpx.AsyncClient, databases: Any, desk: Desk) -> None:
    await client.post("/v1/databases", json={"name": "kept"})
    connection = desk.catalog.connection
    connection.pragma("max_page_count", connection.pragma("page_count"))
    for detail in ("y" * 1000, ""):  # large ones until none fits, then small ones
        with pytest.raises(PoolFull):
            while True:
                desk.audit.record("host", "fill", "x", detail=detail)
    before = len(desk.records())
    for method, path in (("POST", "/v1/databases"), ("DELETE", "/v1/databases/kept?force=true"), ("POST", "/v1/databases/kept/tickets")):
        answer = await client.request(method, path)
        assert (answer.status_code, answer.json()["error"]["kind"]) == (507, "pool_full")
    assert list(databases.views) == ["kept"]
    assert (await client.get("/v1/databases")).status_code == 200
    connection.pragma("max_page_count", 1_000_000)
    assert (await client.delete("/v1/databases/kept?force=true")).status_code == 204
    assert len(desk.records()) == before + 2


async def test_a_disk_that_fills_up_meanwhile_leaves_the_begun_record(client: httpx.AsyncClient, databases: Any, desk: Desk) -> None:
    async def fill() -> None:
        desk.catalog.connection.pragma("query_only", True)

    databases.trouble = fill
    assert (await client.post("/v1/databases", json={"name": "shop"})).status_code == 201
    desk.catalog.connection.pragma("query_only", False)
    assert [record.result for record in desk.records()] == [AuditResult.BEGUN]
    assert desk.audit.settle() == 1


async def test_a_key_that_tries_what_it_may_not_does_not_fill_the_log(stranger: httpx.AsyncClient, desk: Desk) -> None:
    secret = desk.key(AccessScope.READ).secret
    for _ in range(40):
        assert (await stranger.delete("/v1/databases/shop", headers=bearer(secret))).status_code == 403
    assert len(desk.records()) == 20


async def test_an_admin_sees_the_records_of_its_workspace(stranger: httpx.AsyncClient, client: httpx.AsyncClient, desk: Desk) -> None:
    desk.workspaces.create("acme")
    await client.post("/v1/databases", json={"name": "theirs"})
    await client.post("/v1/databases", json={"name": "mine", "workspace": "acme"})
    made = await client.post("/v1/workspaces/acme/keys", json={"name": "boss", "scope": "admin"})
    admin = bearer(made.json()["secret"])
    await stranger.post("/v1/databases", json={"name": "more"}, headers=admin)
    own = (await stranger.get("/v1/audit?outcomes=true", headers=admin)).json()
    assert [(record["action"], record["target"], record["actor_name"]) for record in own["records"]] == [
        ("database.create", "more", "boss"),
        ("key.create", made.json()["key"]["id"], ""),
        ("database.create", "mine", ""),
    ]
    assert own["head"] is None and not any(record["hash"] for record in own["records"])
    assert made.json()["secret"].rpartition("_")[2] not in str(desk.records())
    everything = (await client.get("/v1/audit")).json()
    assert everything["head"]["number"] == len(desk.records()) and everything["records"][0]["hash"] == everything["head"]["hash"]
    assert (await client.get("/v1/audit?before=3&after=1")).status_code == 400
    assert (await client.get("/v1/audit?before=99999999999999999999")).status_code == 400


async def test_a_request_that_a_stop_cuts_off_is_interrupted(
    server: ApiServer, client: httpx.AsyncClient, databases: Any, desk: Desk
) -> None:
    begun = asyncio.Event()

    async def hang() -> None:
        begun.set()
        await asyncio.sleep(1000)

    databases.trouble = hang
    request = asyncio.ensure_future(client.post("/v1/databases"))
    await begun.wait()
    await server.stop()
    assert (await request).status_code == 503
    assert desk.records()[-1].result is AuditResult.INTERRUPTED


@pytest.mark.parametrize("how", ["revoked", "workspace removed", "expired"])
async def test_followed_logs_end_with_their_key(
    how: str, server: ApiServer, client: httpx.AsyncClient, databases: Any, desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logtail, "POLL_S", 60)  # it is told, and doesn't have to look
    desk.workspaces.create("acme")
    await client.post("/v1/databases", json={"name": "shop", "workspace": "acme"})
    (tmp_path / "dshop.log").write_text("hello\n")
    key = desk.key(AccessScope.WRITE, "acme", 3 if how == "expired" else None)
    async with (
        httpx.AsyncClient(base_url=server.url, headers=bearer(key.secret), trust_env=False, verify=False, timeout=60) as tenant,
        tenant.stream("GET", "/v1/databases/shop/logs?follow=true") as stream,
        client.stream("GET", "/v1/databases/shop/logs?follow=true") as hosts,
    ):
        parts, others = stream.aiter_raw(), hosts.aiter_raw()
        assert await anext(parts) == await anext(others) == b"hello\n"
        if how == "revoked":
            assert (await client.delete(f"/v1/workspaces/acme/keys/{key.key.id}")).status_code == 204
        elif how == "workspace removed":
            databases.owners["shop"] = DEFAULT_WORKSPACE
            assert (await client.delete("/v1/workspaces/acme")).status_code == 204
        async with asyncio.timeout(30):
            assert [part async for part in parts] == []
        assert (await tenant.get("/v1/databases")).status_code == 401
        assert server.services.followers["host"] == 1
    await server.stop()


async def test_one_key_cannot_take_all_places_of_followers(
    server: ApiServer, client: httpx.AsyncClient, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torpor.api.calls.MAX_FOLLOWERS_PER_KEY", 1)
    await client.post("/v1/databases", json={"name": "shop"})
    greedy, other = (bearer(desk.key(AccessScope.WRITE).secret) for _ in range(2))
    path = "/v1/databases/shop/logs?follow=true"
    async with client.stream("GET", path, headers=greedy):
        assert (await client.get(path, headers=greedy)).status_code == 503
        async with client.stream("GET", path, headers=other) as another:
            assert another.status_code == 200


async def test_connections_that_ask_nothing_make_room(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torpor.api.server.MAX_CONNECTIONS", 5)
    port = int(server.url.rpartition(":")[2])
    silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
    await asyncio.sleep(0.05)
    async with httpx.AsyncClient(base_url=server.url, headers=bearer(TOKEN), trust_env=False, verify=False) as late:
        assert (await late.get("/v1/host")).status_code == 200
    with pytest.raises((ConnectionResetError, EOFError)):
        await asyncio.wait_for(silent[0][0].readexactly(1), 30)
    for _, writer in silent:
        writer.close()


async def test_one_key_has_few_requests_under_way(
    server: ApiServer, client: httpx.AsyncClient, databases: Any, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torpor.api.app.MAX_REQUESTS_AT_ONCE", 2)
    greedy, other, go = bearer(desk.key(AccessScope.WRITE).secret), bearer(desk.key(AccessScope.WRITE).secret), asyncio.Event()
    databases.trouble = go.wait
    held = [asyncio.ensure_future(client.post("/v1/databases", headers=greedy)) for _ in range(2)]
    while len(desk.records()) < 2:  # noqa: ASYNC110  # nobody else tells
        await asyncio.sleep(0.01)
    assert (await client.get("/v1/databases", headers=greedy)).status_code == 429
    for somebody in (other, {}):
        assert (await client.get("/v1/databases", headers=somebody)).status_code == 200
    go.set()
    assert [(await one).status_code for one in held] == [201, 201]
    assert (await client.get("/v1/databases", headers=greedy)).status_code == 200


@pytest.mark.parametrize("closing", [b"", b"Connection: close\r\n"])
async def test_an_answer_that_nobody_reads_is_not_kept(
    server: ApiServer, databases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closing: bytes
) -> None:
    monkeypatch.setattr("torpor.api.server.UNREAD_TIMEOUT_S", 0.2)
    await databases.create("shop", None, SleepOverrides())
    (tmp_path / "dshop.log").write_bytes(b"x" * 99 + b"\n" + b"y" * 8_000_000)
    _, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]), limit=1024)
    head = f"GET /v1/databases/shop/logs?lines=9 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    writer.write(head.encode() + closing + b"\r\n")
    assert server._server is not None
    connections = server._server.server_state.connections
    async with asyncio.timeout(30):
        for wanted in (True, False):
            while bool(connections) is not wanted:  # noqa: ASYNC110  # nobody else tells
                await asyncio.sleep(0.02)
    writer.close()


async def test_a_slow_reader_gets_it_all(server: ApiServer, databases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torpor.api.server.UNREAD_TIMEOUT_S", 1.0)
    await databases.create("shop", None, SleepOverrides())
    (tmp_path / "dshop.log").write_bytes(b"y" * 8_000_000)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]), limit=1024)
    head = f"GET /v1/databases/shop/logs?lines=9 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode())
    received, began = 0, time.monotonic()
    while part := await reader.read(400_000):
        received += len(part)
        await asyncio.sleep(0.1)
    assert received > 4_000_000
    assert time.monotonic() - began > 1, "else it wasn't slow"
    writer.close()
