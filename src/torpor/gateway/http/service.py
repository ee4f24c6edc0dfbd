"""The daemon's part: has the process listen, started again when it ends, told of new certificates, and ended with the daemon.

Concurrency: belongs to one event loop; all that is said are single packets. The listener stays here too, so that while no process runs
clients wait in the kernel's queue, and so that the next Torpor gets it.
"""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from torpor.base.listening import listen
from torpor.base.logs import get_logger
from torpor.base.processes import ProcessHandle
from torpor.base.tasks import TaskOwner
from torpor.gateway.http.control import CONTROL_FD, PACKET_BYTES, Configuration, decode, encode
from torpor.gateway.http.figures import Figures
from torpor.model.errors import AddressInUse, BadSettings, HostError, TorporError

log = get_logger(__name__)

_READY_S = 60.0
_GRACE_S = 3.0
_ENDS_S = 5.0
_KILLED_S = 5.0
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 3.0  # its clients wait in the queue of the listener meanwhile
_LONG_RUN_S = 60.0
_SPARE_FD = 10


Purge = Callable[[dict[str, str], str, list[str] | None], Awaitable[int]]
"""Drops results from the cache of a database: which one is said by the parameters of a startup message and a server name, as the door
reads them; by tags, or all. How many were dropped. Raises TorporError."""


class HttpService:
    """SQL over HTTP as the daemon sees it. `bind`, then `start`; at the end `stop` or `release`."""

    def __init__(self, host: str, port: int, configuration: Callable[[], Configuration], purge: Purge) -> None:
        """`configuration` is asked at each start of the process."""
        self._purge = purge
        self._host, self._port = host, port
        self._configuration = configuration
        self._tasks = TaskOwner("http")
        self._listener: socket.socket | None = None
        self._control: socket.socket | None = None
        self._process: ProcessHandle | None = None
        self._ready: asyncio.Future[None] | None = None
        self._stopping = False
        self._pause_s = _FIRST_PAUSE_S
        self._started_at = 0.0
        self.figures = Figures()
        """What the process has counted, some seconds ago at most; it begins again with each process."""

    def __repr__(self) -> str:
        return f"<HttpService {self._host}:{self._port} {self._process or 'no process'}>"

    @property
    def port(self) -> int:
        """The port in use, once bound."""
        return self._port

    @property
    def url(self) -> str:
        """Where it is reached, once bound."""
        return f"http://{f'[{self._host}]' if ':' in self._host else self._host}:{self._port}"

    @property
    def pid(self) -> int | None:
        """The process; None while there is none."""
        return self._process.pid if self._process is not None else None

    def bind(self, listener: socket.socket | None = None) -> None:
        """Take the address, or the listener that another Torpor released. Raises AddressInUse or BadSettings. Idempotent."""
        if self._listener is None:
            self._listener = listener or _bind(self._host, self._port)
            self._port = self._listener.getsockname()[1]

    async def start(self) -> None:
        """Have a process serve. Raises HostError when it doesn't come to that."""
        self.bind()
        try:
            await self._spawn()
        except (OSError, TimeoutError) as error:
            raise HostError(f"the process for SQL over HTTP did not start: {error}", "Torpor's log says more; or set http=false") from error
        log.info("SQL over HTTP is served", url=self.url, pid=self.pid)

    def use_certificates(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Take other certificates for the connections to come."""
        self._say({"certificates": [list(pair) for pair in pairs]})

    def pause(self) -> None:
        """Take nobody in any more: a drain has begun. Requests that are under way go on."""
        self._say({"pause": True})

    async def stop(self) -> None:
        """End it within seconds. Idempotent."""
        listener = await self._release(last=True)
        if listener is not None:
            listener.close()

    async def release(self) -> socket.socket | None:
        """End the process, and give the listener to the caller: whoever connects meanwhile waits."""
        return await self._release(last=False)

    async def _release(self, last: bool) -> socket.socket | None:
        self._stopping = True
        await self._tasks.stop()
        process, self._process = self._process, None
        if process is not None:
            self._say({"stop": _GRACE_S, "last": last})
            if not await process.wait(_GRACE_S + _ENDS_S):
                process.signal(signal.SIGKILL)
                await process.wait(_KILLED_S)
            process.close()
        self._hang_up()
        listener, self._listener = self._listener, None
        return listener

    # -- inside

    async def _spawn(self) -> None:
        assert self._listener is not None
        configuration = self._configuration()
        _prepare(Path(configuration.directory), configuration.uid)
        loop = asyncio.get_running_loop()
        self._started_at = loop.time()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            ours.setblocking(False)
            with theirs:
                handle = ProcessHandle(_run(theirs))
            socket.send_fds(ours, [encode({"configure": msgspec.to_builtins(configuration)})], [self._listener.fileno()])
        except BaseException:
            ours.close()
            raise
        self._control, self._process, self._ready = ours, handle, loop.create_future()
        loop.add_reader(ours.fileno(), self._heard)
        handle.watch(self._gone)
        async with asyncio.timeout(_READY_S):
            await self._ready

    def _heard(self) -> None:
        assert self._control is not None
        try:
            data = self._control.recv(PACKET_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._control.fileno())
            return
        with contextlib.suppress(ValueError):
            packet = decode(data)
            if packet.get("ready") is True and self._ready is not None and not self._ready.done():
                self._ready.set_result(None)
            if (figures := packet.get("figures")) is not None:
                self.figures = msgspec.convert(figures, Figures)
            if isinstance(asked := packet.get("purge"), dict):
                with contextlib.suppress(RuntimeError):  # we are stopping
                    self._tasks.spawn(self._purge_for(asked), "purge")

    async def _purge_for(self, asked: dict[str, Any]) -> None:
        """Purge as the process asks; it has seen that somebody may."""
        answer: dict[str, object] = {"ticket": asked.get("ticket")}
        try:
            answer["dropped"] = await self._purge(asked["startup"], asked["host"], asked["tags"])
        except TorporError as error:
            answer["error"] = error.message
        self._say({"purged": answer})

    def _gone(self) -> None:
        """The process has ended."""
        process, self._process = self._process, None
        self._hang_up()
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(ChildProcessError("it ended at once"))
            self._ready.exception()
        elif not self._stopping:
            log.error("the process for SQL over HTTP ended, and with it its requests; it is started again", pid=process and process.pid)
            with contextlib.suppress(RuntimeError):  # we are stopping
                self._tasks.spawn(self._again(), "start again")

    async def _again(self) -> None:
        """Start another, after a pause that grows while they don't last."""
        loop = asyncio.get_running_loop()
        while True:
            if loop.time() - self._started_at > _LONG_RUN_S:
                self._pause_s = _FIRST_PAUSE_S
            await asyncio.sleep(self._pause_s)
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            try:
                await self._spawn()
            except (OSError, TimeoutError) as error:
                log.error("the process for SQL over HTTP could not be started", cause=str(error), again_in_s=self._pause_s)
            else:
                return

    def _say(self, packet: dict[str, object]) -> None:
        if self._control is not None:
            with contextlib.suppress(OSError):  # it has ended, and is told all when it is started again
                self._control.send(encode(packet))

    def _hang_up(self) -> None:
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control.fileno())
            self._control.close()
            self._control = None


