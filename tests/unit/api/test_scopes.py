"""Every operation for every scope, in its own workspace and in another's. The table is made from OPERATIONS: a new one is in it."""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.unit.api.conftest import TOKEN, Desk, TwinDatabases
from torpor.api.app import App
from torpor.api.calls import Call, Context, Operation
from torpor.api.gate import ApiLimits
from torpor.api.operations import OPERATIONS
from torpor.model.audit import GENESIS, Anchor, AuditRecord, AuditResult, seal
from torpor.model.sleep import SleepOverrides
from torpor.model.workspace import AccessScope, WorkspaceId

LIMITS = ApiLimits(key_per_s=100_000, address_per_s=100_000)
KEY_SCOPES = (AccessScope.READ, AccessScope.WRITE, AccessScope.ADMIN, AccessScope.METRICS)
GUARDED = [operation for operation in OPERATIONS if operation.scope is not None]
HOST_WIDE = {"showHost", "showMetrics", "drain", "showDrain", "showAccess", "replaceAccess", "createWorkspace", "listWorkspaces"} | {
    "listRecoverable",
    "recoverDatabase",
    "forgetDatabase",
}
"""Those that name no database and no workspace that is there already; nobody's in particular."""
LISTS = {"listDatabases", "listAudit", "listJobs", "listDrills"}


JOBS = {"acme": "jacmeaaaaaaaa", "other": "jotheraaaaaaa"}


def begun_job(id: str, database: str, workspace: WorkspaceId) -> AuditRecord:
    """What the audit log knows of a job that a killed Torpor was doing."""
    anchor, begun = Anchor(0, GENESIS), AuditResult.BEGUN
    return seal(
        anchor, at=1.0, actor="host", actor_name="", address="", action="job.branch", target=database, workspace=workspace,
        result=begun, detail=id, begun=None,
    )  # fmt: skip


