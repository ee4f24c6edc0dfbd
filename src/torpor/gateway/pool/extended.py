"""The messages of the extended query protocol that name something, taken apart and put together again. Pure.

A pooler must know which prepared statement is meant and say another name for it; everything else in these messages it leaves alone.
"""

import struct

from torpor.model.errors import ProtocolViolation
from torpor.pgwire.frames import MESSAGE_HEADER_BYTES

MAX_NAME_BYTES = 1_024
"""Longest name of a statement or portal that is understood here; PostgreSQL cuts names off at 63 bytes."""

_LENGTH = struct.Struct("!I")
_LENGTH_BYTES = _LENGTH.size
_WORDS = [_LENGTH.pack(number) for number in range(1_024)]


def length_at(data: bytes, at: int) -> int:
    """The length word of the message that begins at `at`; its header must be there."""
    first, second, third = data[at + 1], data[at + 2], data[at + 3]
    return first << 24 | second << 16 | third << 8 | data[at + 4]


def cut(data: bytes, begin: int, end: int) -> bytes:
    """`data[begin:end]`. Compiled it is a copy and no more, where a slice makes three objects first."""
    view = data
    return view[begin:end] if 0 <= begin <= end <= len(data) else data[begin:end]


def word(number: int) -> bytes:
    """A length word."""
    return _WORDS[number] if number < len(_WORDS) else _LENGTH.pack(number)


def frame(tag: bytes, body: bytes = b"") -> bytes:
    """A message with its header."""
    return tag + word(_LENGTH_BYTES + len(body)) + body


def split_parse(body: bytes) -> tuple[bytes, bytes]:
    """A Parse's statement name, and what follows it: the text and the types of its parameters. Raises ProtocolViolation."""
    name, found, rest = body.partition(b"\0")
    if not found or b"\0" not in rest:
        raise ProtocolViolation("malformed Parse message")
    return name, rest


def parse(name: bytes, rest: bytes) -> bytes:
    """A Parse."""
    return frame(b"P", name + b"\0" + rest)


def split_target(body: bytes) -> tuple[bytes, bytes]:
    """What a Describe or Close is about: `S` (statement) or `P` (portal), and its name. Raises ProtocolViolation."""
    if len(body) < 2 or body[-1] or body[:1] not in (b"S", b"P"):
        raise ProtocolViolation("malformed Describe or Close message")
    return body[:1], body[1:-1]


def describe(kind: bytes, name: bytes) -> bytes:
    """A Describe."""
    return frame(b"D", kind + name + b"\0")


def close(kind: bytes, name: bytes) -> bytes:
    """A Close."""
    return frame(b"C", kind + name + b"\0")


def bind_names(data: bytes, at: int, end: int) -> tuple[bytes, bytes, int] | None:
    """The portal and the statement that the Bind beginning at `at` names, and where its parameters begin.

    `end` is where the message ends. None while too little of it has come. Raises ProtocolViolation.
    """
    begin = first = at + MESSAGE_HEADER_BYTES
    come = min(end, len(data))
    while first < come and data[first]:  # names are short, and compiled this is less than a search
        first += 1
    second = first + 1
    while second < come and data[second]:
        second += 1
    if second >= come:
        if len(data) >= end or len(data) - begin > 2 * MAX_NAME_BYTES:
            raise ProtocolViolation("malformed Bind message")
        return None
    return cut(data, begin, first), cut(data, first + 1, second), second + 1


def bind_head(portal: bytes, statement: bytes, rest_bytes: int) -> bytes:
    """The beginning of a Bind, up to its parameters, of which `rest_bytes` follow."""
    names = portal + b"\0" + statement + b"\0"
    return b"B" + word(_LENGTH_BYTES + len(names) + rest_bytes) + names


PARSE_COMPLETE = frame(b"1")
CLOSE_COMPLETE = frame(b"3")
SYNC = frame(b"S")


def ready_for_query(status: bytes = b"I") -> bytes:
    """A ReadyForQuery."""
    return frame(b"Z", status)


def parameter_status(name: bytes, value: bytes) -> bytes:
    """A ParameterStatus."""
    return frame(b"S", name + b"\0" + value + b"\0")


def backend_key_data(pid: int, key: bytes) -> bytes:
    """A BackendKeyData: with this a client can cancel what it runs."""
    return frame(b"K", _LENGTH.pack(pid) + key)


def command_complete(tag: bytes) -> bytes:
    """A CommandComplete."""
    return frame(b"C", tag + b"\0")