def _prepare(directory: Path, uid: int) -> None:
    directory.mkdir(mode=0o700, exist_ok=True)
    if uid:
        os.chown(directory, uid, uid)
        receipts = directory / "receipts"
        for path in [receipts, *receipts.iterdir()] if receipts.is_dir() else []:
            with contextlib.suppress(OSError):
                os.chown(path, uid, uid, follow_symlinks=False)  # it was another user's when Torpor ran otherwise


def _run(control: socket.socket) -> int:
    """Start the process with its end of the control socket; its pid."""
    environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "VIRTUAL_ENV", "HOME") if name in os.environ}
    spare = os.dup(control.fileno())
    while spare < _SPARE_FD:  # out of the way of the number that it gets
        spare, low = os.dup(spare), spare
        os.close(low)
    try:
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", "torpor.gateway.http"],
            environment | {"LANG": "C.UTF-8", "PYTHONSAFEPATH": "1"},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, 2, 1),
                (os.POSIX_SPAWN_DUP2, spare, CONTROL_FD),
            ],
            setsid=True,
        )
    finally:
        os.close(spare)


def _bind(host: str, port: int) -> socket.socket:
    try:
        return listen(host, port)
    except socket.gaierror as error:
        raise BadSettings(f"http_host {host!r} is no address: {error.strerror}", "give one of this host, for instance 127.0.0.1") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(
                f"SQL over HTTP can't listen on {host}:{port}: another program does",
                "end it, or give another http_port (0 takes a free one)",
            ) from error
        raise BadSettings(
            f"SQL over HTTP can't listen on {host}:{port}: {error.strerror}", "give another http_host or http_port"
        ) from error
