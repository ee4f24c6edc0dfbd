"""Who gets which backend: the pool of one database. Pure: bytes and times in, bytes out.

Clients that began the same way form a group, since one backend can serve all of them. Who needs a backend and finds none waits in one
queue for the database, first come first served; a client stands in it once, so that nobody takes the turn of another. What a transaction
left behind (signs of the backend, docs/decisions/0030-the-pool-of-connections.md) is discarded before another client gets the backend,
or ties the two together (`auto`).
"""

import weakref
from collections import deque
from collections.abc import Callable
from typing import Protocol

from torpor.gateway.cache.store import Store
from torpor.gateway.pool import extended
from torpor.gateway.pool.backend import Backend
from torpor.gateway.pool.caching import DEFAULT_BYTES, Caching
from torpor.gateway.pool.client import Client
from torpor.gateway.pool.values import (
    NOWHERE,
    PREFIX,
    STALE,
    HeldStatement,
    Key,
    Limits,
    Link,
    Room,
    Settings,
    Statement,
    apply_settings,
)
from torpor.pgwire.replies import authentication_ok, error_response

_APPLICATION_NAME = b"application_name"
_MOST_SHARED_SETTINGS = 64
_MOST_GROUPS = 256
_NO_SIGNS = "a compute that gives no signs: it was started by an older Torpor"
_DISCARD = b"DISCARD ALL"
_FLUSH = b"H\0\0\0\4"
"""Tells the library in the backend that another client begins (native/signs.h), and PostgreSQL nothing."""
_WATCH = _FLUSH + _FLUSH
"""Tells it to watch what runs up to the next ReadyForQuery; twice: up to the one after it, as the next one ends what is the pool's own."""


class Port(Protocol):
    """Who makes backends."""

    def open(self, backend: Backend) -> None:
        """Make a connection to PostgreSQL for it; `opened` or `open_failed` is called when that is done."""
        ...

    def cancel(self, backend: Backend) -> None:
        """Have PostgreSQL cancel what the backend runs; `cancel_done` is called when that is done."""
        ...


class Group:
    """Clients and backends that began the same way."""

    def __init__(self, key: Key, room: Room) -> None:
        self.key, self.room = key, room
        self.idle: dict[Backend, None] = {}  # the one that was used last at the end
        self.opening = self.waiters = self.clients = self.backends = 0  # backends: without the pinned ones, those being opened too
        self.carried: Settings | None = None  # as PostgreSQL gives them; None while nobody knows
        self.reported: Settings = {}
        self._shared: dict[bytes, Settings] = {}
        self._statements: weakref.WeakValueDictionary[bytes, Statement] = weakref.WeakValueDictionary()
        self._named = 0

    def __repr__(self) -> str:
        return f"<Group {self.key.role}@{self.key.inner_database} {self.backends} backends, {self.clients} clients>"

    def statement(self, body: bytes) -> Statement:
        """The one for this text and these types."""
        found = self._statements.get(body)
        if found is None:
            self._named += 1
            found = self._statements[body] = HeldStatement(body, b"%b%d" % (PREFIX, self._named), self.room)
        return found

    def settings_for(self, application_name: bytes) -> Settings:
        """What a client of that name begins with. Clients that agree share one."""
        found = self._shared.get(application_name)
        if found is None:
            if len(self._shared) >= _MOST_SHARED_SETTINGS:
                self._shared.clear()
            found = self._shared[application_name] = {**(self.carried or {}), _APPLICATION_NAME: application_name}
        return found

    def learn(self, backend: Backend) -> None:
        """A fresh backend says what PostgreSQL gives a session now."""
        if backend.carried != self.carried:
            self._shared.clear()
        self.carried, self.reported = backend.carried, backend.reported


