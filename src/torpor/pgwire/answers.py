"""What a server says to a simple-query client, read into values; and what such a client says. Pure.

Good for a client that asks in text and trusts its server's framing; COPY and the extended protocol are left as OtherMessage.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from torpor.model.errors import ProtocolViolation
from torpor.pgwire.frames import frame


@dataclass(frozen=True, slots=True)
class Authentication:
    """An authentication request; code 0 is AuthenticationOk."""

    code: int
    data: bytes


@dataclass(frozen=True, slots=True)
class BackendKeyData:
    """The session's pid and the key that cancels it."""

    pid: int
    key: bytes


@dataclass(frozen=True, slots=True)
class ParameterStatus:
    """A setting that the server reports."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class RowDescription:
    """The columns of the rows that follow."""

    names: tuple[str, ...]
    type_oids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DataRow:
    """One row in text; None is NULL."""

    values: tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class CommandComplete:
    """A statement is done; `tag` is such as `SELECT 1`."""

    tag: str


@dataclass(frozen=True, slots=True)
class ReadyForQuery:
    """The server waits. `status` is I (idle), T (in a transaction) or E (in a failed one)."""

    status: str


@dataclass(frozen=True, slots=True)
class Notice:
    """An ErrorResponse (`is_error`) or NoticeResponse, fields by their one-letter codes."""

    is_error: bool
    fields: Mapping[str, str]

    @property
    def sqlstate(self) -> str:
        """The SQLSTATE, empty when the server sent none."""
        return self.fields.get("C", "")

    @property
    def message(self) -> str:
        """The primary message."""
        return self.fields.get("M", "")

    @property
    def hint(self) -> str:
        """What to do, empty when the server doesn't say."""
        return self.fields.get("H", "")

    @property
    def severity(self) -> str:
        """ERROR, FATAL, NOTICE…, never translated."""
        return self.fields.get("V", self.fields.get("S", ""))


@dataclass(frozen=True, slots=True)
class OtherMessage:
    """A message that a simple-query client needn't understand."""

    tag: bytes
    body: bytes


BackendMessage = (
    Authentication | BackendKeyData | ParameterStatus | RowDescription | DataRow | CommandComplete | ReadyForQuery | Notice | OtherMessage
)


def parse_backend_message(tag: bytes, body: bytes) -> BackendMessage:
    """Read one message of a server. Raises ProtocolViolation when its body doesn't hold what its tag promises."""
    try:
        return _parse(tag, body)
    except (struct.error, IndexError, ValueError) as error:
        raise ProtocolViolation(f"the server sent a malformed {tag!r} message") from error


def _parse(tag: bytes, body: bytes) -> BackendMessage:
    match tag:
        case b"R":
            return Authentication(struct.unpack_from("!i", body)[0], body[4:])
        case b"K":
            return BackendKeyData(struct.unpack_from("!I", body)[0], body[4:])
        case b"S":
            name, value, _ = body.split(b"\0")
            return ParameterStatus(_text(name), _text(value))
        case b"T":
            return _row_description(body)
        case b"D":
            return _data_row(body)
        case b"C":
            return CommandComplete(_text(body.removesuffix(b"\0")))
        case b"Z":
            return ReadyForQuery(chr(body[0]))
        case b"E" | b"N":
            fields = [part for part in body.split(b"\0") if part]
            return Notice(tag == b"E", {chr(part[0]): _text(part[1:]) for part in fields})
        case _:
            return OtherMessage(tag, body)


def _row_description(body: bytes) -> RowDescription:
    (count,) = struct.unpack_from("!h", body)
    names, oids, at = [], [], 2
    for _ in range(count):
        end = body.index(b"\0", at)
        names.append(_text(body[at:end]))
        oids.append(struct.unpack_from("!ihihih", body, end + 1)[2])
        at = end + 1 + struct.calcsize("!ihihih")
    return RowDescription(tuple(names), tuple(oids))


def _data_row(body: bytes) -> DataRow:
    (count,) = struct.unpack_from("!h", body)
    values: list[str | None] = []
    at = 2
    for _ in range(count):
        (length,) = struct.unpack_from("!i", body, at)
        at += 4
        if length < 0:
            values.append(None)
            continue
        if at + length > len(body):
            raise ValueError("value longer than its message")
        values.append(_text(body[at : at + length]))
        at += length
    return DataRow(tuple(values))


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def query(sql: str) -> bytes:
    """A simple Query."""
    return frame(b"Q", sql.encode() + b"\0")


def terminate() -> bytes:
    """A Terminate: the client leaves."""
    return frame(b"X")
