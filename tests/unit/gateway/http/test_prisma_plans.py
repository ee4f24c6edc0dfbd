"""Prisma's plans: what is pure of their interpretation."""

import base64
import json
import re
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from torpor.gateway.http.apikey import make
from torpor.gateway.http.apikey import read as read_key
from torpor.gateway.http.failures import Failure
from torpor.gateway.http.prisma.errors import PlanError, database_error
from torpor.gateway.http.prisma.generators import Generators
from torpor.gateway.http.prisma.mapping import map_data
from torpor.gateway.http.prisma.records import attach, difference, process, satisfies, validate
from torpor.gateway.http.prisma.rendering import MOST_PARAMETERS, Statement, comment_of, evaluate, render
from torpor.gateway.http.prisma.values import read_moment, reader, to_argument, type_name, write_moment

INT = {"arity": "scalar", "scalarType": "int"}
FORM = {"prefix": "$", "hasNumbering": True}
PAGE = {"cursor": None, "take": None, "skip": None}
OPERATIONS: dict[str, Any] = {"pagination": None, "distinct": None, "reverse": False, "linkingFields": None, "nested": {}}


def parameter(name: str, kind: str = "Int") -> dict[str, Any]:
    return {"prisma__type": "param", "prisma__value": {"name": name, "type": kind}}


def call(name: str, *args: object) -> dict[str, Any]:
    return {"prisma__type": "generatorCall", "prisma__value": {"name": name, "args": list(args)}}


def chunk(text: str) -> dict[str, Any]:
    return {"type": "stringChunk", "chunk": text}


def template(fragments: list[dict[str, Any]], args: list[Any], kinds: list[Any], chunkable: bool = True) -> dict[str, Any]:
    return {
        "type": "templateSql", "fragments": fragments, "placeholderFormat": FORM, "args": args, "argTypes": kinds, "chunkable": chunkable,
    }  # fmt: skip


TUPLE = {"type": "parameterTuple", "itemPrefix": "", "itemSeparator": ",", "itemSuffix": ""}
TUPLES = {"type": "parameterTupleList", "itemPrefix": "(", "itemSeparator": ",", "itemSuffix": ")", "groupSeparator": ","}


def test_templates_become_statements() -> None:
    query = template(
        [chunk("SELECT a WHERE a = "), {"type": "parameter"}, chunk(" AND b IN "), TUPLE],
        [parameter("x"), parameter("y")],
        [INT, INT],
    )
    assert render(query, {"x": 7, "y": [1, None]}, Generators(), " /*a*/") == [
        Statement("SELECT a WHERE a = $1 AND b IN ($2,$3) /*a*/", (b"7", b"1", None))
    ]
    assert render(query, {"x": 7, "y": []}, Generators()) == [Statement("SELECT a WHERE a = $1 AND b IN (NULL)", (b"7",))]
    rows = template([chunk("INSERT VALUES "), TUPLES], [[[1, "a"], [2, "b"]]], [{"arity": "tuple", "elements": [INT, {"arity": "scalar"}]}])
    assert render(rows, {}, Generators()) == [Statement("INSERT VALUES ($1,$2),($3,$4)", (b"1", b"a", b"2", b"b"))]


def test_what_is_too_long_is_split() -> None:
    query = template([chunk("a = "), {"type": "parameter"}, chunk(" AND b IN "), TUPLE], [1, list(range(MOST_PARAMETERS))], [INT, INT])
    first, second = render(query, {}, Generators())
    assert len(first.values) == MOST_PARAMETERS
    assert second.values == (b"1", str(MOST_PARAMETERS - 1).encode())
    rows = template([TUPLES], [[[1, 2, 3]] * 12_000], [{"arity": "tuple", "elements": [INT] * 3}])
    assert [len(one.values) for one in render(rows, {}, Generators())] == [MOST_PARAMETERS, 36_000 - MOST_PARAMETERS]
    with pytest.raises(PlanError, match="limit"):
        render({**query, "chunkable": False}, {}, Generators())