class Pool:
    """The pool of one database."""

    def __init__(self, label: str, port: Port, limits: Limits, now: Callable[[], float], store: Store | None = None) -> None:
        self.label = label
        self.limits = limits
        self.room = Room()
        self.clients: set[Client] = set()
        self.backends: set[Backend] = set()
        self.pinned: set[Client] = set()
        self.waiting: deque[Client] = deque()
        self.transactions = self.waits = self.discards = 0
        self.waited_s = self.longest_wait_s = 0.0
        self.finishing = b""
        self._port = port
        self._now = now
        self._groups: dict[Key, Group] = {}
        self._hungry = 0  # groups of which someone waits
        self.cares = False  # whether any statement may concern the cache
        self.caching = Caching(self, store if store is not None else Store(DEFAULT_BYTES), now)

    def __repr__(self) -> str:
        return f"<Pool {self.label} {len(self.clients)} clients, {len(self.waiting)} waiting, {len(self.backends)} backends>"

    # -- clients come and go

    def group(self, key: Key) -> Group:
        """The group of those that begin so."""
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= _MOST_GROUPS:
                self._groups = {k: g for k, g in self._groups.items() if g.clients or g.backends}
            group = self._groups[key] = Group(key, self.room)
        return group

    def join(self, client: Client) -> None:
        """A client that has proven who it is. It is greeted as soon as it is known what PostgreSQL would say."""
        self.clients.add(client)
        client.group.clients += 1
        if client.group.carried is not None:
            self._greet(client)
        else:
            self._queue(client)

    def adopt(self, client: Client) -> None:
        """A client of the pool's own. It is as any other, but knows already what PostgreSQL says."""
        client.greeted = True
        self.clients.add(client)
        client.group.clients += 1

    def client_gone(self, client: Client) -> None:
        """It has left, or was sent away."""
        if client in self.clients:
            self._lose(client)
            self.caching.gone(client)

    def _lose(self, client: Client) -> None:
        self.clients.discard(client)
        client.last = None
        client.group.clients -= 1
        if client.is_waiting:
            self.waiting.remove(client)
            self._no_longer_waits(client)
        backend = client.backend
        if backend is None:
            return
        calm = backend.status == b"I" and not backend.outstanding and not backend.ops and not client.is_amid()
        self._separate(client, backend)
        if calm:
            self._clean(backend)
            return
        if backend.outstanding:
            self._port.cancel(backend)  # or PostgreSQL would go on working for nobody
        self._drop(backend)

    def cancel(self, client: Client) -> None:
        """The client wants what it runs to be cancelled. Nobody else gets the backend until PostgreSQL has heard it."""
        if client.backend is not None and client.backend.outstanding:
            client.backend.canceling += 1
            self._port.cancel(client.backend)
        else:
            self.caching.cancel(client)

    def cancel_done(self, backend: Backend) -> None:
        """PostgreSQL has heard it."""
        if backend.canceling:
            backend.canceling -= 1
            if not backend.canceling and backend in self.backends and backend.client is None and not backend.ops:
                self.backend_rests(backend)

    # -- who gets what

    def acquire(self, client: Client) -> bool:
        """Whether the client has a backend now; else it waits for one, or was sent away."""
        idle = client.group.idle
        if idle:
            backend = client.last
            if backend is not None and backend in idle:
                del idle[backend]
            else:
                backend, _ = idle.popitem()
            self._unite(client, backend)
            return True
        self._queue(client)
        return False

    def transaction_ended(self, backend: Backend) -> None:
        """PostgreSQL is ready outside of a transaction, and owes nothing."""
        client = backend.client
        if client is None:
            return
        self.transactions += 1
        if self.finishing:
            client.dismiss(self.finishing)
            return
        if client.auto and (backend.left or not backend.serves_signs):
            kept = backend.left - {STALE}
            if kept or not backend.serves_signs:
                if not client.pinned_by:
                    backend.group.backends -= 1
                    self.pinned.add(client)
                client.pinned_by = ", ".join(sorted(kept)) or _NO_SIGNS
                self._open_more()
                return
        self._separate(client, backend)
        self._clean(backend)

    def weigh(self, backend: Backend, client: Client) -> bytes:
        """What a client must be told before it hears that its transaction has ended: a notice of what won't last."""
        kept = frozenset(backend.left - {STALE})
        if not kept or client.auto or kept <= client.warned:
            return b""
        client.warned = client.warned | kept
        text = error_response(
            "01000",
            f"{', '.join(sorted(kept))} does not last: this connection is pooled, and its next transaction may have another backend",
            "use SET LOCAL and transaction-level locks, connect without the pool, or with pool=auto",
            severity="WARNING",
        )
        return b"N" + text[1:]

    def backend_rests(self, backend: Backend) -> None:
        """A backend is free, or has just come."""
        if backend.canceling or backend not in self.backends:
            return
        group = backend.group
        if backend in group.idle:
            return
        if backend.status != b"I" or backend.trouble:
            self._drop(backend)  # what the pool itself asked of it failed
            self._open_more()
            return
        if backend.opening:
            backend.opening = False
            group.opening -= 1
            group.learn(backend)
            self._greet_waiting(group)
        if self.waiting:
            head = self.waiting[0]
            client = head
            if head.group is group:
                self.waiting.popleft()
            else:
                first = self._first_of(group)
                if first is None or head.group.opening < 1:
                    self._drop(backend)  # it can't serve the one whose turn it is
                    self._open_more()
                    return
                client = first
                self.waiting.remove(client)
            self._no_longer_waits(client)
            self._unite(client, backend)
            client.given()
            return
        backend.idle_since = self._now()
        group.idle[backend] = None

    def _first_of(self, group: Group) -> Client | None:
        return next((client for client in self.waiting if client.group is group), None)

    def tick(self) -> None:
        """Now and then: send away who has waited too long, and close backends that nobody needs."""
        now, limits = self._now(), self.limits
        self.caching.tick()
        while self.waiting and now - self.waiting[0].waiting_since >= limits.wait_s:
            self.waiting[0].refuse(
                "53300",
                f'no backend of database "{self.label}" was free within {limits.wait_s:g} s: '
                f"pooled clients share {limits.size} (pool_size){_of_role(limits)}",
                f"make transactions shorter, raise pool_size (`torpor set {self.label} --pool-size`), or pool_wait_s to wait longer",
            )
        for group in self._groups.values():
            while group.idle and now - (oldest := next(iter(group.idle))).idle_since >= limits.idle_s:
                self._drop(oldest)

    def next_tick_s(self) -> float | None:
        """In how many seconds there will be something for `tick`; None when nothing will."""
        now, limits = self._now(), self.limits
        times = [next(iter(group.idle)).idle_since + limits.idle_s - now for group in self._groups.values() if group.idle]
        if self.waiting:
            times.append(self.waiting[0].waiting_since + limits.wait_s - now)
        if self.caching.has_waiting:
            times.append(1.0)
        return max(0.0, min(times)) if times else None

    # -- backends come and go

    def opened(self, backend: Backend, link: Link) -> None:
        """The connection for it is there; it will say when it is ready."""
        backend.link = link

    def open_failed(self, backend: Backend, farewell: bytes) -> None:
        """There is no connection for it; `farewell` tells why."""
        self._forget(backend)
        group = backend.group
        alone = group.backends <= 0
        for client in [client for client in self.waiting if client.group is group][: None if alone else 1]:
            client.dismiss(farewell)
        self._open_more()

    def backend_gone(self, backend: Backend) -> None:
        """PostgreSQL has closed the connection."""
        if backend not in self.backends:
            return
        if not backend.ready:
            backend.link.close()
            self.open_failed(backend, backend.trouble or backend.farewell)
            return
        client, farewell = backend.client, backend.farewell
        if client is not None:
            self._separate(client, backend)
        self._forget(backend)
        backend.link.close()
        if client is not None:
            client.dismiss(farewell)
        self._open_more()

    def finish(self, farewell: bytes) -> None:
        """Take leave of every client, of those that are in a transaction when it has ended."""
        self.finishing = farewell
        for client in list(self.clients):
            backend = client.backend
            if backend is None or (backend.status == b"I" and not backend.outstanding and not client.is_amid()):
                client.dismiss(farewell)

    def close(self, farewell: bytes) -> None:
        """End all of it: clients are told why."""
        for client in list(self.clients):
            client.dismiss(farewell)
        for backend in list(self.backends):
            if backend.ready:
                self._drop(backend)

    # -- inside

    def _queue(self, client: Client) -> None:
        limits = self.limits
        if len(self.waiting) >= limits.queue:
            client.refuse(
                "53300",
                f'{limits.queue} clients wait for a backend of database "{self.label}" already, and that is the limit (pool_queue)',
                f"make transactions shorter, or raise pool_size ({limits.size} backends now{_of_role(limits)}) or pool_queue "
                f"(`torpor set {self.label} --pool-size --pool-queue`)",
            )
            return
        client.is_waiting = True
        client.waiting_since = self._now()
        client.group.waiters += 1
        self._hungry += client.group.waiters == 1
        self.waiting.append(client)
        client.link.listen(False)
        self._open_more()

    def _no_longer_waits(self, client: Client) -> None:
        client.is_waiting = False
        client.group.waiters -= 1
        self._hungry -= client.group.waiters == 0
        waited_s = self._now() - client.waiting_since
        self.waits += 1
        self.waited_s += waited_s
        self.longest_wait_s = max(self.longest_wait_s, waited_s)

    def _greet_waiting(self, group: Group) -> None:
        for client in [client for client in self.waiting if client.group is group and not client.greeted]:
            self.waiting.remove(client)
            self._no_longer_waits(client)
            self._greet(client)
            client.given()

    def _greet(self, client: Client) -> None:
        group = client.group
        client.greeted = True
        client.carried, client.reported = group.settings_for(client.application_name), group.reported
        said = [authentication_ok()]
        said += [extended.parameter_status(*pair) for settings in (client.reported, client.carried) for pair in settings.items()]
        client.link.send(b"".join(said) + extended.backend_key_data(client.pid, client.key) + extended.ready_for_query())

    def _unite(self, client: Client, backend: Backend) -> None:
        backend.client, client.backend = client, backend
        backend.doubtful.clear()
        client.link.feed(backend.link)
        backend.link.feed(client.link if client.link is not NOWHERE else None)
        watched = client.session is not None and self.caching.begin(client, backend)
        sql = b""
        if client.carried is not backend.carried:
            sql = apply_settings(client.carried, backend.carried)
            if not sql:
                backend.carried = client.carried
        backend.prelude = b"" if backend.last is client else _FLUSH
        if watched:
            backend.prelude += _WATCH if not sql else _WATCH + _WATCH
        backend.last, client.last = client, backend
        if sql:
            backend.ask(sql, wait=True)
        if client.reported is not backend.reported:
            news = [pair for pair in backend.reported.items() if client.reported.get(pair[0]) != pair[1]]
            client.reported = backend.reported
            if news:
                client.link.send(b"".join([extended.parameter_status(*pair) for pair in news]))

    def _separate(self, client: Client, backend: Backend) -> None:
        backend.client = client.backend = backend.watch = None
        client.link.feed(None)
        backend.link.feed(None)
        client.tracked = False
        if client.pinned_by:
            client.pinned_by = ""
            self.pinned.discard(client)
            backend.group.backends += 1

    def _clean(self, backend: Backend) -> None:
        """Nothing of its client may be left when the next one gets it."""
        if not backend.left and backend.serves_signs:
            self.backend_rests(backend)
        elif backend.can_be_cleaned:
            self.discards += 1
            backend.left.clear()
            backend.statements.clear()
            backend.unconfirmed.clear()
            backend.unnamed = None
            backend.ask(_DISCARD)
        else:
            self._drop(backend)
            self._open_more()

    def _drop(self, backend: Backend) -> None:
        self._forget(backend)
        backend.close()

    def _forget(self, backend: Backend) -> None:
        """It counts no more. Only when it has no client."""
        self.backends.discard(backend)
        backend.last = None
        backend.statements.clear()  # those whose last one it was still know it
        backend.unconfirmed.clear()
        backend.unnamed = None
        group = backend.group
        group.idle.pop(backend, None)
        group.backends -= 1
        if backend.opening:
            backend.opening = False
            group.opening -= 1

    def _open_more(self) -> None:
        """As many as those who wait need, and limits allow."""
        if not self.waiting:
            return
        # Nearly always it is one group; to look through everybody who waits, whenever someone begins to, would be slow.
        groups = [self.waiting[0].group] if self._hungry == 1 else list(dict.fromkeys([client.group for client in self.waiting]))
        for group in groups:
            while group.opening < (group.waiters if group.carried is not None else 1) and self._has_room(group):
                backend = Backend(self, group)
                self.backends.add(backend)
                group.opening += 1
                group.backends += 1
                self._port.open(backend)

    def _has_room(self, group: Group) -> bool:
        limits = self.limits
        backends = of_role = 0
        for each in self._groups.values():
            backends += each.backends
            if limits.role_size and each.key.role == group.key.role:
                of_role += each.backends
        if limits.role_size and of_role >= limits.role_size:
            return self._evict(group, group.key.role)
        return backends < limits.size or self._evict(group, None)

    def _evict(self, group: Group, role: str | None) -> bool:
        """Close a backend that rests in another group, of that role if it is said."""
        for other in self._groups.values():
            if other.idle and other is not group and (role is None or other.key.role == role):
                self._drop(next(iter(other.idle)))
                return True
        return False


def _of_role(limits: Limits) -> str:
    return f", and {limits.role_size} for one role (pool_role_size)" if limits.role_size else ""
