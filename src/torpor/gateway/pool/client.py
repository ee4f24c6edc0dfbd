"""One client of the pool: what it says, cut into messages, and how much of it goes to PostgreSQL as it is. Pure.

A client has a backend from the first message that needs one until PostgreSQL is ready outside of a transaction. Its prepared statements
are its own, whichever backend it has: named ones get names of the pool's, and are prepared where they are needed. Memory: an idle
client keeps no buffer; a waiting one what was read of it, as it isn't read from while it waits.
"""

import re
from typing import TYPE_CHECKING

from torpor.gateway.pool import extended
from torpor.gateway.pool.backend import Backend
from torpor.gateway.pool.extended import bind_head, bind_names, cut, length_at
from torpor.gateway.pool.values import (
    BIND,
    CALL,
    CLOSE,
    CLOSE_KNOWN,
    CLOSE_OWN,
    DESCRIBE,
    EXECUTE,
    EXECUTE_CARRIED,
    PARSE,
    PARSE_KNOWN,
    PREFIX,
    QUERY,
    QUERY_CARRIED,
    SYNC,
    HeldStatement,
    Link,
    Settings,
    Statement,
    may_set,
    sets_only_carried,
)  # fmt: skip
from torpor.model.errors import ProtocolViolation
from torpor.pgwire.replies import error_response

if TYPE_CHECKING:
    from torpor.gateway.pool.engine import Group, Pool
    from torpor.gateway.pool.turns import Session

_LONGEST_PARSE = 4 << 20
_LONGEST = (1 << 30) - 1  # PostgreSQL takes no longer ones either
_MOST_STATEMENT_BYTES = 16 << 20
_SHORT_STATEMENT_BYTES = 2_048
_MOST_STATEMENTS = 5_000
_SHORT_REST_BYTES = 65_536  # a read's worth
_DEALLOCATE = re.compile(rb'\s*DEALLOCATE\s+(?:PREPARE\s+)?(?:"([^"\0]+)"|([A-Za-z_][A-Za-z0-9_$]*))\s*;?\s*', re.IGNORECASE)
_TO_THE_CACHE = frozenset((b"SET", b"set", b"Set", b"RES", b"res", b"Res"))
_NO_NAME = b"\0"  # of what changes no meaning of a name: none can be so
_DEALLOCATED = extended.command_complete(b"DEALLOCATE")


