"""Starts a postmaster in its tree and its sandbox, with the library preloaded, and waits until it says that it is ready.

Concurrency: `launch` runs on the event loop; the spawn itself blocks it for about a millisecond (vfork). Safe to cancel: the
caller then has a process that it must kill through the tree.
"""

import asyncio
import contextlib
import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path, PurePath

from torpor.base.cgroups import Tree
from torpor.base.processes import ProcessHandle, children, reap, start_ticks
from torpor.compute.configuration import ISOLATION
from torpor.compute.sandbox.command import CONFIGURATION, DATA, LIBRARY_DIRECTORY, Confinement, confined, dropped, tool
from torpor.compute.sandbox.image.images import Root
from torpor.model.errors import ComputeStartFailed
from torpor.model.sandbox import SandboxLevel

_LISTENER_FD, _READY_FD, _GO_FD, _FILTER_FD, _HASTE_FD, _WRITES_FD = 3, 4, 5, 6, 7, 8
_BACKLOG = 4096
_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid, uid, gid
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TZ": "UTC"}
_DESCRIPTORS = {
    "TORPOR_LISTENER_FD": str(_LISTENER_FD),
    "TORPOR_READY_FD": str(_READY_FD),
    "TORPOR_GO_FD": str(_GO_FD),
}
_HASTY = {"TORPOR_HASTE_FD": str(_HASTE_FD)}
_COUNTING = {"TORPOR_WRITES_FD": str(_WRITES_FD)}


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """What to start: binaries, cluster, user, and the files that lie outside of the volume. A level that is a sandbox needs `root`
    and `filter`; the others run the `postgres` in `bindir`."""

    bindir: Path
    data: Path
    uid: int
    library: Path
    configuration: Path
    log: Path
    options: tuple[tuple[str, str], ...] = ()  # settings of PostgreSQL beyond those that all share
    level: SandboxLevel = SandboxLevel.NONE
    root: Root | None = None
    filter: Path | None = None
    haste: int | None = None
    """A descriptor of the page that says whether the volume needs to be durable (`storage/haste.py`)."""
    writes: Path | None = None
    """The file in which it counts what it writes (`storage/writes.py`)."""


class Launch:
    """A postmaster that was spawned: the process that becomes it or makes its sandbox, and the promise that it gets ready."""

    def __init__(self, process: ProcessHandle, ready: socket.socket, go_fd: int) -> None:
        self.process = process
        self.postmaster_pid: int | None = None
        """The postmaster as this host counts processes; known once it is ready."""
        self._ready = ready
        self._go_fd = go_fd

    async def enter(self, entrances: list[Path]) -> None:
        """Put the processes into their tree, and let PostgreSQL begin: every child that it forks is then in it, too.

        Moving a process between cgroups can wait for the kernel (10 ms measured), so it happens in a thread, while the sandbox is made
        and PostgreSQL is loaded. If that fails PostgreSQL never begins, and `wait_ready` says so.
        """
        try:
            await asyncio.to_thread(enter, self.process.pid, entrances)
            # Had it ended before, what it forked could have become another's child, and be somewhere outside.
            if start_ticks(self.process.pid) is not None:
                os.write(self._go_fd, b"G")
        except (ProcessLookupError, BrokenPipeError):
            pass
        finally:
            self._close_go()  # what was not let go ends

    async def wait_ready(self, timeout_s: float) -> bool:
        """Until PostgreSQL accepts connections; False when it doesn't yet after `timeout_s`. Raises ComputeStartFailed when it ended."""
        loop = asyncio.get_running_loop()
        said: asyncio.Future[tuple[bytes, int]] = loop.create_future()
        ready_fd = self._ready.fileno()

        def readable() -> None:
            loop.remove_reader(ready_fd)
            if not said.done():
                said.set_result(self._receive())

        loop.add_reader(ready_fd, readable)
        try:
            answer, pid = await asyncio.wait_for(said, timeout_s)
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(ready_fd)
        self.close()
        if answer != b"R" or pid <= 0:
            raise ComputeStartFailed("PostgreSQL ended while it started")
        self.postmaster_pid = pid
        return True

    def close(self) -> None:
        """Close the promise; a process that was not let go ends. Idempotent."""
        self._ready.close()
        self._close_go()

    def _close_go(self) -> None:
        if self._go_fd >= 0:
            os.close(self._go_fd)
            self._go_fd = -1

    def _receive(self) -> tuple[bytes, int]:
        """What was said, and by whom: the kernel's word, not the sender's."""
        try:
            said, extra, _, _ = self._ready.recvmsg(1, socket.CMSG_SPACE(_CREDENTIALS.size))
        except OSError:
            return b"", 0
        for level, kind, data in extra:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                return said, _CREDENTIALS.unpack(data)[0]
        return said, 0


