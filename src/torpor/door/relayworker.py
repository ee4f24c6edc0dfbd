"""One relay worker: a process (native/relay/) that carries sessions, and the control socket on which it takes orders and reports.

Concurrency: belongs to one event loop; commands are single packets that never wait long, reports arrive in a callback. The process
outlives us: `let_go` leaves it with its sessions, and a later Torpor takes it over through its listener.
"""

import asyncio
import contextlib
import fcntl
import mmap
import os
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

from torpor.base.logs import get_logger
from torpor.base.processes import ProcessHandle
from torpor.door.relaywire import (
    COUNTERS,
    MAX_REPORT_BYTES,
    Handshake,
    Report,
    ReportKind,
    address_in,
    configure,
    finish,
    new_session,
    parse_handshake,
    parse_report,
    session_name,
)
from torpor.metering.traffic import Traffic
from torpor.model.errors import BadSettings, HandshakeFailed, TooManyConnections, Unavailable

log = get_logger(__name__)

_SLOTS = 65_536
_CONTROL_FD, _LISTENER_FD, _COUNTERS_FD = 3, 4, 5
_FIRST_SPARE_FD = 10
_TAKE_OVER_S = 5.0
_CONFIGURE_S = 10.0
_FINISH_S = 2.0
_KILLED_S = 5.0
_SEND_AGAIN_S = 0.002
_SEND_PATIENCE_S = 5.0
_SOCKET_GLOB = "relay-*.sock"


class WorkerGone(Unavailable):
    """The process has ended, and took nothing of what it was given in this call."""


class RelayedSession:
    """A session that a worker carries. Also what counts its bytes."""

    def __init__(self, slot: int, address: tuple[str, int], counters: mmap.mmap) -> None:
        self.slot = slot
        self.address = address
        self.name = b""  # of one that was taken over
        self.handshake: asyncio.Future[Handshake] = asyncio.get_running_loop().create_future()
        self._counters: mmap.mmap | None = counters
        self._last: tuple[int, ...] = (0, 0, 0, 0)

    def __repr__(self) -> str:
        return f"<RelayedSession {self.address[0]} slot={self.slot}{'' if self._counters else ' ended'}>"

    def traffic(self) -> Traffic:
        """What PostgreSQL and the client have said to each other so far, without the encryption."""
        taken, _, sent, _ = self._read()
        return Traffic(received=taken, sent=sent)

    def in_transit(self) -> int:
        """How many bytes of the client are in the worker's hands: taken, and not yet delivered."""
        taken, delivered, _, _ = self._read()
        return abs(taken - delivered)

    def end(self, why: Exception) -> None:
        """Keep the last count: the slot will be another's. Idempotent."""
        self._last = self._read()
        self._counters = None
        if not self.handshake.done():
            self.handshake.set_exception(why)
            self.handshake.exception()  # retrieved: perhaps nobody waits any more

    def _read(self) -> tuple[int, ...]:
        if self._counters is None:
            return self._last
        return COUNTERS.unpack_from(self._counters, self.slot * COUNTERS.size)


