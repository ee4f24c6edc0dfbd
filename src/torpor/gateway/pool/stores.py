"""The daemon's end of the shared store: makes connections to it for workers, and keeps the secrets of what databases share.

A connection is one to a Redis or a Valkey that knows already who we are; the worker gets it as it gets those to PostgreSQL. A database's
secret (`gateway.cache.sealed`) lies in a file here, and goes when its results are purged, or when it holds something else: what was shared
by it can't be found any more then, whether the store could be reached or not, also by a Torpor that is started again.

Concurrency: belongs to the event loop. `forget` waits for the disk.
"""

import asyncio
import contextlib
import os
import secrets
import socket
from pathlib import Path

from torpor.base.logs import get_logger
from torpor.gateway.cache.resp import Answer, Answers, Refused, command
from torpor.gateway.cache.sealed import SECRET_BYTES
from torpor.model.cachestore import StoreAddress
from torpor.model.names import DatabaseId

log = get_logger(__name__)

_PATIENCE_S = 2.0
_LONGEST_ANSWER = 4_096


class SharedStore:
    """The store, if there is one (`address`), and the secrets in `directory`, which is made when it is needed."""

    def __init__(self, address: StoreAddress | None, directory: Path) -> None:
        self.address = address
        self._directory = directory
        self._failed = ""

    def __repr__(self) -> str:
        return f"<SharedStore {self.address}>"

    def secret(self, id: DatabaseId) -> bytes | None:
        """What a database shares by now. None when there is no store. Raises OSError."""
        if self.address is None:
            return None
        path = self._directory / id
        with contextlib.suppress(FileNotFoundError):
            found = path.read_bytes()
            if len(found) == SECRET_BYTES:
                return found
        made = secrets.token_bytes(SECRET_BYTES)
        self._directory.mkdir(mode=0o700, exist_ok=True)
        partial = path.with_name(f".{id}.{secrets.token_hex(4)}")
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, made)
            os.fsync(fd)
        finally:
            os.close(fd)
        partial.replace(path)
        return made

    def forget(self, id: DatabaseId) -> None:
        """Whatever the database shared until now is lost, for good. Idempotent. Raises OSError."""
        try:
            (self._directory / id).unlink()
        except FileNotFoundError:
            return
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    async def connect(self) -> socket.socket | None:
        """A connection that is ready to be used; None when there is none, which is logged when it begins, and when it is over."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                found = await self._connect()
        except (OSError, ValueError, Refused) as error:
            cause = "it doesn't answer" if isinstance(error, TimeoutError) else str(error)
            if cause != self._failed:
                log.warning("the shared store of the cache can't be used; results are not shared", store=str(self.address), cause=cause)
            self._failed = cause
            return None
        if self._failed:
            log.info("the shared store of the cache can be used again", store=str(self.address))
        self._failed = ""
        return found

    # -- inside

    async def _connect(self) -> socket.socket:
        address, loop = self.address, asyncio.get_running_loop()
        assert address is not None
        last: OSError = OSError("it has no address")
        for family, kind, protocol, _, where in await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM):
            sock = socket.socket(family, kind, protocol)
            try:
                sock.setblocking(False)
                await loop.sock_connect(sock, where)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                await self._introduce(sock, address)
            except OSError as error:
                sock.close()
                last = error
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        raise last

    async def _introduce(self, sock: socket.socket, address: StoreAddress) -> None:
        loop = asyncio.get_running_loop()
        steps = [(b"AUTH", *(part.encode() for part in (address.user, address.password) if part))] if address.password else []
        steps += [(b"SELECT", b"%d" % address.database)] if address.database else []
        steps += [(b"PING",)]
        for step in steps:
            await loop.sock_sendall(sock, command(*step))
            answers, answer = Answers(_LONGEST_ANSWER), list[Answer]()
            while not answer:
                data = await loop.sock_recv(sock, _LONGEST_ANSWER)
                if not data:
                    raise OSError("it has hung up")
                answer += answers.feed(data)
            if isinstance(answer[0], Refused):
                raise answer[0]
