"""What a plan does to rows: joins by key, pages, distinct ones, rules that they must satisfy. Pure.

Rows are dictionaries that belong to one plan: they are changed in place.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec

from torpor.gateway.http.prisma.errors import PlanError, malformed
from torpor.gateway.http.prisma.values import read_moment, write_moment

_ENCODER = msgspec.json.Encoder(enc_hook=str)

Record = dict[str, Any]
Node = Mapping[str, Any]
Cast = Callable[[Any], Any]


def as_list(value: Any) -> list[Any]:
    """The value, or a list of it alone."""
    return value if isinstance(value, list) else [value]


def as_number(value: Any) -> Any:
    """A number. Raises PlanError."""
    match value:
        case bool():
            pass
        case int() | float():
            return int(value) if isinstance(value, float) and value.is_integer() else value
        case str():
            try:
                return int(value)
            except ValueError:
                try:
                    return as_number(float(value))
                except ValueError:
                    pass
    raise malformed("a number was expected")


def record_key(record: Any, fields: Sequence[str], casts: Sequence[Cast | None] = ()) -> bytes:
    """What two records have in common that agree in these fields."""
    if not isinstance(record, dict):
        raise malformed("a record was expected")
    values = [record.get(field) for field in fields]
    if casts:
        values = [cast(value) if cast is not None and value is not None else value for value, cast in zip(values, casts, strict=False)]
    return _ENCODER.encode([int(value) if isinstance(value, float) and value.is_integer() else value for value in values])


def attach(parents: Any, children: Sequence[tuple[Node, Any]], is_strict: bool) -> Any:
    """Give each parent its children, by the fields that they share. Raises PlanError."""
    rows = as_list(parents)
    for join, found in children:
        parent_fields = [pair[0] for pair in join["on"]]
        child_fields = [pair[1] for pair in join["on"]]
        field, is_unique = join["parentField"], join["isRelationUnique"]
        by_key: dict[bytes, list[Record]] = {}
        for parent in rows:
            by_key.setdefault(record_key(parent, parent_fields), []).append(parent)
            parent[field] = None if is_unique else []
        casts = () if is_strict else _casts(rows, parent_fields)
        for child in as_list(found):
            if child is None:
                continue
            for parent in by_key.get(record_key(child, child_fields, casts), ()):
                if is_unique:
                    parent[field] = child
                else:
                    parent[field].append(child)
    return parents


def _casts(rows: Sequence[Record], fields: Sequence[str]) -> list[Cast | None]:
    return [next((_cast(row.get(field)) for row in rows if row.get(field) is not None), None) for field in fields]


def _cast(value: Any) -> Cast | None:
    match value:
        case bool():
            return bool
        case int() | float():
            return _number_or_none
        case str():
            return _text
    return None


def _number_or_none(value: Any) -> Any:
    try:
        return as_number(value)
    except PlanError:
        return None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def difference(left: Any, right: Any, fields: Sequence[str]) -> list[Any]:
    """Those of the left whose key isn't at the right."""

    def key(item: Any) -> bytes:
        return b"" if item is None else record_key(item, fields)

    known = {key(one) for one in as_list(right)}
    return [one for one in as_list(left) if key(one) not in known]


def process(value: Any, operations: Node) -> Any:
    """Page, make distinct and turn round, here and below. Raises PlanError."""
    match value:
        case None:
            return None
        case str():
            try:
                return process(msgspec.json.decode(value), operations)
            except msgspec.DecodeError:
                raise malformed("a text is no JSON") from None
        case list():
            return _process_many(value, operations)
        case dict():
            return _process_one(value, operations)
    raise malformed("records were expected")


def _process_one(record: Record, operations: Node) -> Record | None:
    page = operations["pagination"]
    if page and ((page["skip"] or 0) > 0 or page["take"] == 0 or (page["cursor"] is not None and not keys_match(record, page["cursor"]))):
        return None
    return _process_nested(record, operations["nested"])


def _process_nested(record: Record, nested: Node) -> Record:
    for name, operations in nested.items():
        record[name] = process(record.get(name), operations)
    return record


def _process_many(records: list[Record], operations: Node) -> list[Record]:
    linking = operations["linkingFields"]
    if operations["distinct"] is not None:
        fields = [*operations["distinct"], *(linking or [])]
        first: dict[bytes, Record] = {}
        for record in records:
            first.setdefault(record_key(record, fields), record)
        records = list(first.values())
    if operations["pagination"]:
        records = _paginate(records, operations["pagination"], linking)
    if operations["reverse"]:
        records.reverse()
    return [_process_nested(record, operations["nested"]) for record in records] if operations["nested"] else records