@pytest.mark.parametrize(
    ("query", "why"),
    [
        (template([{"type": "parameter"}], [], []), "more places"),
        (template([TUPLES], [[]], [INT]), "list of tuples"),
        (template([{"type": "other"}], [1], [INT]), "isn't known"),
        (template([chunk("a\0b")], [], []), "no text"),
        ({"type": "rawSql", "sql": "a\0b", "args": [], "argTypes": []}, "no text"),
        ({"type": "mongo", "args": [], "argTypes": []}, "isn't known"),
        (template([{"type": "parameter"}], [parameter("nobody")], [INT]), "no value"),
    ],
)
def test_malformed_queries(query: dict[str, Any], why: str) -> None:
    with pytest.raises(PlanError, match=why):
        render(query, {}, Generators())


def test_variables_are_filled_in_once() -> None:
    # A value that looks like a variable is a value.
    assert evaluate([parameter("a")], {"a": parameter("a")}, Generators()) == [parameter("a")]
    assert evaluate(parameter("a", "DateTime"), {"a": "2026-01-02T03:04:05.678Z"}, Generators()) == datetime(
        2026, 1, 2, 3, 4, 5, 678000, UTC
    )


def test_generators() -> None:
    generators = Generators()
    now = generators.make("now", [])
    assert generators.make("now", []) == now
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(now))
    assert uuid.UUID(str(generators.make("uuid", [4]))).version == 4
    assert uuid.UUID(str(generators.make("uuid", [7]))).version == 7
    for name, args, form in [
        ("cuid", [1], r"c[0-9a-z]{24}"), ("cuid", [2], r"[a-z][0-9a-z]{23}"), ("ulid", [], r"[0-7][0-9A-HJKMNP-TV-Z]{25}"),
        ("nanoid", [], r"[\w-]{21}"), ("nanoid", [5], r"[\w-]{5}"),
    ]:  # fmt: skip
        assert re.fullmatch(form, str(generators.make(name, args))), name
    assert generators.make("product", [[1, 2], [3]]) == [[1, 3], [2, 3]]
    assert generators.make("product", [1, [3, 4]]) == [[1, 3], [1, 4]]
    hostile: list[tuple[str, list[Any]]] = [
        ("uuid", [5]),
        ("other", []),
        ("nanoid", [10**9]),
        ("product", [list(range(1000)), list(range(1000))]),
    ]
    for name, given in hostile:
        with pytest.raises(PlanError):
            generators.make(name, given)


def test_comments() -> None:
    assert comment_of({"b": "x'y */ z", "a": "1"}) == " /*a='1',b='x\\'y%20*%2F%20z'*/"
    assert comment_of(None) == ""
    with pytest.raises(PlanError):
        comment_of({"a": 1})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-02 03:04:05.678901+00", "2026-01-02T03:04:05.678Z"),
        ("2026-01-02 03:04:05+02", "2026-01-02T01:04:05.000Z"),
        ("2026-01-02T03:04:05-02:30", "2026-01-02T05:34:05.000Z"),
        ("2026-01-02 03:04:05.5", "2026-01-02T03:04:05.500Z"),
        ("2026-01-02", "2026-01-02T00:00:00.000Z"),
        ("0032-01-02", "0032-01-02T00:00:00.000Z"),
        ("03:04:05.1", "1970-01-01T03:04:05.100Z"),
        ("03:04:05+02", "1970-01-01T01:04:05.000Z"),
    ],
)
def test_moments(text: str, expected: str) -> None:
    assert write_moment(read_moment(text)) == expected


