"""What the tests of faults and recovery share: polling, PostgreSQL's own programs, and checks of what a Torpor left on the host."""

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.error import HTTPError

import asyncpg
import psycopg

from tests.support.processes import by_volume, starting_postmaster
from tests.support.server import MadeDatabase, Server
from torpor.base.cgroups import detect
from torpor.base.processes import children, inner_pid
from torpor.compute import binaries
from torpor.daemon.configuration import load
from torpor.daemon.directory import instance_name
from torpor.model.names import is_database_id

T = TypeVar("T")
DYING = """
import os
def dying(was):
    def reached(*arguments):
        was(*arguments)
        if any(isinstance(argument, str) and argument == {step!r} for argument in arguments):
            os.kill(os.getpid(), 9)
    return reached
"""
"""What a Torpor runs first that is to be killed at a step: `dying` wraps whatever is told of each step."""
Connection = psycopg.Connection[tuple[object, ...]]


def program(name: str, major: int = 18) -> str:
    """The path of one of PostgreSQL's programs as Torpor has it installed."""
    settings = load({}, os.environ)
    return str(binaries.find(Path(settings.postgres_home), "")[major].bindir / name)


def run_program(name: str, *arguments: str, patience_s: float = 60, **options: str) -> "subprocess.CompletedProcess[str]":
    """Run it to its end; `options` are further environment variables."""
    environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **options}
    return subprocess.run([program(name), *arguments], env=environment, capture_output=True, text=True, timeout=patience_s)


def eventually(ask: Callable[[], T], patience_s: float = 90.0) -> T:
    """What `ask` says once that is true. Raises TimeoutError with its last answer. How soon something comes is not its business."""
    deadline = time.monotonic() + patience_s
    while not (answer := ask()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"still {answer!r}")
        time.sleep(0.005)
    return answer


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    """Do `work` meanwhile; what it raised is in the list once the thread has ended."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, failures


def processes_of(server: Server, id: str) -> list[int]:
    """All processes of that database's compute."""
    return by_volume(server.data_dir).get(id, [])


def host_pid(server: Server, id: str, pid: int) -> int:
    """The process that a database's compute itself knows by that pid, as this host counts."""
    for candidate in processes_of(server, id):
        with contextlib.suppress(ProcessLookupError):
            if inner_pid(candidate) == pid:
                return candidate
    raise LookupError(pid)


def child(postmaster: int, kind: str) -> int:
    """The pid of a PostgreSQL process by what it calls itself, such as "checkpointer"."""

    def found() -> int | None:
        for pid in children(postmaster):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended since
                if kind in Path(f"/proc/{pid}/cmdline").read_text():
                    return pid
        return None

    pid = eventually(found)  # one that was just forked is still called like its parent
    assert pid is not None
    return pid


def halted_start(server: Server, database: MadeDatabase, client: Callable[[], object]) -> tuple[int, threading.Thread]:
    """Stop a database, have `client` start it, and halt its postmaster before it is ready: its pid, and the thread of the client.

    On a busy machine it can be ready before it is seen: then the database is stopped again, and its next start is looked at.
    """
    pid_file = server.data_dir / "volumes" / database.id / "data" / "postmaster.pid"
    while True:
        stop_database(server, database)
        waiter, _ = in_thread(client)
        if (postmaster := starting_postmaster(server.pid, pid_file.parent)) is not None:
            os.kill(postmaster, signal.SIGSTOP)
            if "ready" not in pid_file.read_text().split():
                return postmaster, waiter
            os.kill(postmaster, signal.SIGCONT)
        waiter.join(40)


def runs(server: Server, database: MadeDatabase, statement: str) -> bool:
    """Whether one of the database's sessions runs such a statement now, as PostgreSQL says: from then on it can be cancelled."""
    return any(statement in cause["detail"] for cause in server.view(database.name)["database"]["awake_because"])


def put_to_sleep(server: Server, database: MadeDatabase, tier: str = "frozen") -> None:
    """Bring it down now. A backend needs a moment after its answer until PostgreSQL shows it waiting: asked too early, Torpor refuses."""

    def asleep() -> bool:
        try:
            server.sleep(database.name, tier)
        except HTTPError as error:
            with error:
                if error.code != 409:
                    raise
            return False
        return True

    eventually(asleep)


def stop_database(server: Server, database: MadeDatabase) -> None:
    """Stop it in order once its last session has ended."""
    eventually(lambda: not server.view(database.name)["database"]["connections"])
    put_to_sleep(server, database, "stopped")


def assert_nothing_half_made(server: Server) -> None:
    """Volumes, processes and cgroups are those of databases that the API shows, and of the warm pool once that is full."""
    wanted = server.settings["warm_pool_size"]
    eventually(lambda: server.call("GET", "/v1/host")["warm"] == wanted)
    ids = {database["id"] for database in server.call("GET", "/v1/databases?limit=1000")["databases"]}
    warm = server.call("GET", "/v1/host")["warm"]
    volumes = {path.name for path in (server.data_dir / "volumes").iterdir() if path.name != ".templates"}
    assert ids <= volumes
    assert len(volumes - ids) == warm, volumes - ids
    owners = {id for id in volumes if processes_of(server, id)}
    strays = set(server.remains()) - {pid for id in owners for pid in processes_of(server, id)}
    # A process that ended between the two looks is no stray.
    assert not {pid for pid in strays if Path(f"/proc/{pid}/cwd").exists()}
    cgroups = {name for name in detect(instance_name(server.data_dir)).names() if is_database_id(name)}
    assert cgroups <= volumes
    runs = {path.name for path in (server.data_dir / "run").iterdir() if is_database_id(path.name)}
    assert runs <= volumes


class Inserter:
    """Inserts rows one by one, each its own transaction, and knows which of them were acknowledged."""

    def __init__(self, url: str, number: int) -> None:
        self.acknowledged = 0
        self.number = number
        self._connection = psycopg.connect(url, autocommit=True)
        self._stopped = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """End it in order."""
        self._stopped.set()
        self.thread.join(40)

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                self._connection.execute("INSERT INTO acknowledged VALUES (%s, %s)", (self.number, self.acknowledged))
                self.acknowledged += 1
        except psycopg.Error:
            return  # the compute was killed
        finally:
            self._connection.close()


async def cut_what_is_left() -> None:
    """Close what asyncpg has left open on this loop: after a refused login, or a cancel request, it ends TLS in order in the background.
    Nobody would wait for that, and in whichever test came next Python would complain about an open socket."""
    if others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others, timeout=10)
    for transport in list(asyncio.get_running_loop()._transports.values()):  # type: ignore[attr-defined]
        transport.abort()
    await asyncio.sleep(0.01)


def refusal_of(url: str, patience_s: float = 40, **options: str) -> tuple[str, str]:
    """SQLSTATE and text (with the hint) of the refusal that a client gets."""

    async def ask() -> tuple[str, str]:
        try:
            connection = await asyncpg.connect(url, timeout=patience_s, server_settings=options)
        except asyncpg.PostgresError as error:
            return str(error.sqlstate), f"{error} {error.hint or ''}".strip()
        finally:
            await cut_what_is_left()
        connection.terminate()
        raise AssertionError(f"{url} was not refused")

    return asyncio.run(ask())
