"""Looks at a restored cluster, all of it: the checksum of each page, tables and indexes against each other, and every row of every table.

Three looks, in this order, each on what the one before has left:

1. `pg_checksums --check` on the files, while nothing runs.
2. `pg_amcheck --all --heapallindexed`: PostgreSQL is started, and each table and each B-tree of each database is walked, with the tuples
   that a table has looked up in its indexes, and values out of line put together.
3. Rows are counted, table by table: once by reading the table from its first page to its last, and once by its index alone, which believes
   the visibility map. The two must agree.

The cluster may be hostile: it is started in its own sandbox, under its own user, within the limits of who looks, and the programs beside it
are shut in as well. What it says of itself is its own affair: a tenant can make a drill on his own database lie to him, and that is all.

Concurrency: one task, on a cluster that has no compute. Safe to cancel, and to kill: what ran is ended by who comes next.
"""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from torpor.base.cgroups import Tree
from torpor.compute import logfile
from torpor.compute.handover import LifeLine, hand_over
from torpor.compute.launch import LaunchPlan, enter
from torpor.compute.postmaster import Postmaster
from torpor.compute.programs import accept_from, listen, meeting_place, read_startup, spawn_program
from torpor.compute.recovery import Manner
from torpor.compute.service import QueryFailed, ServiceSession, sql, startup_packet
from torpor.compute.starting import plan_launch
from torpor.compute.surroundings import Surroundings
from torpor.model.database import Database
from torpor.model.drills import DrillCause
from torpor.model.errors import ComputeLost, ComputeStartFailed, TorporError, Unavailable
from torpor.model.names import SERVICE_ROLE, DatabaseId

MOST_TABLES = 5000
"""Of one database, whose rows are counted; pg_amcheck looks at all."""

_MOST_DATABASES = 1000
_START_S = 600.0
_QUERY_S = 86_400.0  # whoever looks has a limit of its own
_OUTPUT_BYTES = 64_000
_SHOWN = 300
_UNIQUE_SINCE = 17  # pg_amcheck --checkunique
_OPTIONS = (
    ("autovacuum", "off"),
    ("fsync", "off"),
    ("archive_mode", "off"),
    ("restore_command", ""),
    ("max_logical_replication_workers", "0"),
    ("max_parallel_workers", "0"),
    ("maintenance_work_mem", "32MB"),  # of which --heapallindexed makes the filter that it looks tuples up in
    ("work_mem", "4MB"),
    ("temp_file_limit", "1GB"),
)
_LONG = " -c statement_timeout=0 -c lock_timeout=0"
_BAD_BLOCK = re.compile(r'checksum verification failed in file "(?:/data/)?([^"]+)", block (\d+)')
_BAD_BLOCKS = re.compile(r"^Bad checksums:\s+(\d+)", re.MULTILINE)
_NO_CHECKSUMS = "data checksums are not enabled"
_NOT_STOPPED = "cluster must be shut down"
_NOT_CONNECTED = re.compile(r"connection to server|server closed the connection|could not connect|no connection to the server")
_BEGINS = "starting PostgreSQL"
_NO_ROOM = ("No space left", "Disk quota")
_STARVED = re.compile(
    r"was terminated by signal 9\b|Cannot allocate memory|out of memory|could not fork|Resource temporarily unavailable"
    r"|No space left on device|Disk quota exceeded"
)
_CRASHED = re.compile(r"was terminated by signal (4|6|7|8|11)\b[^\n]*")
_LOG_BYTES = 65_536
_DATABASES, _TABLES = sql("checked_databases"), sql("checked_tables")
_BY_TABLE = "SET enable_seqscan = on; SET enable_indexscan = off; SET enable_indexonlyscan = off; SET enable_bitmapscan = off"
_BY_INDEX = "SET enable_seqscan = off; SET enable_indexscan = off; SET enable_indexonlyscan = on; SET enable_bitmapscan = off"