@pytest.mark.parametrize("text", ["", "infinity", "0044-03-15 00:00:00+00 BC", "10000-01-01", "2026-02-30", "Z", "0001-01-01 00:00:00+02"])
def test_moments_that_are_none(text: str) -> None:
    with pytest.raises(PlanError, match="no moment"):
        read_moment(text)


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (None, {}, None),
        ("2026-01-02T03:04:05.678Z", {"scalarType": "datetime"}, b"2026-01-02 03:04:05.678+00"),
        ("2026-01-02T03:04:05.678Z", {"scalarType": "datetime", "dbType": "DATE"}, b"2026-01-02"),
        ("2026-01-02T03:04:05.678Z", {"scalarType": "datetime", "dbType": "TIME"}, b"03:04:05.678"),
        (datetime(2026, 1, 2, tzinfo=UTC), {"scalarType": "datetime"}, b"2026-01-02 00:00:00.000+00"),
        (base64.b64encode(b"\0\xff").decode(), {"scalarType": "bytes"}, rb"\x00ff"),
        ([base64.b64encode(b"\0").decode()], {"scalarType": "bytes", "arity": "list"}, rb'{"\\x00"}'),
        (b"\1", {}, rb"\x01"),
        ([1, None, "a"], {"arity": "list"}, b'{1,NULL,"a"}'),
        (True, {}, b"true"),
        ({"a": [1]}, {}, b'{"a":[1]}'),
    ],
)
def test_arguments(value: object, kind: dict[str, str], expected: bytes | None) -> None:
    assert to_argument(value, kind) == expected


@pytest.mark.parametrize(
    ("oid", "name", "text", "value", "raw"),
    [
        (23, "int", "7", 7, 7),
        (20, "bigint", "9007199254740993", "9007199254740993", "9007199254740993"),
        (16, "bool", "t", True, True),
        (17, "bytes", r"\x00ff", b"\0\xff", b"\0\xff"),
        (17, "bytes", r"a\\b\377", b"a\\b\xff", b"a\\b\xff"),
        (790, "decimal", "$1.50", "1.50", "1.50"),
        (1700, "decimal", "1.50", "1.50", "1.50"),
        (1184, "datetime", "2026-01-02 03:04:05+02", "2026-01-02 03:04:05+02", "2026-01-02T01:04:05.000Z"),
        (1266, "time", "03:04:05+02", "03:04:05+02", "01:04:05.000"),
        (1007, "int-array", "{1,NULL}", [1, None], [1, None]),
        (1001, "bytes-array", '{"\\\\x00"}', [b"\0"], [b"\0"]),
        (16500, "string", "sad", "sad", "sad"),
    ],
)
def test_values(oid: int, name: str, text: str, value: object, raw: object) -> None:
    assert type_name(oid) == name
    for is_raw, expected in ((False, value), (True, raw)):
        read = reader(oid, is_raw)
        assert (text if read is None else read(text)) == expected


def test_types_without_a_form() -> None:
    with pytest.raises(PlanError, match="'interval'"):
        type_name(1186)


def field(column: str, kind: str, **more: object) -> dict[str, Any]:
    return {"type": "field", "dbName": column, "fieldType": {"arity": "scalar", "type": kind, **more}}


@pytest.mark.parametrize(
    ("kind", "more", "value", "expected"),
    [
        ("int", {}, "12", 12),
        ("int", {}, 12.7, 12),
        ("bigint", {}, 7, {"$type": "BigInt", "value": "7"}),
        ("float", {}, "1.5", 1.5),
        ("boolean", {}, "t", True),
        ("boolean", {}, 1, True),
        ("decimal", {}, "1.50", {"$type": "Decimal", "value": "1.50"}),
        ("datetime", {}, "2026-01-02", {"$type": "DateTime", "value": "2026-01-02T00:00:00.000Z"}),
        ("json", {}, '{"a": 1}', {"$type": "Json", "value": '{"a": 1}'}),
        ("object", {}, {"a": 1}, {"$type": "Json", "value": '{"a":1}'}),
        ("bytes", {"encoding": "array"}, b"\0", {"$type": "Bytes", "value": "AA=="}),
        ("bytes", {"encoding": "hex"}, "\\x00", {"$type": "Bytes", "value": "AA=="}),
        ("bytes", {"encoding": "base64"}, "AA==", {"$type": "Bytes", "value": "AA=="}),
        ("enum", {"name": "Mood"}, "sad", "SAD"),
        ("string", {"arity": "list"}, ["a"], ["a"]),
        ("string", {"arity": "list"}, None, []),
        ("bigint", {"arity": "list"}, "{1,-2}", [{"$type": "BigInt", "value": "1"}, {"$type": "BigInt", "value": "-2"}]),
        ("string", {}, None, None),
    ],
)
def test_fields(kind: str, more: dict[str, object], value: object, expected: object) -> None:
    structure = {"type": "object", "fields": {"f": field("c", kind, **more)}, "serializedName": None, "skipNulls": False}
    assert map_data({"c": value}, structure, {"Mood": {"sad": "SAD"}}) == {"f": expected}


