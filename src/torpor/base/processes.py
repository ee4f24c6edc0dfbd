"""Processes by their identity: pid, start and boot together, since pids come again. Waiting through pidfds.

Concurrency: `ProcessHandle` belongs to one event loop; the functions are blocking reads of /proc, microseconds each.
"""

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import signal
import socket
import struct
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from torpor.base.files import open_untrusted

_SYS_PIDFD_GETFD = 438
_libc = ctypes.CDLL(None, use_errno=True)
_FLOCK = struct.Struct("@hhqqi4x")  # struct flock where long and off_t have 64 bits


@cache
def boot_id() -> str:
    """Identifies this run of the kernel."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def dying_with_us(command: list[str]) -> list[str]:
    """The command line that also ends, by SIGKILL, when the thread that started it does: no orphan goes on writing."""
    return ["setpriv", "--pdeathsig=KILL", *command] if shutil.which("setpriv") else command


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def run_on(processors: frozenset[int], pids: Iterable[int]) -> None:
    """Have all threads of these processes, and whom they start later, run on these processors only. Idempotent; some microseconds each.

    A thread that is started meanwhile by one that is not yet moved is missed: who wants to be sure asks again.
    """
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            for thread in os.listdir(f"/proc/{pid}/task"):
                with contextlib.suppress(OSError):
                    if os.sched_getaffinity(int(thread)) != processors:
                        os.sched_setaffinity(int(thread), processors)


def descendants(pid: int) -> list[int]:
    """The process and all below it, parents first. Needs no privileges. Reads /proc/*/task/*/children."""
    found = [pid]
    for current in found:
        found.extend(children(current))
    return found


def children(pid: int) -> list[int]:
    """The processes that it has forked and that still run. Needs no privileges; empty when it is gone."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        for task in os.listdir(f"/proc/{pid}/task"):
            found.extend(int(child) for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def inner_pid(pid: int) -> int:
    """What the process itself takes for its pid: another number when it is in a pid namespace. Raises ProcessLookupError."""
    return _namespace_pids(pid)[-1]


def namespace_init(pid: int) -> int | None:
    """The first process of the pid namespace that a child of that process is in, seen from here; None when it is in ours.

    Its end is that of every process in the namespace, whatever they do.
    """
    with contextlib.suppress(OSError, ValueError):
        if len(_namespace_pids(pid)) > 1:
            parent = int(_status(pid, "PPid:")[0])
            if parent > 0 and _namespace_pids(parent)[-1] == 1:
                return parent
    return None


def lock_holder(path: Path) -> int | None:
    """A process that holds a lock (of fcntl's kind) on the file, in whatever namespaces it is; None when there is none or no file.

    Not above 0 when it can't be seen from here. Never waits, whatever the file is."""
    try:
        fd = open_untrusted(path)
    except BlockingIOError:
        return 0  # somebody has a lease on it
    except OSError:
        return None
    try:
        answer = fcntl.fcntl(fd, fcntl.F_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    finally:
        os.close(fd)
    kind, _, _, _, pid = _FLOCK.unpack(answer)
    return None if kind == fcntl.F_UNLCK else int(pid)


def reap(pid: int) -> None:
    """Take the end of a process off the kernel's hands if it became our child when its parent died (Torpor may be a container's first)."""
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)


def _namespace_pids(pid: int) -> list[int]:
    return [int(each) for each in _status(pid, "NSpid:")]


def _status(pid: int, key: str) -> list[str]:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError as error:
        raise ProcessLookupError(errno.ESRCH, f"process {pid} is gone") from error
    return next((line.split()[1:] for line in text.splitlines() if line.startswith(key)), [])


def uid_runs(uid: int) -> bool:
    """Whether any process on this host runs under that user."""
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if os.stat(f"/proc/{name}").st_uid == uid:
                    return True
    return False


class ProcessHandle:
    """One process, wherever it came from: our child or adopted. Signals can't hit a stranger that got its pid."""

    def __init__(self, pid: int) -> None:
        """Raises ProcessLookupError when there is no such process."""
        self.pid = pid
        self._fd = os.pidfd_open(pid)
        ticks = start_ticks(pid)
        if ticks is None:
            os.close(self._fd)
            raise ProcessLookupError(errno.ESRCH, f"process {pid} is gone")
        self.start_ticks = ticks
        self._exited = asyncio.Event()
        self._on_exit: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"<ProcessHandle {self.pid}{' exited' if self._exited.is_set() else ''}>"

    @property
    def exited(self) -> bool:
        """Whether the end of the process was seen."""
        return self._exited.is_set()

    def watch(self, on_exit: Callable[[], None]) -> None:
        """Call `on_exit` once on the running loop when the process ends (a child of ours is reaped). Costs no task."""
        self._on_exit = on_exit
        asyncio.get_running_loop().add_reader(self._fd, self._ended)

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal; False when the process is gone."""
        if self._fd < 0:
            return False
        try:
            signal.pidfd_send_signal(self._fd, number)
        except ProcessLookupError:
            return False
        return True

    async def wait(self, timeout_s: float) -> bool:
        """Until the watched process has ended; False when it still runs after `timeout_s`. Safe to cancel."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._exited.wait(), timeout_s)
        return self.exited

    def close(self) -> None:
        """Stop watching. Idempotent."""
        if self._fd >= 0:
            if self._on_exit is not None:
                asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _ended(self) -> None:
        with contextlib.suppress(ChildProcessError):  # adopted processes are reaped by init
            os.waitid(os.P_PIDFD, self._fd, os.WEXITED | os.WNOHANG)
        on_exit = self._on_exit
        self.close()
        self._exited.set()
        if on_exit is not None:
            on_exit()


def tcp_sockets_of(pid: int, local_port: int | None) -> list[socket.socket]:
    """Duplicates of the connected TCP sockets of another process that are bound to `local_port` here (None: to whatever port).

    Works while the process is frozen. Raises PermissionError where the kernel forbids it (needs ptrace rights over the process).
    """
    return _sockets_of(pid, lambda sock: _is_connected_tcp(sock, local_port))


def named_peer_sockets_of(pid: int) -> list[socket.socket]:
    """Duplicates of the connected Unix stream sockets of another process whose other end has an abstract name. As `tcp_sockets_of`."""
    return _sockets_of(pid, _has_named_peer)


def _sockets_of(pid: int, is_wanted: Callable[[socket.socket], bool]) -> list[socket.socket]:
    found: list[socket.socket] = []
    pidfd = os.pidfd_open(pid)
    try:
        if start_ticks(pid) is None:
            return found  # a zombie has none, but its directory is root's, so that looking would be refused to an ordinary user
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                target = os.readlink(f"/proc/{pid}/fd/{name}")
            except FileNotFoundError:
                continue
            if not target.startswith("socket:"):
                continue
            fd = _libc.syscall(_SYS_PIDFD_GETFD, pidfd, int(name), 0)
            if fd < 0:
                code = ctypes.get_errno()
                if code == errno.EBADF:
                    continue
                raise OSError(code, f"pidfd_getfd of process {pid}: {os.strerror(code)}")
            duplicate = socket.socket(fileno=fd)
            if is_wanted(duplicate):
                found.append(duplicate)
            else:
                duplicate.close()
    finally:
        os.close(pidfd)
    return found


def _has_named_peer(sock: socket.socket) -> bool:
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        return False
    try:
        return isinstance(sock.getpeername(), bytes)
    except OSError:
        return False


def _is_connected_tcp(sock: socket.socket, local_port: int | None) -> bool:
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
        return False
    # Without a look at the peer: the client may be gone, and the backend has not noticed. PostgreSQL itself listens on no TCP port.
    port = sock.getsockname()[1]
    return bool(port) and local_port in (None, port)
