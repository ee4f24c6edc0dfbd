"""Starts a postmaster in its tree, under its user, with the library preloaded, and waits until it says that it is ready.

Concurrency: `launch` runs on the event loop; the spawn itself blocks it for about a millisecond (vfork). Safe to cancel: the
caller then has a process that it must kill through the tree.
"""

import asyncio
import contextlib
import fcntl
import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

from torpor.base.cgroups import Tree
from torpor.base.processes import ProcessHandle
from torpor.compute.configuration import ISOLATION
from torpor.model.errors import ComputeStartFailed

_LISTENER_FD, _READY_FD, _GO_FD = 3, 4, 5
_BACKLOG = 4096


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """What to start: binaries, cluster, user, and the files that lie outside of the volume."""

    bindir: Path
    data: Path
    uid: int
    library: Path
    configuration: Path
    log: Path
    options: tuple[tuple[str, str], ...] = ()  # settings of PostgreSQL beyond those that all share


class Launch:
    """A postmaster that was spawned: its process, and the promise that it gets ready."""

    def __init__(self, process: ProcessHandle, ready_fd: int, go_fd: int) -> None:
        self.process = process
        self._ready_fd = ready_fd
        self._go_fd = go_fd

    async def enter(self, entrances: list[Path]) -> None:
        """Put the process into its tree, and let PostgreSQL begin: every child that it forks is then in it, too.

        Moving a process between cgroups can wait for the kernel (10 ms measured), so it happens in a thread, while the process loads.
        """
        with contextlib.suppress(ProcessLookupError, BrokenPipeError):  # it has ended: `wait_ready` says so
            await asyncio.to_thread(_enter, self.process.pid, entrances)
            os.write(self._go_fd, b"G")

    async def wait_ready(self, timeout_s: float) -> bool:
        """Until PostgreSQL accepts connections; False when it doesn't yet after `timeout_s`. Raises ComputeStartFailed when it ended."""
        loop = asyncio.get_running_loop()
        said: asyncio.Future[bytes] = loop.create_future()

        def readable() -> None:
            loop.remove_reader(self._ready_fd)
            if not said.done():
                said.set_result(os.read(self._ready_fd, 1))

        loop.add_reader(self._ready_fd, readable)
        try:
            answer = await asyncio.wait_for(said, timeout_s)
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(self._ready_fd)
        self.close()
        if answer != b"R":
            raise ComputeStartFailed("PostgreSQL ended while it started")
        return True

    def close(self) -> None:
        """Close the promise; a process that was not let go ends. Idempotent."""
        for fd in (self._ready_fd, self._go_fd):
            if fd >= 0:
                os.close(fd)
        self._ready_fd = self._go_fd = -1


def spawn(plan: LaunchPlan, tree: Tree, listener_path: Path) -> Launch:
    """Start the postmaster. It listens at `listener_path`, in a directory that only Torpor's user may enter."""
    listener_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    listener_path.unlink(missing_ok=True)
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.bind(str(listener_path))
        listener.listen(_BACKLOG)
        ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
        opened.callback(os.close, ready_write)
        go_read, go_write = os.pipe2(os.O_CLOEXEC)
        opened.callback(os.close, go_read)
        log = os.open(plan.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        opened.callback(os.close, log)
        # Numbers above those that the child uses, so that no dup2 overwrites the source of a later one.
        log_fd, listener_fd, ready_fd, go_fd = (
            fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _GO_FD + 1) for fd in (log, listener.fileno(), ready_write, go_read)
        )
        for fd in (log_fd, listener_fd, ready_fd, go_fd):
            opened.callback(os.close, fd)
        try:
            line = command(plan)
            pid = os.posix_spawn(
                line[0],
                line,
                {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TZ": "UTC"},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, log_fd, 1),
                    (os.POSIX_SPAWN_DUP2, log_fd, 2),
                    (os.POSIX_SPAWN_DUP2, listener_fd, _LISTENER_FD),
                    (os.POSIX_SPAWN_DUP2, ready_fd, _READY_FD),
                    (os.POSIX_SPAWN_DUP2, go_fd, _GO_FD),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=range(1, 32),
            )
        except BaseException:
            os.close(ready_read)
            os.close(go_write)
            raise
    tree.adopt(pid)
    return Launch(ProcessHandle(pid), ready_read, go_write)


def _enter(pid: int, entrances: list[Path]) -> None:
    for entrance in entrances:
        entrance.write_text(str(pid))


def command(plan: LaunchPlan) -> list[str]:
    """The command line: drop to the compute's user with no privileges left, become PostgreSQL, wait to be let go."""
    steps = []
    if os.geteuid() == 0:
        # A System V namespace of its own: what a killed PostgreSQL leaves goes with it, and the host's limit on segments is per database.
        steps += [_tool("unshare"), "--ipc", _tool("setpriv"), f"--reuid={plan.uid}", f"--regid={plan.uid}", "--clear-groups",
                  "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]  # fmt: skip
    steps += [_tool("env"), f"LD_PRELOAD={plan.library}", f"TORPOR_LISTENER_FD={_LISTENER_FD}", f"TORPOR_READY_FD={_READY_FD}"]
    steps += [f"TORPOR_GO_FD={_GO_FD}", str(plan.bindir / "postgres"), "-D", str(plan.data)]
    isolation = {
        **ISOLATION,
        "config_file": str(plan.configuration / "postgresql.conf"),
        "hba_file": str(plan.configuration / "pg_hba.conf"),
        "ident_file": str(plan.configuration / "pg_ident.conf"),
        **dict(plan.options),
    }
    return steps + [part for name, value in isolation.items() for part in ("-c", f"{name}={value}")]


def _tool(name: str) -> str:
    path = shutil.which(name, path="/usr/bin:/bin:/usr/sbin:/sbin")
    if path is None:
        raise ComputeStartFailed(f"the program {name} (package util-linux) is missing", "install it")
    return path
