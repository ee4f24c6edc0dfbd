"""Misses of one database's cache: what is on its way, who waits for it, what is kept of it, and what it was made from. Pure.

A miss (`Flight`) belongs to the client that was the first to ask; others that ask the same wait for it, once. It ends with the answer, or
with its client: those who wait are heard again then, and find an entry, or go their own way. What may be served is decided here, too, so
that the store is asked in one place.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

from torpor.gateway.cache.store import Entry, Store
from torpor.gateway.cache.writes import Writes, pick
from torpor.gateway.pool import extended
from torpor.gateway.pool.client import Client
from torpor.gateway.pool.flights import Ask, Flight
from torpor.gateway.pool.sharing import Lookup, Scope, Sharing
from torpor.gateway.pool.turns import Figures, Session, notice, tell
from torpor.gateway.pool.units import Unit, scan, whole, with_formats
from torpor.gateway.pool.values import NOWHERE
from torpor.model.errors import ProtocolViolation
from torpor.model.fingerprint import fingerprint
from torpor.pgwire.frames import frame
from torpor.pgwire.replies import error_response

if TYPE_CHECKING:
    from torpor.gateway.pool.backend import Backend
    from torpor.gateway.pool.engine import Pool

_MOST_REFRESHES = 4
_REFRESH_AGAIN_S = 1.0
_MARK_S = 10.0
_PATIENCE_S = 2.0
_PIECE_BYTES = 65_536
_READY = extended.ready_for_query()
_CANCELED = error_response("57014", "canceling statement due to user request", severity="ERROR")
_NOT_KEPT_FOR_LONG = frozenset(("error", "purged meanwhile", "in a transaction", "settings", "pipelined"))
"""Why a result isn't kept, that tells nothing about the next one."""


