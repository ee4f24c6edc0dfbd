"""The API's server: uvicorn inside the daemon's own loop.

Concurrency: uvicorn makes a task a request. Its own main loop, which wakes ten times a second, isn't run, and no signal handlers are
installed: the daemon decides when to stop. Stopping has two phases: no new requests and an end to endless ones, then, after a grace,
an end to all. The listening socket outlives it with `release`, for the next Torpor: requests that come in between wait.
Bounded: 1000 connections, a head of 64 KiB that must arrive within 10 s, a body see `asgi`, an answer
of which the client reads something at least every 30 s.
"""

import asyncio
import errno
import logging
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import Server

from torpor.api.app import App
from torpor.api.calls import Services
from torpor.api.gate import ApiLimits
from torpor.base.listening import listen
from torpor.base.logs import get_logger
from torpor.base.telemetry import Counter
from torpor.model.errors import AddressInUse, BadSettings

log = get_logger(__name__)

HEAD_TIMEOUT_S = 10.0
MAX_HEAD_BYTES = 64 * 1024
MAX_CONNECTIONS = 1000
UNREAD_TIMEOUT_S = 30.0
_ABORT_S = 1.0
_FIRST_REQUEST_S = 0.3  # that a connection without a request so far has at the end
_LOOK_S = 0.005
_TURNS_TO_CONNECT = 4
_CLOSE = (b"connection", b"close")


class ApiServer:
    """The API of one daemon. `token_file` is named to those who come without a key."""

    def __init__(
        self,
        services: Services,
        token: str,
        host: str,
        port: int,
        token_file: Path,
        grace_s: float = 3.0,
        limits: ApiLimits | None = None,
    ) -> None:
        self._host, self._port, self._grace_s = host, port, grace_s
        self.services = services
        limits = limits or ApiLimits()
        names = limits.names | {host, socket.gethostname()}
        hint = f"the content of {token_file}"
        self._app = App(services, token, hint, replace(limits, names=names), lambda: self.url)
        self._socket: socket.socket | None = None
        self._server: Server | None = None

    def __repr__(self) -> str:
        state = "stopping" if self.services.stopping.is_set() else "serving" if self._server else "bound" if self._socket else "new"
        return f"<ApiServer {self._host}:{self._port} {state}>"

    @property
    def port(self) -> int:
        """The port in use, once bound."""
        return self._port

    @property
    def url(self) -> str:
        """Where it is reached, once bound."""
        return f"http://{f'[{self._host}]' if ':' in self._host else self._host}:{self._port}"

    @property
    def requests(self) -> Counter:
        """How many requests were served, for the telemetry."""
        return self._app.requests

    def bind(self, listener: socket.socket | None = None) -> None:
        """Take the address, or the listener that another Torpor released, without serving yet; clients that connect wait.

        Raises AddressInUse or BadSettings. Idempotent.
        """
        if self._socket is None:
            self._socket = listener or _bind(self._host, self._port)
            self._port = self._socket.getsockname()[1]

    async def start(self) -> None:
        """Bind, unless that was done, and serve."""
        self.bind()
        config = Config(
            cast(Any, self._app),
            http=_Protocol,
            loop="none",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level=logging.CRITICAL,  # garbage on the port is no news
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=None,
        )
        config.load()
        server = Server(config)
        server.lifespan = config.lifespan_class(config)
        # Of a duplicate: uvicorn's end closes its sockets.
        if not _is_loopback(self._host):
            log.warning("the API listens beyond this machine without encryption: put a proxy that speaks TLS before it", address=self.url)
        await server.startup(sockets=[cast(socket.socket, self._socket).dup()])
        self._server = server
        log.info("the API listens", url=self.url)

    async def stop(self) -> None:
        """Stop within the grace and a second. Idempotent; works before `start` as well."""
        listener = await self.release(self._grace_s)
        if listener is not None:
            listener.close()

    async def release(self, grace_s: float) -> socket.socket | None:
        """Stop within `grace_s` and a second, and give the listener to the caller: whoever connects meanwhile waits."""
        self.services.stopping.set()
        server, self._server = self._server, None
        listener, self._socket = self._socket, None
        if server is not None:
            await _stop(server, grace_s)
        return listener


