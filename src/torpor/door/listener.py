"""The door itself: listens, keeps connections until they speak, and gives each that does a login.

Concurrency: belongs to one event loop. Accepting and waiting for the first byte are plain callbacks; a connection that speaks gets
a task. Stopping has two phases: `stop_accepting` (newcomers and silent ones are sent away, logins go on), then `close`.
Before them, or instead, the door can be paused: newcomers wait in the kernel's queue until this Torpor ends, or until the next one
has what `release` gives. Sessions that were handed over don't notice any of it.
"""

import asyncio
import contextlib
import errno
import socket
import time
from collections import OrderedDict
from collections.abc import Sequence

from torpor.base.logs import get_logger
from torpor.base.tasks import TaskOwner
from torpor.door.encryption import Encryption, no_encryption
from torpor.door.guard.guard import Guard
from torpor.door.login import Doorway, Login, give_way_error, shutting_down
from torpor.door.ports import Computes, Pools, Tokens
from torpor.door.routing import ServerNames
from torpor.door.silence import Silence, Silent
from torpor.door.stats import DoorStats, LoginOutcome, outcome_of
from torpor.door.wire import say_farewell
from torpor.model.errors import AddressInUse, TooManyFromAddress, TorporError

log = get_logger(__name__)

_BACKLOG = 4096
_ACCEPTS_A_TURN = 64  # newcomers taken before the loop does other work
_REFUSALS_A_TURN = 8  # of them; whoever floods the door waits behind those who are logging in
_PAUSE_S = 0.1
_LOGINS_LOOK_S = 0.01
_COMPLAINT_EVERY_S = 60.0
_DROPPED_BYTES = 16_384  # closing a socket with unread bytes resets the connection
_DISMISSED_WHEN_SHORT = 32
_SHORT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Door:
    """The listener for PostgreSQL clients.

    `mock_secret` makes the salts that unknown roles show; keep it the same over restarts, or a stranger can tell them by the change.
    """

    def __init__(
        self,
        computes: Computes,
        *,
        host: str,
        port: int,
        login_timeout_s: float,
        max_logins: int,
        mock_secret: bytes,
        encryption: Encryption | None = None,
        public_host: str = "",
        relay: bool = False,
        guard: Guard | None = None,
        gateway_secret: bytes = b"",
        pools: Pools | None = None,
        pool_port: int | None = None,
        tokens: Tokens | None = None,
    ) -> None:
        """Without a `guard` of its own the door has one without limits or lists. At `pool_port`, if there is one, all are pooled."""
        self.stats = DoorStats()
        self.guard = guard or Guard(time.monotonic, mock_secret)
        self._host = host
        self._port, self._pool_port = port, pool_port
        self._login_timeout_s = login_timeout_s
        self._max_logins = max_logins
        # A quarter each: it takes four tenants with thousands of clients waiting at once to fill the door.
        encryption = no_encryption() if encryption is None else encryption
        self._relays = encryption.relays
        self._doorway = Doorway(
            computes,
            login_timeout_s,
            max(1, max_logins // 4),
            relay,
            encryption,
            ServerNames(public_host),
            mock_secret,
            gateway_secret,
            self.stats,
            self.guard,
            pools,
            tokens,
        )
        self._listeners: list[socket.socket] = []
        self._silence: Silence | None = None
        self._logins: OrderedDict[Login, None] = OrderedDict()
        self._tasks = TaskOwner("door")
        self._pause: asyncio.TimerHandle | None = None
        self._complained_at: float | None = None

    def __repr__(self) -> str:
        where = "{}:{}".format(*self.address) if self._listeners else "closed"
        s = self.stats
        return f"<Door {where} pending={s.pending} waiting={s.waiting} relayed={self._relays.sessions}{' paused' if self._pause else ''}>"

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens: the first address that the host name stands for, and the port in use. Only while it listens."""
        host, port, *_ = self._listeners[0].getsockname()
        return host, port

    @property
    def pool_address(self) -> tuple[str, int] | None:
        """Where all are pooled: an address and the port in use. Only while it listens."""
        return (self.address[0], self._doorway.pool_port) if self._doorway.pool_port else None

    async def start(self, listeners: Sequence[socket.socket] = (), silent: Sequence[socket.socket] = ()) -> None:
        """Listen: on `listeners`, if another Torpor `release`d some, with those that came to it and haven't said a word. That one may have
        had another port where all are pooled: what isn't wanted any more is closed.

        Raises AddressInUse, having opened nothing.
        """
        self._silence = Silence(self._login_timeout_s, self._spoke, self._left, self._expired)
        inherited = list(listeners) or await _listen(self._host, self._port)
        door_port = _port_of(inherited[0])
        pooled = [listener for listener in inherited if _port_of(listener) != door_port]
        if pooled and self._pool_port not in (0, _port_of(pooled[0])):
            for listener in pooled:
                listener.close()
            inherited, pooled = [listener for listener in inherited if listener not in pooled], []
        if self._pool_port is not None and not pooled:
            try:
                pooled = await _listen(self._host, self._pool_port, "pool_port")
            except BaseException:
                if not listeners:
                    for listener in inherited:
                        listener.close()
                raise
            inherited += pooled
        self._listeners = inherited
        self._doorway.pool_port = _port_of(pooled[0]) if pooled else 0
        for sock in silent:
            with contextlib.suppress(OSError):  # it has left
                self._take_in(sock, sock.getpeername()[:2])
        self._resume()

    def pause(self) -> None:
        """Take no more connections for now: newcomers wait in the kernel's queue, the silent ones aren't heard. Idempotent."""
        self._suspend()
        self._silent.pause()

    @property
    def is_busy(self) -> bool:
        """Whether a login is under way: somebody has spoken and has no session yet."""
        return bool(self._logins) or self.stats.waiting > 0

    async def finish_logins(self, patience_s: float) -> None:
        """Until no login is under way, but not longer than `patience_s`. Only while paused."""
        deadline = asyncio.get_running_loop().time() + patience_s
        while self.is_busy and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110  # once in a Torpor's life
            await asyncio.sleep(_LOGINS_LOOK_S)

    def release(self) -> tuple[list[socket.socket], list[socket.socket]]:
        """The listening sockets, and the connections that haven't said a word: the caller's from now on. Only while paused."""
        listeners, self._listeners = self._listeners, []
        silent = self._silent.release()
        self.stats.pending -= len(silent)
        return listeners, silent

    async def stop_accepting(self) -> None:
        """Take no more connections, and send away those that haven't said a word or wait in the kernel's queue. Idempotent."""
        self._suspend()
        for listener in self._listeners:
            _turn_away(listener)
            listener.close()
        self._listeners = []
        if self._silence is not None:
            self._count_dismissed(LoginOutcome.SHUTDOWN, self._silence.dismiss_all(shutting_down()))

    async def close(self) -> None:
        """End what is left at the door: logins are told that Torpor is shutting down. Idempotent."""
        await self.stop_accepting()
        await self._tasks.stop()
        # A task that is cancelled before its first step never gets to run any of its code.
        for login in list(self._logins):
            login.abandon()

    def _resume(self) -> None:
        self._pause = None
        for listener in self._listeners:
            asyncio.get_running_loop().add_reader(listener.fileno(), self._accept, listener)

    def _suspend(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        for listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener.fileno())

    def _accept(self, listener: socket.socket) -> None:
        refusals = 0
        for _ in range(_ACCEPTS_A_TURN):
            try:
                sock, address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._could_not_accept(error)
                return
            refusals += not self._take_in(sock, address[:2])
            if refusals >= _REFUSALS_A_TURN:
                return

    def _take_in(self, sock: socket.socket, address: tuple[str, int]) -> bool:
        """Whether it may stay."""
        sock.setblocking(False)
        self.stats.accepted += 1
        try:
            visit = self.guard.arrive(address[0])
        except TooManyFromAddress as error:
            self._turn_away(sock, address, error)
            return False
        if self.stats.pending >= self._max_logins:
            self._make_room()
        self.stats.pending += 1
        self._silent.add(sock, address, visit)
        return True

    def _turn_away(self, sock: socket.socket, address: tuple[str, int], error: TorporError) -> None:
        """Without reading a word, and without a task: whoever floods the door gets as little of it as can be."""
        outcome = outcome_of(error)
        self.stats.logins[outcome] += 1
        unlogged = self.guard.refused(address[0], outcome, "")
        if unlogged is not None:
            log.info("connection refused", client=address[0], outcome=outcome, error=error.message, unlogged=unlogged)
        with sock:
            say_farewell(sock, error)

    def _could_not_accept(self, error: OSError) -> None:
        """Short of file descriptors or memory: let the longest silent go and try again in a moment. Spinning would help nobody."""
        loop = asyncio.get_running_loop()
        if self._complained_at is None or loop.time() - self._complained_at > _COMPLAINT_EVERY_S:
            self._complained_at = loop.time()
            log.error(
                "can't accept connections",
                error=error.strerror,
                pending=self.stats.pending,
                hint="raise the limit of open files (ulimit -n)",
            )
        if error.errno in _SHORT_OF_RESOURCES:
            for _ in range(_DISMISSED_WHEN_SHORT):
                if not self._dismiss_oldest_silent():
                    break
        self._suspend()
        self._pause = loop.call_later(_PAUSE_S, self._resume)

    def _make_room(self) -> None:
        """Send away the one that has been silent longest, or else the oldest login that isn't proven."""
        if not self._dismiss_oldest_silent() and self._logins:
            login, _ = self._logins.popitem(last=False)
            login.give_way()

    def _dismiss_oldest_silent(self) -> bool:
        dismissed = self._silent.dismiss_oldest(give_way_error())
        self._count_dismissed(LoginOutcome.TOO_MANY, int(dismissed))
        return dismissed

    def _count_dismissed(self, outcome: LoginOutcome, count: int) -> None:
        self.stats.pending -= count
        self.stats.logins[outcome] += count

    @property
    def _silent(self) -> Silence:
        if self._silence is None:
            raise RuntimeError("the door was never started")
        return self._silence

    def _spoke(self, silent: Silent, head: bytes) -> None:
        login = Login(self._doorway, silent, head, self._proven)
        self._logins[login] = None
        self._tasks.spawn(login.run(), f"login {silent.address[0]}")

    def _left(self, _silent: Silent) -> None:
        self._count_dismissed(LoginOutcome.VANISHED, 1)

    def _expired(self, _silent: Silent) -> TorporError:
        self._count_dismissed(LoginOutcome.TIMEOUT, 1)
        return self._doorway.too_slow("the first byte")

    def _proven(self, login: Login) -> None:
        self.stats.pending -= 1
        self._logins.pop(login, None)


def _port_of(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


async def _listen(host: str, port: int, setting: str = "door_port") -> list[socket.socket]:
    """Listening sockets on every address that `host` stands for, all on one port, that of `setting`."""
    where = f"{host or '*'}:{port}"
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise AddressInUse(f"the door can't listen on {where}: {error.strerror}", "set door_host to an address of this machine") from error
    listeners: list[socket.socket] = []
    failure: OSError | None = None
    try:
        for family, kind, proto, _, address in dict.fromkeys(found):
            try:
                listener = _listen_on(family, kind, proto, (address[0], port, *address[2:]))
            except OSError as error:
                # A name may stand for addresses that this host doesn't have, such as ::1 without IPv6.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                failure = error
                continue
            listeners.append(listener)
            port = listener.getsockname()[1]
        if not listeners and failure is not None:
            raise failure
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise _cannot_listen(where, error, setting) from error
    return listeners


def _turn_away(listener: socket.socket) -> None:
    """Tell those who wait in the kernel's queue that they have to leave; closed without a word they would see a reset."""
    for _ in range(_BACKLOG):
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        with sock, contextlib.suppress(OSError):
            sock.setblocking(False)
            say_farewell(sock, shutting_down())
            sock.recv(_DROPPED_BYTES)


def _listen_on(family: int, kind: int, proto: int, address: tuple[object, ...]) -> socket.socket:
    listener = socket.socket(family, kind, proto)
    try:
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit these two.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _cannot_listen(where: str, error: OSError, setting: str) -> AddressInUse:
    match error.errno:
        case errno.EADDRINUSE:
            return AddressInUse(
                f"the door can't listen on {where}: another program does", f"stop that program, or set {setting} to a free port"
            )
        case errno.EACCES:
            return AddressInUse(f"the door can't listen on {where}: only root may use this port", f"set {setting} to 1024 or above")
        case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT:
            return AddressInUse(f"the door can't listen on {where}: this machine has no such address", "set door_host to an address it has")
        case _:
            return AddressInUse(f"the door can't listen on {where}: {error.strerror}", f"set door_host and {setting}")
