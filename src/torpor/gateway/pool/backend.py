"""One backend of the pool: what PostgreSQL says to whom, what it still owes, and what a transaction left behind in it. Pure.

The answers of PostgreSQL come in the order of what it was asked, so a queue of what is outstanding tells what each answer belongs to:
answers to what the pool itself asked are kept back, and answers to what the pool didn't pass on are put in at their place. Memory: one
unfinished message of those that must be understood (`_LONGEST_MESSAGE`); all others stream through.
"""

import struct
from collections import deque
from typing import TYPE_CHECKING

from torpor.gateway.pool.extended import CLOSE_COMPLETE, PARSE_COMPLETE, close, cut, frame, length_at, parse
from torpor.gateway.pool.values import (
    BIND,
    CALL,
    CARRIED,
    CLOSE,
    CLOSE_OWN,
    DESCRIBE,
    EXECUTE,
    EXECUTE_CARRIED,
    OWN,
    PARSE,
    PARSE_KNOWN,
    PARSE_OWN,
    QUERY,
    QUERY_CARRIED,
    READS,
    STALE,
    SYNC,
    WATCHED,
    Link,
    Parsing,
    Settings,
    Statement,
)  # fmt: skip
from torpor.model.errors import ProtocolViolation
from torpor.pgwire.answers import terminate
from torpor.pgwire.replies import error_response

if TYPE_CHECKING:
    from torpor.gateway.pool.client import Client
    from torpor.gateway.pool.engine import Group, Pool
    from torpor.gateway.pool.flights import Flight

_LONGEST_MESSAGE = 4 << 20
_ERROR_HEAD_BYTES = 512
_MOST_STATEMENTS = 1_000
"""Prepared statements that a backend keeps; above that the one that was unused longest is closed."""

DOUBTFUL = -1

_NOTHING: frozenset[int] = frozenset()
_EXECUTED = frozenset((EXECUTE, EXECUTE_CARRIED))
_ENDS = {
    0x31: frozenset((PARSE, PARSE_OWN)),
    0x32: frozenset((BIND,)),
    0x33: frozenset((CLOSE, CLOSE_OWN)),
    0x54: frozenset((DESCRIBE,)),
    0x6E: frozenset((DESCRIBE,)),
    0x43: _EXECUTED,
    0x49: _EXECUTED,
    0x73: _EXECUTED,
}
"""Which kinds of what is outstanding an answer is the last to."""
_LEFT, _SIGNS = b"torpor.left", b"torpor.signs"
_CLEANED_BY_DISCARD = frozenset(
    {STALE, "SET", "set_config", "LISTEN", "PREPARE", "DEALLOCATE", "pg_advisory_lock", "CREATE TEMPORARY", "DECLARE CURSOR WITH HOLD"}
)