async def _stop(server: Server, grace_s: float) -> None:
    # Who was accepted just now is a connection some turns of asyncio's loop later, and is left open for ever when the listener has been
    # closed by then. So first nobody new is accepted.
    for listener in server.servers:
        for sock in listener.sockets:
            asyncio.get_running_loop().remove_reader(sock)
    for _ in range(_TURNS_TO_CONNECT):
        await asyncio.sleep(0)
    for listener in server.servers:
        listener.close()
    state = server.server_state
    for connection in list(state.connections):
        connection.shutdown()  # idle ones close now, the others after their answer
    patience = asyncio.get_running_loop().time() + _FIRST_REQUEST_S
    while any(cast(_Protocol, one).is_fresh for one in state.connections):
        if asyncio.get_running_loop().time() > patience:
            break
        await asyncio.sleep(_LOOK_S)
    if tasks := set(state.tasks):
        _, late = await asyncio.wait(tasks, timeout=grace_s)
        for task in late:
            task.cancel()
        if late:
            log.warning("requests were cut off by the stop", requests=len(late))
            await asyncio.wait(late, timeout=_ABORT_S)
    for connection in list(state.connections):
        cast(_Protocol, connection).abort()


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host.startswith("127.") or host == "::1"


def _bind(host: str, port: int) -> socket.socket:
    try:
        return listen(host, port)
    except socket.gaierror as error:
        raise BadSettings(f"api_host {host!r} is no address: {error.strerror}", "give one of this host, for instance 127.0.0.1") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(
                f"the API can't listen on {host}:{port}, another program does", "end it, or give another api_port (0 takes a free one)"
            ) from error
        raise BadSettings(f"the API can't listen on {host}:{port}: {error.strerror}", "give another api_host or api_port") from error


class _Protocol(HttpToolsProtocol):
    """uvicorn's, with a deadline and a size limit for the head of a request, which it lacks."""

    _deadline: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _in_head = True
    _is_last = False
    since = 0.0
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        super().connection_made(transport)
        self.since = self.loop.time()
        self._await_head()
        if len(self.server_state.connections) > MAX_CONNECTIONS:
            # The one that asked for nothing longest makes room: strangers can't keep others out by holding connections open.
            connections = cast(set[_Protocol], self.server_state.connections)
            min((one for one in connections if one.is_idle), key=lambda one: one.since, default=self).abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_deadline()
        if self._unread is not None:
            self._unread.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:  # counted afterwards, since one read may hold a head and a body
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.abort()

    def on_message_begin(self) -> None:
        if not self._in_head:
            self._head_bytes = 0
            self._in_head = True
            self._await_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self.since = self.loop.time()
        self._clear_deadline()
        if self._is_last:
            self.headers.append(_CLOSE)
        super().on_headers_complete()
        if self._is_last and self.cycle is not None:
            self.cycle.keep_alive = False

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_unread(None)

    def _watch_unread(self, before: int | None) -> None:
        """A client that doesn't read its answer would hold it in our memory for ever, even after the end of the connection."""
        unread = self.transport.get_write_buffer_size()
        if unread and before is not None and unread >= before:
            self.abort()
        elif unread and (before is not None or self._unread is None):
            self._unread = self.loop.call_later(UNREAD_TIMEOUT_S, self._watch_unread, unread)
        elif before is not None:
            self._unread = None

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered on it."""
        return self._in_head or bool(getattr(self.cycle, "response_complete", True))

    @property
    def is_fresh(self) -> bool:
        """Whether nothing was asked on this connection yet."""
        return self.cycle is None and self.transport is not None and not self.transport.is_closing()

    def shutdown(self) -> None:
        """End it after the request that is under way, which is told so. One that has asked nothing yet may ask once: it just came."""
        self._is_last = True
        if not self.is_fresh:
            if self.cycle is not None:
                self.headers.append(_CLOSE)  # uvicorn repeats it in the answer
            super().shutdown()

    def abort(self) -> None:
        """Close at once, whatever is unsent."""
        if self.transport is not None:
            self.transport.abort()

    def _await_head(self) -> None:
        self._clear_deadline()
        self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self.abort)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