class Client:
    """One client. `pid` and `key` are what it cancels with."""

    __slots__ = (
        "_missing", "_pieces", "_reserved", "_rest", "_skip", "_skip_passes", "application_name", "auto", "backend", "cares", "carried",
        "greeted", "group", "is_gone", "is_stalled", "is_waiting", "key", "last", "link", "offered", "pid", "pinned_by", "pool",
        "reported", "session", "statements", "tracked", "unsynced", "waiting_since", "warned",
    )  # fmt: skip

    def __init__(self, pool: "Pool", group: "Group", link: Link, *, pid: int, key: bytes, application_name: bytes, auto: bool) -> None:
        self.pool, self.group, self.link = pool, group, link
        self.pid, self.key = pid, key
        self.auto = auto
        self.application_name = application_name
        self.greeted = self.is_gone = self.is_waiting = self.is_stalled = False
        self.pinned_by = ""
        self.backend: Backend | None = None
        self.last: Backend | None = None
        self.statements: dict[bytes, Statement] = {}
        self.carried: Settings = {}
        self.reported: Settings = {}
        self.unsynced = False
        self.tracked = False  # whether the unnamed portal only sets what stays with the client
        self.waiting_since = 0.0
        self.warned: frozenset[str] = frozenset()
        self.session: Session | None = None  # what it has to do with the cache
        self.cares = False  # whether that is more than what comments say
        self.offered = False  # what it said while it waits for a backend: the cache has seen it
        self._rest = b""
        self._pieces: list[bytes] = []
        self._missing = self._reserved = 0
        self._skip = 0
        self._skip_passes = False

    def __repr__(self) -> str:
        where = f"pinned by {self.pinned_by}" if self.pinned_by else "working" if self.backend else "waiting" if self.is_waiting else "idle"
        return f"<Client {self.pid} {self.group.key.role} {where}>"

    def is_amid(self) -> bool:
        """Whether it has begun something that it hasn't said to the end."""
        return self.unsynced or self._skip > 0

    def given(self) -> None:
        """It has its backend: what it said while it waited is heard now."""
        self.link.listen(True)
        if not self.is_gone:
            self.received(b"")

    def refuse(self, sqlstate: str, message: str, hint: str) -> None:
        """Send it away with a reason."""
        self.dismiss(error_response(sqlstate, message, hint))

    def dismiss(self, farewell: bytes) -> None:
        """Send it away with this message, or without one."""
        if not self.is_gone:
            if farewell and not (self.backend is not None and self.backend.is_amid_message):
                self.link.send(farewell)
            self.left()

    def left(self) -> None:
        """It is gone, or has to go. Idempotent."""
        if not self.is_gone:
            self.is_gone = True
            self._rest = b""
            self._pieces.clear()
            self._missing = 0
            self._make_room()
            self.link.close()
            self.pool.client_gone(self)
            self.statements = {}

    def received(self, data: bytes) -> None:
        """Bytes from the client."""
        try:
            if self._missing:
                self._pieces.append(data)
                self._missing -= len(data)
                if self._missing > 0:
                    return
                self._missing = 0
                self._rest, data = b"", b"".join(self._pieces)
                self._pieces.clear()
            self._hear(data)
        except ProtocolViolation as error:
            self.unsynced = True  # what its backend was sent may end amid a message: nobody else must get that one
            self.refuse(error.sqlstate, error.message, error.hint)

    def _hear(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if self._reserved:
            self._make_room()
        at, end = 0, len(data)
        out: list[bytes] = []
        backend = self.backend
        run = 0  # data[run:at] is for the backend
        missing = 0  # of a message that must be whole
        if self._skip:
            at = min(self._skip, end)
            self._skip -= at
            if not self._skip_passes:
                run = at
        while end - at >= 5:
            tag, length = data[at], length_at(data, at)
            after = at + 1 + length
            if length < 4 or length > _LONGEST:
                raise ProtocolViolation(f"invalid message length: {length}")
            if tag == 0x58:  # X
                self._send(out, data, run, at)
                self.left()
                return
            if backend is None:
                if tag in b"dcf":  # rows for a COPY that has failed: PostgreSQL would leave them out, too
                    at = run = self._pass_on(after, end, passes=False)
                    continue
                if tag == 0x53 or tag == 0x48:  # S, H: nothing is open
                    if after > end:
                        break
                    if tag == 0x53:
                        self.link.send(extended.ready_for_query())
                    at = run = after
                    continue
                if tag == 0x51 and end >= after and self._deallocates(data, at, after):
                    at = run = after
                    continue
                if tag not in b"QPBDECF":
                    raise ProtocolViolation(f"invalid frontend message type {tag}")
                if self.cares or self.pool.cares or self._asks(tag, data, at, after, end):
                    next_at = self.pool.caching.offer(self, data, at, end)
                    if next_at < 0:
                        break
                    if next_at > at:
                        at = run = next_at
                        continue
                if not self.pool.acquire(self):
                    self.offered = True
                    self._keep(data[at:], 0)
                    return
                backend = self.backend
                assert backend is not None
            elif self.offered:
                self.offered = False
            elif tag in b"QPB" and not self.unsynced and (self.cares or self.pool.cares or self._asks(tag, data, at, after, end)):
                next_at = self.pool.caching.passes(self, data, at, after, end)
                if next_at > at:
                    self._send(out, data, run, at)
                    at = run = next_at
                    continue
            if backend.skipping and tag != 0x53:
                at = run = self._flush_and_drop(out, data, run, at, after, end)
                continue
            if tag == 0x51:  # Q
                carried = after <= end and length < 210 and may_set(data, at + 5, after) and sets_only_carried(data[at + 5 : after - 1])
                if end >= after and self.statements and self._deallocates(data, at, after):
                    self._send(out, data, run, at)
                    at = run = after
                    continue
                backend.ops.append(QUERY_CARRIED if carried else QUERY)
                backend.outstanding += 1
                backend.unnamed = None
                self.statements.pop(b"", None)
            elif tag == 0x53:  # S
                if after > end:
                    break
                backend.skipping = False
                if not backend.copying_in:
                    backend.ops.append(SYNC)
                    backend.segment += 1
                    backend.outstanding += 1
                    self.unsynced = False
            elif tag == 0x45:  # E
                if after > end:
                    break
                self.unsynced = True
                # Only the unnamed portal is known to be the Bind before.
                backend.ops.append(EXECUTE_CARRIED if self.tracked and length > 4 and data[at + 5] == 0 else EXECUTE)
            elif tag == 0x42:  # B
                found = bind_names(data, at, after)
                if found is None:
                    break
                portal, name, rest_at = found
                if backend.doubtful and self._must_stall(backend, name):
                    break
                self.unsynced = True
                statement = self.statements.get(name)
                if statement is None:
                    self.tracked = False
                    wire_name = _stranger(name)
                    if not name:  # it has none: nor must it get what another client has left there
                        backend.unnamed = None
                        out.append(cut(data, run, at) + extended.close(b"S", b""))
                        run = at
                        backend.ops.append(CLOSE_OWN)
                else:
                    self.tracked = statement.only_carried and not portal
                    wire_name = statement.name
                    self._prepare(backend, statement, out, data, run, at)
                    run = at
                backend.ops.append(BIND)
                if wire_name != name:
                    out.append(cut(data, run, at))
                    out.append(bind_head(portal, wire_name, after - rest_at))
                    at = run = rest_at
                    at = self._pass_on(after, end, passes=True)
                    continue
            elif tag == 0x44 or tag == 0x43:  # D, C
                if length > 2 * extended.MAX_NAME_BYTES:
                    raise ProtocolViolation(f"invalid message length: {length}")
                if after > end:
                    break
                if length == 4 or data[at + 5] != 0x50:  # P: what is about a portal goes as it is
                    _, name = extended.split_target(data[at + 5 : after])
                    if self._must_stall(backend, name):
                        break
                    self.unsynced = True
                    self._about_statement(backend, tag, name, out, data, run, at)
                    at = run = after
                    continue
                self.unsynced = True
                backend.ops.append(DESCRIBE if tag == 0x44 else CLOSE)
            elif tag == 0x50:  # P
                if length > _LONGEST_PARSE:
                    raise ProtocolViolation(
                        f"a statement of {length} bytes is too long to be prepared in the pool",
                        f"up to {_LONGEST_PARSE} bytes are; without the pool there is no such limit",
                    )
                if after > end:
                    missing = after - end
                    break
                if length > 4 and data[at + 5] == 0:  # the unnamed one goes as it is
                    self.unsynced = True
                    body = data[at + 6 : after]
                    statement = Statement(body, b"") if length < _SHORT_STATEMENT_BYTES else HeldStatement(body, b"", self.pool.room)
                    backend.ops.append((PARSE, statement, b"", self.statements.get(b""), backend.segment))
                    backend.doubtful[b""] = backend.unconfirmed[statement] = backend.segment
                    backend.unnamed = self.statements[b""] = statement
                    at = after
                    continue
                if self._must_stall(backend, data[at + 5 : data.find(b"\0", at + 5)]):
                    break
                self.unsynced = True
                out.append(cut(data, run, at))
                self._parse(backend, data[at + 5 : after], out)
                at = run = after
                continue
            elif tag == 0x46:  # F
                backend.ops.append(CALL)
                backend.outstanding += 1
            elif tag == 0x63 or tag == 0x66:  # c, f
                backend.copying_in = False
            elif tag == 0x48:  # H
                pass
            elif tag != 0x64:
                raise ProtocolViolation(f"invalid frontend message type {tag}")
            at = self._pass_on(after, end, passes=True)
        if at < end:
            self._keep(data[at:], missing)
        self._send(out, data, run, at)
        backend = self.backend
        if backend is not None and not backend.outstanding and not backend.ops and backend.status == b"I" and not self.is_amid():
            self.pool.transaction_ended(backend)

    def _asks(self, tag: int, data: bytes, at: int, after: int, end: int) -> bool:
        """Whether the cache may have to do with what begins here, by its first bytes."""
        at += 5
        if tag == 0x50:
            if at < end and data[at] == 0:
                at += 1
            else:
                at = data.find(b"\0", at, end) + 1
                if not at:
                    return after > end
        elif tag != 0x51:
            return False
        if end - at < 3:
            return after > end  # perhaps
        if data[at] in b"/ \t\r\n":  # a comment, or what may stand before one
            return True
        return data[at + 2] in b"TtSs" and data[at : at + 3] in _TO_THE_CACHE

    def _keep(self, rest: bytes, missing: int) -> None:
        """Hear this again with what comes next; what has `missing` bytes until it makes sense, with all of them. Whoever dribbles isn't
        listened to for each drop. Raises ProtocolViolation."""
        if missing:
            self._pieces.append(rest)
            self._missing = missing
        else:
            self._rest = rest
        size = len(rest) + missing
        if size > _SHORT_REST_BYTES:
            self.pool.room.take(size)
            self._reserved = size

    def _make_room(self) -> None:
        self.pool.room.give_back(self._reserved)
        self._reserved = 0

    def _send(self, out: list[bytes], data: bytes, run: int, at: int) -> None:
        backend = self.backend
        if backend is None:
            return
        if backend.prelude:
            out.insert(0, backend.prelude)
            backend.prelude = b""
        elif not out:
            if at > run:
                backend.link.send(data if run == 0 and at == len(data) else cut(data, run, at))
            return
        out.append(cut(data, run, at))
        if whole := b"".join(out):
            backend.link.send(whole)
        out.clear()

    def _pass_on(self, after: int, end: int, passes: bool) -> int:
        """Let a message through, or drop it, as far as it has come; where the next one begins."""
        if after <= end:
            return after
        self._skip, self._skip_passes = after - end, passes
        return end

    def _flush_and_drop(self, out: list[bytes], data: bytes, run: int, at: int, after: int, end: int) -> int:
        out.append(cut(data, run, at))
        return self._pass_on(after, end, passes=False)

    def _prepare(self, backend: Backend, statement: Statement, out: list[bytes], data: bytes, run: int, at: int) -> None:
        out.append(cut(data, run, at))
        backend.prepare(statement, out)

    def _must_stall(self, backend: Backend, name: bytes) -> bool:
        """Whether it can't be known yet what a name means: it was prepared or closed before the last Sync, which isn't answered yet."""
        if backend.doubtful.get(name, backend.segment) == backend.segment:
            return False
        self.is_stalled = True
        self.link.listen(False)
        return True

    def _parse(self, backend: Backend, body: bytes, out: list[bytes]) -> None:
        name, rest = extended.split_parse(body)
        before = self.statements.get(name)
        if before is not None:
            # There is one of this name already. PostgreSQL says so when it hears the same of the pool's own name.
            backend.prepare(before, out)
            out.append(extended.parse(before.name, rest))
            backend.ops.append((PARSE, None, _NO_NAME, None, backend.segment))
            return
        else:
            statement = self._statement(rest)
            if backend.knows(statement):
                if backend.ops:
                    backend.ops.append((PARSE_KNOWN, statement, name, None, backend.segment))
                    backend.doubtful[name] = backend.segment
                else:
                    self.statements[name] = statement
                    self.link.send(extended.PARSE_COMPLETE)
                    return
            else:
                backend.prepare(statement, out)
                backend.ops[-1] = (PARSE, statement, name, None, backend.segment)
                backend.doubtful[name] = backend.segment
        self.statements[name] = statement

    def keep_statement(self, name: bytes, rest: bytes) -> None:
        """It has prepared that, and it needn't be asked of PostgreSQL now. Raises ProtocolViolation."""
        self.statements[name] = self._statement(rest)

    def skip_said(self, size: int) -> None:
        """What it said first while it wasn't heard is settled."""
        self._rest = self._rest[size:]

    def _statement(self, rest: bytes) -> Statement:
        if len(self.statements) >= _MOST_STATEMENTS:
            raise ProtocolViolation(
                f"more than {_MOST_STATEMENTS} prepared statements in one connection of the pool", "close those that aren't needed"
            )
        if len(rest) > _SHORT_STATEMENT_BYTES and sum(len(each.body) for each in self.statements.values()) > _MOST_STATEMENT_BYTES:
            raise ProtocolViolation(
                f"the prepared statements of one connection of the pool take more than {_MOST_STATEMENT_BYTES} bytes",
                "close those that aren't needed",
            )
        statement = self.group.statement(rest)
        if statement.speaks:
            self.cares = True
        return statement

    def _about_statement(self, backend: Backend, tag: int, name: bytes, out: list[bytes], data: bytes, run: int, at: int) -> None:
        """A Describe or Close of a prepared statement."""
        statement = self.statements.get(name)
        out.append(cut(data, run, at))
        if tag == 0x44:
            if statement is not None:
                backend.prepare(statement, out)
            wire_name = statement.name if statement is not None else _stranger(name)
            if statement is None and not name:
                backend.unnamed = None
                out.append(extended.close(b"S", b""))
                backend.ops.append(CLOSE_OWN)
            out.append(extended.describe(b"S", wire_name))
            backend.ops.append(DESCRIBE)
            return
        self.statements.pop(name, None)
        if not backend.ops:
            self.link.send(extended.CLOSE_COMPLETE)
        elif statement is None:
            backend.ops.append((CLOSE_KNOWN, None, _NO_NAME, None, backend.segment))
        else:
            backend.ops.append((CLOSE_KNOWN, None, name, statement, backend.segment))
            backend.doubtful[name] = backend.segment

    def _deallocates(self, data: bytes, at: int, after: int) -> bool:
        """Answer a DEALLOCATE of what was prepared by the protocol: PostgreSQL doesn't know it by this name."""
        if after - at > 160 or not self.statements or (self.backend is not None and (self.backend.status == b"E" or self.backend.ops)):
            return False
        found = _DEALLOCATE.fullmatch(data[at + 5 : after - 1])
        if found is None:
            return False
        name = found[1] if found[1] is not None else found[2].lower()
        if self.statements.pop(name, None) is None:
            return False
        self.link.send(_DEALLOCATED + extended.ready_for_query(self.backend.status if self.backend is not None else b"I"))
        return True


def _stranger(name: bytes) -> bytes:
    """What to call a statement that the client hasn't prepared by the protocol: as it does (SQL may have), but never one of the pool's."""
    return b"?" + name if name.startswith(PREFIX) else name
