"""PostgreSQL's client programs in a sandbox beside a compute: shut in as the compute is, under its user, with nothing but a directory.

What they read may be hostile, and they are as large as what they read. Where such a program wants to talk to PostgreSQL it finds a Unix
socket in its directory (`meeting_place`), on which Torpor takes its connections and hands them over as sessions of its own role.

Concurrency: `spawn_program` blocks for about a millisecond. The caller puts the process into a tree (`launch.enter`), and ends it.
"""

import asyncio
import contextlib
import os
import secrets
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath

from torpor.base.processes import descendants, dying_with_us
from torpor.compute.launch import LaunchPlan
from torpor.compute.sandbox.command import DATA, LIBRARY_DIRECTORY, LOCKED_FILE, Confinement, confined, dropped
from torpor.model.errors import ComputeLost, ProtocolViolation
from torpor.model.sandbox import SandboxLevel
from torpor.pgwire.startup import EncryptionRequest, StartupMessage, parse_first_packet

_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid, uid, gid
_SOCKET = ".s.PGSQL.5432"
_LONGEST_PACKET = 10_000


def spawn_program(
    plan: LaunchPlan, name: str, directory: Path, arguments: Callable[[PurePath], list[str]], stderr: int = subprocess.PIPE
) -> "subprocess.Popen[bytes]":
    """Start the program `name` with `directory` as all that it may write; `arguments` are made of that directory's path as the program sees
    it. Its output, and with PIPE what it complains of, comes through pipes that don't block."""
    host: PurePath = directory
    program: PurePath = plan.bindir / name
    environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PGSSLMODE": "disable", "PGGSSENCMODE": "disable"}
    with contextlib.ExitStack() as opened:
        filter_fd = -1
        if plan.level.is_sandbox:
            assert plan.root is not None and plan.filter is not None
            host, program = DATA, plan.root.bindir / name
            filter_fd = os.open(plan.filter, os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, filter_fd)
        line = [str(program), *arguments(host)]
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
            stderr=stderr,
            bufsize=0,
            cwd="/",
            start_new_session=True,
            pass_fds=[filter_fd] if filter_fd >= 0 else [],
        )
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            os.set_blocking(stream.fileno(), False)
    return process


@contextlib.contextmanager
def meeting_place(parent: Path, uid: int) -> Iterator[Path]:
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


def listen(directory: Path, uid: int, backlog: int = 1) -> socket.socket:
    """The socket in a meeting place on which a program of PostgreSQL's finds it."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(directory / _SOCKET))
        _give(directory / _SOCKET, uid)
        listener.listen(backlog)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


async def accept_from(listener: socket.socket, program: int) -> socket.socket:
    """The next connection of that program itself. At a weak level the database's own processes could come first: the session isn't
    theirs."""
    while True:
        client, _ = await asyncio.get_running_loop().sock_accept(listener)
        pid, _, _ = _CREDENTIALS.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if pid in descendants(program):
            return client
        client.close()


async def read_startup(client: socket.socket) -> StartupMessage:
    """What a program says first, once encryption was declined. Reads not a byte more: the socket is handed over.

    Raises ComputeLost and ProtocolViolation.
    """
    loop = asyncio.get_running_loop()
    while isinstance(packet := await _first_packet(client), EncryptionRequest):
        await loop.sock_sendall(client, b"N")
    if not isinstance(packet, StartupMessage):
        raise ProtocolViolation("a program of PostgreSQL's didn't log in")
    return packet


async def _first_packet(client: socket.socket) -> object:
    loop = asyncio.get_running_loop()
    length = int.from_bytes(await _exactly(loop, client, 4), "big")
    if not 8 <= length <= _LONGEST_PACKET:
        raise ProtocolViolation("a program of PostgreSQL's didn't log in")
    return parse_first_packet(await _exactly(loop, client, length - 4))


async def _exactly(loop: asyncio.AbstractEventLoop, client: socket.socket, count: int) -> bytes:
    held = b""
    while len(held) < count:
        part = await loop.sock_recv(client, count - len(held))
        if not part:
            raise ComputeLost("a program of PostgreSQL's went away")
        held += part
    return held


def _give(path: Path, uid: int) -> None:
    if os.geteuid() == 0:
        os.chown(path, uid, uid)