def _paginate(records: list[Record], page: Node, linking: Sequence[str] | None) -> list[Record]:
    if linking is None:
        return _page(records, page)
    groups: dict[bytes, list[Record]] = {}
    for record in records:
        groups.setdefault(record_key(record, linking), []).append(record)
    return [record for key in sorted(groups) for record in _page(groups[key], page)]


def _page(records: list[Record], page: Node) -> list[Record]:
    start = 0
    if page["cursor"] is not None:
        start = next((at for at, record in enumerate(records) if keys_match(record, page["cursor"])), -1)
        if start < 0:
            return []
    start += page["skip"] or 0
    return records[start:] if page["take"] is None else records[start : start + page["take"]]


def keys_match(record: Record, cursor: Node) -> bool:
    """Whether a record is the one that a cursor stands at."""
    names = record if len(record) < len(cursor) else cursor
    return all(_same(record.get(name), cursor.get(name)) for name in names)


def _same(left: Any, right: Any) -> bool:
    match left, right:
        case (None, _) | (_, None):
            return left is right
        case (bool(), _) | (_, bool()):
            return left is right
        case (bytes(), _) | (_, bytes()):
            return bool(_base64(left) == _base64(right))
        case (datetime(), _) | (_, datetime()):
            return bool(_moment(left) == _moment(right))
        case (str(), str()):
            return left == right
        case (int() | float() | str(), int() | float() | str()):
            try:
                return Decimal(str(left)) == Decimal(str(right))
            except InvalidOperation:
                return False
    return bool(left == right)


def _base64(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _moment(value: Any) -> Any:
    return write_moment(read_moment(value) if isinstance(value, str) else value) if isinstance(value, str | datetime) else value


# -- rules


def satisfies(data: Any, rule: Node) -> bool:
    """Whether data satisfies a rule. Raises PlanError for one that isn't known."""
    count = len(data) if isinstance(data, list) else 0 if data is None else 1
    match rule["type"]:
        case "rowCountEq":
            return bool(count == rule["args"])
        case "rowCountNeq":
            return bool(count != rule["args"])
        case "affectedRowCountEq":
            return bool(data == rule["args"])
        case "never":
            return False
    raise malformed(f"the rule {rule['type']!r} isn't known")


def validate(data: Any, rules: Sequence[Node], error: Node) -> None:
    """Raises PlanError, as the plan words it, unless data satisfies all rules."""
    if all(satisfies(data, rule) for rule in rules):
        return
    context = error.get("context") or {}
    found = len(data) if isinstance(data, list) else data if isinstance(data, int) else int(data is not None)
    absent = "An operation failed because it depends on one or more records that were required but not found. "
    needed = f" (needed to {context['neededFor']})" if context.get("neededFor") else ""
    code, message = {
        "RELATION_VIOLATION": (
            "P2014", "The change you are trying to make would violate the required relation '{relation}' between the `{modelA}` and "
            "`{modelB}` models.",
        ),
        "MISSING_RECORD": ("P2025", absent + "No record was found for {operation}."),
        "MISSING_RELATED_RECORD": (
            "P2025", absent + "No '{model}' record" + needed.replace("{", "{{").replace("}", "}}")
            + " was found for {operation} on {relationType} relation '{relation}'.",
        ),
        "INCOMPLETE_CONNECT_INPUT": ("P2025", absent + f"Expected {{expectedRows}} records to be connected, found only {found}."),
        "INCOMPLETE_CONNECT_OUTPUT": (
            "P2018", "The required connected records were not found. Expected {expectedRows} records to be connected after connect "
            f"operation on {{relationType}} relation '{{relation}}', found {found}.",
        ),
        "RECORDS_NOT_CONNECTED": (
            "P2017", "The records for relation `{relation}` between the `{parent}` and `{child}` models are not connected.",
        ),
    }.get(error.get("errorIdentifier", ""), ("P6000", "the plan's data isn't what it must be"))  # fmt: skip
    raise PlanError(code, message.format_map(_Context(context)), context)


class _Context(dict[str, object]):
    def __missing__(self, key: str) -> str:
        return "(not available)"
