"""Jobs over HTTP: lists, events and cancelling."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.unit.api.conftest import Desk
from torpor.api.server import ApiServer
from torpor.control.jobs import Progress
from torpor.model.database import Database, DatabaseState
from torpor.model.names import DatabaseId
from torpor.model.workspace import DEFAULT_WORKSPACE, AccessScope

SHOP = Database(DatabaseId("dshop"), "shop", DatabaseState.READY, 18, 0, 0.0, workspace=DEFAULT_WORKSPACE)


async def endless(progress: Progress) -> None:
    progress(1, 4, "bytes", "copying")
    await asyncio.Event().wait()


async def nothing(_: Progress) -> None:
    pass


@pytest.fixture
async def busy(desk: Desk) -> AsyncIterator[Desk]:
    yield desk
    await desk.jobs.stop()


async def events(stream: httpx.Response) -> AsyncIterator[Any]:
    """The data of each event; comments as they are."""
    async for line in stream.aiter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))
        elif line.startswith(":"):
            yield line


async def test_list_and_show(client: httpx.AsyncClient, busy: Desk) -> None:
    done, runs = busy.jobs.start("branch", SHOP, nothing), busy.jobs.start("restore", SHOP, endless)
    await busy.jobs.wait(done.id)
    listed = (await client.get("/v1/jobs")).json()["jobs"]
    assert [(one["id"], one["kind"], one["state"]) for one in listed] == [(runs.id, "restore", "running"), (done.id, "branch", "done")]
    assert [one["id"] for one in (await client.get("/v1/jobs?state=running")).json()["jobs"]] == [runs.id]
    assert [one["id"] for one in (await client.get("/v1/jobs?limit=1&database=shop")).json()["jobs"]] == [runs.id]
    assert (await client.get("/v1/jobs?database=none")).json() == {"jobs": []}
    assert (await client.get(f"/v1/jobs/{runs.id}")).json()["note"] == "copying"
    for path in ("/v1/jobs/jnone", "/v1/jobs/..%2f", f"/v1/jobs/{'j' * 5000}", "/v1/jobs/jnone/events"):
        assert (await client.get(path)).json()["error"]["kind"] in ("job_not_found", "unknown_path")


async def test_events_begin_with_now_and_end_with_the_end(client: httpx.AsyncClient, busy: Desk) -> None:
    go = asyncio.Event()

    async def work(progress: Progress) -> dict[str, str]:
        progress(1, 2, "bytes", "half")
        await go.wait()
        return {"database": "shop-try"}

    id = busy.jobs.start("branch", SHOP, work).id
    await asyncio.sleep(0)
    async with client.stream("GET", f"/v1/jobs/{id}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        seen = []
        async for event in events(stream):
            seen.append(event)
            go.set()
    assert (seen[0]["state"], seen[0]["note"]) == ("running", "half")
    assert (seen[-1]["state"], seen[-1]["result"]) == ("done", {"database": "shop-try"})
    async with client.stream("GET", f"/v1/jobs/{id}/events") as stream:  # later, too
        assert [event["state"] async for event in events(stream)] == ["done"]
    assert not busy.services.followers


async def test_a_stream_without_news_says_that_it_is_still_there(
    client: httpx.AsyncClient, busy: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torpor.api.jobs.KEEP_ALIVE_S", 0.01)
    id = busy.jobs.start("branch", SHOP, endless).id
    async with client.stream("GET", f"/v1/jobs/{id}/events") as stream:
        async for event in events(stream):
            if event == ": still here":
                break
    await nobody_follows(busy)


async def test_the_end_of_torpor_ends_the_stream(client: httpx.AsyncClient, busy: Desk, server: ApiServer) -> None:
    id = busy.jobs.start("branch", SHOP, endless).id
    async with client.stream("GET", f"/v1/jobs/{id}/events") as stream:
        lines = events(stream)
        assert (await anext(lines))["state"] == "running"
        stopping = asyncio.ensure_future(server.stop())
        async with asyncio.timeout(30):
            assert {event["state"] async for event in lines} <= {"running"}
        await stopping


async def test_cancel(client: httpx.AsyncClient, busy: Desk) -> None:
    id = busy.jobs.start("restore", SHOP, endless).id
    answer = await client.delete(f"/v1/jobs/{id}")
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    assert (await client.delete(f"/v1/jobs/{id}")).json()["state"] == "cancelled"
    said = [one for one in busy.records() if one.action == "job.cancel"]
    assert [(one.target, str(one.result)) for one in said[:2]] == [(id, "begun"), (id, "done")]
    assert (said[1].workspace, said[1].detail) == (DEFAULT_WORKSPACE, "restore shop")


async def test_a_key_of_another_workspace_sees_nothing(client: httpx.AsyncClient, busy: Desk) -> None:
    id = busy.jobs.start("restore", SHOP, endless).id
    busy.workspaces.create("acme")
    headers = {"Authorization": f"Bearer {busy.key(AccessScope.WRITE, 'acme').secret}"}
    assert (await client.get("/v1/jobs", headers=headers)).json() == {"jobs": []}
    assert (await client.get("/v1/jobs?workspace=default", headers=headers)).status_code == 404
    for method, path in (("GET", ""), ("GET", "/events"), ("DELETE", "")):
        assert (await client.request(method, f"/v1/jobs/{id}{path}", headers=headers)).json()["error"]["kind"] == "job_not_found"
    reader = {"Authorization": f"Bearer {busy.key(AccessScope.READ).secret}"}
    assert (await client.get(f"/v1/jobs/{id}", headers=reader)).status_code == 200
    assert (await client.delete(f"/v1/jobs/{id}", headers=reader)).status_code == 403
    assert (await client.get(f"/v1/jobs/{id}")).json()["state"] == "running"


async def test_followers_are_bounded(client: httpx.AsyncClient, busy: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torpor.api.calls.MAX_FOLLOWERS", 1)
    id = busy.jobs.start("restore", SHOP, endless).id
    async with client.stream("GET", f"/v1/jobs/{id}/events") as stream:
        await anext(events(stream))
        assert (await client.get(f"/v1/jobs/{id}/events")).json()["error"]["kind"] == "too_many_connections"
    await nobody_follows(busy)


async def nobody_follows(desk: Desk) -> None:
    for _ in range(3000):
        if not desk.services.followers:
            return
        await asyncio.sleep(0.01)
    raise TimeoutError(str(desk.services.followers))
