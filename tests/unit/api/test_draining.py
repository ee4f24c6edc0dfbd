"""Draining through the API, and the end of connections when a next Torpor takes the listener over."""

import asyncio
import socket
from dataclasses import replace
from typing import Any

import httpx
import pytest

from torpor.api import examples
from torpor.api.server import ApiServer
from torpor.model.drain import DrainState, DrainView
from torpor.model.workspace import AccessScope


class TwinDrains:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[float | None] = []

    def drain(self, timeout_s: float | None) -> DrainView:
        self.asked.append(timeout_s)
        return self.drain_view()

    def drain_view(self) -> DrainView:
        return replace(examples.DRAIN, state=DrainState.DRAINING if self.asked else DrainState.SERVING)


@pytest.fixture
def drains(desk: Any) -> TwinDrains:
    desk.services.drains = TwinDrains()
    return desk.services.drains  # type: ignore[no-any-return]


async def test_while_it_drains_nothing_is_changed(client: httpx.AsyncClient, drains: TwinDrains, desk: Any) -> None:
    assert (await client.get("/v1/drain")).json()["state"] == "serving"
    assert (await client.post("/v1/databases", json={"name": "shop"})).status_code == 201
    answer = await client.post("/v1/drain", json={"timeout_s": 30})
    assert (answer.status_code, answer.json()["running"][0]["database"]) == (200, "shop")
    for method, path in (("POST", "/v1/databases"), ("DELETE", "/v1/databases/shop"), ("POST", "/v1/databases/shop/wake")):
        refused = await client.request(method, path)
        assert (refused.status_code, refused.json()["error"]["kind"]) == (503, "shutting_down")
        assert "when the next Torpor serves" in refused.json()["error"]["hint"]
    assert (await client.get("/v1/databases/shop")).status_code == 200
    assert (await client.get("/healthz")).status_code == 503
    assert (await client.post("/v1/drain")).status_code == 200, "again: another deadline"
    assert drains.asked == [30, None]
    assert {record.action for record in desk.records()} == {"database.create", "host.drain"}


async def test_only_the_host_drains(client: httpx.AsyncClient, drains: TwinDrains, desk: Any) -> None:
    key = desk.key(AccessScope.ADMIN)
    answer = await client.post("/v1/drain", headers={"Authorization": f"Bearer {key.secret}"})
    assert answer.status_code == 403
    assert drains.asked == []


@pytest.mark.parametrize("odd", [-1, "soon", 1e9])
async def test_odd_timeouts(client: httpx.AsyncClient, drains: TwinDrains, odd: object) -> None:
    assert (await client.post("/v1/drain", json={"timeout_s": odd})).status_code == 400
    assert drains.asked == []


async def test_the_listener_outlives_the_server(server: ApiServer) -> None:
    """What just connected may ask once and is told that this was all; who comes later waits for the next server."""
    with socket.create_connection(("127.0.0.1", server.port)) as just_came:
        just_came.settimeout(30)
        await asyncio.sleep(0.05)
        releasing = asyncio.create_task(server.release(2.0))
        await asyncio.sleep(0.05)
        just_came.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        listener = await releasing
        assert listener is not None
        answer = await asyncio.to_thread(lambda: just_came.makefile("rb").read())
        assert b"connection: close" in answer.lower()
    with listener, socket.create_connection(listener.getsockname()):
        listener.settimeout(30)
        listener.accept()[0].close()
