"""Results as JSON, however they come; and the frames of @prisma/ppg."""

import base64
import json
import struct

import pytest

from torpor.gateway.http.failures import Failure
from torpor.gateway.http.ppgframes import (
    BINARY_PARAMETER,
    DESCRIPTOR,
    TEXT_PARAMETER,
    bytea_columns,
    error,
    read_descriptor,
    read_multipart,
    row,
)  # fmt: skip
from torpor.gateway.http.results import Column, Result, read_columns, split_tag


def description(*columns: tuple[str, int]) -> bytes:
    parts = [name.encode() + b"\0" + struct.pack("!IhIhih", 7, number + 1, oid, -1, -1, 0) for number, (name, oid) in enumerate(columns)]
    return struct.pack("!h", len(columns)) + b"".join(parts)


def data_row(*values: str | None) -> bytes:
    parts = [struct.pack("!i", -1) if one is None else struct.pack("!i", len(one.encode())) + one.encode() for one in values]
    return struct.pack("!h", len(values)) + b"".join(parts)


def result(*, array_mode: bool, raw: bool, pieces: int) -> object:
    made = Result(array_mode, raw)
    made.describe(description(("n", 23), ("é", 25), ("j", 3802)))
    parts = []
    for number in range(5):
        made.row(b"xx" + data_row(str(number), None, '{"a": 1.0}'), 2)
        if number < pieces:
            parts.append(made.take())
    return json.loads(b"".join(parts) + made.end("SELECT 5"))


@pytest.mark.parametrize("pieces", [0, 1, 5])
def test_a_result_is_the_same_in_any_number_of_pieces(pieces: int) -> None:
    whole = result(array_mode=True, raw=True, pieces=pieces)
    assert isinstance(whole, dict)
    assert whole["rows"] == [[str(number), None, '{"a": 1.0}'] for number in range(5)]
    assert (whole["command"], whole["rowCount"], whole["rowAsArray"]) == ("SELECT", 5, True)
    assert whole["fields"][1] == {
        "name": "é", "tableID": 7, "columnID": 2, "dataTypeID": 25, "dataTypeSize": -1, "dataTypeModifier": -1, "format": "text",
    }  # fmt: skip
    typed = result(array_mode=False, raw=False, pieces=pieces)
    assert isinstance(typed, dict)
    assert typed["rows"] == [{"n": number, "é": None, "j": {"a": 1.0}} for number in range(5)]


def test_a_result_without_rows() -> None:
    empty = json.loads(Result(True, True).end("CREATE TABLE"))
    assert empty == {"rowAsArray": True, "fields": [], "rows": [], "command": "CREATE", "rowCount": None}


@pytest.mark.parametrize(
    ("tag", "split"), [("SELECT 3", ("SELECT", 3)), ("INSERT 0 7", ("INSERT", 7)), ("CREATE TABLE", ("CREATE", None)), ("", ("", None))]
)
def test_tags(tag: str, split: tuple[str, int | None]) -> None:
    assert split_tag(tag) == split


def multipart(*parts: tuple[str, bytes]) -> bytes:
    made = [
        b'--xyz\r\nContent-Disposition: form-data; name="%b"\r\nContent-Type: x\r\n\r\n%b\r\n' % (name.encode(), data)
        for name, data in parts
    ]
    return b"".join(made) + b"--xyz--\r\n"


MEDIA = 'multipart/form-data; profile="urn:prisma:query"; boundary=xyz'


def test_a_statement_with_long_parameters() -> None:
    descriptor = {
        "query": "SELECT $1, $2, $3, $4",
        "parameters": [
            {"type": "text", "byteSize": 5},
            {"type": "text", "value": None},
            {"type": "binary", "value": base64.b64encode(b"\0\1").decode()},
            {"type": "binary", "byteSize": 4},
        ],
    }
    body = multipart((DESCRIPTOR, json.dumps(descriptor).encode()), (TEXT_PARAMETER, b"a\r\nb\n"), (BINARY_PARAMETER, b"\r\n\0\xff"))
    statement = read_multipart(MEDIA, body)
    assert statement.values == [b"a\r\nb\n", None, b"\0\1", b"\r\n\0\xff"]
    assert statement.binary == [False, False, True, True]
    assert not statement.counts
    assert read_descriptor('{"exec": "DELETE FROM t"}').counts


@pytest.mark.parametrize(
    ("media", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b""),
        (MEDIA, b""),
        (MEDIA, b"--xyz--\r\n"),
        (MEDIA, multipart((DESCRIPTOR, b'{"query": "x"}'))[:-6]),
        (MEDIA, multipart((TEXT_PARAMETER, b"x"))),
        (MEDIA, multipart((DESCRIPTOR, b'{"query": "x", "parameters": [{"type": "text"}]}'))),
        (MEDIA, multipart((DESCRIPTOR, b'{"query": "x"}'), (TEXT_PARAMETER, b"x"))),
        (MEDIA, multipart((DESCRIPTOR, b"[" * 100_000))),
        (MEDIA, multipart((DESCRIPTOR, b'{"query": "x", "parameters": [{"type": "binary", "value": "!"}]}'))),
        (MEDIA, multipart((DESCRIPTOR, b'{"query": "x", "parameters": [{"type": "text", "value": 1}]}'))),
        (MEDIA, multipart((DESCRIPTOR, b'{"query": 1}'))),
    ],
)
def test_statements_that_are_refused(media: str, body: bytes) -> None:
    with pytest.raises(Failure):
        read_multipart(media, body)


def test_frames() -> None:
    columns = read_columns(description(("a", 25), ("b", 17)))
    assert bytea_columns(columns) == [1]
    assert json.loads(row(["x", "\\x0001ff"], [1])) == {"values": ["x", "AAH/"]}
    assert json.loads(row(["x", None], [1])) == {"values": ["x", None]}
    assert columns[0] == Column("a", 7, 1, 25, -1, -1)
    # What there is not is left out, never null.
    assert json.loads(error(Failure({"V": "ERROR", "C": "42P01", "M": "no"}))) == {
        "error": {"message": "no", "code": "42P01", "severity": "ERROR"}
    }
