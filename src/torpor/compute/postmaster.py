"""One running PostgreSQL: its process tree, its sessions, and what can be done to it. Mechanism only; Compute decides when.

Concurrency: one owner (a Compute) calls it, one operation at a time; `thaw` and `hand_over` may come at any time.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from torpor.base.cgroups import Tree
from torpor.base.files import read_untrusted
from torpor.base.processes import (
    ProcessHandle,
    inner_pid,
    lock_holder,
    named_peer_sockets_of,
    namespace_init,
    reap,
    start_ticks,
    tcp_sockets_of,
)
from torpor.compute.census import Census
from torpor.compute.configuration import PORT
from torpor.compute.handover import AdoptedBackend, LifeLine, hand_over
from torpor.compute.idleness import Activity, awake_causes, is_resting
from torpor.compute.launch import Launch, LaunchPlan, spawn
from torpor.compute.peers import Peers
from torpor.compute.sandbox.command import LOCKED_FILE
from torpor.compute.sandbox.kernel import level_of
from torpor.compute.service import ServiceSession
from torpor.compute.sessions import Session, Sessions
from torpor.metering.traffic import Carrier
from torpor.model.errors import ComputeLost, ComputeStartFailed
from torpor.model.names import SERVICE_DATABASE
from torpor.model.sandbox import SandboxLevel
from torpor.model.sleep import AwakeReason
from torpor.model.views import AwakeCause

_FAST_SHUTDOWN_S = 60.0
_IMMEDIATE_SHUTDOWN_S = 10.0
_RECLAIM_PASSES = 5
_RECLAIM_PROGRESS = 0.95  # a pass that leaves more than this share of what there was is the last
_DISCARDED_S = 2.0
_KILLED_S = 10.0
_KILLED_LOOK_S = 0.002
_PID_FILE = "postmaster.pid"
_SOCKET_FILES = (f".s.PGSQL.{PORT}", f".s.PGSQL.{PORT}.lock")
_STATUS_LINE = 7  # of postmaster.pid, counted from 0
_ARRIVING = Activity(0, "client backend", "starting", "", "", "", "", "a session is being opened", 0.0, "", False)


def accepts_connections(data: Path) -> bool:
    """Whether the postmaster of a cluster says that it is ready: neither still starting nor shutting down."""
    try:
        return read_untrusted(data / _PID_FILE).splitlines()[_STATUS_LINE].strip() == "ready"
    except (OSError, ValueError, IndexError):
        return False


def _user_of(data: Path) -> int | None:
    """Whose end frees the cluster: the first process of a sandbox that has it, else the process of its pid file that runs on it."""
    if (holder := lock_holder(data / LOCKED_FILE)) is not None:
        return holder
    with contextlib.suppress(OSError, ValueError, IndexError):
        pid = int(read_untrusted(data / _PID_FILE).splitlines()[0])
        if os.path.samefile(f"/proc/{pid}/cwd", data):
            return pid
    return None


class VolumeInUse(ComputeStartFailed):
    """Somebody else's PostgreSQL runs on the volume: nothing may be started on it."""


@dataclass(frozen=True, slots=True)
class FreezeOutcome:
    """Frozen when there are no causes."""

    causes: tuple[AwakeCause, ...]


