"""What the tests and benchmarks of histories share: waiting for jobs, and what a database's history says."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.faults import eventually
from tests.support.server import MadeDatabase, Server

_IMPATIENT = "import torpor.control.shipping as s; s._LONGEST_PAUSE_S = 1.0; "  # tests don't wait for pauses


@contextmanager
def server_with_history(prelude: str = "", **settings: object) -> Iterator[tuple[Server, Path]]:
    """A Torpor that keeps histories in a directory of its own, outside of its data directory. `prelude` is run before it."""
    store = Path(tempfile.mkdtemp(prefix="torpor-test-history-", dir="/dev/shm"))
    try:
        server = Server(history_store=str(store), **settings)  # type: ignore[arg-type]  # settings of `torpor serve`
        server.prelude = _IMPATIENT + prelude
        with server:
            yield server, store
    finally:
        shutil.rmtree(store, ignore_errors=True)


def finished(server: Server, job: Any, patience_s: float = 120.0) -> Any:
    """What became of a job."""
    return eventually(lambda: view if (view := server.call("GET", f"/v1/jobs/{job['id']}"))["state"] != "running" else None, patience_s)


def done(server: Server, job: Any) -> dict[str, str]:
    """The result of a job that must succeed."""
    view = finished(server, job)
    assert view["state"] == "done", view
    return dict(view["result"])


def back_up(server: Server, name: str) -> None:
    """Take a base now, once no other is being taken."""
    done(server, server.call("POST", f"/v1/databases/{name}/backups"))


def past_branch(server: Server, parent: str, name: str, **moment: object) -> MadeDatabase:
    """A branch of a database as it was; its URL has the owner's password."""
    begun = server.call("POST", f"/v1/databases/{parent}/branches/past", {"name": name, **moment})
    result = done(server, begun["job"])
    return MadeDatabase(result["database"], result["id"], begun["credentials"]["url"], begun["credentials"]["password"])


def shipping(server: Server, name: str) -> Any:
    """How far the history of a database is, as `torpor show` has it."""
    return server.view(name)["history"]


def wait_shipped(server: Server, name: str) -> None:
    """Until the history holds what was committed before now."""
    now = time.time()
    eventually(lambda: (shipping(server, name)["shipped_at"] or 0) >= now)
