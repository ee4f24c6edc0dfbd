"""A twin of the use cases in memory, behind a real server on a loopback port."""

import itertools
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from torpor.api import examples
from torpor.api.server import ApiServer
from torpor.base.telemetry import Telemetry
from torpor.model.errors import DatabaseExists, DatabaseInUse, DatabaseNotFound
from torpor.model.names import DatabaseId, check_database_name
from torpor.model.sleep import SleepOverrides, SleepPolicy, Tier, WakeReason
from torpor.model.views import Created, Credentials, DatabaseDetail, DatabasePage, DatabaseView, HostView, WakeView

TOKEN = "test-token-0123456789"


class TwinDatabases:
    """Keeps databases in a dict. `calls` may be told to fail or to hang through `trouble`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.views: dict[str, DatabaseView] = {}
        self.overrides: dict[str, SleepOverrides] = {}
        self.trouble: Any = None
        self._numbers = itertools.count()

    async def create(self, name: str | None, major: int | None, overrides: SleepOverrides) -> Created:
        if self.trouble is not None:
            await self.trouble()
        name = check_database_name(name or f"made-up-{next(self._numbers)}")
        if name in self.views:
            raise DatabaseExists(f"database {name!r} exists already", "choose another name")
        view = replace(examples.DATABASE, id=DatabaseId(f"d{name}"), name=name, major=major or 18, connections=0)
        self.views[name], self.overrides[name] = view, overrides
        return Created(view, self._credentials(name), True, 1.5)

    def get(self, name: str) -> DatabaseView:
        if name not in self.views:
            raise DatabaseNotFound(f"there is no database {name!r}", "`torpor ls` lists them")
        return self.views[name]

    def list(self, after: str | None, limit: int, tier: Tier | None, search: str | None) -> DatabasePage:
        names = [n for n in sorted(self.views) if n > (after or "") and (search or "") in n and tier in (None, self.views[n].tier)]
        return DatabasePage(tuple(self.views[n] for n in names[:limit]), names[limit - 1] if len(names) > limit else None)

    async def detail(self, name: str) -> DatabaseDetail:
        overrides = self.overrides.get(name, SleepOverrides())
        return replace(examples.DETAIL, database=self.get(name), overrides=overrides, policy=overrides.apply(SleepPolicy()))

    async def update(self, name: str, overrides: SleepOverrides) -> DatabaseDetail:
        self.get(name)
        self.overrides[name] = overrides
        return await self.detail(name)

    async def delete(self, name: str, force: bool) -> None:
        if self.get(name).connections and not force:
            raise DatabaseInUse(f"database {name!r} has open connections", "close them, or force it")
        del self.views[name]

    async def sleep(self, name: str, tier: Tier, force: bool) -> DatabaseView:
        self.views[name] = replace(self.get(name), tier=tier)
        return self.views[name]

    async def wake(self, name: str) -> WakeView | None:
        before = self.get(name).tier
        self.views[name] = replace(self.get(name), tier=Tier.AWAKE)
        return None if before is Tier.AWAKE else WakeView(time.time(), WakeReason.API, before, "", 1.0)

    async def reset_password(self, name: str) -> Credentials:
        self.get(name)
        return self._credentials(name)

    async def ticket(self, name: str) -> Credentials:
        self.get(name)
        return replace(self._credentials(name), expires_at=time.time() + 60)

    def wakes(self, name: str, limit: int) -> tuple[WakeView, ...]:
        self.get(name)
        return (examples.WAKE,) * limit

    def log_file(self, name: str) -> Path:
        return self.directory / f"{self.get(name).id}.log"

    def host(self) -> HostView:
        return examples.HOST

    def _credentials(self, name: str) -> Credentials:
        return Credentials(name, "secret", f"postgresql://{name}:secret@127.0.0.1:7432/{name}")


@pytest.fixture
def databases(tmp_path: Path) -> TwinDatabases:
    return TwinDatabases(tmp_path)


@pytest.fixture
async def server(databases: TwinDatabases, tmp_path: Path) -> AsyncIterator[ApiServer]:
    telemetry = Telemetry()
    server = ApiServer(databases, TOKEN, telemetry.render, "127.0.0.1", 0, tmp_path / "token", grace_s=0.3)
    telemetry.add(server.requests)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def stranger(server: ApiServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, timeout=10, trust_env=False, verify=False) as client:
        yield client


@pytest.fixture
async def client(server: ApiServer) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=10, trust_env=False, verify=False) as client:
        yield client