class Postmaster:
    """A PostgreSQL that was launched or adopted."""

    def __init__(
        self,
        tree: Tree,
        listener: Path,
        on_traffic: Callable[[Session], None],
        on_session_end: Callable[[], None],
        census: Census | None = None,
        major: int = 0,
    ) -> None:
        self.tree = tree
        self._major = major
        self.sessions = Sessions(on_traffic, on_session_end, census)
        self._peers = Peers(listener.with_name("peers"))
        self.process: ProcessHandle | None = None
        self._listener = listener
        self._launch: Launch | None = None
        self._sandbox_init: int | None = None  # whose end is that of everything in the sandbox
        self._service: ServiceSession | None = None
        self._service_lock = asyncio.Lock()  # opening, closing and freezing exclude each other
        self.asleep = False

    def __repr__(self) -> str:
        return f"<Postmaster {self.process!r} {self.sessions!r}>"

    async def clear_remains(self, data: Path) -> None:
        """End whatever an earlier compute left running on this cluster, and its pid file: two on one cluster would destroy it."""
        await self._kill_tree()
        if (pid := _user_of(data)) is not None:
            with contextlib.suppress(OSError):  # it has ended just now, or is none that we may see
                stray = ProcessHandle(pid)
                stray.watch(lambda: None)
                stray.signal(signal.SIGKILL)
                await stray.wait(_KILLED_S)
                stray.close()
            if _user_of(data) is not None:
                raise VolumeInUse("another PostgreSQL runs on its volume, and can't be ended")
        _remove_locks(data)

    def launch(self, plan: LaunchPlan) -> None:
        """Spawn the postmaster."""
        self._launch = spawn(plan, self.tree, self._listener)
        self.process = self._launch.process
        self.process.watch(lambda: None)  # only to have it reaped: `wait_ready` hears of its end

    async def enter_tree(self) -> None:
        """Put what was launched into its tree and let it begin."""
        assert self._launch is not None
        await self._launch.enter(self.tree.entrances())

    async def wait_ready(self, timeout_s: float, on_exit: Callable[[], None]) -> bool:
        """Until it accepts connections, and from then on `on_exit` is called when it ends; False when it doesn't yet after `timeout_s`.

        Raises ComputeStartFailed.
        """
        assert self._launch is not None
        if not await self._launch.wait_ready(timeout_s):
            return False
        pid, spawned = self._launch.postmaster_pid, self._launch.process
        assert pid is not None
        try:
            process = ProcessHandle(pid)
        except ProcessLookupError as error:
            raise ComputeStartFailed("PostgreSQL ended while it started") from error
        if pid not in self.tree.pids():
            # A tenant's code said it, and ended: the kernel may give its number to a stranger, who is not to be taken for PostgreSQL.
            process.close()
            raise ComputeStartFailed("what said that PostgreSQL is ready is none of its processes")
        self._take(process, on_exit)
        if pid == spawned.pid:
            spawned.close()
        else:
            spawned.signal(signal.SIGKILL)  # it made the sandbox, and only waits for an exit code now: 0.3 MB
        return True

    def _take(self, process: ProcessHandle, on_exit: Callable[[], None]) -> None:
        self.process = process
        process.watch(on_exit)
        self._sandbox_init = namespace_init(process.pid)
        self.tree.adopt(self._sandbox_init or process.pid)

    @property
    def level(self) -> SandboxLevel | None:
        """Its sandbox level, by the kernel's word; None when it has ended, or doesn't run yet."""
        return level_of(self.process.pid) if self.process is not None else None

    @property
    def is_sandboxed(self) -> bool:
        """Whether it runs in a sandbox, as far as is known."""
        return self._sandbox_init is not None

    def adopt(
        self, process: ProcessHandle, door_port: int, on_exit: Callable[[], None], relayed: Callable[[object], Carrier | None]
    ) -> bool:
        """Take over a postmaster that an earlier Torpor launched, with its sessions. Works on a frozen one, too.

        `relayed` finds the carrier of a session by the Unix address of the carrier's end. False when not all sessions can be watched: the
        kernel didn't let us at their sockets, they came through a port that the door had before the last Torpor, or nobody knows their
        carrier. They go on.
        """
        self._take(process, on_exit)
        try:
            return not [pid for pid in self.tree.pids() if not self._adopt_sessions(pid, door_port, relayed)]
        except PermissionError:
            return False

    def _adopt_sessions(self, pid: int, door_port: int, relayed: Callable[[object], Carrier | None]) -> bool:
        """Take over the session of one backend; False when it has connections, but none through `door_port` or a known carrier."""
        sockets: list[socket.socket] = []
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended just now
            sockets = [*tcp_sockets_of(pid, None), *named_peer_sockets_of(pid)]
        clients: list[tuple[socket.socket, Carrier | None]] = []
        for found in sockets:
            carrier = relayed(found.getpeername()) if found.family == socket.AF_UNIX else None
            if carrier is not None or (found.family != socket.AF_UNIX and found.getsockname()[1] == door_port):
                clients.append((found, carrier))
            else:
                found.close()
        for client, carrier in clients:
            host = self._peers.host_of(client)
            with contextlib.suppress(ProcessLookupError):
                self.sessions.add(Session(client, AdoptedBackend(ProcessHandle(pid), inner_pid(pid)), host, carrier))
        return bool(clients) or not sockets

    async def hand_over(
        self, client: socket.socket, address: tuple[str, int], startup: bytes, carrier: Carrier | None, claims: bytes = b""
    ) -> Session:
        """Give a client's socket to PostgreSQL; the caller keeps its own and closes it. Raises ComputeLost."""
        duplicate = client.dup()
        try:
            line = LifeLine(await hand_over(self._listener, client, address, startup, claims))
        except BaseException:
            duplicate.close()
            raise
        session = Session(duplicate, line, address[0], carrier)
        session.by_token = bool(claims)
        self.sessions.add(session)
        self._peers.note(client, address[0], self.sessions)
        return session

    async def service(self) -> ServiceSession:
        """Torpor's own session, opened if need be. Raises ComputeLost, also while it sleeps: asking never wakes."""
        async with self._service_lock:
            if self.asleep:
                raise ComputeLost("the compute is asleep")
            if self._service is None or self._service.broken:
                self._service = await ServiceSession.open(self._listener, major=self._major)
            return self._service

    async def another_service(self, database: str = SERVICE_DATABASE) -> ServiceSession:
        """One more session of Torpor's own, for what takes long; the caller closes it before it may freeze. Raises ComputeLost."""
        return await ServiceSession.open(self._listener, database, self._major)

    async def warm_up(self, database: str) -> None:
        """Log in to a database and out again: the first session of each writes a cache that all later ones read (8 ms of their start)."""
        await (await ServiceSession.open(self._listener, database, self._major)).close()

    async def close_service(self) -> None:
        """Log Torpor's own session out. Idempotent."""
        async with self._service_lock:
            await self._log_out()

    async def _log_out(self) -> None:
        if self._service is not None:
            service, self._service = self._service, None
            await service.close()

    async def causes(self) -> tuple[AwakeCause, ...]:
        """What keeps it from being frozen now, asked of PostgreSQL."""
        return awake_causes(await self._activity(), self.sessions.pids())

    async def _activity(self) -> list[Activity]:
        rows = await (await self.service()).activity()
        self.sessions.end_ghosts({row.pid for row in rows}, asyncio.get_running_loop().time())
        return rows

    async def dismiss_resting(self, farewell: bytes) -> list[Activity]:
        """End every session that rests outside of a transaction; what all that are left do, those that are just ending among them.

        A stream of replication isn't among them: it never ends by itself, and goes on where it stood when it is opened again.
        """
        service = await self.service()
        rows = await service.activity()
        sessions = {session.pid: session for session in self.sessions}
        strangers = []
        for row in rows:
            if not is_resting(row):
                continue
            if (session := sessions.get(row.pid)) is not None:
                session.dismiss(farewell)
            elif None not in sessions:  # one that couldn't be adopted; or one whose pid is still on its way
                strangers.append(row.pid)
        if strangers:
            await service.end_backends(strangers)
        if None in sessions:
            rows.append(_ARRIVING)
        return [row for row in rows if row.backend_type == "client backend" or row.backup]

    async def freeze_if_quiet(
        self, still_wanted: Callable[[], bool], ask_last: Callable[[ServiceSession], Awaitable[None]]
    ) -> FreezeOutcome:
        """Freeze unless something is going on. Afterwards every session is waiting for its client, and no byte of any client is unread.

        The order matters: counters, questions, freeze, counters again. Nothing can have begun in between without a byte arriving.
        `ask_last` asks for what must be known of a sleeper.
        """
        received, unread = self.sessions.received_bytes()
        if unread:
            return _recent("a client has just sent something")
        causes = awake_causes(await self._activity(), self.sessions.pids())
        if causes:
            return FreezeOutcome(causes)
        await ask_last(await self.service())
        async with self._service_lock:
            await self._log_out()
            if not still_wanted():
                return _recent("it is wanted")
            try:
                await self.tree.freeze()
            except TimeoutError as error:
                return FreezeOutcome((AwakeCause(AwakeReason.STATEMENT, str(error)),))
            except BaseException:
                self.tree.thaw()
                raise
            if self.sessions.received_bytes()[0] != received or not still_wanted():
                self.tree.thaw()
                return _recent("a client sent something at that moment")
            self.asleep = True
        return FreezeOutcome(())

    async def page_out(self, still_wanted: Callable[[], bool]) -> bool:
        """Push its memory out to swap, pass after pass in a thread; False as soon as that isn't wanted any more."""
        left = self.tree.usage().memory_bytes
        for _ in range(_RECLAIM_PASSES):
            before, left = left, await asyncio.to_thread(self.tree.reclaim)
            if not still_wanted():
                return False
            if left > before * _RECLAIM_PROGRESS:
                break
        return True

    def thaw(self) -> None:
        """Let it run on. Idempotent, immediate."""
        self.asleep = False
        self.tree.thaw()
        self.sessions.unwatch()

    async def shut_down(self) -> bool:
        """End PostgreSQL and all its processes. Whether it ended in order (a fast shutdown, with a checkpoint)."""
        assert self.process is not None
        self.process.signal(signal.SIGINT)
        orderly = await self.process.wait(_FAST_SHUTDOWN_S)
        if not orderly:
            self.process.signal(signal.SIGQUIT)
            await self.process.wait(_IMMEDIATE_SHUTDOWN_S)
        await self.bury()
        return orderly

    async def end_at_once(self) -> None:
        """End it without a checkpoint, as for a volume that is thrown away: PostgreSQL itself gives its shared memory back."""
        if self.process is not None:
            self.thaw()
            self.process.signal(signal.SIGQUIT)
            await self.process.wait(_DISCARDED_S)
        await self.bury()

    async def bury(self) -> None:
        """Make sure that nothing of it is left: processes, tree, listener. Idempotent."""
        await self._kill_tree()
        for process in self._processes():
            if not process.exited and process.signal(signal.SIGKILL):
                await process.wait(_KILLED_S)
            process.close()
        if self._sandbox_init is not None:
            reap(self._sandbox_init)
        if self._service is not None:
            service, self._service = self._service, None
            service.abandon()
        if self._launch is not None:
            self._launch.close()
        await self.tree.remove()
        shutil.rmtree(self._listener.parent, ignore_errors=True)

    def abandon(self) -> None:
        """Let go of it without touching it: Torpor leaves, PostgreSQL and its sessions stay."""
        self.sessions.release()
        if self._service is not None:
            self._service.abandon()
        for process in self._processes():
            process.close()

    def _processes(self) -> list[ProcessHandle]:
        return [each for each in (self.process, self._launch.process if self._launch is not None else None) if each is not None]

    async def _kill_tree(self) -> None:
        pids = self.tree.pids()
        if not pids:
            return
        self.tree.kill()
        for _ in range(int(_KILLED_S / _KILLED_LOOK_S)):
            if all(start_ticks(pid) is None for pid in pids):
                return
            await asyncio.sleep(_KILLED_LOOK_S)


def _recent(detail: str) -> FreezeOutcome:
    return FreezeOutcome((AwakeCause(AwakeReason.RECENT, detail),))


def _remove_locks(data: Path) -> None:
    """PostgreSQL refuses to start over an empty one, and over one whose pid a stranger has by now or that waits to be reaped."""
    for name in (_PID_FILE, *_SOCKET_FILES):
        (data / name).unlink(missing_ok=True)
