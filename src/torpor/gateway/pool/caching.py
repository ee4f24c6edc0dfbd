"""The cache of one database in its pool: what clients ask is answered from the store, or watched on its way and kept.

Pure, as the engine is: bytes and times in, bytes out through links. A client's turn is looked at when it is idle, before it gets a
backend: what is kept and fresh is its answer, and PostgreSQL hears nothing, asleep or awake. What isn't kept goes the usual way, and the
backend that gets it is watched (`Flight`): it says itself which tables were read and whether anything volatile was called
(docs/decisions/0033-the-cache-of-results.md). Who wants the same meanwhile waits, once: then it finds an entry, or goes its own way. An
entry is made for a role, database, startup parameters and settings (`scope`), so nobody is given what another's made.

Memory: the store's; a waiting client's turn (`units.MAX_UNIT_BYTES`); bounded tables of scopes and of texts that rules were looked up for.
"""

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

from torpor.gateway.cache.comments import BAD, leading_words, may_read
from torpor.gateway.cache.store import Entry, Store
from torpor.gateway.cache.writes import Writes, pick
from torpor.gateway.pool import extended
from torpor.gateway.pool.client import Client
from torpor.gateway.pool.flights import Ask, Flight
from torpor.gateway.pool.units import BIND, CLOSE, DESCRIBE, MAX_UNIT_BYTES, PARSE, PORTAL, Unit, result_formats, scan, whole, with_formats
from torpor.gateway.pool.values import NOWHERE, Settings
from torpor.model.cachewords import Words, read_words
from torpor.model.fingerprint import fingerprint
from torpor.pgwire.frames import frame
from torpor.pgwire.replies import error_response

if TYPE_CHECKING:
    from torpor.gateway.pool.backend import Backend
    from torpor.gateway.pool.engine import Pool

DEFAULT_BYTES = 128 << 20
WAIT = -1
_MOST_SCOPES = 4_096
_MOST_TEXTS = 1_000
_LONGEST_TEXT = 8_192
_MOST_REFRESHES = 4
_REFRESH_AGAIN_S = 1.0
_MARK_S = 10.0
_MOST_TOLD_COLUMNS = 1_000
_READY = extended.ready_for_query()
_BIND_COMPLETE = frame(b"2")
_NO_DATA = frame(b"n")
_NO_PARAMETERS = frame(b"t", b"\0\0")
_SET = re.compile(
    rb"\s*(?:set\s+(?:session\s+)?torpor\.cache\s*(?:=|\s+to\s)\s*(?:'(?P<value>[^'\\]*)'|default|(?P<off>off|none))"
    rb"|(?P<reset>reset\s+torpor\.cache))\s*;?\s*",
    re.IGNORECASE,
)
_RESET_ALL = re.compile(rb"\s*reset\s+all\s*;?\s*", re.IGNORECASE)
_CANCELED = error_response("57014", "canceling statement due to user request", severity="ERROR")
_NOT_KEPT_FOR_LONG = frozenset(("error", "purged meanwhile", "in a transaction", "settings", "pipelined"))
"""Why a result isn't kept, that tells nothing about the next one."""


class Session:
    """What one client has to do with the cache."""

    __slots__ = ("awaited", "awaits", "carried", "default", "end", "flight", "scope", "told", "words")

    def __init__(self) -> None:
        self.words: Words | None = None  # of SET torpor.cache
        self.default: Words | None = None  # what RESET gives
        self.flight: Flight | None = None  # its own miss
        self.awaits: Flight | None = None  # somebody else's
        self.awaited = False  # it has waited once for this turn
        self.end = 0  # how long the turn is that waits
        self.carried: Settings | None = None
        self.scope = 0  # of these settings
        self.told: dict[bytes, tuple[bytes, bytes]] = {}  # of each statement by name: the Parse, and which columns it was told


class Figures:
    """Counts since the start."""

    __slots__ = ("bypasses", "fills", "hits", "misses", "purged", "stale")

    def __init__(self) -> None:
        self.hits = self.stale = self.misses = self.fills = self.purged = 0
        self.bypasses: dict[str, int] = {}


