"""Restore drills over HTTP: lists that are filtered, and Torpors without histories."""

from dataclasses import replace

import httpx
import pytest

from tests.unit.api.conftest import Desk, TwinDrills
from torpor.api import examples
from torpor.model.drills import DrillCause, DrillList, DrillResult
from torpor.model.workspace import WorkspaceId

_PASSED = examples.DRILLS.drills[0]
_FAILED = replace(_PASSED, database="lost", result=DrillResult.FAILED, cause=DrillCause.LOG_GAP, detail="a gap", hint="a base")


class Some(TwinDrills):
    def all(self, within: WorkspaceId | None) -> DrillList:
        return DrillList((_FAILED, _PASSED), None, 1, 1, 0)


async def test_lists(client: httpx.AsyncClient, desk: Desk) -> None:
    desk.services.drills = Some()
    answer = (await client.get("/v1/drills")).json()
    assert [each["database"] for each in answer["drills"]] == ["lost", "shop"] and answer["every_s"] is None
    failed = (await client.get("/v1/drills", params={"result": "failed", "limit": 5})).json()
    assert [each["cause"] for each in failed["drills"]] == ["log_gap"] and failed["verified"] == 1
    assert len((await client.get("/v1/drills", params={"limit": 1})).json()["drills"]) == 1
    assert (await client.get("/v1/drills", params={"result": "perhaps"})).status_code == 400
    assert (await client.get("/v1/drills", params={"workspace": "nobodys"})).status_code == 404


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/drills"), ("GET", "/v1/databases/shop/drills"), ("POST", "/v1/databases/shop/drills")]
)
async def test_without_histories(client: httpx.AsyncClient, desk: Desk, method: str, path: str) -> None:
    await client.post("/v1/databases", json={"name": "shop"})
    desk.services.drills = None
    answer = await client.request(method, path)
    assert answer.status_code == 409 and "history_store" in answer.text
