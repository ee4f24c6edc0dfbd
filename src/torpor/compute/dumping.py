"""pg_dump beside a compute: shut in as the compute is, under its user, within its share of the machine, with one connection to it.

The database that is dumped may be hostile, and pg_dump is as large as what it reads; so it gets a sandbox like PostgreSQL's own, where it
finds nothing but itself and a Unix socket. There Torpor takes its one connection and hands it over as a session of its own role. So what
keeps clients out (a full disk, no free connection, rows that the owner may not read) keeps no dump from being made.

Concurrency: one Dump is one process and one reader. Bounded: the kernel's pipe, and READ_BYTES; whoever reads slowly holds up pg_dump.
Closing it ends pg_dump at once; the compute then sees a client that left.
"""

import asyncio
import contextlib
import os
import re
import socket
import subprocess
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

from torpor.base.logs import get_logger
from torpor.compute.compute import Compute
from torpor.compute.handover import LifeLine, hand_over
from torpor.compute.launch import enter
from torpor.compute.programs import accept_from, listen, meeting_place, read_startup, spawn_program
from torpor.compute.service import startup_packet
from torpor.compute.starting import plan_launch
from torpor.compute.surroundings import Surroundings
from torpor.model.errors import ComputeLost, DumpFailed, ProtocolViolation
from torpor.model.names import SERVICE_ROLE

log = get_logger(__name__)

READ_BYTES = 256 * 1024
_PATIENCE_S = 30.0  # for pg_dump to connect: its sandbox is made, and it is loaded
_SAID_BYTES = 16_384
_ERROR = re.compile(r"pg_dump: error: (.*)")
_SHOWN = 300


def meeting_places(around: Surroundings) -> Path:
    """Where the sockets of dumps lie while these go on."""
    return around.run.parent / "dump"


class Dump:
    """One run of pg_dump. Make it with `open`, only within `Compute.awake`; close it."""

    def __init__(self, process: "subprocess.Popen[bytes]", place: contextlib.ExitStack) -> None:
        self._process = process
        self._place = place
        self._line: LifeLine | None = None
        self._said = bytearray()
        self._ended = asyncio.Event()
        self._pidfd = os.pidfd_open(process.pid)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pidfd, self._note_end)
        assert process.stderr is not None
        self._stderr = process.stderr.fileno()
        loop.add_reader(self._stderr, self._listen)

    def __repr__(self) -> str:
        return f"<Dump pid={self._process.pid}>"

    @classmethod
    async def open(cls, compute: Compute, around: Surroundings, name: str, arguments: Sequence[str]) -> "Dump":
        """Start pg_dump on the database `name` of a compute. Raises DumpFailed and what hands over raises; then nothing is left."""
        plan = await plan_launch(compute.database, compute.size, around, compute.log_file)
        with contextlib.ExitStack() as made:
            directory = made.enter_context(meeting_place(meeting_places(around), plan.uid))
            listener = made.enter_context(listen(directory, plan.uid))
            given = ["--username", SERVICE_ROLE, *arguments, "--dbname", name]
            process = spawn_program(plan, "pg_dump", directory, lambda place: ["--no-password", "--host", str(place), *given])
            dump = cls(process, made.pop_all())
        try:
            await asyncio.to_thread(enter, process.pid, compute.live().tree.entrances())
            await dump._connect(listener, around.run / compute.database.id / "door.sock", startup_packet(name, compute.major))
        except BaseException:
            dump.close()
            raise
        return dump

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """All of the dump, as it comes. Raises DumpFailed at its end when it isn't whole."""
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        while part := await _read(fd):
            yield part
        await self._ended.wait()
        if self._process.poll() != 0:
            raise self._failure()
        self.close()

    def close(self) -> None:
        """End pg_dump, if it still runs, and remove what was made for it. Idempotent."""
        if self._pidfd < 0:
            return
        loop = asyncio.get_running_loop()
        for fd in (self._pidfd, self._stderr):
            loop.remove_reader(fd)
        os.close(self._pidfd)
        self._pidfd = -1
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()  # what was killed ends at once
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        if self._line is not None:
            self._line.close()
        self._place.close()

    async def _connect(self, listener: socket.socket, door: Path, startup: bytes) -> None:
        """Take pg_dump's connection and hand it over as Torpor's own."""
        accepting = asyncio.ensure_future(accept_from(listener, self._process.pid))
        ending = asyncio.ensure_future(self._ended.wait())
        try:
            await asyncio.wait((accepting, ending), timeout=_PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
            if not accepting.done():
                raise self._failure() if ending.done() else DumpFailed("pg_dump didn't connect")
            client = accepting.result()
        finally:
            for waiting in (accepting, ending):
                waiting.cancel()
            await asyncio.gather(accepting, ending, return_exceptions=True)
        with client:
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    await read_startup(client)
            except (ComputeLost, ProtocolViolation) as error:
                raise DumpFailed("pg_dump didn't log in") from error
            self._line = LifeLine(await hand_over(door, client, None, startup))

    def _note_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._ended.set()

    def _listen(self) -> bool:
        """Whether there was something."""
        try:
            part = os.read(self._stderr, _SAID_BYTES)
        except BlockingIOError:
            return False
        self._said += part
        del self._said[:-_SAID_BYTES]
        if not part:
            asyncio.get_running_loop().remove_reader(self._stderr)
        return bool(part)

    def _failure(self) -> DumpFailed:
        while self._listen():
            pass
        said = bytes(self._said).decode("utf-8", "replace")
        found = _ERROR.search(said)
        shown = found[1] if found else (said.strip().splitlines() or ["it ended without a word"])[-1]
        clean = "".join(char if char.isprintable() else " " for char in shown)[:_SHOWN]
        return DumpFailed(f"the database could not be dumped: {clean}", "its PostgreSQL log may tell more: `torpor logs`")


async def _read(fd: int) -> bytes:
    """What comes next from a pipe; nothing at its end. Safe to cancel."""
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    while True:
        try:
            return os.read(fd, READ_BYTES)
        except BlockingIOError:
            readable.clear()
            loop.add_reader(fd, readable.set)
            try:
                await readable.wait()
            finally:
                loop.remove_reader(fd)