@pytest.mark.parametrize(
    ("kind", "value"),
    [("int", "x"), ("int", str(2**60)), ("string", 7), ("boolean", "maybe"), ("enum", "sad"), ("bytes", 7), ("other", 7), ("float", "x")],
)
def test_fields_that_are_not_what_they_must_be(kind: str, value: object) -> None:
    structure = {"type": "object", "fields": {"f": field("c", kind, name="Mood")}, "serializedName": None, "skipNulls": False}
    with pytest.raises(PlanError):
        map_data([{"c": value}], structure, {"Mood": {}})


def test_structures() -> None:
    inner = {"type": "object", "fields": {"n": field("n", "int")}, "serializedName": "kids", "skipNulls": True}
    structure = {"type": "object", "fields": {"a": field("x", "int"), "kids": inner}, "serializedName": None, "skipNulls": False}
    assert map_data([{"x": 1, "kids": json.dumps([{"n": 2}, None])}], structure, {}) == [{"a": 1, "kids": [{"n": 2}]}]
    assert map_data(None, structure, {}) is None
    assert map_data(3, {"type": "affectedRows"}, {}) == {"count": 3}
    for data in ([{"x": 1}], [{"kids": None}], [None], 7, '"text"['):
        with pytest.raises(PlanError):
            map_data(data, structure, {})


def test_joins() -> None:
    join = {"on": [["id", "parent"]], "parentField": "kids", "isRelationUnique": False}
    parents = [{"id": 1}, {"id": 2}]
    assert attach(parents, [(join, [{"parent": 1, "n": 1}, {"parent": 1, "n": 2}, {"parent": 3}, None])], True) == [
        {"id": 1, "kids": [{"parent": 1, "n": 1}, {"parent": 1, "n": 2}]},
        {"id": 2, "kids": []},
    ]
    # Keys of other types on the other side are cast to those of the parents.
    assert attach([{"id": "1"}], [({**join, "isRelationUnique": True}, {"parent": 1})], False) == [{"id": "1", "kids": {"parent": 1}}]
    assert attach([{"id": 1}], [(join, [{"parent": "1"}])], True) == [{"id": 1, "kids": []}]
    assert attach([{"id": 1}], [(join, [{"parent": "x"}, {"parent": "1"}])], False) == [{"id": 1, "kids": [{"parent": "1"}]}]
    assert difference([{"a": 1}, {"a": 2}, None], [{"a": 2}], ["a"]) == [{"a": 1}, None]


def test_pages() -> None:
    rows = [{"g": n % 2, "n": n} for n in range(6)]

    def numbers(**more: object) -> list[int]:
        found = process([dict(row) for row in rows], {**OPERATIONS, **more})
        return [row["n"] for row in found]

    assert numbers() == [0, 1, 2, 3, 4, 5]
    assert numbers(pagination={**PAGE, "skip": 1, "take": 2}) == [1, 2]
    assert numbers(pagination={**PAGE, "cursor": {"n": "4"}}) == [4, 5]
    assert numbers(pagination={**PAGE, "cursor": {"n": 9}}) == []
    assert numbers(pagination={**PAGE, "take": 1}, linkingFields=["g"]) == [0, 1]
    assert numbers(distinct=["g"]) == [0, 1]
    assert numbers(reverse=True) == [5, 4, 3, 2, 1, 0]
    nested = {"kids": {**OPERATIONS, "pagination": {**PAGE, "take": 1}}}
    assert process({"kids": '[{"a": 1}, {"a": 2}]'}, {**OPERATIONS, "nested": nested}) == {"kids": [{"a": 1}]}
    assert process({"n": 1}, {**OPERATIONS, "pagination": {**PAGE, "skip": 1}}) is None
    assert process(None, OPERATIONS) is None
    moment = {"at": datetime(2026, 1, 2, tzinfo=UTC)}
    assert process([{"at": "2026-01-02 00:00:00+00"}], {**OPERATIONS, "pagination": {**PAGE, "cursor": moment}}) != []
    assert process([{"b": b"\0"}], {**OPERATIONS, "pagination": {**PAGE, "cursor": {"b": "AA=="}}}) != []


