"""What the tests of restore drills share: drills that don't take their time, and damage of every kind."""

import asyncio
import sqlite3
import urllib.request
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.support.files import files_below
from tests.support.histories import finished
from tests.support.server import MadeDatabase, Server
from torpor.model.names import DatabaseId
from torpor.storage.archive.archive import Archive
from torpor.storage.archive.directory import DirectoryBucket
from torpor.storage.archive.repository import Repository
from torpor.storage.archive.store import Store
from torpor.storage.archive.vault import MasterKey

HASTE = """
import torpor.control.drills as d, torpor.control.drilling as p, torpor.base.pressure as q
d.BYTES_PER_S = 1 << 40
d._limits = lambda: d.Limits(memory_bytes=d.MEMORY_BYTES)
d.pressure.read = lambda: q.Pressure()
"""
"""Before `torpor serve`: drills with as much of the machine as they want."""

NEWEST = """
from torpor.model.history import Moment
d.choose_moment = lambda *_: Moment()
"""
"""After that: they go to the end of what there is."""


def drill(server: Server, name: str) -> Any:
    """What became of the job of one that is done now."""
    return finished(server, server.call("POST", f"/v1/databases/{name}/drills"))


def metrics(server: Server) -> str:
    """The page with the figures."""
    request = urllib.request.Request(f"{server.api_url}/metrics", headers={"Authorization": f"Bearer {server.token}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(answer.read().decode())


def last(server: Server, name: str) -> Any:
    """What the newest drill on a database said."""
    return server.call("GET", f"/v1/databases/{name}/drills")["drills"][0]


def objects(store: Path, database: MadeDatabase, kind: str) -> list[Path]:
    """What is stored of a database's history: `chunks`, `bases` or `wal`; in the order of their names."""
    return files_below(store / "databases" / database.id / kind)


def flip(path: Path, at: int) -> None:
    """Change a byte of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 0xFF]))


def with_repository(server: Server, store: Path, database: MadeDatabase, work: Callable[[Repository], Awaitable[None]]) -> None:
    """Have the history of a database in hand, as Torpor has it."""
    with sqlite3.connect(f"file:{server.data_dir}/catalog.sqlite?mode=ro", uri=True) as catalog:
        ((key,),) = catalog.execute("SELECT wrapped_key FROM histories WHERE database_id = ?", (database.id,)).fetchall()
    catalog.close()

    async def run() -> None:
        with ThreadPoolExecutor(1) as executor:
            master = MasterKey.load_or_make(server.data_dir / "master.key")
            archive = Archive(Store(DirectoryBucket(store, executor)), master, executor)
            await work(archive.repository(DatabaseId(database.id), key))

    asyncio.run(run())