class Damaged(Unavailable):
    """What was restored isn't as it should be."""

    kind, sqlstate = "damaged", "XX001"

    def __init__(self, cause: DrillCause, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class Overtaxed(Unavailable):
    """PostgreSQL, or a program of it, lacked something, or was ended by the kernel: that says nothing of the cluster."""

    kind = "overtaxed"

    def __init__(self, message: str, cause: DrillCause = DrillCause.MEMORY) -> None:
        super().__init__(message)
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Counted:
    """What was seen: how many tables (views that are stored among them) and rows, and by which means they were looked at."""

    tables: int
    rows: int
    checked: tuple[str, ...]


Tell = Callable[[str], None]
"""Is told what is being done."""


def check_not_starved(log: Path, error: Exception) -> None:
    """Raises Overtaxed when PostgreSQL's log says that it lacked what it needs, or never began: that says nothing of its data."""
    said = _end_of(log)
    if lacked := _STARVED.search(said):
        cause = DrillCause.POOL if lacked[0].startswith(_NO_ROOM) else DrillCause.MEMORY
        raise Overtaxed(f"PostgreSQL lacked what it needs: {lacked[0]}", cause) from error
    if len(said) < _LOG_BYTES // 2 and _BEGINS not in said:
        raise Overtaxed(f"PostgreSQL can't be started here: {_clean(said) or 'it left no message'}", DrillCause.HOST) from error


async def check_pages(plan: LaunchPlan, tree: Tree, hold: AbstractAsyncContextManager[None]) -> bool:
    """Read every page of a cluster that was stopped in order. Whether it has checksums at all. Raises Damaged, Overtaxed."""
    process = spawn_program(plan, "pg_checksums", plan.data, lambda place: ["--check", "-D", str(place)], subprocess.STDOUT)
    async with _running(process, tree) as program, hold:
        code, said = await program.result()
    if code == 0:
        return True
    if _NO_CHECKSUMS in said:
        return False
    if _NOT_STOPPED in said:
        raise Overtaxed("PostgreSQL could not be stopped in order in time", DrillCause.HOST)
    if found := _BAD_BLOCK.search(said):
        many = total[1] if (total := _BAD_BLOCKS.search(said)) else "some"
        raise Damaged(
            DrillCause.CHECKSUMS, f"{many} pages don't have their checksum, the first of them in {_clean(found[1])}, block {found[2]}"
        )
    raise _failure("pg_checksums", code, said, DrillCause.CHECKSUMS)


async def check(source: Database, id: DatabaseId, data: Path, around: Surroundings, manner: Manner, places: Path, tell: Tell) -> Counted:
    """All three looks at the cluster in `data`, which was restored from what `source` was, and stopped in order; `id` is what its processes
    are known by, in `places` its programs meet. Raises Damaged with what is wrong, Overtaxed, and what hands over raises."""
    plan = await plan_launch(source, source.size.apply(around.size), around, manner.log, data)
    plan = replace(plan, options=(*plan.options, *_OPTIONS, ("shared_buffers", f"{manner.buffers_mb}MB")))
    tree = around.trees.open(id)
    tree.limit(manner.limits)
    postmaster = Postmaster(tree, around.run / id / "door.sock", lambda _: None, lambda: None, major=source.major)
    try:
        await postmaster.clear_remains(data)
        tell("checking pages")
        has_checksums = await check_pages(plan, tree, manner.replaying(tree))
        tell("starting")
        await _start(postmaster, plan)
        door = around.run / id / "door.sock"
        tell("checking tables and indexes")
        await _check_relations(plan, tree, door, places, source.major, manner)
        tables, rows = await _count(tree, door, source.major, manner, tell)
    except (ComputeLost, Damaged, Overtaxed) as error:
        if tree.memory_load().killed:
            raise Overtaxed("the kernel ended a process for want of memory") from error
        check_not_starved(manner.log, error)
        if not isinstance(error, Damaged) and (crash := _CRASHED.search(_end_of(manner.log))):
            raise Damaged(DrillCause.ROWS, f"PostgreSQL crashed while it was looked through: {_clean(crash[0])}") from error
        raise
    finally:
        await postmaster.end_at_once()
    return Counted(tables, rows, (*(("checksums",) if has_checksums else ()), "amcheck", "rows"))


async def _start(postmaster: Postmaster, plan: LaunchPlan) -> None:
    try:
        postmaster.launch(plan)
        await postmaster.enter_tree()
        if not await postmaster.wait_ready(_START_S, lambda: None):
            raise Overtaxed(f"PostgreSQL was not ready after {_START_S:.0f} s", DrillCause.HOST)
    except ComputeStartFailed as error:
        raise Damaged(DrillCause.START, f"PostgreSQL doesn't start on it: {_clean(logfile.last_words(plan.log))}") from error


# -- pg_amcheck


async def _check_relations(plan: LaunchPlan, tree: Tree, door: Path, places: Path, major: int, manner: Manner) -> None:
    more = ["--checkunique"] if major >= _UNIQUE_SINCE else []
    with meeting_place(places, plan.uid) as directory, listen(directory, plan.uid, 8) as listener:
        process = spawn_program(
            plan,
            "pg_amcheck",
            directory,
            lambda place: [
                "--no-password", "--host", str(place), "--username", SERVICE_ROLE,
                "--all", "--install-missing", "--heapallindexed", *more, "--jobs", "1",
            ],
            subprocess.STDOUT,
        )  # fmt: skip
        async with _running(process, tree) as program:
            serving = asyncio.create_task(_serve(listener, process.pid, door, major), name="hand over to pg_amcheck")
            try:
                async with manner.replaying(tree):
                    code, said = await program.result()
            finally:
                serving.cancel()
                await asyncio.gather(serving, return_exceptions=True)
    if code == 0:
        return
    if code == 2:
        raise Damaged(DrillCause.AMCHECK, f"pg_amcheck found damage: {_clean(' '.join(said.split()))}")
    raise _failure("pg_amcheck", code, said, DrillCause.AMCHECK)


async def _serve(listener: "socket.socket", program: int, door: Path, major: int) -> None:
    """Hand each connection of a program over as a session of Torpor's own, in the database that it asks for."""
    lines = contextlib.ExitStack()
    with lines:
        while True:
            client = await accept_from(listener, program)
            with client, contextlib.suppress(TorporError, OSError):
                client.setblocking(False)
                asked = await read_startup(client)
                startup = startup_packet(asked.parameters.get("database", ""), major, _LONG)
                lines.callback(LifeLine(await hand_over(door, client, None, startup)).close)


# -- rows


async def _count(tree: Tree, door: Path, major: int, manner: Manner, tell: Tell) -> tuple[int, int]:
    """How many tables there are in all databases, and rows in them. Raises Damaged for a table that can't be read."""
    session = await ServiceSession.open(door, major=major)
    try:
        names = [name for (name,) in await session.query(_DATABASES.format(most=_MOST_DATABASES), 2 * _MOST_DATABASES) if name is not None]
    finally:
        await session.close()
    tables = rows = 0
    for name in names:
        session = await ServiceSession.open(door, name, major)
        try:
            await session.query("SET statement_timeout = 0; SET lock_timeout = 0")
            found = await session.query(_TABLES.format(most=MOST_TABLES), 2 * MOST_TABLES)
            for number, (relation, has_index) in enumerate(found):
                if relation is None:
                    continue
                if not number % 100:
                    tell(f"counting rows, table {tables + 1}")
                async with manner.replaying(tree):
                    rows += await _count_table(session, relation, has_index == "t")
                tables += 1
        finally:
            await session.close()
    return tables, rows


async def _count_table(session: ServiceSession, relation: str, has_index: bool) -> int:
    """`relation` is its name as PostgreSQL quotes it. Where it has an index that knows all of its rows, they are counted by that, too."""
    statement = f"SELECT pg_catalog.count(*) FROM ONLY {relation}"  # noqa: S608  # in the sandbox of who might have made it up
    try:
        there = _number(await session.query(f"{_BY_TABLE}; {statement}", patience_s=_QUERY_S))
        if not has_index:
            return there
        by_index = _number(await session.query(f"{_BY_INDEX}; {statement}", patience_s=_QUERY_S))
    except QueryFailed as error:
        raise Damaged(
            DrillCause.ROWS, f"{_clean(relation)} can't be read to its end: {_clean(error.message.partition(': ')[2])}"
        ) from error
    if by_index != there:
        raise Damaged(DrillCause.ROWS, f"{_clean(relation)} has {there} rows, and {by_index} by its index")
    return there


def _number(rows: list[tuple[str | None, ...]]) -> int:
    try:
        return max(0, int(rows[-1][0] or ""))
    except (IndexError, ValueError) as error:
        raise ComputeLost("PostgreSQL answered Torpor with what can't be: its functions were changed") from error


# -- programs


class _Program:
    """One that runs, and what it says; of that the beginning is kept."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self._said = bytearray()
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._pidfd = os.pidfd_open(process.pid)
        assert process.stdout is not None
        self._stdout = process.stdout.fileno()
        self._loop.add_reader(self._pidfd, self._note_end)
        self._loop.add_reader(self._stdout, self._listen)

    async def result(self) -> tuple[int, str]:
        """Its exit code and what it said, once it has ended."""
        await self._ended.wait()
        while self._listen():
            pass
        code = self._process.wait()
        return code, bytes(self._said).decode("utf-8", "replace")

    def close(self) -> None:
        """End it if it still runs."""
        for fd in (self._pidfd, self._stdout):
            self._loop.remove_reader(fd)
        os.close(self._pidfd)
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()  # what was killed ends at once, also when it is frozen: the tree is thawed before
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _note_end(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._ended.set()

    def _listen(self) -> bool:
        """Whether there was something."""
        try:
            part = os.read(self._stdout, _OUTPUT_BYTES)
        except BlockingIOError:
            return False
        self._said += part[: max(0, _OUTPUT_BYTES - len(self._said))]
        if not part:
            self._loop.remove_reader(self._stdout)
        return bool(part)


@contextlib.asynccontextmanager
async def _running(process: "subprocess.Popen[bytes]", tree: Tree) -> AsyncIterator[_Program]:
    program = _Program(process)
    try:
        with contextlib.suppress(ProcessLookupError):
            await asyncio.to_thread(enter, process.pid, tree.entrances())
        yield program
    finally:
        tree.thaw()
        program.close()


def _failure(program: str, code: int, said: str, cause: DrillCause) -> Unavailable:
    if code < 0 or code >= 128:
        return Overtaxed(f"{program} was ended by a signal")
    if _NOT_CONNECTED.search(said):
        return Overtaxed(f"{program} lost PostgreSQL: {_clean(' '.join(said.split()))}")
    lines = [line for line in said.splitlines() if "error:" in line] or said.splitlines() or ["it ended without a word"]
    return Damaged(cause, f"{program} could not look at all of it: {_clean(lines[-1])}")


def _end_of(log: Path) -> str:
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_BYTES))
        return file.read(_LOG_BYTES).decode("utf-8", "replace")
    return ""


def _clean(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)[:_SHOWN]
