"""The cache of one database in its pool: what clients ask is answered from the store, or watched on its way and kept.

Pure, as the engine is: bytes and times in, bytes out through links. A client's turn is looked at when it is idle, before it gets a
backend: what is kept and fresh is its answer, and PostgreSQL hears nothing, asleep or awake. What isn't kept goes the usual way, and the
backend that gets it is watched (`Flight`): it says itself which tables were read and whether anything volatile was called
(docs/decisions/0033-the-cache.md). Who wants the same meanwhile waits, once: then it finds an entry, or goes its own way. An
entry is made for a role, database, startup parameters and settings (`scope`), so nobody is given what another's made.

Memory: the store's; a waiting client's turn (`units.MAX_UNIT_BYTES`); bounded tables of scopes, of texts that rules were looked up for, and
of what was said to the letter.
"""

import re
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING

from torpor.gateway.cache.comments import BAD, leading_words, may_read
from torpor.gateway.cache.store import MOST_TURNS, Entry, Store
from torpor.gateway.pool import extended
from torpor.gateway.pool.client import Client
from torpor.gateway.pool.flights import Ask
from torpor.gateway.pool.misses import Misses
from torpor.gateway.pool.turns import MOST_TOLD_COLUMNS, Session, Turn, notice, tell
from torpor.gateway.pool.units import (
    BIND,
    CLOSE,
    DESCRIBE,
    EXECUTE,
    MAX_UNIT_BYTES,
    PARSE,
    PORTAL,
    Unit,
    result_formats,
    scan,
    with_formats,
)
from torpor.model.cachewords import Words, read_words
from torpor.model.fingerprint import fingerprint
from torpor.pgwire.frames import frame
from torpor.pgwire.replies import error_response

if TYPE_CHECKING:
    from torpor.gateway.pool.engine import Pool

DEFAULT_BYTES = 128 << 20
WAIT = -1
_MOST_SCOPES = 4_096
_MOST_TEXTS = 1_000
_LONGEST_TEXT = 8_192
_LONGEST_TURN, _LONGEST_ANSWER = 1_024, 8_192
_READY = extended.ready_for_query()
_BIND_COMPLETE = frame(b"2")
_NO_DATA = frame(b"n")
_NO_PARAMETERS = frame(b"t", b"\0\0")
_SET = re.compile(
    rb"\s*+(?:set\s++(?:session\s++)?torpor\.cache\s*+(?:=|(?<=\s)to\s)\s*+(?:'(?P<value>[^'\\]*+)'|default|(?P<off>off|none))"
    rb"|(?P<reset>reset\s++torpor\.cache))\s*+;?\s*+",
    re.IGNORECASE,
)
_CHANGED = frame(
    b"E", error_response("0A000", "cached plan must not change result type", severity="ERROR")[5:-1] + b"RRevalidateCachedQuery\0\0"
)
"""As PostgreSQL says it: drivers (asyncpg, pgjdbc) know it by the name of the routine, and prepare anew."""
_RESET_ALL = re.compile(rb"\s*+reset\s++all\s*+;?\s*+", re.IGNORECASE)