class Backend:
    """One backend, of a group. Made when it was asked for, given its link when Torpor has it."""

    __slots__ = (
        "_rest", "_said_fatal", "_skip", "_skip_muted", "canceling", "carried", "client", "copying_in", "doubtful", "group", "idle_since",
        "key", "last", "left", "link", "opening", "ops", "outstanding", "pid", "pool", "prelude", "ready", "reported", "segment",
        "serves_signs", "skipping", "statements", "status", "trouble", "unconfirmed", "unnamed", "watch",
    )  # fmt: skip

    def __init__(self, pool: "Pool", group: "Group") -> None:
        self.pool, self.group = pool, group
        self.link: Link
        self.client: Client | None = None
        self.last: Client | None = None  # whose sequences it may still know
        self.ops: deque[int | Parsing] = deque()
        self.outstanding = 0  # ReadyForQuery that the client waits for
        self.status = b"I"
        self.ready = False
        self.opening = True
        self.skipping = self.copying_in = False
        self.serves_signs = False
        self.prelude = b""  # what it must be told before its next client's messages
        self.left: set[str] = set()
        self.statements: dict[Statement, None] = {}
        self.unnamed: Statement | None = None
        self.segment = 0  # how many times its clients have said Sync
        self.doubtful: dict[bytes, int] = {}  # which of its client's names were prepared or closed, in which segment, unanswered yet
        self.unconfirmed: dict[Statement, int] = {}  # in which segment a Parse was sent that isn't answered
        self.carried: Settings = {}
        self.reported: Settings = {}
        self.pid = 0
        self.key = b""
        self.canceling = 0
        self.idle_since = 0.0
        self.watch: Flight | None = None  # a miss of the cache, while its answer passes by
        self.trouble = b""  # an ErrorResponse that ended it before it was ready
        self._rest = b""
        self._skip = 0
        self._skip_muted = self._said_fatal = False

    def __repr__(self) -> str:
        what = "opening" if not self.ready else f"for {self.client!r}" if self.client else "idle"
        return f"<Backend {self.pid} {self.group.key.role} {what}{f' left {sorted(self.left)}' if self.left else ''}>"

    # -- what the pool asks

    def ask(self, sql: bytes, wait: bool = False) -> None:
        """Have it run what is the pool's own; nobody sees the answer. With `wait` it is sent with what its client says next."""
        self.ops.append(OWN)
        message = frame(b"Q", sql + b"\0")
        if wait:
            self.prelude += message
        else:
            self.link.send(message)

    def prepare(self, statement: Statement, out: list[bytes]) -> None:
        """See to it that it knows `statement`, as the next message needs it."""
        if self.knows(statement):
            if statement.name and len(self.statements) > _MOST_STATEMENTS // 2:
                del self.statements[statement]  # to the end: it is the one used last
                self.statements[statement] = None
            return
        if statement.name:
            if statement in self.statements:  # perhaps not: what came before in the pipeline may fail
                out.append(close(b"S", statement.name))
                self.ops.append(CLOSE_OWN)
            self.statements[statement] = None
            if len(self.statements) > _MOST_STATEMENTS:
                oldest = next(iter(self.statements))
                del self.statements[oldest]
                out.append(close(b"S", oldest.name))
                self.ops.append(CLOSE_OWN)
        else:
            self.unnamed = statement
        out.append(parse(statement.name, statement.body))
        self.unconfirmed[statement] = self.segment
        self.ops.append((PARSE_OWN, statement, b"", None, self.segment))

    def knows(self, statement: Statement) -> bool:
        """Whether it has that prepared when the next message comes, or nothing else of the same pipeline would work either."""
        if not (statement in self.statements if statement.name else self.unnamed is statement):
            return False
        return self.unconfirmed.get(statement, self.segment) == self.segment

    def close(self) -> None:
        """End it in order."""
        self.link.send(terminate())
        self.link.close()

    # -- what PostgreSQL says

    def received(self, data: bytes) -> None:
        """Bytes from PostgreSQL. Raises ProtocolViolation when it says what can't be."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        client, ops, out = self.client, self.ops, []
        at = run = 0  # data[run:at] is for the client
        end = len(data)
        muted = client is None or (bool(ops) and ops[0] == OWN)
        ended = idle = said_ready = False
        landed: Flight | None = None
        if self._skip:
            at = min(self._skip, end)
            self._skip -= at
            if self._skip_muted:
                run = at
        while end - at >= 5:
            tag, length = data[at], length_at(data, at)
            after = at + 1 + length
            if tag in b"DdHWVcNA":  # only passed on, whatever is in it
                if after > end:
                    self._skip, self._skip_muted = after - end, muted
                    after = end
                at = after
                if muted:
                    run = at
                continue
            if length < 4 or length > _LONGEST_MESSAGE:
                if tag != 0x45 or length < 4 or muted:
                    raise ProtocolViolation(f"PostgreSQL sent a message of {length} bytes")
                # An error may quote a value, as long as that is. What matters stands at its beginning.
                if end - at < _ERROR_HEAD_BYTES:
                    break
                self._failed(data[at + 5 : at + _ERROR_HEAD_BYTES], ops)
                if after > end:
                    self._skip, self._skip_muted = after - end, False
                    after = end
                at = after
                continue
            if after > end:
                break
            if tag == 0x5A:  # Z
                said_ready = True
                while ops:
                    op = ops.popleft()
                    if type(op) is int and op <= SYNC:
                        break
                    self._undo(op)
                else:
                    op = SYNC
                self.status = cut(data, at + 5, after)
                self.copying_in = False
                if op == OWN:
                    run = after
                    muted = client is None or (bool(ops) and ops[0] == OWN)
                    idle = client is None and not ops
                    ended = client is not None and not ops and not self.outstanding and not client.is_amid()
                elif not self.ready:
                    self.ready = idle = True
                elif client is not None:
                    if self.watch is not None:
                        out.append(cut(data, run, at))
                        run = at
                        landed, self.watch = self.watch, None
                        landed.heard(b"".join(out))
                        out.append(landed.closing(self.status))
                    self.outstanding -= 1
                    if self.outstanding <= 0:
                        self.outstanding = 0
                        if self.status == b"I" and not client.is_amid():
                            ended = True
                            if self.left or not self.serves_signs:
                                out.append(cut(data, run, at))
                                run = at
                                out.append(self.pool.weigh(self, client))
            elif tag == 0x53:  # S
                if self._parameter(data[at + 5 : after], client, ops, muted):
                    out.append(cut(data, run, at))
                    run = after
            elif tag == 0x45:  # E
                self._failed(data[at + 5 : after], ops)
            elif ops and not muted:
                op = ops[0]
                kind = op if type(op) is int else op[0]  # type: ignore[index]
                if kind in _ENDS.get(tag, _NOTHING):
                    ops.popleft()
                    if tag == 0x31:
                        self._confirm(op)
                    if kind in (PARSE_OWN, CLOSE_OWN):
                        out.append(cut(data, run, at))
                        run = after
                elif tag == 0x47:  # G
                    self._copies_in(kind)
            elif tag == 0x4B and not self.ready:  # K
                self.pid, self.key = int.from_bytes(data[at + 5 : at + 9]), data[at + 9 : after]
            at = after
            if muted:
                run = at
            elif ops and type(ops[0]) is tuple and ops[0][0] >= PARSE_KNOWN:
                out.append(cut(data, run, at))
                run = at
                out.append(self.known_answers())
        if at < end:
            self._rest = data[at:]
        if client is not None:
            if self.watch is not None:
                out.append(cut(data, run, at))
                run = at
                self.watch.heard(b"".join(out))
            if out:
                out.append(cut(data, run, at))
                client.link.send(b"".join(out))
            elif at > run:
                client.link.send(data if run == 0 and at == end else cut(data, run, at))
        if ended:
            self.pool.transaction_ended(self)
        elif idle:
            self.pool.backend_rests(self)
        if landed is not None:
            self.pool.caching.settle(landed)
        if client is not None and client.is_stalled and said_ready:
            client.is_stalled = False
            client.given()

    def known_answers(self) -> bytes:
        """The answers to what needn't be asked, as far as it is their turn."""
        said = b""
        while self.ops and type(op := self.ops[0]) is tuple and op[0] >= PARSE_KNOWN:
            self.ops.popleft()
            self._settle(op)
            said += PARSE_COMPLETE if op[0] == PARSE_KNOWN else CLOSE_COMPLETE
        return said

    def left_by_server(self) -> None:
        """PostgreSQL has closed the connection."""
        self.pool.backend_gone(self)

    @property
    def is_amid_message(self) -> bool:
        """Whether its client has heard only a part of a message: nothing can be said in between."""
        return self._skip > 0 and not self._skip_muted

    @property
    def farewell(self) -> bytes:
        """What its client must be told when it is gone: nothing if PostgreSQL said it."""
        if self._said_fatal or self.is_amid_message:
            return b""
        return error_response(
            "57P02",
            "the connection to PostgreSQL was lost while it worked for this client",
            "what was not committed is undone, and nothing is repeated: connect again, and see what is there",
        )

    # -- inside

    def _copies_in(self, kind: int) -> None:
        """PostgreSQL reads rows from its client now. What the client has sent behind an Execute isn't read as the end of anything."""
        self.copying_in = True
        if kind in _EXECUTED:
            while len(self.ops) > 1 and self.ops[-1] == SYNC:
                self.ops.pop()
                self.outstanding -= 1
                if self.client is not None:
                    self.client.unsynced = True

    def _failed(self, body: bytes, ops: "deque[int | Parsing]") -> None:
        """An ErrorResponse: of the extended protocol, PostgreSQL leaves out everything up to the next Sync."""
        self.copying_in = False
        fatal = b"\0VFATAL\0" in body or b"\0VPANIC\0" in body
        self._said_fatal = self._said_fatal or fatal
        if not self.ready or (ops and ops[0] == OWN) or self.client is None:
            self.trouble = b"E" + struct.pack("!I", len(body) + 4) + body
            return
        if b"\0C0A000\0" in body:
            self.left.add(STALE)  # a plan that no longer fits its tables
        if not ops or ops[0] in (QUERY, QUERY_CARRIED, CALL):
            return
        left_out: list[int | Parsing] = []
        while ops and ops[0] != SYNC:
            left_out.append(ops.popleft())
        self.skipping = not ops
        if left_out and type(first := left_out[0]) is tuple and first[0] == PARSE and not first[2]:
            left_out[0] = (PARSE, first[1], b"", None, first[4])  # this one was tried: the unnamed statement before is gone
        for op in reversed(left_out):
            if type(op) is int and op < SYNC:
                self.outstanding -= 1
            self._undo(op)

    def _confirm(self, op: "int | Parsing") -> None:
        """A Parse is done."""
        assert type(op) is tuple
        if op[1] is not None and self.unconfirmed.get(op[1]) == op[4]:
            del self.unconfirmed[op[1]]
        if op[0] == PARSE:
            self._settle(op)

    def _settle(self, op: Parsing) -> None:
        """It is known now what a name of the client means."""
        if self.doubtful.get(op[2]) == op[4]:
            del self.doubtful[op[2]]

    def _undo(self, op: "int | Parsing") -> None:
        """What was asked is not done: PostgreSQL left it out."""
        if type(op) is not tuple:
            return
        kind, statement, name, before, segment = op
        if kind != PARSE_OWN:
            self._settle(op)
        if statement is not None and kind in (PARSE, PARSE_OWN) and self.unconfirmed.get(statement, segment) == segment:
            if statement.name:
                self.unconfirmed[statement] = DOUBTFUL
            else:
                self.unconfirmed.pop(statement, None)
                if self.unnamed is statement:
                    self.unnamed = None
        # What the client said since then counts.
        if self.client is None or kind == PARSE_OWN or self.client.statements.get(name) is not statement:
            return
        if before is not None:
            self.client.statements[name] = before
        elif statement is not None:
            del self.client.statements[name]

    def _parameter(self, body: bytes, client: "Client | None", ops: "deque[int | Parsing]", muted: bool) -> bool:
        """A ParameterStatus; whether it must be kept from the client."""
        if body.count(0) != 2 or body[-1]:
            raise ProtocolViolation("PostgreSQL sent a malformed ParameterStatus")
        name, value, _ = body.split(b"\0")
        if name == _LEFT:
            if not muted:
                self._sign(value.decode("ascii", "replace"), ops[0] if ops else 0)
            return True
        if name == _SIGNS:
            self.serves_signs = True
            return True
        if name in (READS, WATCHED):
            if self.watch is not None and not muted:
                self.watch.note(name, value)
            return True
        if name in CARRIED:
            self.carried = {**self.carried, name: value}
            if client is not None and not muted:
                client.carried = self.carried
        else:
            self.reported = {**self.reported, name: value}
            if client is not None:
                if muted:
                    client.link.send(b"S" + struct.pack("!I", len(body) + 4) + body)
                client.reported = self.reported
        return muted

    def _sign(self, what: str, op: "int | Parsing") -> None:
        """The backend says that a statement of its client left something."""
        if what in ("DISCARD ALL", "DEALLOCATE ALL"):
            self.unconfirmed.clear()
            self.statements.clear()
            self.unnamed = None
            if self.client is not None:
                self.client.statements = {}
            if what == "DISCARD ALL":
                self.left.clear()
                if self.client is not None:
                    self.pool.caching.forget(self.client)
            self.left.discard("PREPARE")
        elif what == "DISCARD TEMP" or (what in ("SET", "set_config") and op in (QUERY_CARRIED, EXECUTE_CARRIED)):
            pass
        else:
            self.left.add(what)

    @property
    def can_be_cleaned(self) -> bool:
        """Whether DISCARD ALL takes away all that was left in it."""
        return self.left <= _CLEANED_BY_DISCARD