class Worker:
    """One worker. Made by `spawn` or `take_over`."""

    def __init__(self, control: socket.socket, counters: mmap.mmap, socket_path: Path, process: ProcessHandle, build: str) -> None:
        self.build = build
        self.sessions: dict[int, RelayedSession] = {}
        self.is_gone = False
        self.was_taken = False
        self._control = control
        self._counters = counters
        self._path = socket_path
        self._process = process
        self._ids: Iterator[int] = count(1)
        self._free: list[int] = []
        self._unused = 0  # slots from here on were never taken
        self._configured: asyncio.Future[None] | None = None
        self._on_gone: Callable[[Worker], None] = lambda _: None
        self.by_name: dict[bytes, RelayedSession] = {}

    def __repr__(self) -> str:
        return f"<Worker {self._process.pid} {len(self.sessions)} sessions{' gone' if self.is_gone else ''}>"

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @classmethod
    def spawn(cls, program: Path, directory: Path, uid: int, build: str) -> "Worker":
        """Start a worker. It answers to nobody but us, and after us to whoever may enter `directory`. Raises OSError."""
        path = directory / f"relay-{secrets.token_hex(4)}.sock"
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        memory = os.memfd_create("torpor-relay", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        spare: list[int] = []
        try:
            with theirs, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
                os.ftruncate(memory, _SLOTS * COUNTERS.size)
                fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
                listener.bind(str(path))
                listener.listen(8)
                listener.setblocking(False)
                # Out of the way of the numbers that they get in the worker.
                spare += [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_SPARE_FD) for fd in (theirs.fileno(), listener.fileno(), memory)]
                actions = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0), (os.POSIX_SPAWN_DUP2, 2, 1)]
                actions += [
                    (os.POSIX_SPAWN_DUP2, fd, number) for fd, number in zip(spare, (_CONTROL_FD, _LISTENER_FD, _COUNTERS_FD), strict=True)
                ]
                arguments = ["torpor-relay", str(uid), build]
                pid = os.posix_spawn(program, arguments, {"LANG": "C.UTF-8"}, file_actions=actions, setsid=True)
            worker = cls(ours, mmap.mmap(memory, 0), path, ProcessHandle(pid), build)
        except BaseException:
            ours.close()
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(memory)
            for fd in spare:
                os.close(fd)
        return worker

    @classmethod
    async def take_over(cls, path: Path) -> "Worker | None":
        """Become the Torpor of a worker that an earlier one left; None when nobody is there any more."""
        control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control.setblocking(False)
        try:
            control.connect(str(path))
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(_TAKE_OVER_S):
                first, memory = await _receive_counters(control)
                worker = cls(control, memory, path, ProcessHandle(first.session), first.body.decode("ascii", "replace"))
                while packet := await loop.sock_recv(control, MAX_REPORT_BYTES):
                    if (report := parse_report(packet)).kind is ReportKind.COMPLETE:
                        break
                    worker._learn(report)
                else:
                    raise ConnectionResetError
        except (OSError, ValueError) as error:
            control.close()
            if not isinstance(error, ConnectionError | FileNotFoundError | ProcessLookupError):  # it has just ended
                log.warning("a relay worker of an earlier Torpor could not be taken over", socket=str(path), cause=str(error))
            _remove(path)
            return None
        taken = {session.slot for session in worker.sessions.values()}
        worker._unused = max(taken, default=-1) + 1
        worker._free = [slot for slot in range(worker._unused) if slot not in taken]
        worker._ids = count(max(worker.sessions, default=0) + 1)
        return worker

    def watch(self, on_gone: "Callable[[Worker], None]") -> None:
        """Begin to listen. `on_gone` is called once when the process has ended, or serves another Torpor."""
        self._on_gone = on_gone
        self._control.setblocking(False)
        asyncio.get_running_loop().add_reader(self._control.fileno(), self._readable)
        self._process.watch(self._ended)

    async def configure(self, file: bytes) -> None:
        """Use these certificates for handshakes from now on. Raises BadSettings with OpenSSL's word, Unavailable when it is gone."""
        memory = os.memfd_create("torpor-relay-configuration", os.MFD_CLOEXEC)
        self._configured = asyncio.get_running_loop().create_future()
        try:
            os.write(memory, file)
            await self._send(configure(), [memory])
            await asyncio.wait_for(self._configured, _CONFIGURE_S)
        except TimeoutError:
            raise Unavailable("a relay worker does not answer", "connect again in a moment") from None
        finally:
            os.close(memory)
            self._configured = None

    async def carry(
        self, client: socket.socket, address: tuple[str, int], prefix: bytes, tls: bool
    ) -> tuple[RelayedSession, socket.socket]:
        """Give `client` to the worker, of which `prefix` was read already. The other end is what PostgreSQL gets.

        The caller still owns `client` and closes it. Raises WorkerGone, or Unavailable.
        """
        if len(self.sessions) >= _SLOTS:
            raise TooManyConnections("the relay carries as many sessions as it can", "raise relay_workers")
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            far.setblocking(False)
            name = session_name(address)
            near.bind(name)
            slot, number = self._take_slot(), next(self._ids)
            COUNTERS.pack_into(self._counters, slot * COUNTERS.size, 0, 0, 0, 0)
            session = self.sessions[number] = RelayedSession(slot, address, self._counters)
            try:
                await self._send(new_session(slot, number, prefix, tls), [client.fileno(), near.fileno()])
            except BaseException:
                self._forget(number, Unavailable("it was not given to the relay"))
                raise
        except BaseException:
            far.close()
            raise
        finally:
            near.close()
        return session, far

    def _take_slot(self) -> int:
        if self._free:
            return self._free.pop()
        self._unused += 1
        return self._unused - 1

    async def finish(self) -> None:
        """End it with its last session, or soon after."""
        with contextlib.suppress(Unavailable):
            await self._send(finish(), [])
        if not await self._process.wait(_FINISH_S):
            self._process.signal(signal.SIGKILL)
            await self._process.wait(_KILLED_S)
        self.let_go()
        _remove(self._path)

    def let_go(self) -> None:
        """Leave it to the next Torpor. Idempotent."""
        if not self.is_gone:
            self.is_gone = True
            if self._control.fileno() >= 0:
                asyncio.get_running_loop().remove_reader(self._control.fileno())
            self._control.close()
            self._process.close()

    async def _send(self, packet: bytes, fds: list[int]) -> None:
        deadline = asyncio.get_running_loop().time() + _SEND_PATIENCE_S
        while True:
            try:
                if self.is_gone:
                    raise BrokenPipeError
                socket.send_fds(self._control, [packet], fds)
            except BlockingIOError:
                # A Unix socket whose other end is slow can't be waited for, only tried again.
                if asyncio.get_running_loop().time() > deadline:
                    raise Unavailable("the relay does not keep up", "connect again in a moment") from None
                await asyncio.sleep(_SEND_AGAIN_S)
            except OSError:
                raise WorkerGone("a relay worker has just ended", "connect again") from None
            else:
                return

    def _readable(self) -> None:
        for _ in range(64):
            try:
                packet = self._control.recv(MAX_REPORT_BYTES)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                asyncio.get_running_loop().remove_reader(self._control.fileno())
                if self.was_taken:
                    self._gone()
                return  # its end is seen by its process
            try:
                self._learn(parse_report(packet))
            except ValueError:
                log.error("a relay worker reports nonsense", pid=self.pid)

    def _learn(self, report: Report) -> None:
        session = self.sessions.get(report.session)
        match report.kind:
            case ReportKind.HANDSHAKE if session is not None and not session.handshake.done():
                session.handshake.set_result(parse_handshake(report.body))
            case ReportKind.FAILED if session is not None and not session.handshake.done():
                why = report.body.decode("ascii", "replace")
                session.handshake.set_exception(HandshakeFailed(f"TLS handshake failed: {why}"))
                session.handshake.exception()
            case ReportKind.ENDED:
                self._forget(report.session, HandshakeFailed("TLS handshake failed: the connection was lost"))
            case ReportKind.READY | ReportKind.BAD_CONFIGURATION if self._configured is not None and not self._configured.done():
                if report.kind is ReportKind.READY:
                    self._configured.set_result(None)
                else:
                    self._configured.set_exception(BadSettings(report.body.decode("ascii", "replace")))
            case ReportKind.SESSION:
                address = address_in(report.body) if report.body else ("", 0)
                found = self.sessions[report.session] = RelayedSession(report.slot, address, self._counters)
                found.handshake.cancel()
                if report.body:
                    found.name = report.body
                    self.by_name[found.name] = found
            case ReportKind.TAKEN:
                self.was_taken = True
            case _:
                pass

    def _forget(self, number: int, why: Exception) -> None:
        session = self.sessions.pop(number, None)
        if session is not None:
            session.end(why)
            self._free.append(session.slot)
            self.by_name.pop(session.name, None)

    def _ended(self) -> None:
        _remove(self._path)
        self._gone()

    def _gone(self) -> None:
        if self.is_gone:
            return
        self.let_go()
        if self._configured is not None and not self._configured.done():
            self._configured.set_exception(Unavailable("a relay worker ended when it was given its certificates"))
        for number in list(self.sessions):
            self._forget(number, Unavailable("a relay worker has just ended", "connect again"))
        self._on_gone(self)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def left_behind(directory: Path) -> list[Path]:
    """Where workers of earlier Torpors may still be listening."""
    return sorted(directory.glob(_SOCKET_GLOB))


async def _receive_counters(control: socket.socket) -> tuple[Report, mmap.mmap]:
    """The first packet after a take-over."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()

    def arrived() -> None:
        loop.remove_reader(control.fileno())
        readable.set_result(None)

    loop.add_reader(control.fileno(), arrived)
    try:
        await readable
    finally:
        loop.remove_reader(control.fileno())
    packet, fds, _, _ = socket.recv_fds(control, MAX_REPORT_BYTES, 1)
    if not packet:
        raise ConnectionResetError
    if len(fds) != 1:
        raise ValueError("no counters")
    try:
        report = parse_report(packet)
        if report.kind is not ReportKind.COUNTERS or os.fstat(fds[0]).st_size != _SLOTS * COUNTERS.size:
            raise ValueError("not the counters")
        return report, mmap.mmap(fds[0], 0)
    finally:
        os.close(fds[0])