@pytest.mark.parametrize(
    ("data", "rule", "args", "expected"),
    [
        ([1, 2], "rowCountEq", 2, True),
        (None, "rowCountEq", 0, True),
        ({}, "rowCountNeq", 1, False),
        (3, "affectedRowCountEq", 3, True),
        (3, "never", None, False),
    ],
)
def test_rules(data: object, rule: str, args: object, expected: bool) -> None:
    assert satisfies(data, {"type": rule, "args": args}) is expected


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        ("MISSING_RECORD", "P2025", "No record was found for an update."),
        ("RELATION_VIOLATION", "P2014", "relation 'r' between the `A` and"),
        ("MISSING_RELATED_RECORD", "P2025", "No 'M' record (needed to {x}) was found"),
        ("INCOMPLETE_CONNECT_INPUT", "P2025", "Expected 2 records to be connected, found only 1."),
        ("INCOMPLETE_CONNECT_OUTPUT", "P2018", "Expected 2 records"),
        ("RECORDS_NOT_CONNECTED", "P2017", "between the `P`"),
        ("OTHER", "P6000", "the plan's data"),
    ],
)
def test_validation(error: str, code: str, text: str) -> None:
    context = {"operation": "an update", "relation": "r", "modelA": "A", "model": "M", "neededFor": "{x}", "expectedRows": 2, "parent": "P"}
    with pytest.raises(PlanError) as caught:
        validate([{}], [{"type": "never"}], {"errorIdentifier": error, "context": context})
    assert caught.value.code == code
    assert text in caught.value.message
    validate([{}], [{"type": "rowCountEq", "args": 1}], {})


@pytest.mark.parametrize(
    ("fields", "code", "cause"),
    [
        ({"C": "23505", "n": "a_key", "t": "A"}, "P2002", {"constraint": {"index": "a_key"}, "table": "A"}),
        ({"C": "23503", "n": "a_fk"}, "P2003", {"constraint": {"index": "a_fk"}}),
        ({"C": "23502", "c": "a"}, "P2011", {"constraint": {"fields": ["a"]}}),
        ({"C": "42P01", "M": 'relation "a" does not exist'}, "P2021", {"table": "a"}),
        ({"C": "42703", "M": 'column "a" does not exist'}, "P2022", {"column": "a"}),
        ({"C": "40001"}, "P2034", {"kind": "TransactionWriteConflict"}),
        ({"C": "53300"}, "P2037", {"kind": "TooManyConnections"}),
        ({"C": "22012", "M": "division by zero"}, "P2039", {"kind": "postgres", "code": "22012"}),
    ],
)
def test_errors_of_postgresql(fields: dict[str, str], code: str, cause: dict[str, object]) -> None:
    error = database_error(Failure(fields))
    assert error.code == code
    told: Any = error.meta["driverAdapterError"]
    assert told["cause"].items() >= cause.items()
    assert database_error(Failure(fields), is_raw=True).code == "P2010"


def test_keys() -> None:
    url = "postgresql://shop:se%2Fcret@localhost:5432/shop?options=endpoint%3Dshop"
    target = read_key(f"Bearer {make(url)}")
    assert (target.user, target.password, target.database, target.host, target.options) == (
        "shop",
        "se/cret",
        "shop",
        "localhost",
        "endpoint=shop",
    )
    local = base64.b64encode(json.dumps({"databaseUrl": url, "name": "x"}).encode()).decode()
    assert read_key(f"Bearer {local}") == target


@pytest.mark.parametrize(
    "header",
    ["", "Basic x", "Bearer ", "Bearer é", "Bearer YQ", "Bearer e30", "Bearer eyJhbGciOiJIUzI1NiJ9.e30.x", "Bearer " + "x" * 20_000],
)
def test_keys_that_are_none(header: str) -> None:
    with pytest.raises(Failure) as caught:
        read_key(header)
    assert caught.value.status == 401