def spawn(plan: LaunchPlan, tree: Tree, listener_path: Path) -> Launch:
    """Start the postmaster. It listens at `listener_path`, in a directory that only Torpor's user may enter. Raises ComputeStartFailed."""
    listener_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    listener_path.unlink(missing_ok=True)
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.bind(str(listener_path))
        listener.listen(_BACKLOG)
        ours, theirs = socket.socketpair()
        opened.enter_context(theirs)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        go_read, go_write = os.pipe2(os.O_CLOEXEC)
        opened.callback(os.close, go_read)
        log = os.open(plan.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        opened.callback(os.close, log)
        # Numbers above those that the child uses, so that no dup2 overwrites the source of a later one.
        log_fd, listener_fd, ready_fd, go_fd = (
            fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _WRITES_FD + 1) for fd in (log, listener.fileno(), theirs.fileno(), go_read)
        )
        for fd in (log_fd, listener_fd, ready_fd, go_fd):
            opened.callback(os.close, fd)
        actions: list[tuple[object, ...]] = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, log_fd, 1),
            (os.POSIX_SPAWN_DUP2, log_fd, 2),
            (os.POSIX_SPAWN_DUP2, listener_fd, _LISTENER_FD),
            (os.POSIX_SPAWN_DUP2, ready_fd, _READY_FD),
            (os.POSIX_SPAWN_DUP2, go_fd, _GO_FD),
        ]
        if plan.haste is not None:
            haste_fd = fcntl.fcntl(plan.haste, fcntl.F_DUPFD_CLOEXEC, _WRITES_FD + 1)
            opened.callback(os.close, haste_fd)
            actions.append((os.POSIX_SPAWN_DUP2, haste_fd, _HASTE_FD))
        if plan.writes is not None:
            actions.append((os.POSIX_SPAWN_OPEN, _WRITES_FD, str(plan.writes), os.O_RDWR, 0))
        if plan.level.is_sandbox:
            actions.append((os.POSIX_SPAWN_OPEN, _FILTER_FD, str(plan.filter), os.O_RDONLY, 0))
        try:
            line = command(plan)
            pid = os.posix_spawn(line[0], line, _ENVIRONMENT, file_actions=actions, setsid=True, setsigmask=[], setsigdef=range(1, 32))
        except BaseException:
            ours.close()
            os.close(go_write)
            raise
    try:
        process = ProcessHandle(pid)
    except ProcessLookupError as error:  # it has ended already, and says in the log why
        ours.close()
        os.close(go_write)
        reap(pid)
        raise ComputeStartFailed("PostgreSQL ended while it started") from error
    tree.adopt(pid)
    return Launch(process, ours, go_write)


def enter(pid: int, entrances: list[Path]) -> None:
    """Move a process into its tree, and all that it has forked until then; what it forks later is born inside.

    Complete without a halt: once the kernel has moved a process, each of its children was either there to be listed or is born inside.
    """
    for entrance in entrances:
        entrance.write_text(str(pid))
    for child in children(pid):
        with contextlib.suppress(ProcessLookupError):  # it has ended; its children, in a sandbox, with it
            enter(child, entrances)


def command(plan: LaunchPlan) -> list[str]:
    """The command line: shut in, drop to the compute's user with no privileges left, become PostgreSQL, wait to be let go."""
    descriptors = {
        **_DESCRIPTORS,
        **(_HASTY if plan.haste is not None else {}),
        **(_COUNTING if plan.writes is not None else {}),
    }
    if plan.level.is_sandbox:
        assert plan.root is not None
        given = Confinement(plan.level, plan.uid, plan.root.path, plan.data, plan.configuration, plan.library, _FILTER_FD)
        environment = {**_ENVIRONMENT, "LD_PRELOAD": str(LIBRARY_DIRECTORY / plan.library.name), **descriptors}
        return confined(given, environment, _postgres(plan.root.bindir, DATA, CONFIGURATION, plan.options))
    steps = []
    if plan.level is SandboxLevel.OWN_USER:
        # A System V namespace of its own: what a killed PostgreSQL leaves goes with it, and the host's limit on segments is per database.
        steps += [tool("unshare"), "--ipc", *dropped(plan.uid)]
    steps += [tool("env"), f"LD_PRELOAD={plan.library}", *(f"{name}={value}" for name, value in descriptors.items())]
    return steps + _postgres(plan.bindir, plan.data, plan.configuration, plan.options)


def _postgres(bindir: PurePath, data: PurePath, configuration: PurePath, options: tuple[tuple[str, str], ...]) -> list[str]:
    isolation = {
        **ISOLATION,
        "config_file": str(configuration / "postgresql.conf"),
        "hba_file": str(configuration / "pg_hba.conf"),
        "ident_file": str(configuration / "pg_ident.conf"),
        **dict(options),
    }
    given = [part for name, value in isolation.items() for part in ("-c", f"{name}={value}")]
    return [str(bindir / "postgres"), "-D", str(data), *given]
