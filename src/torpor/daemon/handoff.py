"""A whole Torpor handed to the next one: its listening sockets and its lock, over a Unix socket in the data directory.

The two are called predecessor and heir; what passes is the estate. One JSON object a packet (SOCK_SEQPACKET), the same user only:

    heir         {"protocol": 1, "version": "0.2.0", "take_over": true}
    predecessor  {"ready": {addresses}}, or {"refused": {"kind", "message", "hint"}} and goes on as if nothing had been asked
    heir         {"go": true}: it has loaded and checked all that can be loaded and checked without the estate
    predecessor  lets go of everything, and sends {"estate": {...}} with descriptors in as many packets as it takes, then {"whole": true}
    heir         {"serves": true}; the predecessor ends

Exactly one serves, whoever is killed when. Until the estate is whole the heir does nothing. From then on the predecessor does nothing
until the heir has said that it serves, or has ended (one that does neither is killed); then the predecessor serves again with the same
sockets. If the predecessor ends first, the heir starts with what it has: the estate, or else the files. The lock passes as a descriptor,
so that it is never open to a third. Both hold the listening sockets while neither serves: who connects then waits, and isn't refused.

Concurrency: the predecessor's side belongs to its event loop, with a task for each heir that asks. The heir's side blocks, before its
loop runs.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torpor import __version__
from torpor.base.logs import get_logger
from torpor.base.processes import ProcessHandle
from torpor.base.tasks import TaskOwner
from torpor.daemon.directory import already_running
from torpor.door.guard.throttle import Remembered
from torpor.model.errors import AlreadyRunning, BadSettings, HostError, TakeOverFailed
from torpor.model.settings import Settings

log = get_logger(__name__)

PROTOCOL = 1
SOCKET_NAME = "handoff.sock"
_PACKET_BYTES = 128 * 1024
_FDS_A_PACKET = 200  # the kernel passes 253 at most
_TICKETS_A_PACKET = 200
_SPEAKS_WITHIN_S = 10.0
_LOADS_WITHIN_S = 300.0  # it may have to build a root image
_SERVES_WITHIN_S = 60.0
_LETS_GO_WITHIN_S = 90.0
_SENDS_WITHIN_S = 10.0
_ENDS_WITHIN_S = 2.0
_KILLED_WITHIN_S = 10.0
_SEND_AGAIN_S = 0.005
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid

Packet = dict[str, Any]


@dataclass(slots=True)
class Estate:
    """What passes from one Torpor to the next. `silent` are connections at the door of which nothing was read, `failures` who failed to
    log in."""

    lock: int
    door: list[socket.socket]
    api: socket.socket
    silent: list[socket.socket] = field(default_factory=list)
    tickets: list[list[Any]] = field(default_factory=list)
    failures: Remembered | None = None
    http: socket.socket | None = None

    def packets(self) -> Iterator[tuple[Packet, list[int]]]:
        """As it is sent."""
        listeners = [self.lock, self.api.fileno(), *(one.fileno() for one in self.door)]
        yield {"estate": {}}, listeners
        for start in range(0, len(self.silent), _FDS_A_PACKET):
            yield {"silent": True}, [one.fileno() for one in self.silent[start : start + _FDS_A_PACKET]]
        for start in range(0, len(self.tickets), _TICKETS_A_PACKET):
            yield {"tickets": self.tickets[start : start + _TICKETS_A_PACKET]}, []
        if (known := self.failures) is not None:
            yield {"failures": {"epoch": known.epoch, "layout": known.layout}}, [known.fd]
        if self.http is not None:
            yield {"http": True}, [self.http.fileno()]
        yield {"whole": True}, []


class _Gone(Exception):
    """The other side ended, or says what can't be understood."""


# -- the predecessor's side


class Heir:
    """A Torpor that waits for the estate."""

    def __init__(self, sock: socket.socket, process: ProcessHandle) -> None:
        self._sock = sock
        self._process = process
        process.watch(lambda: None)

    def __repr__(self) -> str:
        return f"<Heir {self.pid}>"

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    async def inherit(self, estate: Estate) -> bool:
        """Give it the estate and wait until it serves. False when it doesn't: then it has ended, and the estate is the caller's again."""
        try:
            async with asyncio.timeout(_SENDS_WITHIN_S):
                for packet, fds in estate.packets():
                    await _send(self._sock, packet, fds)
            async with asyncio.timeout(_SERVES_WITHIN_S):
                if (await _receive(self._sock)).get("serves") is True:
                    return True
        except (_Gone, OSError) as error:  # a TimeoutError is one
            log.warning("the next Torpor doesn't take over", pid=self.pid, cause=str(error) or "it takes too long")
        finally:
            self._sock.close()
        await self._end()
        return False

    async def _end(self) -> None:
        """Be sure that it is gone: two Torpors on one directory would destroy it."""
        if not await self._process.wait(_ENDS_WITHIN_S):
            log.warning("killing the Torpor that should have taken over", pid=self.pid)
            self._process.signal(signal.SIGKILL)
            while not await self._process.wait(_KILLED_WITHIN_S):
                log.error("it doesn't end; without its end nobody may serve", pid=self.pid)
        self._process.close()


