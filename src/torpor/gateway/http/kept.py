"""Logged-in connections that are kept for some seconds, for the next request of the same client, role and database.

One is only ever used again for who would have got the very same by logging in: the same address, password and options. Between two
users everything that a session has is discarded (DISCARD ALL); one that can't be brought there, is in a transaction, or has an answer
that nobody read, is closed. Kept ones don't wake their database, nor keep it awake longer than `keep_s`; that is shorter than
databases stay awake without work, so that their end wakes nobody.

Concurrency: belongs to one event loop. Bounded: `_MOST` of all, the oldest go first; `_MOST_OF_ONE` of each kind.
"""

import asyncio
import contextlib
import hashlib
import hmac
import secrets
from collections import OrderedDict

from torpor.base.tasks import TaskOwner
from torpor.gateway.http.backend import Backend, Door
from torpor.gateway.http.credentials import Target
from torpor.gateway.http.execution import command
from torpor.gateway.http.failures import Failure

_MOST = 500
_MOST_OF_ONE = 16
_RESET_S = 5.0
_CANCELS_S = 2.0

Kind = tuple[str, bytes]


class Kept:
    """The connections of this process that wait for a next user."""

    def __init__(self, door: Door, keep_s: float, tasks: TaskOwner) -> None:
        self._door = door
        self._keep_s = keep_s
        self._tasks = tasks
        self._secret = secrets.token_bytes(32)
        self._waiting: OrderedDict[Backend, tuple[Kind, asyncio.TimerHandle]] = OrderedDict()
        self._by_kind: dict[Kind, list[Backend]] = {}
        self._cancels: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Kept {len(self._waiting)}>"

    def __len__(self) -> int:
        return len(self._waiting)

    async def take(self, client: tuple[str, int], target: Target) -> Backend:
        """A connection that nobody else has. Raises Failure."""
        kind = self._kind(client, target)
        while backends := self._by_kind.get(kind):
            backend = backends[-1]
            self._forget(backend)
            if backend.wire.is_quiet:
                return backend
            backend.wire.close()  # PostgreSQL said something to nobody: that it is going away, mostly
        return await Backend.log_in(self._door, client, target)

    def give_back(self, backend: Backend, client: tuple[str, int], target: Target, is_untouched: bool = False) -> None:
        """Keep it for the next, once nothing of this user is left in it. What still runs in it is given up, and it is closed.

        `is_untouched`: PostgreSQL had nothing to do with it, so there is nothing to discard; to ask for it would wake the database.
        """
        if backend.is_busy:
            self._throw_away(backend)
            return
        if backend.wire.is_lost or backend.status != "I" or self._keep_s <= 0:
            backend.wire.leave()
            return
        if is_untouched:
            self._wait(backend, self._kind(client, target))
            return
        try:
            self._tasks.spawn(self._reset(backend, self._kind(client, target)), "reset a connection")
        except RuntimeError:  # we are stopping
            backend.wire.leave()

    async def close(self) -> None:
        """End all; what is just being cancelled is seen to its end, within a second or two. Idempotent."""
        for backend in list(self._waiting):
            self._end(backend)
        if self._cancels:
            await asyncio.wait(self._cancels, timeout=_CANCELS_S)

    def _throw_away(self, backend: Backend) -> None:
        if not backend.wire.is_lost:
            with contextlib.suppress(RuntimeError):  # we are stopping
                task = self._tasks.spawn(self._give_up(backend), "cancel")
                self._cancels.add(task)
                task.add_done_callback(self._cancels.discard)
                return
        backend.wire.close()

    async def _give_up(self, backend: Backend) -> None:
        try:
            await backend.cancel()
        finally:
            backend.wire.close()

    async def _reset(self, backend: Backend, kind: Kind) -> None:
        try:
            async with asyncio.timeout(_RESET_S):
                await command(backend, "DISCARD ALL")
        except (Failure, TimeoutError):
            backend.wire.close()
            return
        except BaseException:
            backend.wire.close()
            raise
        self._wait(backend, kind)

    def _wait(self, backend: Backend, kind: Kind) -> None:
        if backend.status != "I" or len(self._by_kind.get(kind, ())) >= _MOST_OF_ONE:
            backend.wire.leave()
            return
        if len(self._waiting) >= _MOST:
            self._end(next(iter(self._waiting)))
        self._by_kind.setdefault(kind, []).append(backend)
        self._waiting[backend] = kind, asyncio.get_running_loop().call_later(self._keep_s, self._end, backend)
        backend.wire.on_lost = lambda: self._forget(backend)
        if backend.wire.is_lost:
            self._forget(backend)

    def _end(self, backend: Backend) -> None:
        self._forget(backend)
        backend.wire.leave()

    def _forget(self, backend: Backend) -> None:
        found = self._waiting.pop(backend, None)
        if found is None:
            return
        kind, timer = found
        timer.cancel()
        backend.wire.on_lost = None
        backends = self._by_kind[kind]
        backends.remove(backend)
        if not backends:
            del self._by_kind[kind]

    def _kind(self, client: tuple[str, int], target: Target) -> Kind:
        """Without the password itself: what we keep is worth nothing to whoever reads our memory later."""
        text = "\0".join((target.user, target.password, target.database, target.host, target.options, target.application_name))
        return client[0], hmac.digest(self._secret, text.encode("utf-8", "surrogateescape"), hashlib.sha256)