class Hotel:
    """Two workspaces, `acme` and `other`, each with a database and keys, behind the application itself."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.databases = TwinDatabases(directory)
        self.desk = Desk(self.databases, directory)
        app: Any = App(self.desk.services, TOKEN, "the token", LIMITS, lambda: "http://127.0.0.1")
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://127.0.0.1")
        for name in ("acme", "other", "nobodys"):
            self.desk.workspaces.create(name)
        self.desk.workspaces.delete("nobodys")
        self.keys = {scope: self.desk.key(scope, "acme") for scope in KEY_SCOPES}
        self.foreign_key = self.desk.key(AccessScope.READ, "other").key.id

    async def settle(self) -> "Hotel":
        for name, workspace in (("mine", "acme"), ("theirs", "other")):
            owner = self.desk.workspaces.find(workspace).id
            await self.databases.within(owner).create(name, None, SleepOverrides())
            (self.databases.directory / f"d{name}.log").write_text(f"log of {name}\n")
            self.desk.jobs.recall([begun_job(JOBS[workspace], name, owner)])
        return self

    async def ask(self, operation: Operation, credential: str, **names: str) -> httpx.Response:
        job = JOBS.get(names.get("workspace", "acme"), "jnobodysaaaaa")
        filled = {
            "job": job,
            "name": "mine",
            "workspace": "acme",
            "key": self.keys[AccessScope.READ].key.id,
            "fingerprint": "0123456789abcdef",
            **names,
        }
        body: Any = operation.body_example
        if operation.id == "createDatabase":
            body = {"name": "fresh", "workspace": filled["workspace"]}
        if operation.id == "createWorkspace":
            body = {"name": "fresh"}
        query = {"workspace": names["workspace"]} if operation.id in LISTS and "workspace" in names else {}
        path = operation.path.format(**filled)
        headers = {"Authorization": f"Bearer {credential}"} if credential else {}
        content = json.dumps(body).encode() if body is not None else b""
        return await self.client.request(operation.method, path, content=content, params=query, headers=headers)

    def state(self) -> object:
        """Everything that an operation could change, but the audit log and when keys were used."""
        tables = ("workspaces", "access_lists") if self._has("access_lists") else ("workspaces",)
        rows = [self.desk.catalog.connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall() for table in tables]
        keys = self.desk.catalog.connection.execute("SELECT id, scope FROM api_keys ORDER BY id").fetchall()
        return dict(self.databases.views), dict(self.databases.overrides), rows, keys

    def _has(self, table: str) -> bool:
        return bool(self.desk.catalog.connection.execute("SELECT 1 FROM sqlite_schema WHERE name = ?", (table,)).fetchall())

    async def close(self) -> None:
        await self.client.aclose()
        self.desk.catalog.close()


@pytest.fixture
def hotels(tmp_path: Path) -> Iterator[Callable[[], Hotel]]:
    made: list[Hotel] = []
    numbers = itertools.count()

    def make() -> Hotel:
        made.append(Hotel(tmp_path / str(next(numbers))))
        return made[-1]

    yield make
    for hotel in made:
        hotel.desk.catalog.close()


def ids(operation: object) -> str:
    assert isinstance(operation, Operation)
    return operation.id


@pytest.mark.parametrize("operation", GUARDED, ids=ids)
async def test_without_enough_rights_nothing_happens(operation: Operation, hotels: Callable[[], Hotel]) -> None:
    hotel = await hotels().settle()
    before = hotel.state()
    revoked = hotel.desk.key(AccessScope.ADMIN, "acme")
    hotel.desk.keys.revoke(hotel.desk.workspaces.find("acme"), revoked.key.id)
    for credential in ("", "wrong", revoked.secret):
        answer = await hotel.ask(operation, credential)
        assert (answer.status_code, answer.json()["error"]["kind"]) == (401, "unauthorized")
    assert hotel.desk.records() == []  # of strangers the door to the disk stays shut
    denied = [scope for scope in KEY_SCOPES if not scope.allows(operation.scope or AccessScope.HOST)]
    for scope, names in itertools.product(denied, ({}, {"name": "theirs", "workspace": "other"}, {"name": "none", "workspace": "none"})):
        answer = await hotel.ask(operation, hotel.keys[scope].secret, **names)
        assert (answer.status_code, answer.json()["error"]["kind"]) == (403, "forbidden"), (scope, names)
    assert hotel.state() == before
    records = hotel.desk.records()
    assert len(records) == (3 * len(denied) if operation.action else 0)
    for record in records:
        assert (record.action, record.result) == (operation.action, AuditResult.REFUSED)
        assert record.actor in {key.key.id for key in hotel.keys.values()}
        assert record.workspace == hotel.desk.workspaces.find("acme").id


@pytest.mark.parametrize("operation", GUARDED, ids=ids)
async def test_with_enough_rights_it_is_done_and_recorded(operation: Operation, hotels: Callable[[], Hotel]) -> None:
    credentials = [(scope, None) for scope in KEY_SCOPES if scope.allows(operation.scope or AccessScope.HOST)]
    for scope, credential in (*credentials, (AccessScope.HOST, TOKEN)):
        hotel = await hotels().settle()
        acme = hotel.desk.workspaces.find("acme").id
        if operation.id == "deleteWorkspace":
            hotel.databases.owners.clear()
        answer = await hotel.ask(operation, credential or hotel.keys[scope].secret)
        expected = 409 if operation.id in ("drain", "showDrain") else operation.status  # nothing to drain here
        assert answer.status_code == expected, answer.text
        records = hotel.desk.records()
        if not operation.action:
            assert records == []
            continue
        begun, ended = records
        assert (begun.result, begun.action, ended.begun) == (AuditResult.BEGUN, operation.action, begun.number)
        assert ended.result is (AuditResult.DONE if expected < 300 else AuditResult.REFUSED)
        assert ended.actor == ("host" if scope is AccessScope.HOST else hotel.keys[scope].key.id)
        assert ended.address == "127.0.0.1"
        if operation.id not in HOST_WIDE:
            assert ended.workspace == acme
        for secret in ("secret", *(key.secret.rpartition("_")[2] for key in hotel.keys.values())):
            assert all(secret not in str(record) for record in records)


@pytest.mark.parametrize("operation", [each for each in GUARDED if each.id not in HOST_WIDE], ids=ids)
async def test_what_belongs_to_others_is_not_there(operation: Operation, hotels: Callable[[], Hotel]) -> None:
    hotel = await hotels().settle()
    before = hotel.state()
    for scope in KEY_SCOPES:
        if not scope.allows(operation.scope or AccessScope.HOST):
            continue
        secret = hotel.keys[scope].secret
        if operation.id in LISTS:
            own = (await hotel.ask(operation, secret)).json()
            assert "theirs" not in json.dumps(own) and "other" not in json.dumps(own)
        foreign = await hotel.ask(operation, secret, name="theirs", workspace="other")
        nobodys = await hotel.ask(operation, secret, name="nobodys", workspace="nobodys")
        assert foreign.status_code == nobodys.status_code == 404
        as_if = foreign.text.replace("theirs", "nobodys").replace("other", "nobodys")
        assert as_if == nobodys.text
        assert {k: v for k, v in foreign.headers.items() if k not in ("content-length", "ratelimit")} == {
            k: v for k, v in nobodys.headers.items() if k not in ("content-length", "ratelimit")
        }
        if "{key}" in operation.path:
            assert (await hotel.ask(operation, secret, key=hotel.foreign_key)).status_code == 404
    assert hotel.state() == before


async def test_the_host_reaches_everything(hotels: Callable[[], Hotel]) -> None:
    for operation in GUARDED:
        hotel = await hotels().settle()
        if operation.id == "deleteWorkspace":
            hotel.databases.owners.clear()
        answer = await hotel.ask(operation, TOKEN, name="theirs", workspace="other", key=hotel.foreign_key)
        assert answer.status_code in (operation.status, 409), (operation.id, answer.text)


def test_every_operation_says_who_may_and_what_is_recorded() -> None:
    async def handle(context: Context, call: Call) -> Any: ...

    with pytest.raises(TypeError, match="scope"):
        Operation("x", "GET", "/x", "x", handle)  # type: ignore[call-arg]  # that is the point
    with pytest.raises(ValueError, match="action"):
        Operation("x", "POST", "/x", "x", handle, scope=AccessScope.WRITE)
    with pytest.raises(ValueError, match="action"):
        Operation("x", "GET", "/x", "x", handle, scope=AccessScope.WRITE, action="x")
    with pytest.raises(ValueError, match="strangers"):
        Operation("x", "POST", "/x", "x", handle, scope=None, action="x")
    assert [operation.id for operation in OPERATIONS if operation.scope is None] == ["showHealth"]


def test_scopes_grow_and_the_host_alone_has_all() -> None:
    read, write, admin = (set(filter(scope.allows, AccessScope)) for scope in KEY_SCOPES[:3])
    assert read < write < admin < set(filter(AccessScope.HOST.allows, AccessScope)) == set(AccessScope)
    assert set(filter(AccessScope.METRICS.allows, AccessScope)) == {AccessScope.METRICS}
    assert not any(scope.allows(AccessScope.HOST) for scope in KEY_SCOPES)


async def test_what_is_inside_of_databases_is_not_for_readers(hotels: Callable[[], Hotel]) -> None:
    hotel = await hotels().settle()
    for operation in GUARDED:
        if operation.scope is AccessScope.READ:
            answer = await hotel.ask(operation, hotel.keys[AccessScope.READ].secret)
            assert "secret" not in answer.text and "log of" not in answer.text