class Heirs:
    """Where the next Torpor asks for the estate. `ask` gets each heir that is ready; `addresses` are what it would have to listen on."""

    def __init__(
        self, directory: Path, addresses: Mapping[str, object], is_draining: Callable[[], bool], ask: Callable[[Heir], None]
    ) -> None:
        self._path = directory / SOCKET_NAME
        self._addresses = addresses
        self._is_draining = is_draining
        self._ask = ask
        self._tasks = TaskOwner("heirs")
        self._listener: socket.socket | None = None
        self.expected = 0
        """How many are loading, and will soon be ready."""

    def __repr__(self) -> str:
        return f"<Heirs {self._path} expected={self.expected}>"

    def open(self) -> None:
        """Begin to listen, in the place of a Torpor that was here before."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        new = self._path.with_name(f".{SOCKET_NAME}")
        try:
            new.unlink(missing_ok=True)
            mask = os.umask(0o177)
            try:
                listener.bind(str(new))
            finally:
                os.umask(mask)
            listener.listen(8)
            listener.setblocking(False)
            new.rename(self._path)
        except OSError:
            listener.close()
            raise
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept)

    async def close(self, remove: bool) -> None:
        """Stop listening; `remove` the socket's file unless another Torpor has put its own there. Idempotent."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None
            if remove:
                self._path.unlink(missing_ok=True)
        await self._tasks.stop()

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(OSError):
            sock, _ = self._listener.accept()
            sock.setblocking(False)
            meeting = self._tasks.spawn(self._meet(sock), "meet")
            # A task that is cancelled before its first step never gets to run any of its code.
            meeting.add_done_callback(lambda task: sock.close() if task.cancelled() else None)

    async def _meet(self, sock: socket.socket) -> None:
        pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        given_away = False
        try:
            process = ProcessHandle(pid)
            if uid != os.geteuid():
                raise TakeOverFailed(f"the running Torpor belongs to user {os.geteuid()}, and you are user {uid}", "run this as that user")
            async with asyncio.timeout(_SPEAKS_WITHIN_S):
                self._check(await _receive(sock))
            await _send(sock, {"ready": dict(self._addresses)})
            self.expected += 1
            try:
                async with asyncio.timeout(_LOADS_WITHIN_S):
                    ready = (await _receive(sock)).get("go") is True
            finally:
                self.expected -= 1
            if ready:
                given_away = True
                self._ask(Heir(sock, process))
        except HostError as error:
            log.info("a take-over was refused", pid=pid, cause=error.message)
            with contextlib.suppress(_Gone, OSError):
                await _send(sock, refusal(error))
        except (_Gone, OSError) as error:
            log.info("a take-over ended before it began", pid=pid, cause=str(error) or "it takes too long")
        finally:
            if not given_away:
                sock.close()

    def _check(self, hello: Packet) -> None:
        if hello.get("protocol") != PROTOCOL:
            raise TakeOverFailed(
                f"the running Torpor {__version__} hands over by protocol {PROTOCOL}, and Torpor {_word(hello.get('version'))} asks for "
                f"protocol {_word(hello.get('protocol'))}",
                "drain the running one (`torpor drain`), and start this one when it has ended",
            )
        if hello.get("take_over") is not True and not self._is_draining():
            raise already_running(self._path.parent)


def refusal(error: HostError) -> Packet:
    """The packet that refuses."""
    return {"refused": {"kind": error.kind, "message": error.message, "hint": error.hint}}


# -- the heir's side