class Misses:
    """What is kept for one database, and what is on its way."""

    def __init__(self, pool: "Pool", store: Store, now: Callable[[], float]) -> None:
        self.pool = pool
        self.figures = Figures()
        self.on_write = False
        self.refreshing = 0  # the pool's own clients that make something anew
        self._writes: Writes | None = None
        self._store = store
        self._shelf = store.shelf()
        self._now = now
        self._flights: dict[Hashable, Flight] = {}
        self._running: set[Flight] = set()
        self._resumable: list[Client] = []
        self._sharing: Sharing | None = None
        self._lookups: dict[Hashable, Lookup] = {}
        self._scoped: dict[int, Scope] = {}  # what the numbers stand for

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._shelf!r} {len(self._running)} misses>"

    def count_writes(self, writes: Writes) -> None:
        """These are the counters from now on. What was kept by others can't be compared."""
        before, self._writes = self._writes, writes
        if before is not None:
            if not before.is_same(writes):
                self.purge("all", ())
            before.close()

    def stop_counting(self) -> None:
        """Writes don't matter any more."""
        if self._writes is not None:
            self._writes.close()
            self._writes = None

    def share(self, sharing: Sharing | None) -> None:
        """Share with others from now on, by this. What is being asked by another secret is worth nothing when it comes."""
        self._sharing = sharing

    def purge(self, by: str, values: Sequence[str]) -> int:
        """Drop what was made so far, and what is being made. How many results there were."""
        if by == "table":
            values = [value if "." in value else f"public.{value}" for value in values]
        for flight in self._running:
            if flight.spoil(by, values) and self._flights.get(flight.ask.key) is flight:
                del self._flights[flight.ask.key]  # who comes now mustn't wait for what is old
        dropped = self._shelf.purge(by, values)
        self.figures.purged += dropped
        return dropped

    def view(self) -> dict[str, object]:
        """How it is doing."""
        figures, shelf = self.figures, self._shelf
        return {
            "entries": len(shelf.entries),
            "bytes": shelf.bytes,
            "hits": figures.hits,
            "stale": figures.stale,
            "misses": figures.misses,
            "bypasses": dict(figures.bypasses),
            "fills": figures.fills,
            "evicted": shelf.evicted,
            "purged": figures.purged,
            "shared": figures.shared,
            "skipped": figures.skipped,
        }

    # -- for the engine

    def cancel(self, client: Client) -> None:
        """It wants no answer any more."""
        session = client.session
        if session is None or session.awaits is None:
            return
        session.awaits.waiters.remove(client)
        session.awaits = None
        client.link.send(_CANCELED + _READY)
        client.skip_said(session.end)
        client.given()

    def gone(self, client: Client) -> None:
        """It has left."""
        session = client.session
        if session is None:
            return
        if session.awaits is not None:
            session.awaits.waiters.remove(client)
            session.awaits = None
        if session.flight is not None:
            flight, session.flight = session.flight, None
            self._land(flight, has_waited=False)
            self.resume()

    def resume(self) -> None:
        """Who has waited for somebody is heard again."""
        while self._resumable:
            client = self._resumable.pop(0)
            if not client.is_gone:
                try:
                    client.given()
                except ProtocolViolation:  # what it said behind that is its own trouble
                    client.left()

    @property
    def has_waiting(self) -> bool:
        """Whether somebody waits for the answer to somebody else."""
        return any(flight.waiters for flight in self._running)

    def tick(self) -> None:
        """Now and then: nobody waits for an answer that has stopped to come, as its client doesn't read it."""
        now = self._now()
        for flight in [flight for flight in self._running if flight.waiters and flight.stands_still(now, _PATIENCE_S)]:
            self._release(flight, has_waited=True)
        self.resume()

    def begin(self, client: Client, backend: "Backend") -> bool:
        """The client has a backend now; whether PostgreSQL is to watch. Counters are read before it is told anything."""
        flight = client.session.flight if client.session is not None else None
        if flight is None:
            return False
        flight.begun = self._now()
        flight.snapshot = self._writes.snapshot() if self.on_write and self._writes is not None else None
        backend.watch = flight
        return flight.ask.executes

    def settle(self, flight: Flight) -> None:
        """The client has its answer: now the others."""
        client, session = flight.client, flight.client.session
        if session is not None and session.flight is flight:
            session.flight = None
        self._land(flight, has_waited=True)
        if flight.is_internal:
            client.left()
        self.resume()

    # -- for what clients say

    def fly(self, client: Client, session: Session, ask: Ask) -> None:
        session.flight = flight = Flight(ask, client, self._store.largest_bytes, self._closing, False)
        self._running.add(flight)
        if ask.executes:
            self._flights[ask.key] = flight

    def look(self, session: Session, ask: Ask) -> Lookup | None:
        """Ask the shared store, if there is one, for what isn't here. None when it isn't asked, or was already for this client."""
        looked, session.looked = session.looked, None
        scope, sharing = self._scoped.get(ask.scope), self._sharing
        if sharing is None or scope is None or self.on_write or looked == ask.key:
            return None
        lookup = self._lookups.get(ask.key)
        if lookup is not None:
            return lookup
        lookup = Lookup(ask, sharing.names(ask, scope), sharing)
        if not sharing.remote.get([name for _, name in lookup.names], lambda values: self._found(lookup, values)):
            self.figures.skipped += 1
            return None
        self._lookups[ask.key] = lookup
        return lookup

    def valid(self, key: Hashable, now: float) -> Entry | None:
        entry = self._shelf.get(key, now)
        if entry is None or not self.on_write or entry.reason:
            return entry
        if entry.seen is None or self._writes is None or self._writes.read(entry.oids) != entry.seen:
            self._shelf.drop(entry)
            return None
        return entry

    def refresh(self, asker: Client, ask: Ask, entry: Entry, now: float) -> None:
        """Make it anew, for nobody: by a client of the pool's own, that waits and is limited as any other."""
        if (
            self.pool.finishing
            or ask.key in self._flights
            or self.refreshing >= _MOST_REFRESHES
            or now - entry.refreshed_at < _REFRESH_AGAIN_S
        ):
            return
        entry.refreshed_at = now
        client = Client(self.pool, asker.group, NOWHERE, pid=0, key=b"", application_name=b"", auto=False)
        client.carried, client.reported = asker.carried, asker.reported
        unit = ask.unit
        if unit is None:
            said, own = frame(b"Q", ask.text + b"\0"), None
        else:
            said = whole(ask.body, unit.rest or b"")
            scanned = scan(said, 0, len(said))
            assert isinstance(scanned, Unit)
            own = scanned
        client.session = session = Session()
        again = Ask(ask.key, ask.scope, ask.words, ask.text, own, ask.body, None)
        session.flight = flight = Flight(again, client, self._store.largest_bytes, self._closing, True)
        self._flights[ask.key] = flight
        self._running.add(flight)
        self.refreshing += 1
        self.pool.adopt(client)
        client.received(said)

    # -- inside

    def _closing(self, flight: Flight, status: bytes) -> bytes:
        """The ReadyForQuery of a miss has come. What its client hears before it."""
        flight.finished = self._now()
        words, ask = flight.ask.words, flight.ask
        why = self._why_not(flight, status)
        if why == "error":
            self._forget_description(ask)  # perhaps it fails because a table isn't what it was
        if not ask.executes:
            if not why:
                self._keep_description(flight)
            return b""
        if not why:
            why = self._keep(flight)
        if why and why not in _NOT_KEPT_FOR_LONG:
            now = flight.finished
            mark = Entry(ask.key, b"", made_at=now, expires_at=now + _MARK_S, reason=why, other_bytes=2 * len(ask.text) + len(ask.body))
            self._shelf.put(mark)
        flight.forget()
        if flight.is_internal:
            return b""
        if why and why not in _NOT_KEPT_FOR_LONG:
            self.count(why)
        else:
            self.figures.misses += 1
        if not words.status:
            return b""
        return notice(f"bypass ({why})" if why and why != "purged meanwhile" else "miss")

    def _why_not(self, flight: Flight, status: bytes) -> str:
        """Why the result of a miss can't be kept; empty if it can."""
        if flight.why or status != b"I":
            return flight.why or "in a transaction"
        verdict = flight.verdict
        if flight.ask.executes:
            if not verdict:
                return "no signs"
            if verdict != "ok" and not (verdict.startswith("volatile") and flight.ask.words.force):
                return verdict
        if flight.is_spoilt or not flight.spoilt_tables.isdisjoint(flight.tables):
            return "purged meanwhile"
        if self.on_write and flight.snapshot is None:
            return "no counters"
        return ""

    def _keep(self, flight: Flight) -> str:
        ask, words = flight.ask, flight.ask.words
        rows = flight.rows()
        if not rows:
            return "utility"
        unit = ask.unit
        if unit is not None and flight.columns is None:
            flight.columns = with_formats(flight.portal, []) if flight.portal is not None else ask.described
            if flight.portal is None and flight.columns is not None and rows[:1] == b"D" and rows[5:7] != flight.columns[5:7]:
                flight.columns = None  # what the client was told holds no longer: the next one mustn't be told so
                self._forget_description(ask)
        if flight.columns is not None:
            self._keep_description(flight)
        entry = Entry(
            ask.key,
            rows[:_PIECE_BYTES],
            more=tuple(rows[at : at + _PIECE_BYTES] for at in range(_PIECE_BYTES, len(rows), _PIECE_BYTES)),
            made_at=flight.begun,
            expires_at=flight.begun + words.ttl_s + words.swr_s,
            cost_ms=(flight.finished - flight.begun) * 1000,
            tags=words.tags,
            tables=tuple(dict.fromkeys(flight.tables)),
            fingerprint=fingerprint(ask.text),
            columns=flight.columns,
            oids=tuple(dict.fromkeys(flight.oids)),
            other_bytes=len(ask.text) + len(ask.body) + len(unit.rest or b"" if unit is not None else b""),
        )
        entry.seen = pick(flight.snapshot, entry.oids) if flight.snapshot is not None else None
        if not self._shelf.put(entry):
            return "too large"
        self.figures.fills += 1
        self._give(ask, entry)
        return ""

    def _forget_description(self, ask: Ask) -> None:
        known = self._shelf.entries.get((ask.scope, ask.body))
        if known is not None:
            self._shelf.drop(known)

    def _keep_description(self, flight: Flight) -> None:
        """What is known of the statement itself now. It is as old as what was kept of its results."""
        ask, words = flight.ask, flight.ask.words
        if ask.unit is None:
            return
        key = (ask.scope, ask.body)
        before = self.valid(key, flight.finished)
        parameters, columns = flight.parameters, flight.columns
        if before is not None:
            parameters = parameters if parameters is not None else before.parameters
            if columns is None:
                columns = before.columns
        if flight.client.session is not None:
            tell(flight.client.session, ask, flight.columns, flight.begun)
        entry = Entry(
            key,
            b"",
            made_at=flight.begun,
            expires_at=flight.begun + words.ttl_s + words.swr_s,
            cost_ms=(flight.finished - flight.begun) * 1000,
            fingerprint=fingerprint(ask.text),
            columns=columns,
            parameters=parameters,
            seen=pick(flight.snapshot, ()) if flight.snapshot is not None else None,
            other_bytes=len(ask.body),
        )
        if self._shelf.put(entry):
            self._give(ask, entry)

    def _give(self, ask: Ask, entry: Entry) -> None:
        scope = self._scoped.get(ask.scope)
        if self._sharing is not None and scope is not None and not self.on_write:
            self._sharing.give(ask, scope, entry)

    def _found(self, lookup: Lookup, values: Sequence[bytes | None] | None) -> None:
        """The shared store has answered, or hasn't: who has waited is heard again, and finds an entry, or doesn't."""
        key, now = lookup.ask.key, self._now()
        del self._lookups[key]
        if values is None:
            self.figures.skipped += 1
        elif lookup.sharing is self._sharing and not self.on_write:
            for (entry_key, name), value in zip(lookup.names, values, strict=False):
                if value is None or self._shelf.get(entry_key, now) is not None:
                    continue
                entry = lookup.sharing.entry(lookup.ask, entry_key, name, value, now)
                if entry is not None and self._shelf.put(entry):
                    self.figures.shared += bool(entry.data)
        for waiter in lookup.waiters:
            session = waiter.session
            if session is not None and session.awaits is lookup:
                session.awaits, session.looked = None, key
                self._resumable.append(waiter)
        lookup.waiters.clear()
        self.resume()

    def _land(self, flight: Flight, has_waited: bool) -> None:
        """It is over."""
        self._running.discard(flight)
        if self._flights.get(flight.ask.key) is flight:
            del self._flights[flight.ask.key]
        if flight.is_internal:
            self.refreshing -= 1
        self._release(flight, has_waited)

    def _release(self, flight: Flight, has_waited: bool) -> None:
        """Who has waited for it is to be heard again."""
        for waiter in flight.waiters:
            session = waiter.session
            if session is not None and session.awaits is flight:
                session.awaits = None
                session.awaited = has_waited
                self._resumable.append(waiter)
        flight.waiters.clear()

    def count(self, reason: str) -> None:
        kind = "volatile" if reason.startswith("volatile") else reason
        self.figures.bypasses[kind] = self.figures.bypasses.get(kind, 0) + 1
