"""Operations on one database that are asked for at the same time, and what must hold after any of them in any order."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psycopg

from tests.support.branching import branch, connect
from tests.support.faults import assert_nothing_half_made, eventually
from tests.support.histories import back_up, finished
from tests.support.server import MadeDatabase, Server

_REFUSED = {404, 409, 503}
"""Statuses that tell a caller what is going on, and to come back."""
_FAILED = {"conflict", "database_in_use", "database_not_found", "unavailable", "compute_lost", "shutting_down", "history_missing"}
_numbers = count(1)


@dataclass
class Subject:
    """A branch with something to lose: its parent has `parent` in it, it had `past` at the moment `at`, and has `now`."""

    server: Server
    database: MadeDatabase
    at: float
    done: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def path(self, verb: str = "") -> str:
        """Of the API."""
        return f"/v1/databases/{self.database.name}{'/' if verb else ''}{verb}"

    def call(self, method: str, verb: str, body: object = None) -> Any:
        """One call; raises HTTPError."""
        return self.server.call(method, self.path(verb), body)

    def job(self, verb: str, body: object = None) -> None:
        """One call that begins a job, and its end. Raises RuntimeError with the kind of its failure."""
        view = finished(self.server, self.call("POST", verb, body))
        if view["state"] != "done":
            assert view["error"]["message"], view
            raise RuntimeError(view["error"]["kind"])

    def export(self) -> None:
        """A dump, to its last line or not."""
        server = self.server
        request = Request(
            f"{server.api_url.rstrip('/')}{self.path('export')}",
            b"{}",
            {"Authorization": f"Bearer {server.token}", "Content-Type": "application/json"},
        )
        with urlopen(request, timeout=60) as answer:
            if b"database dump complete" not in answer.read():
                raise RuntimeError("unavailable")


Operation = Callable[[Subject], object]

OPERATIONS: dict[str, Operation] = {
    "branch": lambda one: branch(one.server, one.database.name, f"b{next(_numbers)}"),
    "reset": lambda one: one.call("POST", "reset", {"force": True}),
    "restore": lambda one: one.job("restore", {"at": one.at, "force": True}),
    "archive": lambda one: one.job("archive"),
    "backup": lambda one: one.job("backups"),
    "export": lambda one: one.export(),
    "rm": lambda one: one.server.call("DELETE", f"{one.path()}?force=true"),
    "sleep": lambda one: one.call("POST", "sleep", {"tier": "stopped", "force": True}),
    "wake": lambda one: one.call("POST", "wake"),
    "size": lambda one: one.call("PATCH", "", {"size": {"disk_bytes": 3 << 30}}),
}


def subject(server: Server, parent: str) -> Subject:
    """Another one."""
    made = branch(server, parent, f"try{next(_numbers)}")
    with connect(made.url) as connection:
        connection.execute("UPDATE things SET what = 'past'")
        back_up(server, made.name)
        at = time.time()
        time.sleep(0.01)
        connection.execute("UPDATE things SET what = 'now'")
    return Subject(server, made, at)


def run(one: Subject, names: Sequence[str], apart_s: float) -> None:
    """Ask for all of these, one `apart_s` seconds after the other, each by itself; until all have ended."""

    def ask(name: str, delay_s: float) -> None:
        time.sleep(delay_s)
        try:
            OPERATIONS[name](one)
        except HTTPError as error:
            with error:
                said = error.read().decode(errors="replace")
            one.refused[name] = said
            if error.code not in _REFUSED:
                one.faults.append(f"{name}: {error.code} {said}")
        except RuntimeError as error:
            one.refused[name] = str(error)
            if str(error) not in _FAILED:
                one.faults.append(f"{name}: {error}")
        except Exception as error:
            one.faults.append(f"{name}: {error!r}")
        else:
            one.done.add(name)

    threads = [threading.Thread(target=ask, args=(name, number * apart_s), daemon=True) for number, name in enumerate(names)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(180)
        assert not thread.is_alive(), f"{names} hang: {one.server.log[-3000:]}"


def check(one: Subject, kept: set[str]) -> None:
    """Each was done, or clearly refused; the database is what one of them made of it; nothing is left behind. `kept` stay."""
    server, name = one.server, one.database.name
    assert not one.faults, one.faults
    eventually(lambda: not server.call("GET", "/v1/jobs?state=running")["jobs"])
    if "rm" in one.done:
        assert server.refusal("GET", one.path())[0] == 404
    else:
        assert server.view(name)["database"]["id"] == one.database.id
        found = _content(one.database)
        assert found in {"now"} | ({"parent"} if "reset" in one.done else set()) | ({"past"} if "restore" in one.done else set()), one
        if not one.done & {"reset", "restore"}:
            assert found == "now"
        server.call("DELETE", f"{one.path()}?force=true")
    for other in server.call("GET", "/v1/databases")["databases"]:  # branches, and what was before a restore
        if other["name"] not in kept:
            server.call("DELETE", f"/v1/databases/{other['name']}?force=true")
    volumes = server.data_dir / "volumes"
    eventually(lambda: not [path for path in volumes.iterdir() if path.name.startswith((".making", ".removing"))])  # a base of a branch
    assert_nothing_half_made(server)
    assert {row["name"] for row in server.call("GET", "/v1/databases")["databases"]} == kept
    assert "Traceback" not in server.log, server.log[server.log.index("Traceback") - 3000 :][:8000]


def _content(database: MadeDatabase) -> str:
    def read() -> str | None:
        with suppress(psycopg.OperationalError), connect(database.url) as connection:  # the last refusal is remembered for seconds
            row = connection.execute("SELECT min(what), count(*), count(DISTINCT what) FROM things").fetchone()
            assert row is not None
            assert row[1:] == (5, 1), row
            return str(row[0])
        return None

    return str(eventually(read))