class Predecessor:
    """The Torpor whose place this one takes."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def let_go(self) -> Estate | None:
        """Wait until it has let go of everything, and take that; None when it ended before it gave anything. Raises TakeOverFailed."""
        try:
            self._sock.send(_encode({"go": True}))
            self._sock.settimeout(_LETS_GO_WITHIN_S)
            return _read_estate(self._sock)
        except TimeoutError as error:
            raise TakeOverFailed("the running Torpor doesn't let go", "try again; or end it, and start this one") from error
        except (_Gone, ConnectionError):
            self._sock.close()
            return None

    def confirm(self) -> None:
        """Tell it that this one serves; it ends. Nothing happens when it has ended already."""
        with contextlib.suppress(OSError), self._sock:
            self._sock.send(_encode({"serves": True}))


def ask(settings: Settings, take_over: bool) -> Predecessor | None:
    """Ask the Torpor that runs on this data directory whether it would hand over; None when none runs.

    Raises AlreadyRunning when it serves and `take_over` isn't set, BadSettings when it has other addresses, TakeOverFailed when it can't
    or won't. Then it goes on. Next find out and load all that can fail, and then let it `let_go`.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.settimeout(_SPEAKS_WITHIN_S)
        try:
            sock.connect(str(Path(settings.data_dir) / SOCKET_NAME))
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            sock.close()
            return None
        if _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[1] != os.geteuid():
            raise TakeOverFailed("the Torpor that runs on this data directory is another user's", "run this as that user")
        try:
            sock.send(_encode({"protocol": PROTOCOL, "version": __version__, "take_over": take_over}))
            _check_addresses(settings, _answer(sock)[0])
        except TimeoutError as error:
            raise TakeOverFailed("the running Torpor doesn't answer", "try again; or end it, and start this one") from error
        except (_Gone, ConnectionError):
            pass  # it has just ended: so will be found when it is to let go
        return Predecessor(sock)
    except BaseException as error:
        sock.close()
        if isinstance(error, PermissionError):
            raise TakeOverFailed("the Torpor that runs on this data directory is another user's", "run this as that user") from error
        raise


def _check_addresses(settings: Settings, answer: Packet) -> None:
    has = answer.get("ready")
    if not isinstance(has, dict):
        raise TakeOverFailed(
            "the running Torpor's answer wasn't understood", "drain it (`torpor drain`), and start this one when it has ended"
        )
    for name in ("door_host", "door_port", "api_host", "api_port"):
        wants = getattr(settings, name)
        if wants != has.get(name) and not (name.endswith("_port") and wants == 0):
            raise BadSettings(
                f"{name} is {wants!r} here, and {has.get(name)!r} where the running Torpor listens: its sockets can't be taken over",
                f"set {name} to that; or stop the running Torpor, and start this one",
            )


def _read_estate(sock: socket.socket) -> Estate:
    estate: Estate | None = None
    while True:
        try:
            packet, fds = _answer(sock)
        except (_Gone, ConnectionError):
            if estate is None:
                raise
            return estate  # what has come is ours: nobody else is left to have it
        if "estate" in packet:
            lock, api, *door = fds
            estate = Estate(lock, [socket.socket(fileno=fd) for fd in door], socket.socket(fileno=api))
        elif estate is None:
            raise _Gone("it began in the middle")
        elif "silent" in packet:
            estate.silent += [socket.socket(fileno=fd) for fd in fds]
        elif "tickets" in packet:
            estate.tickets += packet["tickets"]
        elif isinstance(known := packet.get("failures"), dict) and len(fds) == 1 and estate.failures is None:
            estate.failures = Remembered(fds[0], float(known["epoch"]), str(known["layout"]))
        elif "http" in packet and len(fds) == 1 and estate.http is None:
            estate.http = socket.socket(fileno=fds[0])
        elif "whole" in packet:
            return estate
        else:  # what a newer Torpor gives, and this one doesn't know
            for fd in fds:
                os.close(fd)


def _answer(sock: socket.socket) -> tuple[Packet, list[int]]:
    data, fds, flags, _ = socket.recv_fds(sock, _PACKET_BYTES, _FDS_A_PACKET + 50)
    for fd in fds:
        os.set_inheritable(fd, False)  # no compute may have them; MSG_CMSG_CLOEXEC is lost in recv_fds (Python 3.11)
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        raise TakeOverFailed("the running Torpor's answer didn't arrive whole", "raise the limit of open files (ulimit -n), and try again")
    packet = _decode(data)
    if isinstance(refused := packet.get("refused"), dict):
        kind = AlreadyRunning if refused.get("kind") == AlreadyRunning.kind else TakeOverFailed
        raise kind(str(refused.get("message")), str(refused.get("hint")))
    return packet, list(fds)


# -- packets


def _encode(packet: Packet) -> bytes:
    return json.dumps(packet).encode()


def _decode(data: bytes) -> Packet:
    if not data:
        raise _Gone("it ended")
    try:
        packet = json.loads(data)
    except ValueError as error:
        raise _Gone("it says what can't be understood") from error
    if not isinstance(packet, dict):
        raise _Gone("it says what can't be understood")
    return packet


def _word(value: object) -> str:
    return str(value)[:40]


async def _receive(sock: socket.socket) -> Packet:
    return _decode(await asyncio.get_running_loop().sock_recv(sock, _PACKET_BYTES))


async def _send(sock: socket.socket, packet: Packet, fds: list[int] | None = None) -> None:
    while True:
        try:
            socket.send_fds(sock, [_encode(packet)], fds or [])
            return
        except BlockingIOError:
            await asyncio.sleep(_SEND_AGAIN_S)
