"""Values between PostgreSQL's text and what a plan works with. Pure.

A plan works with JSON's values, bytes, and moments (aware datetimes); what JSON can't hold exactly (int8, numeric) stays text, as with
Prisma's own driver. Moments are read with their offset, whatever the session's time zone is.
"""

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

import msgspec

from torpor.gateway.http.prisma.errors import inconsistent, malformed, unsupported_type
from torpor.gateway.http.values import read_array, to_text

Reader = Callable[[str], object]

_FIRST_OWN_OID = 16_384
_MOMENT = re.compile(
    r"(?:(\d{4})-(\d\d)-(\d\d))?(?:(?:^|[T ])(\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?)?(Z|[+-]\d\d(?::?\d\d(?::?\d\d)?)?)?"
)


def read_moment(text: str) -> datetime:
    """A timestamp, date or time of PostgreSQL or ISO 8601; without an offset it is UTC. Raises PlanError."""
    match = _MOMENT.fullmatch(text)
    if match is None or not text or (match[1] is None and match[4] is None):
        raise inconsistent(f"Inconsistent column data: '{text[:50]}' is no moment that Prisma can represent")
    year, month, day, hour, minute, second, fraction, offset = match.groups()
    iso = f"{year or '1970'}-{month or '01'}-{day or '01'}T{hour or '00'}:{minute or '00'}:{second or '00'}"
    zone = "+00:00" if offset in (None, "Z") else offset + ":00" if len(offset) == 3 else offset
    try:
        return datetime.fromisoformat(f"{iso}.{(fraction or '')[:6]:0<6}{zone}").astimezone(UTC)
    except (ValueError, OverflowError):
        raise inconsistent(f"Inconsistent column data: '{text[:50]}' is no moment that Prisma can represent") from None


def write_moment(moment: datetime) -> str:
    """As JavaScript writes it: milliseconds, in UTC."""
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z".rjust(24, "0")


def to_argument(value: object, kind: Mapping[str, object]) -> bytes | None:
    """The text of a parameter, as its declared type asks for. Raises PlanError or Failure."""
    return to_text(_argument(value, kind))


def _argument(value: object, kind: Mapping[str, object]) -> object:
    match value:
        case list() if kind.get("arity") == "list":
            return [_argument(one, kind) for one in value]
        case str() if kind.get("scalarType") == "datetime":
            return _moment_text(read_moment(value), kind)
        case datetime():
            return _moment_text(value, kind)
        case str() if kind.get("scalarType") == "bytes":
            try:
                return "\\x" + base64.b64decode(value).hex()
            except binascii.Error:
                raise malformed("a parameter of bytes is no base64") from None
        case bytes():
            return "\\x" + value.hex()
    return value


def _moment_text(moment: datetime, kind: Mapping[str, object]) -> str:
    text = write_moment(moment)
    match kind.get("dbType"):
        case "TIME":
            return text[11:23]
        case "DATE":
            return text[:10]
        case "TIMETZ":
            return text[11:23] + "+00"
    return f"{text[:10]} {text[11:23]}+00"  # a column without a time zone passes over the offset


# -- what comes


def _bytes(text: str) -> object:
    try:
        return bytes.fromhex(text.removeprefix("\\x"))
    except ValueError:  # bytea_output = escape
        return re.sub(rb"\\(\\|[0-7]{3})", lambda one: b"\\" if one[1] == b"\\" else bytes([int(one[1], 8) & 255]), text.encode())


def _float(text: str) -> object:
    return float(text)


def _true(text: str) -> object:
    return text == "t"


def _money(text: str) -> object:
    return text[1:]


def _moment(text: str) -> object:
    return write_moment(read_moment(text))


def _time(text: str) -> object:
    return write_moment(read_moment(text))[11:23]


def _json(text: str) -> object:
    return msgspec.Raw(text.encode())


_TYPES: Final[Mapping[int, tuple[str, Reader | None]]] = {
    21: ("int", int), 23: ("int", int), 20: ("bigint", None), 26: ("bigint", None), 700: ("float", _float), 701: ("double", _float),
    16: ("bool", _true), 1082: ("date", None), 1083: ("time", None), 1266: ("time", None), 1114: ("datetime", None),
    1184: ("datetime", None), 1700: ("decimal", None), 790: ("decimal", _money), 114: ("json", None), 3802: ("json", None),
    2950: ("uuid", None), 17: ("bytes", _bytes),
    **dict.fromkeys((1042, 25, 1043, 1560, 1562, 869, 650, 142, 19), ("string", None)),
}  # fmt: skip
"""The name of each type in answers to raw queries, and what reads it."""

_ELEMENTS: Final[Mapping[int, int]] = {
    1005: 21, 1007: 23, 1016: 20, 1028: 26, 1021: 700, 1022: 701, 1000: 16, 1182: 1082, 1183: 1083, 1115: 1114, 1185: 1184, 1231: 1700,
    791: 790, 199: 114, 3807: 3802, 2951: 2950, 1001: 17, 1014: 1042, 1009: 25, 1015: 1043, 1561: 1560, 1563: 1562, 1041: 869, 651: 650,
    143: 142,
}  # fmt: skip
_IN_RAW: Final[Mapping[str, Reader]] = {"datetime": _moment, "time": _time, "json": _json}
_NAMES: Final[Mapping[int, str]] = {
    18: "char", 600: "point", 601: "lseg", 602: "path", 603: "box", 604: "polygon", 628: "line", 718: "circle", 829: "macaddr",
    1186: "interval", 2205: "regclass", 2206: "regtype", 2249: "record", 2278: "void", 3614: "tsvector", 3615: "tsquery", 3220: "pg_lsn",
}  # fmt: skip


def type_name(oid: int) -> str:
    """What Prisma calls a type. Raises PlanError when it has no form for it."""
    if oid in _ELEMENTS:
        return type_name(_ELEMENTS[oid]) + "-array"
    if oid in _TYPES:
        return _TYPES[oid][0]
    if oid >= _FIRST_OWN_OID:
        return "string"
    raise unsupported_type(_NAMES.get(oid, "Unknown"))


def reader(oid: int, is_raw: bool) -> Reader | None:
    """What reads the text of a type; None where it stays text. `is_raw`: as it is told in the answer to a raw query. Raises PlanError."""
    if oid in _ELEMENTS:
        element = reader(_ELEMENTS[oid], is_raw)
        return lambda text: read_array(text, element)
    name = type_name(oid)
    return (_IN_RAW.get(name) if is_raw else None) or (_TYPES[oid][1] if oid in _TYPES else None)
