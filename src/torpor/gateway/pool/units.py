"""One turn of a client that the cache may answer: what it asks in the extended protocol, read up to its Sync. Pure.

A unit executes at most one statement, once, to the end. What only asks about a statement may end with a Flush as well (asyncpg wants to
know the types before it says the values); in between a Flush changes nothing, as the answers come at once. Whatever else a client says is
legal, too, but none of the cache's business: it is told by a reason. Memory: a unit of more than `MAX_UNIT_BYTES` is no unit, so nobody
waits for more.
"""

import struct
from copy import copy

from torpor.gateway.pool import extended
from torpor.pgwire.frames import frame

MAX_UNIT_BYTES = 65_536
_MOST_CLOSES = 16
_HEADER = struct.Struct("!BI").unpack_from
_SHORT = struct.Struct("!H").unpack_from
_LONG = struct.Struct("!i").unpack_from
_FIELD_BYTES = 18  # of a column behind its name: table, number, type, size, modifier, format

CLOSE, PARSE, DESCRIBE, BIND, PORTAL, EXECUTE = b"CPDBpE"
"""What is asked, in the order of `Unit.order`; PORTAL is a Describe of the portal."""


class Unit:
    """What was asked, and where it ends."""

    __slots__ = ("closes", "end", "is_open", "name", "order", "parsed", "portal", "rest")

    def __init__(self) -> None:
        self.order: list[int] = []
        self.closes: list[bytes] = []
        self.name: bytes | None = None  # of the statement
        self.parsed: bytes | None = None  # its text and types, if it is prepared here
        self.portal = b""
        self.rest: bytes | None = None  # what a Bind says behind the names
        self.end = 0
        self.is_open = False  # it ends with a Flush

    @property
    def describes_once(self) -> bool:
        """Whether the first RowDescription is already that of the portal."""
        return DESCRIBE not in self.order


def scan(data: bytes, at: int, end: int) -> "Unit | str | None":
    """The unit that begins at `at`. None while it isn't whole; a reason when it is none (empty if that is nobody's business)."""
    unit, begin = Unit(), at
    asked: Unit | None = None  # what is to be answered even if no more comes
    is_late = False  # what is to be answered can't be without the rest
    while end - at >= 5:
        tag, length = _HEADER(data, at)
        after = at + 1 + length
        if length < 4 or after - begin > MAX_UNIT_BYTES:
            return "too long" if length >= 4 else ""
        if tag not in b"PBDECSH":
            return "pipelined"
        if after > end:
            break
        if tag == 0x48:
            at = after
            if BIND in unit.order:
                is_late = True
                continue
            asked = copy(unit)
            asked.order, asked.closes = unit.order.copy(), unit.closes.copy()
            asked.end, asked.is_open = after, True
            continue
        if tag == 0x53:
            unit.end = after
            return unit
        wrong = _add(unit, tag, data, at, after)
        if wrong is not None:
            return wrong
        at = after
    if is_late:
        return "flush"
    return asked if asked is not None and asked.order else None


def _add(unit: Unit, tag: int, data: bytes, at: int, after: int) -> str | None:
    order = unit.order
    body = data[at + 5 : after]
    if tag == 0x50:
        if any(step != CLOSE for step in order):
            return "several statements"
        unit.name, unit.parsed = extended.split_parse(body)
        order.append(PARSE)
    elif tag == 0x42:
        found = extended.bind_names(data, at, after)
        if found is None or BIND in order:
            return "several statements"
        unit.portal, name, rest_at = found
        if unit.name not in (None, name):
            return "several statements"
        unit.name, unit.rest = name, data[rest_at:after]
        order.append(BIND)
    elif tag == 0x45:
        portal, _, limit = body.partition(b"\0")
        if BIND not in order or portal != unit.portal or EXECUTE in order:
            return "a portal"
        if limit != b"\0\0\0\0":
            return "row limit"
        order.append(EXECUTE)
    else:
        kind, name = extended.split_target(body)
        if tag == 0x43:
            if kind != b"S" or len(order) != len(unit.closes) or len(order) >= _MOST_CLOSES:
                return "a portal"
            unit.closes.append(name)
            order.append(CLOSE)
        elif kind == b"S":
            if DESCRIBE in order or BIND in order or unit.name not in (None, name):
                return "several statements"
            unit.name = name
            order.append(DESCRIBE)
        else:
            if BIND not in order or name != unit.portal or PORTAL in order or EXECUTE in order:
                return "a portal"
            order.append(PORTAL)
    return None


def with_formats(description: bytes, formats: list[int]) -> bytes | None:
    """A RowDescription as of a portal with these formats (one for all, one for each, none: text). None if it can't be read."""
    body = bytearray(description)
    if len(body) < 7:
        return None
    (columns,) = _SHORT(body, 5)
    if len(formats) not in (0, 1, columns):
        return None
    at = 7
    for number in range(columns):
        name_end = body.find(0, at)
        at = name_end + 1 + _FIELD_BYTES
        if name_end < 0 or at > len(body):
            return None
        body[at - 2 : at] = (formats[number % len(formats)] if formats else 0).to_bytes(2)
    return bytes(body)


def result_formats(rest: bytes) -> list[int] | None:
    """Those that a Bind wants, from what it says behind the names. None if it can't be read."""
    try:
        at = 2 + 2 * _SHORT(rest, 0)[0]
        (values,) = _SHORT(rest, at)
        at += 2
        for _ in range(values):
            at += 4 + max(0, _LONG(rest, at)[0])
        (wanted,) = _SHORT(rest, at)
        return list(struct.unpack_from(f"!{wanted}H", rest, at + 2))
    except struct.error:
        return None


def whole(body: bytes, rest: bytes) -> bytes:
    """A unit of our own that asks for all that can be asked of a statement."""
    ask = extended.parse(b"", body) + extended.describe(b"S", b"") + extended.bind_head(b"", b"", len(rest)) + rest
    return ask + extended.describe(b"P", b"") + frame(b"E", bytes(5)) + extended.SYNC