class Caching:
    """The cache of one database."""

    def __init__(self, pool: "Pool", store: Store, now: Callable[[], float]) -> None:
        self.pool = pool
        self.figures = Figures()
        self.on_write = False
        self._writes: Writes | None = None
        self._store = store
        self._shelf = store.shelf()
        self._now = now
        self._rules: dict[str, Words] = {}
        self._ruled: dict[bytes, Words | None] = {}
        self._scopes: dict[Hashable, int] = {}
        self._next_scope = 0
        self._flights: dict[Hashable, Flight] = {}
        self._running: set[Flight] = set()
        self._resumable: list[Client] = []
        self.refreshing = 0  # the pool's own clients that make something anew

    def __repr__(self) -> str:
        return f"<Caching {self._shelf!r} {len(self._running)} misses>"

    # -- what holds

    def rule(self, rules: Mapping[str, str], on_write: bool) -> None:
        """These rules hold from now on, and whether writes count."""
        self._rules = {mark: words for mark, text in rules.items() if (words := read_words(text)) is not None}
        self._ruled.clear()
        self.on_write = on_write
        self.pool.cares = bool(self._rules)

    def count_writes(self, writes: Writes) -> None:
        """These are the counters from now on. What was kept by others can't be compared."""
        before, self._writes = self._writes, writes
        if before is not None:
            if not before.is_same(writes):
                self.purge("all", ())
            before.close()

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
        }

    # -- what clients say

    def offer(self, client: Client, data: bytes, at: int, end: int) -> int:
        """A turn of an idle client begins at `at`. Where the next one begins, if this one is answered now; `at` if it is PostgreSQL's;
        WAIT if the client has to be heard again later, from here. Raises ProtocolViolation."""
        session = client.session or self._session(client)
        if session.flight is not None:
            return at
        if data[at] == 0x51:
            after = at + 1 + int.from_bytes(data[at + 1 : at + 5])
            if after > end:
                return WAIT if after - at <= MAX_UNIT_BYTES else at
            return self._simple(client, session, data[at + 5 : after - 1], at, after)
        return self._extended(client, session, data, at, end)

    def passes(self, client: Client, data: bytes, at: int, after: int, end: int) -> int:
        """A client that has a backend begins a statement; where it ends, if it is answered here. Nothing is served from the cache."""
        backend, session = client.backend, client.session
        assert backend is not None
        if data[at] != 0x51 and after > end:
            return at
        text = data[at + 5 : min(after, end) - 1]
        if data[at] == 0x50:
            text = text.partition(b"\0")[2].partition(b"\0")[0]
        elif data[at] == 0x42:
            found = extended.bind_names(data, at, after)
            statement = client.statements.get(found[1]) if found is not None else None
            if statement is None:
                return at
            text = statement.text
        elif after <= end and text[:3].lower() in (b"set", b"res"):
            found_set = _SET.fullmatch(text) if not backend.ops and backend.status != b"E" else None
            if found_set is not None:
                self._set(client, session or self._session(client), found_set)
                client.link.send(extended.command_complete(b"SET") + extended.ready_for_query(backend.status))
                return after
            if session is not None and _RESET_ALL.fullmatch(text):
                session.words = session.default
        words = self._words(session, text)
        if words is not None and words.ttl_s:
            reason = (
                "bad words" if words.ttl_s < 0 else "pinned" if client.pinned_by
                else "in a transaction" if backend.status != b"I" else "pipelined"
            )  # fmt: skip
            self._count(reason)
            if words.status and not backend.ops:
                client.link.send(_notice(f"bypass ({reason})"))
        return at

    def forget(self, client: Client) -> None:
        """It has said DISCARD ALL."""
        if client.session is not None:
            client.session.words = client.session.default

    def start_with(self, client: Client, text: str) -> None:
        """Its startup message has said so."""
        session = client.session or self._session(client)
        session.words = session.default = read_words(text) or BAD
        client.cares = True

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
                client.given()

    # -- what PostgreSQL says

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

    # -- inside: what is asked

    def _session(self, client: Client) -> Session:
        client.session = session = Session()
        return session

    def _words(self, session: Session | None, text: bytes) -> Words | None:
        own = leading_words(text)
        if own is not None:
            return own
        if session is not None and session.words is not None:
            return session.words
        if not self._rules or len(text) > _LONGEST_TEXT:
            return None
        try:
            return self._ruled[text]
        except KeyError:
            if len(self._ruled) >= _MOST_TEXTS:
                self._ruled.clear()
            words = self._ruled[text] = self._rules.get(fingerprint(text))
            return words

    def _scope(self, client: Client, session: Session) -> int:
        if session.carried is not client.carried:
            settings = frozenset(pair for pair in client.carried.items() if pair[0] != b"application_name")
            key = (client.group.key, settings)
            scope = self._scopes.get(key)
            if scope is None:
                if len(self._scopes) >= _MOST_SCOPES:
                    self._scopes.clear()  # numbers are never used again: what is kept under the old ones is only lost
                self._next_scope += 1
                scope = self._scopes[key] = self._next_scope
            session.carried, session.scope = client.carried, scope
        return session.scope

    def _simple(self, client: Client, session: Session, text: bytes, at: int, after: int) -> int:
        if text[:3].lower() in (b"set", b"res"):
            found = _SET.fullmatch(text)
            if found is not None:
                self._set(client, session, found)
                client.statements.pop(b"", None)
                client.link.send(extended.command_complete(b"SET") + _READY)
                return after
            if _RESET_ALL.fullmatch(text):
                session.words = session.default
            return at
        words = self._words(session, text)
        if words is None or b"\0" in text:
            return at
        scope = self._scope(client, session)
        ask = Ask((scope, text, words.tags, words.force), scope, words, text, None, b"", None)
        return self._serve(client, session, ask, at, after)

    def _extended(self, client: Client, session: Session, data: bytes, at: int, end: int) -> int:
        unit = scan(data, at, end)
        if unit is None:
            return WAIT
        if isinstance(unit, str):
            if unit:
                self._pass_by(client, session, data, at, end, unit)
            return at
        name, body = unit.name, unit.parsed
        if any(close == name for close in unit.closes) and body is None and name is not None:
            return at
        if body is None:
            if name is None:
                return self._only_closes(client, unit) if unit.closes else at
            statement = client.statements.get(name)
            if statement is None:
                return at
            body = statement.body
        elif name and name in client.statements and name not in unit.closes:
            return at  # PostgreSQL will say that there is one of this name
        text = body[: body.index(0)]
        if text[:3].lower() in (b"set", b"res"):
            found = _SET.fullmatch(text)
            if found is not None:
                self._set_extended(client, session, unit, body, found)
                return unit.end
            return at
        words = self._words(session, text)
        if words is None:
            return at
        if unit.parsed is not None:
            client.cares = True  # its Binds are to be looked at
        assert name is not None
        scope = self._scope(client, session)
        told = None
        if DESCRIBE not in unit.order and PORTAL not in unit.order:
            known = session.told.get(name)
            told = known[1] if known is not None and known[0] == body else None
        key: Hashable = (scope, body, unit.rest, words.tags, words.force) if unit.rest is not None else (scope, body)
        ask = Ask(key, scope, words, text, unit, body, told)
        if ask.executes:
            return self._serve(client, session, ask, at, unit.end)
        if BIND in unit.order or words.ttl_s <= 0:
            return at
        return self._describe(client, session, ask, at)

    def _pass_by(self, client: Client, session: Session, data: bytes, at: int, end: int, reason: str) -> None:
        """What is no unit: the reason counts if its first statement speaks to the cache."""
        after = at + 1 + int.from_bytes(data[at + 1 : at + 5])
        if data[at] == 0x50 and after <= end:
            text = extended.split_parse(data[at + 5 : after])[1].partition(b"\0")[0]
            client.cares = client.cares or leading_words(text) is not None
        elif data[at] == 0x42 and (found := extended.bind_names(data, at, min(after, end))) is not None:
            statement = client.statements.get(found[1])
            text = statement.text if statement is not None else b""
        else:
            return
        words = self._words(session, text)
        if words is not None and words.ttl_s:
            self._bypass(client, words, "bad words" if words.ttl_s < 0 else reason)

    # -- inside: answers

    def _serve(self, client: Client, session: Session, ask: Ask, at: int, after: int) -> int:
        words, now = ask.words, self._now()
        if words.ttl_s <= 0:
            if words.ttl_s < 0:
                self._bypass(client, words, "bad words")
            return at
        entry = self._valid(ask.key, now)
        if entry is not None:
            age_s = now - entry.made_at
            if entry.reason:
                session.awaited = False
                self._bypass(client, words, entry.reason)
                return at
            if age_s < words.ttl_s + words.swr_s and (answer := self._answer(client, ask, entry, age_s)):
                session.awaited = False
                self._shelf.hit(entry)
                is_fresh = age_s < words.ttl_s
                if is_fresh:
                    self.figures.hits += 1
                else:
                    self.figures.stale += 1
                if words.status:
                    detail = f"age={int(age_s)}s ttl={words.ttl_s}s swr={words.swr_s}s"
                    answer = answer[: -len(_READY)] + _notice("hit" if is_fresh else "stale", detail) + _READY
                client.link.send(answer)
                self._understood(client, session, ask, entry.columns)
                if not is_fresh:
                    self._refresh(client, ask, entry, now)
                return after
        flight = self._flights.get(ask.key)
        if flight is None:
            session.awaited = False
            if not may_read(ask.text):
                self._bypass(client, words, "not a read")
                return at
            self._fly(client, session, ask)
            return at
        if session.awaited:
            session.awaited = False
            self._miss(client, words)
            return at
        session.awaits, session.end = flight, after - at
        flight.waiters.append(client)
        client.link.listen(False)
        return WAIT

    def _describe(self, client: Client, session: Session, ask: Ask, at: int) -> int:
        """Parse and Describe alone: no statement runs, so it isn't counted, and nobody waits."""
        entry = self._valid(ask.key, self._now())
        unit = ask.unit
        assert unit is not None
        if entry is not None and (answer := self._pieces(unit, entry, b"", b"")):
            client.link.send(answer)
            self._shelf.hit(entry)
            self._understood(client, session, ask, entry.columns)
            return unit.end
        if unit.parsed is not None and may_read(ask.text):
            self._fly(client, session, ask)
        return at

    def _fly(self, client: Client, session: Session, ask: Ask) -> None:
        session.flight = flight = Flight(ask, client, self._store.largest_bytes, self._closing, False)
        self._running.add(flight)
        if ask.executes:
            self._flights[ask.key] = flight

    def _valid(self, key: Hashable, now: float) -> Entry | None:
        entry = self._shelf.get(key, now)
        if entry is None or not self.on_write or entry.reason:
            return entry
        if entry.seen is None or self._writes is None or self._writes.read(entry.oids) != entry.seen:
            self._shelf.drop(entry)
            return None
        return entry

    def _answer(self, client: Client, ask: Ask, entry: Entry, age_s: float) -> bytes:
        """Empty when the entry doesn't tell all."""
        unit = ask.unit
        if unit is None:
            return entry.data
        if ask.described is not None and entry.columns != ask.described:
            return b""
        portal = b""
        if PORTAL in unit.order:
            formats = result_formats(unit.rest or b"")
            described = with_formats(entry.columns, formats) if entry.columns is not None and formats is not None else None
            if described is None:
                return b""
            portal = described
        known = entry
        if DESCRIBE in unit.order:
            description = self._valid((ask.scope, ask.body), self._now())
            if description is None or description.columns != entry.columns:
                return b""
            known = description
        return self._pieces(unit, known, portal, entry.data)

    def _pieces(self, unit: Unit, entry: Entry, portal: bytes, rows: bytes) -> bytes:
        said = []
        for step in unit.order:
            if step == PARSE:
                said.append(extended.PARSE_COMPLETE)
            elif step == CLOSE:
                said.append(extended.CLOSE_COMPLETE)
            elif step == DESCRIBE:
                if entry.parameters is None or entry.columns is None:
                    return b""
                said += (entry.parameters, entry.columns)
            else:
                said.append(_BIND_COMPLETE if step == BIND else portal if step == PORTAL else rows)
        said.append(_READY)
        return b"".join(said)

    def _understood(self, client: Client, session: Session, ask: Ask, columns: bytes | None) -> None:
        """What the client said was answered here: what changes by it, for the client."""
        unit = ask.unit
        if unit is None:
            client.statements.pop(b"", None)
            return
        for name in unit.closes:
            client.statements.pop(name, None)
        assert unit.name is not None
        if unit.parsed is not None:
            client.keep_statement(unit.name, unit.parsed)
        self._tell(session, ask, columns)

    def _tell(self, session: Session, ask: Ask, columns: bytes | None) -> None:
        unit = ask.unit
        if unit is None or unit.name is None:
            return
        if columns is not None and (DESCRIBE in unit.order or PORTAL in unit.order):
            if len(session.told) >= _MOST_TOLD_COLUMNS:
                session.told.clear()
            session.told[unit.name] = (ask.body, columns)

    def _only_closes(self, client: Client, unit: Unit) -> int:
        for name in unit.closes:
            client.statements.pop(name, None)
        client.link.send(extended.CLOSE_COMPLETE * len(unit.closes) + _READY)
        return unit.end

    def _set(self, client: Client, session: Session, found: "re.Match[bytes]") -> None:
        value = found["value"]
        if value is None:
            session.words = None if found["off"] else session.default
        else:
            text = value.decode("latin-1").strip()
            session.words = (read_words(text) or BAD) if text else None
        client.cares = True

    def _set_extended(self, client: Client, session: Session, unit: Unit, body: bytes, found: "re.Match[bytes]") -> None:
        nothing = Entry((), b"", made_at=0, expires_at=0, columns=_NO_DATA, parameters=_NO_PARAMETERS)
        client.link.send(self._pieces(unit, nothing, _NO_DATA, extended.command_complete(b"SET")))
        client.cares = True
        for name in unit.closes:
            client.statements.pop(name, None)
        if unit.parsed is not None and unit.name is not None:
            client.keep_statement(unit.name, body)
        if unit.rest is not None:
            self._set(client, session, found)

    # -- inside: misses

    def _closing(self, flight: Flight, status: bytes) -> bytes:
        """The ReadyForQuery of a miss has come. What its client hears before it."""
        flight.finished = self._now()
        words, ask = flight.ask.words, flight.ask
        why = self._why_not(flight, status)
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
            self._count(why)
        else:
            self.figures.misses += 1
        if not words.status:
            return b""
        return _notice(f"bypass ({why})" if why and why != "purged meanwhile" else "miss")

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
        if unit is None:
            rows += _READY
        elif flight.columns is None:
            flight.columns = with_formats(flight.portal, []) if flight.portal is not None else ask.described
            if flight.portal is None and flight.columns is not None and rows[:1] == b"D" and rows[5:7] != flight.columns[5:7]:
                flight.columns = None  # what the client was told once holds no longer
        if flight.columns is not None:
            self._keep_description(flight)
        entry = Entry(
            ask.key,
            rows,
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
        return ""

    def _keep_description(self, flight: Flight) -> None:
        """What is known of the statement itself now. It is as old as what was kept of its results."""
        ask, words = flight.ask, flight.ask.words
        if ask.unit is None:
            return
        key = (ask.scope, ask.body)
        before = self._valid(key, flight.finished)
        parameters, columns = flight.parameters, flight.columns
        if before is not None:
            parameters = parameters if parameters is not None else before.parameters
            if columns is None:
                columns = before.columns
        if flight.client.session is not None:
            self._tell(flight.client.session, ask, flight.columns)
        self._shelf.put(
            Entry(
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
        )

    def _land(self, flight: Flight, has_waited: bool) -> None:
        """It is over: who has waited for it is to be heard again."""
        self._running.discard(flight)
        if self._flights.get(flight.ask.key) is flight:
            del self._flights[flight.ask.key]
        if flight.is_internal:
            self.refreshing -= 1
        for waiter in flight.waiters:
            session = waiter.session
            if session is not None and session.awaits is flight:
                session.awaits = None
                session.awaited = has_waited
                self._resumable.append(waiter)
        flight.waiters.clear()

    def _refresh(self, asker: Client, ask: Ask, entry: Entry, now: float) -> None:
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
        session = self._session(client)
        again = Ask(ask.key, ask.scope, ask.words, ask.text, own, ask.body, None)
        session.flight = flight = Flight(again, client, self._store.largest_bytes, self._closing, True)
        self._flights[ask.key] = flight
        self._running.add(flight)
        self.refreshing += 1
        self.pool.adopt(client)
        client.received(said)

    def _miss(self, client: Client, words: Words) -> None:
        self.figures.misses += 1
        if words.status:
            client.link.send(_notice("miss"))

    def _bypass(self, client: Client, words: Words, reason: str) -> None:
        self._count(reason)
        if words.status:
            client.link.send(_notice(f"bypass ({reason})"))

    def _count(self, reason: str) -> None:
        kind = "volatile" if reason.startswith("volatile") else reason
        self.figures.bypasses[kind] = self.figures.bypasses.get(kind, 0) + 1


def _notice(what: str, detail: str = "") -> bytes:
    return b"N" + error_response("00000", f"cache: {what}", detail=detail, severity="INFO")[1:]
