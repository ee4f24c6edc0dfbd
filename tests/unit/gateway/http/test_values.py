"""JSON parameters as PostgreSQL's text, and PostgreSQL's arrays as JSON."""

import msgspec
import pytest

from torpor.gateway.http.failures import Failure
from torpor.gateway.http.queries import read
from torpor.gateway.http.values import read_array, reader, to_text


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("null", None),
        ('"x"', b"x"),
        ('"\\u00e9"', "é".encode()),
        ("true", b"true"),
        ("false", b"false"),
        ("12345678901234567890123", b"12345678901234567890123"),
        ("1.10", b"1.10"),
        ("1e400", b"1e400"),
        ("-0.0", b"-0.0"),
        ('{"a": [1.50, {"b": null}]}', b'{"a":[1.50,{"b":null}]}'),
        ("[]", b"{}"),
        (
            '[1, 2.50, null, true, "a,b", "say \\"hi\\"", "back\\\\slash", "line\\nend", ""]',
            b'{1,2.50,NULL,true,"a,b","say \\"hi\\"","back\\\\slash","line\nend",""}',
        ),
        ("[[1, 2], [3, null]]", b"{{1,2},{3,NULL}}"),
        ('[{"a": "b"}]', b'{"{\\"a\\":\\"b\\"}"}'),
        ('"NULL"', b"NULL"),
        ('["NULL"]', b'{"NULL"}'),
    ],
)
def test_parameters(written: str, text: bytes | None) -> None:
    asked = read({}, f'{{"query": "SELECT $1", "params": [{written}]}}'.encode())
    assert asked.queries[0].values == (text,)


def test_what_text_can_not_hold() -> None:
    deep: object = []
    for _ in range(200):
        deep = [deep]
    for value in ("a\0b", ["a\0b"], deep, {"a": deep}):
        with pytest.raises(Failure):
            to_text(value)


@pytest.mark.parametrize(
    ("text", "oid", "expected"),
    [
        ("{}", 1007, []),
        ("{1,NULL,3}", 1007, [1, None, 3]),
        ("{{1,2},{3,4}}", 1007, [[1, 2], [3, 4]]),
        ('{a,"b,c","d\\"e","f\\\\g","NULL",NULL}', 1009, ["a", "b,c", 'd"e', "f\\g", "NULL", None]),
        ("[0:1]={5,6}", 1007, [5, 6]),
        ("{t,f}", 1000, [True, False]),
        ("{1", 1007, "{1"),
        ('{"a', 1009, '{"a'),
        ("{1}x", 1007, "{1}x"),
        ("{9223372036854775807}", 1016, ["9223372036854775807"]),
        ("{1.5,NaN}", 1022, [1.5, "NaN"]),
        ('{"{\\"a\\": 1}"}', 3807, [{"a": 1}]),
    ],
)
def test_arrays(text: str, oid: int, expected: object) -> None:
    found = reader(oid)
    assert found is not None
    assert msgspec.json.decode(msgspec.json.encode(found(text))) == expected


def test_deep_arrays_stay_text() -> None:
    text = "{" * 5000 + "}" * 5000
    assert read_array(text, None) == text


def test_what_json_has_no_type_for_stays_text() -> None:
    assert [reader(oid) for oid in (20, 25, 1700, 1184, 600)] == [None] * 5