class Caching(Misses):
    """The cache of one database."""

    def __init__(self, pool: "Pool", store: Store, now: Callable[[], float]) -> None:
        super().__init__(pool, store, now)
        self._rules: dict[str, Words] = {}
        self._ruled: dict[bytes, Words | None] = {}
        self._scopes: dict[Hashable, int] = {}
        self._generation = 0  # of the rules
        self._turns = store.turns

    # -- what holds

    def rule(self, rules: Mapping[str, str], on_write: bool) -> None:
        """These rules hold from now on, and whether writes count."""
        self._rules = {mark: words for mark, text in rules.items() if (words := read_words(text)) is not None}
        self._ruled.clear()
        self._generation += 1
        self.on_write = on_write
        if not on_write:
            self.stop_counting()
        self.pool.cares = bool(self._rules)

    # -- what clients say

    def offer(self, client: Client, data: bytes, at: int, end: int) -> int:
        """A turn of an idle client begins at `at`. Where the next one begins, if this one is answered now; `at` if it is PostgreSQL's;
        WAIT if the client has to be heard again later, from here. Raises ProtocolViolation."""
        session = client.session or self._session(client)
        if session.flight is not None:
            return at
        if not at:
            scope = session.scope if session.carried is client.carried else self._scope(client, session)
            turn = self._turns.get((scope, data))
            if turn is not None and self._repeats(client, session, turn):  # type: ignore[arg-type]
                return end
        if data[at] == 0x51:
            after = at + 1 + int.from_bytes(data[at + 1 : at + 5])
            if after > end:
                return WAIT if after - at <= MAX_UNIT_BYTES else at
            return self._simple(client, session, data if after == end else b"", data[at + 5 : after - 1], at, after)
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
            self.count(reason)
            if words.status and not backend.ops:
                client.link.send(notice(f"bypass ({reason})"))
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
                    self._scoped.clear()
                scope = self._scopes[key] = self._store.new_scope()
                self._scoped[scope] = key
            session.carried, session.scope = client.carried, scope
        return session.scope

    def _simple(self, client: Client, session: Session, data: bytes, text: bytes, at: int, after: int) -> int:
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
        ask.said = b"" if at else data
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
            ask.said = b"" if at or unit.end != end else data
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
        entry = self.valid(ask.key, now)
        if entry is not None:
            age_s = now - entry.made_at
            if entry.reason:
                session.awaited = False
                self._bypass(client, words, entry.reason)
                return at
            if age_s < words.ttl_s + words.swr_s and (answer := self._answer(ask, entry)):
                session.awaited = False
                self._shelf.hit(entry)
                is_fresh = age_s < words.ttl_s
                if is_fresh:
                    self.figures.hits += 1
                else:
                    self.figures.stale += 1
                if words.status:
                    detail = f"age={int(age_s)}s ttl={words.ttl_s}s swr={words.swr_s}s"
                    answer.insert(-1, notice("hit" if is_fresh else "stale", detail))
                if entry.more:  # whoever doesn't read keeps no copy of it, however often it asks
                    for piece in answer:
                        client.link.send(piece)
                else:
                    whole = b"".join(answer)
                    if is_fresh and not words.status:
                        self._remember(session, ask, entry, whole)
                    client.link.send(whole)
                self._understood(client, session, ask, entry)
                if not is_fresh:
                    self.refresh(client, ask, entry, now)
                return after
            if self._has_changed(session, ask, entry):
                client.link.send(_CHANGED + _READY)
                return after
        flight = self._flights.get(ask.key)
        if flight is None:
            session.awaited = False
            if not may_read(ask.text):
                self._bypass(client, words, "not a read")
                return at
            if self._looks(client, session, ask, after - at):
                return WAIT
            self.fly(client, session, ask)
            return at
        if session.awaited:
            session.awaited = False
            self._miss(client, words)
            return at
        session.awaits, session.end = flight, after - at
        flight.waiters.append(client)
        client.link.listen(False)
        return WAIT

    def _looks(self, client: Client, session: Session, ask: Ask, size: int) -> bool:
        """Whether the client waits for what the shared store says."""
        lookup = self.look(session, ask)
        if lookup is None:
            return False
        session.awaits, session.end = lookup, size
        lookup.waiters.append(client)
        client.link.listen(False)
        return True

    def _has_changed(self, session: Session, ask: Ask, entry: Entry) -> bool:
        """Whether the columns aren't those any more that the client was told of. A PostgreSQL of its own would say so, too, and drivers
        that remember columns (asyncpg, pgjdbc) know what to do."""
        unit, described = ask.unit, ask.described
        if unit is None or unit.name is None or described is None or entry.made_at <= session.told[unit.name][2]:
            return False
        if entry.columns is None:
            return entry.data[:1] == b"D" and entry.data[5:7] != described[5:7]
        return entry.columns != described

    def _remember(self, session: Session, ask: Ask, entry: Entry, answer: bytes) -> None:
        said = ask.said
        if not said or len(said) > _LONGEST_TURN or len(answer) > _LONGEST_ANSWER or (ask.unit is not None and ask.unit.closes):
            return
        description = None
        if ask.unit is not None and DESCRIBE in ask.unit.order:
            description = self.valid((ask.scope, ask.body), self._now())
            if description is None:
                return
        if len(self._turns) >= MOST_TURNS:
            self._turns.clear()
        self._turns[ask.scope, said] = Turn(ask, entry, description, answer, session.words, self._generation)

    def _repeats(self, client: Client, session: Session, turn: Turn) -> bool:
        """Answer what was said before in the same words, if nothing has changed meanwhile."""
        entry, description, now = turn.entry, turn.description, self._now()
        if entry.is_dead or now - entry.made_at >= turn.ttl_s:
            return False
        if not turn.is_own and (turn.set_words is not session.words or turn.generation != self._generation):
            return False
        if description is not None and (description.is_dead or now >= description.expires_at):
            return False
        if self.on_write and (entry.seen is None or self._writes is None or self._writes.read(entry.oids) != entry.seen):
            return False
        name, body = turn.name, turn.body
        if name is None:
            client.statements.pop(b"", None)
        else:
            statement = client.statements.get(name)
            if turn.is_parsed:
                if statement is not None and name:
                    return False
                if statement is None or statement.body != body:
                    client.keep_statement(name, body)
                client.cares = True
            elif statement is None or statement.body != body:
                return False
            if turn.columns is not None:
                if name not in session.told and len(session.told) >= MOST_TOLD_COLUMNS:
                    session.told.clear()
                session.told[name] = (body, turn.columns, entry.made_at)
            elif name in session.told and session.told[name][0] == body and session.told[name][1] != entry.columns:
                return False
        entry.hits += 1
        entry.base = self._shelf.mark
        self.figures.hits += 1
        session.awaited = False
        client.link.send(turn.answer)
        return True

    def _describe(self, client: Client, session: Session, ask: Ask, at: int) -> int:
        """Parse and Describe alone: no statement runs, so it isn't counted, and nobody waits."""
        entry = self.valid(ask.key, self._now())
        unit = ask.unit
        assert unit is not None
        if entry is not None and (answer := self._pieces(unit, entry, b"", ())):
            client.link.send(b"".join(answer))
            self._shelf.hit(entry)
            self._understood(client, session, ask, entry)
            return unit.end
        if may_read(ask.text):
            if self._looks(client, session, ask, unit.end - at):
                return WAIT
            self.fly(client, session, ask)
        return at

    def _answer(self, ask: Ask, entry: Entry) -> list[bytes]:
        """Its pieces, the last is a ReadyForQuery. Empty when the entry doesn't tell all."""
        unit, rows = ask.unit, (entry.data, *entry.more)
        if unit is None:
            return [*rows, _READY]
        if ask.described is not None and entry.columns != ask.described:
            return []
        portal = b""
        if PORTAL in unit.order:
            formats = result_formats(unit.rest or b"")
            described = with_formats(entry.columns, formats) if entry.columns is not None and formats is not None else None
            if described is None:
                return []
            portal = described
        known = entry
        if DESCRIBE in unit.order:
            description = self.valid((ask.scope, ask.body), self._now())
            if description is None or description.columns != entry.columns:
                return []
            known = description
        return self._pieces(unit, known, portal, rows)

    def _pieces(self, unit: Unit, entry: Entry, portal: bytes, rows: tuple[bytes, ...]) -> list[bytes]:
        said: list[bytes] = []
        for step in unit.order:
            if step == PARSE:
                said.append(extended.PARSE_COMPLETE)
            elif step == CLOSE:
                said.append(extended.CLOSE_COMPLETE)
            elif step == DESCRIBE:
                if entry.parameters is None or entry.columns is None:
                    return []
                said += (entry.parameters, entry.columns)
            elif step == EXECUTE:
                said += rows
            else:
                said.append(_BIND_COMPLETE if step == BIND else portal)
        if not unit.is_open:
            said.append(_READY)
        return said

    def _understood(self, client: Client, session: Session, ask: Ask, entry: Entry) -> None:
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
        tell(session, ask, entry.columns, entry.made_at)

    def _only_closes(self, client: Client, unit: Unit) -> int:
        for name in unit.closes:
            client.statements.pop(name, None)
        client.link.send(extended.CLOSE_COMPLETE * len(unit.closes) + (b"" if unit.is_open else _READY))
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
        client.link.send(b"".join(self._pieces(unit, nothing, _NO_DATA, (extended.command_complete(b"SET"),))))
        client.cares = True
        for name in unit.closes:
            client.statements.pop(name, None)
        if unit.parsed is not None and unit.name is not None:
            client.keep_statement(unit.name, body)
        if unit.rest is not None:
            self._set(client, session, found)

    def _miss(self, client: Client, words: Words) -> None:
        self.figures.misses += 1
        if words.status:
            client.link.send(notice("miss"))

    def _bypass(self, client: Client, words: Words, reason: str) -> None:
        self.count(reason)
        if words.status:
            client.link.send(notice(f"bypass ({reason})"))
