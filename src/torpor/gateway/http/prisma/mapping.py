"""Rows into the objects that the client's schema describes, each value in Prisma's JSON form. Pure."""

import base64
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from torpor.gateway.http.prisma.errors import PlanError, inconsistent, malformed
from torpor.gateway.http.prisma.values import read_moment, write_moment
from torpor.gateway.http.values import read_array

_MOST_EXACT = 2**53 - 1
_BOOLEANS = {"true": True, "TRUE": True, "1": True, "t": True, "false": False, "FALSE": False, "0": False, "f": False}

Enums = Mapping[str, Mapping[str, str]]
Node = Mapping[str, Any]


def map_data(data: Any, structure: Node, enums: Enums) -> Any:
    """Give data the shape of the structure. Raises PlanError."""
    match structure["type"]:
        case "affectedRows":
            if isinstance(data, bool) or not isinstance(data, int):
                raise inconsistent("Expected an affected rows count")
            return {"count": data}
        case "object":
            return _objects(data, structure["fields"], enums, structure.get("skipNulls", False))
        case "field":
            return _value(data, "<result>", structure["fieldType"], enums)
    raise malformed(f"a structure of the type {structure['type']!r} isn't known")


def _objects(data: Any, fields: Node, enums: Enums, skip_nulls: bool) -> Any:
    match data:
        case None:
            return None
        case list():
            return [_object(row, fields, enums) for row in data if not (skip_nulls and row is None)]
        case dict():
            return _object(data, fields, enums)
        case str():
            try:
                decoded = msgspec.json.decode(data)
            except (msgspec.DecodeError, RecursionError):
                raise inconsistent("Expected an array or object, got a string that is not valid JSON") from None
            return None if isinstance(decoded, str) else _objects(decoded, fields, enums, skip_nulls)
    raise inconsistent(f"Expected an array or an object, got: {type(data).__name__}")


def _object(row: Any, fields: Node, enums: Enums) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise inconsistent("Expected an object")
    result: dict[str, Any] = {}
    for name, node in fields.items():
        kind = node["type"]
        if kind == "field":
            column = node["dbName"]
            if column not in row:
                raise inconsistent(f"Missing data field (Value): '{column}'")
            value, wanted = row[column], node["fieldType"]
            if wanted["arity"] != "list":
                result[name] = None if value is None else _value(value, column, wanted, enums)
            elif value is None:
                result[name] = []
            else:
                result[name] = [_value(one, column, wanted, enums) for one in _list(value, column)]
        elif kind == "object":
            column = node["serializedName"]
            if column is not None and column not in row:
                raise inconsistent(f"Missing data field (Object): '{name}'")
            result[name] = _objects(row if column is None else row[column], node["fields"], enums, node.get("skipNulls", False))
        else:
            raise malformed(f"a field of the type {kind!r} isn't known")
    return result


def _list(value: Any, column: str) -> list[Any]:
    """A list, also in PostgreSQL's text: that is how some come that were put into JSON (relationJoins)."""
    found = read_array(value, None) if isinstance(value, str) and value.startswith("{") else value
    if not isinstance(found, list):
        raise inconsistent(f"Expected a list in column '{column}'")
    return found


def _value(value: Any, column: str, wanted: Node, enums: Enums) -> Any:
    kind = wanted["type"]
    match kind, value:
        case ("unsupported", _) | ("string", str()) | ("boolean", bool()):
            return value
        case "int", int() | str() | float():
            return _int(value, column)
        case "bigint", int() | str():
            return {"$type": "BigInt", "value": str(value)}
        case "float", int() | float():
            return value
        case "float", str():
            try:
                return float(value)
            except ValueError:
                raise inconsistent(f"Expected a float in column '{column}', got string: {value}") from None
        case "boolean", int():
            return value == 1
        case "boolean", str() if value in _BOOLEANS:
            return _BOOLEANS[value]
        case "decimal", int() | float() | str():
            return {"$type": "Decimal", "value": str(value)}
        case "datetime", str():
            return {"$type": "DateTime", "value": write_moment(read_moment(value))}
        case "datetime", datetime():
            return {"$type": "DateTime", "value": write_moment(value)}
        case "object", _:
            return {"$type": "Json", "value": msgspec.json.encode(value).decode()}
        case "json", _:
            return {"$type": "Json", "value": value if isinstance(value, str) else msgspec.json.encode(value).decode()}
        case "bytes", _:
            return {"$type": "Bytes", "value": _base64(value, column, wanted.get("encoding"))}
        case "enum", _:
            known = enums.get(wanted["name"])
            if known is None:
                raise inconsistent(f"Unknown enum '{wanted['name']}'")
            if str(value) not in known:
                raise inconsistent(f"Value '{value}' not found in enum '{wanted['name']}'")
            return known[str(value)]
    raise inconsistent(f"Expected a value of the type {kind} in column '{column}', got {type(value).__name__}")


def _int(value: int | float | str, column: str) -> int:
    try:
        number = int(value) if not isinstance(value, str) or value.lstrip("-").isdecimal() else int(float(value))
    except (ValueError, OverflowError):
        raise inconsistent(f"Expected an integer in column '{column}', got: {value}") from None
    if abs(number) > _MOST_EXACT:
        raise PlanError(
            "P2023",
            f"Integer value in column '{column}' is too large to represent as a JavaScript number without loss of precision, got: {value}. "
            "Consider using BigInt type.",
        )
    return number


def _base64(value: Any, column: str, encoding: object) -> str:
    match encoding, value:
        case "base64", str():
            return value
        case "hex", str() if value.startswith("\\x"):
            try:
                return base64.b64encode(bytes.fromhex(value[2:])).decode()
            except ValueError:
                pass
        case "array", bytes():
            return base64.b64encode(value).decode()
        case "array", list() if all(isinstance(one, int) and 0 <= one <= 255 for one in value):
            return base64.b64encode(bytes(value)).decode()
    raise inconsistent(f"Expected bytes in column '{column}'")
