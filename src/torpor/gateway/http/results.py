"""Results as JSON, built from PostgreSQL's messages as they come: rows are never kept longer than until the next `take`. Pure.

Neon's form: `{"rowAsArray": …, "fields": […], "rows": […], "command": "SELECT", "rowCount": 1}`, the last two at the end, so that
rows can be sent before their number is known.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from torpor.gateway.http.values import Reader, reader

_JSON = msgspec.json.Encoder()
_FIELD = struct.Struct("!IhIhih")
_COUNT = struct.Struct("!H")
_LENGTH = struct.Struct("!i")


@dataclass(frozen=True, slots=True)
class Column:
    """A column as RowDescription tells it."""

    name: str
    table_oid: int
    column_number: int
    type_oid: int
    type_size: int
    type_modifier: int

    def as_json(self) -> dict[str, object]:
        """node-postgres's names."""
        return {
            "name": self.name,
            "tableID": self.table_oid,
            "columnID": self.column_number,
            "dataTypeID": self.type_oid,
            "dataTypeSize": self.type_size,
            "dataTypeModifier": self.type_modifier,
            "format": "text",
        }


def read_columns(body: bytes) -> list[Column]:
    """Read a RowDescription."""
    (count,) = _COUNT.unpack_from(body)
    columns, at = [], 2
    for _ in range(count):
        end = body.index(b"\0", at)
        table, number, oid, size, modifier, _format = _FIELD.unpack_from(body, end + 1)
        columns.append(Column(body[at:end].decode("utf-8", "replace"), table, number, oid, size, modifier))
        at = end + 1 + _FIELD.size
    return columns


def read_row(data: bytes, at: int) -> list[str | None]:
    """Read a DataRow whose body begins at `at`."""
    (count,) = _COUNT.unpack_from(data, at)
    at += 2
    values: list[str | None] = []
    append, unpack = values.append, _LENGTH.unpack_from
    for _ in range(count):
        (length,) = unpack(data, at)
        at += 4
        if length < 0:
            append(None)
        else:
            end = at + length
            append(str(data[at:end], "utf-8", "replace"))
            at = end
    return values


def split_tag(tag: str) -> tuple[str, int | None]:
    """The command and the number of rows of a CommandComplete, as Neon and node-postgres tell them."""
    words = tag.split(" ")
    return words[0], int(words[-1]) if len(words) > 1 and words[-1].isdecimal() else None


class Result:
    """The JSON of one statement's result. `take` gives what is ready."""

    def __init__(self, array_mode: bool, raw_text: bool) -> None:
        self._array_mode = array_mode
        self._raw_text = raw_text
        self._columns: list[Column] = []
        self._readers: list[Reader | None] = []
        self._rows: list[object] = []
        self._begun = False
        self._any_row = False

    def __repr__(self) -> str:
        return f"<Result of {len(self._columns)} columns, {len(self._rows)} rows not taken>"

    def describe(self, body: bytes) -> None:
        """A RowDescription came."""
        self._columns = read_columns(body)
        readers = [] if self._raw_text else [reader(column.type_oid) for column in self._columns]
        self._readers = readers if any(readers) else []

    def row(self, data: bytes, at: int) -> None:
        """A DataRow came; its body begins at `at`."""
        values: Sequence[object] = read_row(data, at)
        if self._readers:
            values = [
                value if value is None or read is None else _read(read, str(value))
                for value, read in zip(values, self._readers, strict=False)
            ]
        if self._array_mode:
            self._rows.append(values)
        else:
            self._rows.append(dict(zip((column.name for column in self._columns), values, strict=False)))

    def take(self) -> bytes:
        """What can be sent."""
        parts = []
        if not self._begun:
            self._begun = True
            head = {"rowAsArray": self._array_mode, "fields": [column.as_json() for column in self._columns]}
            parts.append(_JSON.encode(head)[:-1] + b',"rows":[')
        if self._rows:
            if self._any_row:
                parts.append(b",")
            self._any_row = True
            parts.append(_JSON.encode(self._rows)[1:-1])
            self._rows = []
        return b"".join(parts)

    def end(self, tag: str) -> bytes:
        """The statement is done: what is left to send."""
        command, count = split_tag(tag)
        return self.take() + b"]," + _JSON.encode({"command": command, "rowCount": count})[1:]


def _read(read: Reader, text: str) -> object:
    try:
        return read(text)
    except ValueError:  # of a type that means something else in this PostgreSQL
        return text
