"""A miss of the cache: what PostgreSQL answers to it, kept as it passes by, and what the backend says of how it came about. Pure.

Memory: what is kept of an answer is bounded by what an entry may have; of one that is larger nothing is kept, and it streams on. Who
wants the same at the same time waits here for the end.
"""

import struct
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

from torpor.gateway.pool.units import EXECUTE, PORTAL, Unit
from torpor.gateway.pool.values import WATCHED
from torpor.model.cachewords import Words
from torpor.model.fingerprint import fingerprint

if TYPE_CHECKING:
    from torpor.gateway.pool.client import Client

_HEADER = struct.Struct("!BI").unpack_from
_MOST_READS = 100
_WHY = {0x45: "error", 0x4E: "notices", 0x47: "COPY", 0x48: "COPY", 0x57: "COPY", 0x73: "row limit", 0x49: "utility"}
_NOTHING_OF_THE_RESULT = b"12n3"


class Ask:
    """What a client wants, and what it may be given for it."""

    __slots__ = ("body", "described", "key", "said", "scope", "text", "unit", "words")

    def __init__(
        self, key: Hashable, scope: int, words: Words, text: bytes, unit: Unit | None, body: bytes, described: bytes | None
    ) -> None:
        self.key, self.scope, self.words = key, scope, words
        self.text = text  # of the statement
        self.unit = unit  # None: the simple protocol
        self.said = b""  # to the letter, if it came alone
        self.body = body  # what a Parse says behind the name
        self.described = described  # the columns that the client was told before; None when it is about to be told, or never was

    @property
    def executes(self) -> bool:
        """Or it only asks about a statement."""
        return self.unit is None or EXECUTE in self.unit.order


class Flight:
    """One miss, from when its client wants a backend. It's that backend's `watch` while it runs."""

    __slots__ = (
        "_closing", "_inside", "_largest", "_pieces", "_rows_at", "_rows_end", "_size", "_size_since", "_size_then", "ask", "begun",
        "client", "columns", "finished", "is_internal", "is_spoilt", "oids", "parameters", "portal", "snapshot", "spoilt_tables",
        "tables", "verdict", "waiters", "why",
    )  # fmt: skip

    def __init__(
        self, ask: Ask, client: "Client", largest_bytes: int, closing: "Callable[[Flight, bytes], bytes]", is_internal: bool
    ) -> None:
        self.ask, self.client, self.is_internal = ask, client, is_internal
        self.waiters: list[Client] = []
        self.is_spoilt = False  # something was purged meanwhile that it may have in it
        self.spoilt_tables: set[str] = set()
        self.begun = self.finished = 0.0
        self.snapshot: bytes | None = None
        self.oids: list[int] = []
        self.tables: list[str] = []
        self.verdict = ""  # of the backend
        self.why = ""  # there is nothing to keep
        self.columns: bytes | None = None  # RowDescription, as of a statement
        self.portal: bytes | None = None  # RowDescription, as of the portal or the simple protocol
        self.parameters: bytes | None = None
        self._closing = closing
        self._largest = largest_bytes
        self._pieces: list[bytes] = []
        self._size = self._inside = self._size_then = 0
        self._size_since = 0.0
        self._rows_at = self._rows_end = -1

    def __repr__(self) -> str:
        return f"<Flight {self.ask.text[:40]!r} {len(self.waiters)} waiting{f', {self.why}' if self.why else ''}>"

    def heard(self, data: bytes) -> None:
        """What the client is told, piece by piece: each begins with a message or goes on with the last one."""
        if self.why:
            return
        at = self._inside
        end = len(data)
        if not self.ask.executes:
            self._hear_description(data, at, end)
            return
        if self._size + end > self._largest:
            self._give_up("too large")
            return
        self._pieces.append(data)
        base = self._size
        self._size += end
        while at < end:
            tag, length = _HEADER(data, at)
            after = at + 1 + length
            if tag == 0x44:  # D
                if self._rows_at < 0:
                    self._rows_at = base + at
            elif tag == 0x43:  # C
                if self._rows_end >= 0:
                    self._give_up("several statements")
                    return
                if self._rows_at < 0:
                    self._rows_at = base + at
                self._rows_end = base + after
            elif tag == 0x54:  # T
                self._take_columns(data[at:after])
            elif tag == 0x74:  # t
                self.parameters = data[at:after]
            elif tag != 0x5A and tag not in _NOTHING_OF_THE_RESULT:
                self._give_up(_WHY.get(tag, "settings" if tag == 0x53 else "pipelined"))
                return
            at = after
        self._inside = at - end

    def stands_still(self, now: float, patience_s: float) -> bool:
        """Whether there is nothing to wait for: it won't be kept, or its answer began and hasn't gone on for so long."""
        if self._size != self._size_then or not self._size:
            self._size_then, self._size_since = self._size, now
        return bool(self.why) or now - self._size_since >= patience_s

    def note(self, name: bytes, value: bytes) -> None:
        """What the backend says of itself."""
        if name == WATCHED:
            self.verdict = value.decode("utf-8", "replace")
            return
        oid, _, table = value.partition(b" ")
        if oid.isdigit() and len(self.oids) < _MOST_READS:
            self.oids.append(int(oid))
            self.tables.append(table.decode("utf-8", "replace"))

    def spoil(self, by: str, values: "Sequence[str]") -> bool:
        """These are purged. Whether its result may be among them."""
        if by == "table":
            self.spoilt_tables.update(values)
            return True
        hit = by == "all" or (by == "tag" and any(tag in values for tag in self.ask.words.tags))
        hit = hit or (by == "statement" and fingerprint(self.ask.text) in values)
        self.is_spoilt = self.is_spoilt or hit
        return hit

    def closing(self, status: bytes) -> bytes:
        """Its ReadyForQuery comes: what the client is to be told before."""
        return self._closing(self, status)

    def rows(self) -> bytes:
        """DataRows and CommandComplete; of the simple protocol with the RowDescription. Empty when that isn't all of the answer."""
        if self._rows_end < 0:
            return b""
        whole = b"".join(self._pieces)
        rows = whole[self._rows_at : self._rows_end]
        if self.ask.unit is None:
            return self.portal + rows if self.portal is not None else b""
        return rows

    def forget(self) -> None:
        """What was kept isn't needed any more."""
        self._pieces.clear()

    def _hear_description(self, data: bytes, at: int, end: int) -> None:
        """What is said of the statement. That it may be executed then, in the same turn, is none of this flight's business."""
        while at < end:
            tag, length = _HEADER(data, at)
            after = at + 1 + length
            if tag == 0x54 and self.columns is None:
                self.columns = data[at:after]
            elif tag == 0x74:
                self.parameters = data[at:after]
            elif tag == 0x45:
                self._give_up("error")
                return
            at = after
        self._inside = at - end

    def _take_columns(self, message: bytes) -> None:
        unit = self.ask.unit
        if unit is None or (PORTAL in unit.order and (self.columns is not None or unit.describes_once)):
            if self.portal is not None:
                self._give_up("several statements")
            self.portal = message
        else:
            self.columns = message

    def _give_up(self, why: str) -> None:
        self.why = why
        self._pieces.clear()
