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
import secrets
import shutil
import socket
import struct
import subprocess
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path, PurePath

from torpor.base.logs import get_logger
from torpor.base.processes import descendants, dying_with_us
from torpor.compute.compute import Compute
from torpor.compute.handover import LifeLine, hand_over
from torpor.compute.launch import LaunchPlan, enter
from torpor.compute.sandbox.command import DATA, LIBRARY_DIRECTORY, LOCKED_FILE, Confinement, confined, dropped
from torpor.compute.service import startup_packet
from torpor.compute.starting import plan_launch
from torpor.compute.surroundings import Surroundings
from torpor.model.errors import ComputeLost, DumpFailed
from torpor.model.names import SERVICE_ROLE
from torpor.model.sandbox import SandboxLevel
from torpor.pgwire.startup import EncryptionRequest, StartupMessage, parse_first_packet

log = get_logger(__name__)

READ_BYTES = 256 * 1024
_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid, uid, gid
_SOCKET = ".s.PGSQL.5432"
_PATIENCE_S = 30.0  # for pg_dump to connect: its sandbox is made, and it is loaded
_LONGEST_PACKET = 10_000
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
            directory = made.enter_context(_meeting_place(meeting_places(around), plan.uid))
            listener = made.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            listener.bind(str(directory / _SOCKET))
            _give(directory / _SOCKET, plan.uid)
            listener.listen(1)
            listener.setblocking(False)
            process = _spawn(plan, directory, name, arguments)
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
        loop = asyncio.get_running_loop()
        accepting = asyncio.ensure_future(self._accept(listener))
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
            async with asyncio.timeout(_PATIENCE_S):
                while isinstance(packet := await _first_packet(client), EncryptionRequest):
                    await loop.sock_sendall(client, b"N")
            if not isinstance(packet, StartupMessage):
                raise DumpFailed("pg_dump didn't log in")
            self._line = LifeLine(await hand_over(door, client, None, startup))

    async def _accept(self, listener: socket.socket) -> socket.socket:
        """The connection of pg_dump itself. At a weak level the database's own processes could come first: the session isn't theirs."""
        while True:
            client, _ = await asyncio.get_running_loop().sock_accept(listener)
            pid, _, _ = _CREDENTIALS.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
            if pid in descendants(self._process.pid):
                return client
            client.close()

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


async def _first_packet(client: socket.socket) -> object:
    loop = asyncio.get_running_loop()
    length = int.from_bytes(await _exactly(loop, client, 4), "big")
    if not 8 <= length <= _LONGEST_PACKET:
        raise DumpFailed("pg_dump didn't log in")
    return parse_first_packet(await _exactly(loop, client, length - 4))


async def _exactly(loop: asyncio.AbstractEventLoop, client: socket.socket, count: int) -> bytes:
    held = b""
    while len(held) < count:
        part = await loop.sock_recv(client, count - len(held))  # not a byte more: the socket is handed over
        if not part:
            raise ComputeLost("pg_dump went away")
        held += part
    return held


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


@contextlib.contextmanager
def _meeting_place(parent: Path, uid: int) -> Iterator[Path]:
    """A directory that this user alone may enter, for as long as it is used."""
    parent.mkdir(exist_ok=True)
    parent.chmod(0o711)
    directory = parent / secrets.token_hex(3)
    directory.mkdir(mode=0o700)
    try:
        (directory / LOCKED_FILE).touch(0o600)
        for path in (directory, directory / LOCKED_FILE):
            _give(path, uid)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _give(path: Path, uid: int) -> None:
    if os.geteuid() == 0:
        os.chown(path, uid, uid)


def _spawn(plan: LaunchPlan, directory: Path, name: str, arguments: Sequence[str]) -> "subprocess.Popen[bytes]":
    host: PurePath = directory
    program: PurePath = plan.bindir / "pg_dump"
    environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PGSSLMODE": "disable", "PGGSSENCMODE": "disable"}
    with contextlib.ExitStack() as opened:
        filter_fd = -1
        if plan.level.is_sandbox:
            assert plan.root is not None and plan.filter is not None
            host, program = DATA, plan.root.bindir / "pg_dump"
            filter_fd = os.open(plan.filter, os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, filter_fd)
        line = [str(program), "--no-password", "--host", str(host), "--username", SERVICE_ROLE, *arguments, "--dbname", name]
        if plan.level.is_sandbox:
            assert plan.root is not None
            # Without /proc the loader doesn't find what lies beside the program.
            environment["LD_LIBRARY_PATH"] = str(plan.root.bindir.parent / "lib")
            if plan.level is SandboxLevel.NO_USER_NAMESPACE:
                environment["LD_PRELOAD"] = str(LIBRARY_DIRECTORY / plan.library.name)  # becomes the compute's user there
            given = Confinement(plan.level, plan.uid, plan.root.path, directory, plan.configuration, plan.library, filter_fd)
            line = confined(given, environment, line, ("--die-with-parent", "--ro-bind", str(plan.bindir), str(plan.root.bindir)))
        elif plan.level is SandboxLevel.OWN_USER:
            line = [*dropped(plan.uid), *line]
        else:
            line = dying_with_us(line)
        process = subprocess.Popen(
            line,
            env={} if plan.level.is_sandbox else environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd="/",
            start_new_session=True,
            pass_fds=[filter_fd] if filter_fd >= 0 else [],
        )
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        os.set_blocking(stream.fileno(), False)
    return process
