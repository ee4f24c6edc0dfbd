"""Values on their way: JSON parameters into PostgreSQL's text, and PostgreSQL's text into JSON where a client wants no raw text. Pure."""

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from torpor.gateway.http.failures import bad_request

_JSON = msgspec.json.Encoder()
_MAX_DEPTH = 100


class Number(str):
    """A number with a fraction, as it was written: its digits are PostgreSQL's to understand."""


def to_text(value: object) -> bytes | None:
    """The text of a parameter, None for NULL. Raises Failure."""
    match value:
        case None:
            return None
        case str():
            if "\0" in value:
                raise bad_request("a parameter holds a NUL, which PostgreSQL's text can't", "send bytes as bytea: \\x00ff")
            return value.encode("utf-8", "replace")
        case bool():
            return b"true" if value else b"false"
        case int() | float():
            return str(value).encode()
        case list():
            return _array(value, 0).encode("utf-8", "replace")
        case _:
            return _json(value)


def _json(value: object) -> bytes:
    return _JSON.encode(_plain(value, 0))


def _plain(value: object, depth: int) -> object:
    """Without `Number`, which JSON would put between quotes."""
    if depth > _MAX_DEPTH:
        raise bad_request(f"a parameter is nested more than {_MAX_DEPTH} deep")
    if isinstance(value, Number):
        return msgspec.Raw(value.encode())
    if isinstance(value, dict):
        return {key: _plain(one, depth + 1) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one, depth + 1) for one in value]
    return value


def _array(values: list[object], depth: int) -> str:
    """PostgreSQL's form of an array."""
    if depth > _MAX_DEPTH:
        raise bad_request(f"a parameter is nested more than {_MAX_DEPTH} deep")
    return "{" + ",".join(_element(one, depth) for one in values) + "}"


def _element(value: object, depth: int) -> str:
    match value:
        case None:
            return "NULL"
        case list():
            return _array(value, depth + 1)
        case Number():
            return value
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
        case str():
            return _quoted(value)
        case _:
            return _quoted(_json(value).decode())


def _quoted(text: str) -> str:
    if "\0" in text:
        raise bad_request("a parameter holds a NUL, which PostgreSQL's text can't")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


# -- the other way round: for clients that want JSON's own types

Reader = Callable[[str], object]


def _float(text: str) -> object:
    return msgspec.Raw(text.encode()) if text not in ("NaN", "Infinity", "-Infinity") else text


def _raw_json(text: str) -> object:
    return msgspec.Raw(text.encode())


def _bool(text: str) -> object:
    return text == "t"


_SCALARS: Final[Mapping[int, Reader]] = {16: _bool, 21: int, 23: int, 26: int, 700: _float, 701: _float, 114: _raw_json, 3802: _raw_json}
_ARRAYS: Final[Mapping[int, int]] = {
    1000: 16, 1005: 21, 1007: 23, 1016: 20, 1028: 26, 1021: 700, 1022: 701, 199: 114, 3807: 3802, 1009: 25, 1015: 1043, 1014: 1042,
    1001: 17, 1115: 1114, 1182: 1082, 1183: 1083, 1185: 1184, 1231: 1700, 2951: 2950, 1041: 869, 651: 650,
}  # fmt: skip


def reader(oid: int) -> Reader | None:
    """What makes JSON of the text of this type; None where the text stays text."""
    if oid in _ARRAYS:
        element = _SCALARS.get(_ARRAYS[oid])
        return lambda text: read_array(text, element)
    return _SCALARS.get(oid)


def read_array(text: str, element: Reader | None) -> object:
    """Read PostgreSQL's form of an array. What isn't understood stays text."""
    start = text.find("{")
    try:
        value, end = _read(text, start, element, 0)
    except (IndexError, RecursionError):
        return text
    return value if end == len(text) else text


def _read(text: str, at: int, element: Reader | None, depth: int) -> tuple[object, int]:
    values: list[object] = []
    at += 1
    while text[at] != "}":
        if text[at] == ",":
            at += 1
        if text[at] == "{":
            if depth > _MAX_DEPTH:
                raise IndexError
            inner, at = _read(text, at, element, depth + 1)
            values.append(inner)
        elif text[at] == '"':
            part, at = [], at + 1
            while text[at] != '"':
                if text[at] == "\\":
                    at += 1
                part.append(text[at])
                at += 1
            at += 1
            word = "".join(part)
            values.append(element(word) if element else word)
        else:
            end = at
            while text[end] not in ",}":
                end += 1
            word, at = text[at:end], end
            values.append(None if word == "NULL" else element(word) if element else word)
    return values, at + 1
