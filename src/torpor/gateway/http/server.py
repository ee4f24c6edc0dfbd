"""The listener: takes connections in, finds out by their first byte whether they speak TLS, and makes a `Connection` of each.

Concurrency: belongs to one event loop; accepting and waiting for the first byte are plain callbacks. Bounded: `MOST` connections, the
one that has asked for nothing longest goes first; `MOST_OF_ADDRESS` of one address; `FIRST_BYTE_S` for a first byte.
"""

import asyncio
import socket
import ssl
from collections import Counter
from functools import partial

from torpor.base.logs import get_logger
from torpor.base.tasks import TaskOwner
from torpor.gateway.http.connection import Connection, Handler, Reply, Request
from torpor.gateway.http.failures import failure
from torpor.model.access import address_key

log = get_logger(__name__)

MOST = 10_000
MOST_OF_ADDRESS = 1_000
FIRST_BYTE_S = 10.0
_HANDSHAKE_S = 10.0
_ACCEPTS_A_TURN = 64
_PAUSE_S = 0.1
_LOOK_S = 0.02
_FAREWELL_S = 1.0
_TLS_HELLO = 0x16
_TURNS_OF_QUEUE = 1024 // _ACCEPTS_A_TURN


class Server:
    """All connections of this process."""

    def __init__(self, listener: socket.socket, handler: Handler, tasks: TaskOwner) -> None:
        self.certificates: ssl.SSLContext | None = None
        self._listener = listener
        self._handler = handler
        self._tasks = tasks
        self._connections: set[Connection] = set()
        self._silent: dict[socket.socket, asyncio.TimerHandle] = {}
        self._opening: set[socket.socket] = set()
        self._of_address: Counter[str] = Counter()
        self._pause: asyncio.TimerHandle | None = None
        self._listening = False

    def __repr__(self) -> str:
        return f"<Server {len(self._connections)} connections, {len(self._silent)} silent>"

    def __len__(self) -> int:
        return len(self._connections)

    def start(self) -> None:
        """Begin to accept."""
        self._pause = None
        self._listening = True
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    def pause(self) -> None:
        """Accept no more for now: newcomers wait in the kernel's queue, for the next Torpor. Connections end after what is under way."""
        self._suspend()
        for connection in list(self._connections):
            connection.shut()

    async def stop(self, grace_s: float, turn_away: bool = False) -> None:
        """Accept no more, let requests that are under way end within the grace, and close all. With `turn_away` there is no next Torpor for
        those who wait in the kernel's queue: they are told so."""
        self._suspend()
        for connection in list(self._connections):
            connection.shut()
        if turn_away:
            self._handler = _refuse
            for _ in range(_TURNS_OF_QUEUE):
                self._accept()
        self._listener.close()  # at once: the next Torpor may want the address
        loop = asyncio.get_running_loop()
        now = loop.time()
        while ((self._connections or self._opening) and loop.time() < now + grace_s) or (  # noqa: ASYNC110  # once in the life of the process
            turn_away and self._silent and loop.time() < now + _FAREWELL_S
        ):
            await asyncio.sleep(_LOOK_S)
        for sock in list(self._silent):
            self._forget_silent(sock)
            sock.close()
        for connection in list(self._connections):
            connection.dismiss()
        deadline = asyncio.get_running_loop().time() + _FAREWELL_S
        while self._connections and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110  # as above
            await asyncio.sleep(_LOOK_S)
        for connection in list(self._connections):
            connection.abort()

    def _suspend(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._listening:
            self._listening = False
            asyncio.get_running_loop().remove_reader(self._listener.fileno())

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_A_TURN):
            try:
                sock, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.error("can't accept connections", error=error.strerror, hint="raise the limit of open files (ulimit -n)")
                self._suspend()
                self._pause = asyncio.get_running_loop().call_later(_PAUSE_S, self.start)
                return
            self._take_in(sock, (address[0], address[1]))

    def _take_in(self, sock: socket.socket, address: tuple[str, int]) -> None:
        key = address_key(address[0])
        if self._of_address[key] >= MOST_OF_ADDRESS:
            sock.close()
            return
        if len(self._connections) + len(self._silent) >= MOST:
            self._make_room()
        self._of_address[key] += 1
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        loop = asyncio.get_running_loop()
        self._silent[sock] = loop.call_later(FIRST_BYTE_S, self._drop, sock, key)
        loop.add_reader(sock.fileno(), self._spoke, sock, address)

    def _spoke(self, sock: socket.socket, address: tuple[str, int]) -> None:
        try:
            first = sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            first = b""
        self._forget_silent(sock)
        if not first:
            self._release(address_key(address[0]))
            sock.close()
            return
        encrypts = first[0] == _TLS_HELLO
        self._opening.add(sock)
        try:
            self._tasks.spawn(self._open(sock, address, self.certificates if encrypts else None), "open")
        except RuntimeError:  # we are stopping
            self._opening.discard(sock)
            sock.close()

    async def _open(self, sock: socket.socket, address: tuple[str, int], context: ssl.SSLContext | None) -> None:
        key = address_key(address[0])
        made: list[Connection] = []

        def connection() -> Connection:
            made.append(Connection(self._handler, address, context is not None, partial(self._lost, key)))
            self._connections.add(made[0])
            return made[0]

        timeout_s = _HANDSHAKE_S if context is not None else None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(connection, sock, ssl=context, ssl_handshake_timeout=timeout_s)
        except (OSError, ssl.SSLError):
            if made:
                self._lost(key, made[0])
            sock.close()
        finally:
            self._opening.discard(sock)

    def _lost(self, key: str, connection: Connection) -> None:
        if connection in self._connections:
            self._connections.discard(connection)
            self._release(key)

    def _release(self, key: str) -> None:
        self._of_address[key] -= 1
        if self._of_address[key] <= 0:
            del self._of_address[key]

    def _forget_silent(self, sock: socket.socket) -> None:
        timer = self._silent.pop(sock, None)
        if timer is not None:
            timer.cancel()
            asyncio.get_running_loop().remove_reader(sock.fileno())

    def _drop(self, sock: socket.socket, key: str) -> None:
        self._forget_silent(sock)
        self._release(key)
        sock.close()

    def _make_room(self) -> None:
        idle = min((one for one in self._connections if one.is_idle), key=lambda one: one.idle_since, default=None)
        if idle is not None:
            idle.abort()


async def _refuse(request: Request, _reply: Reply) -> None:
    """Answer whoever came too late."""
    request.keep_alive = False
    raise failure(503, "57P01", "Torpor is shutting down", "ask again once it is back", 1)
