"""The frames of @prisma/ppg: statements with their parameters come in, descriptions, rows and errors go out. Pure.

Over HTTP a request is a multipart body: a JSON descriptor, then a part for each long parameter; the answer is JSON line by line. Over a
WebSocket each frame is two messages: its URN, then its content. A value of type bytea goes in base64, as the client expects it.
"""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from torpor.gateway.http.failures import FIELDS, Failure, bad_request
from torpor.gateway.http.results import Column

DESCRIPTOR = "urn:prisma:query:descriptor"
TEXT_PARAMETER = "urn:prisma:query:param:text"
BINARY_PARAMETER = "urn:prisma:query:param:binary"
DESCRIPTION = "urn:prisma:query:result:description"
ROW = "urn:prisma:query:result:datarow"
COMPLETE = "urn:prisma:query:result:complete"
ERROR = "urn:prisma:query:result:error"
SUBPROTOCOL = "prisma-postgres-1.0"
MEDIA = "application/x-ndjson"

MAX_PARAMETERS = 65_535
_JSON = msgspec.json.Encoder()
_BOUNDARY = re.compile(r';\s*boundary="?([^";]{1,200})"?')
_BYTEA, _INT8 = 17, 20
_COMPLETED = b'{"complete":true}'


@dataclass(slots=True)
class Statement:
    """One statement. It is whole when `missing` is 0."""

    sql: str
    counts: bool
    """Whether only the number of rows is wanted (exec), not the rows (query)."""
    values: list[bytes | None]
    binary: list[bool]
    awaited: list[int]
    """Which of the values are still to come, in order."""

    @property
    def missing(self) -> int:
        """How many parameters are still to come."""
        return len(self.awaited)

    def take(self, data: bytes) -> None:
        """The next of the long parameters. Raises Failure."""
        if not self.awaited:
            raise bad_request("there are more parameters than the descriptor tells of")
        self.values[self.awaited.pop(0)] = data


def read_descriptor(data: bytes | str) -> Statement:
    """Read the descriptor. Raises Failure."""
    try:
        content = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeError, ValueError) as error:
        raise bad_request(f"the descriptor is no JSON: {str(error)[:200]}") from None
    if not isinstance(content, dict):
        raise bad_request("the descriptor must be an object")
    counts = "exec" in content
    sql, parameters = content.get("exec" if counts else "query"), content.get("parameters") or []
    if not isinstance(sql, str) or "\0" in sql or not isinstance(parameters, list) or len(parameters) > MAX_PARAMETERS:
        raise bad_request("the descriptor must have a query (or exec), and a list of parameters")
    statement = Statement(sql, counts, [], [], [])
    for number, one in enumerate(parameters):
        if not isinstance(one, dict) or one.get("type") not in ("text", "binary"):
            raise bad_request(f"parameter {number + 1} must be an object of type text or binary")
        is_binary = one["type"] == "binary"
        statement.binary.append(is_binary)
        if "value" in one:
            statement.values.append(_value(one["value"], is_binary, number))
        else:
            statement.awaited.append(number)
            statement.values.append(None)
    return statement


def read_multipart(content_type: str, body: bytes) -> Statement:
    """Read a whole request. Raises Failure."""
    found = _BOUNDARY.search(content_type)
    if not content_type.lower().startswith("multipart/form-data") or found is None:
        raise bad_request("the body must be multipart/form-data with a boundary", "use @prisma/ppg, or POST /sql")
    parts = (b"\r\n" + body).split(b"\r\n--" + found[1].encode("latin-1"))
    if len(parts) < 3 or not parts[-1].startswith(b"--"):
        raise bad_request("the body ends early")
    statement: Statement | None = None
    for part in parts[1:-1]:
        head, separator, data = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        if not separator:
            raise bad_request("a part of the body has no head")
        if f'name="{DESCRIPTOR}"'.encode() in head and statement is None:
            statement = read_descriptor(data)
        elif statement is not None:
            statement.take(data)
        else:
            raise bad_request("the descriptor must come first")
    if statement is None or statement.missing:
        raise bad_request("parameters are missing")
    return statement


def description(columns: Sequence[Column]) -> bytes:
    """What the columns are."""
    return _JSON.encode({"columns": [{"name": one.name, "typeOid": one.type_oid} for one in columns]})


def row(values: Sequence[str | None], bytea: Sequence[int]) -> bytes:
    """A row; `bytea` are the numbers of the columns of that type."""
    if bytea:
        changed = list(values)
        for number in bytea:
            changed[number] = _in_base64(changed[number])
        values = changed
    return _JSON.encode({"values": values})


def counted(count: int) -> tuple[bytes, bytes]:
    """How many rows a statement has changed: a description and a row."""
    return _JSON.encode({"columns": [{"name": "count", "typeOid": _INT8}]}), _JSON.encode({"values": [str(count)]})


def complete() -> bytes:
    """That was all."""
    return _COMPLETED


def error(failure: Failure) -> bytes:
    """What went wrong. Fields that there are not are left out: Prisma's adapter takes null for no error of the database's."""
    told: dict[str, str] = {"message": failure.message, "code": failure.sqlstate, "severity": failure.fields.get("V", "ERROR")}
    told |= {name: failure.fields[letter] for letter, name in FIELDS.items() if letter in failure.fields}
    return _JSON.encode({"error": told})


def bytea_columns(columns: Sequence[Column]) -> list[int]:
    """Which columns are of type bytea."""
    return [number for number, one in enumerate(columns) if one.type_oid == _BYTEA]


def read_login(data: bytes | str) -> Mapping[str, str]:
    """The username and password of a session. Raises Failure."""
    try:
        return msgspec.json.decode(data, type=dict[str, str])
    except (msgspec.DecodeError, UnicodeError, ValueError):
        raise bad_request("the first message must be the credentials: username and password") from None


def _value(value: object, is_binary: bool, number: int) -> bytes | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise bad_request(f"parameter {number + 1} must be text")
    if not is_binary:
        if "\0" in value:
            raise bad_request(f"parameter {number + 1} holds a NUL, which PostgreSQL's text can't")
        return value.encode("utf-8", "replace")
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error:
        raise bad_request(f"parameter {number + 1} is no base64") from None


def _in_base64(text: str | None) -> str | None:
    if text is None or not text.startswith("\\x"):  # bytea_output may be escape
        return text
    return base64.b64encode(bytes.fromhex(text[2:])).decode()
