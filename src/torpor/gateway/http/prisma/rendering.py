"""From a plan's query to statements with parameters: variables are filled in, lists become as many placeholders. Pure.

Bounded: a value that a variable gives is taken as it is, never looked into for further variables; a statement has at most
`MOST_PARAMETERS`, and what is longer and may be split is. Comments of Prisma's sqlcommenter go behind the statement.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from torpor.gateway.http.prisma.errors import PlanError, malformed
from torpor.gateway.http.prisma.generators import Generators
from torpor.gateway.http.prisma.values import read_moment, to_argument

MOST_PARAMETERS = 32_766
_MOST_STATEMENTS = 1_000

Scope = Mapping[str, object]
Node = Mapping[str, Any]
Item = tuple[Node, Any, Any]
"""A fragment of a template, its value, and the type of that."""


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement, ready to be sent."""

    sql: str
    values: tuple[bytes | None, ...]


def evaluate(value: object, scope: Scope, generators: Generators) -> Any:
    """What a value stands for. Raises PlanError."""
    match value:
        case {"prisma__type": "param", "prisma__value": {"name": str(name), **more}}:
            if name not in scope:
                raise malformed(f"there is no value for the variable {name!r}")
            found = scope[name]
            return read_moment(found) if more.get("type") == "DateTime" and isinstance(found, str) else found
        case {"prisma__type": "generatorCall", "prisma__value": {"name": str(name), "args": list(args)}}:
            return generators.make(name, [evaluate(one, scope, generators) for one in args])
        case list():
            return [evaluate(one, scope, generators) for one in value]
    return value


def render(query: Node, scope: Scope, generators: Generators, comment: str = "") -> list[Statement]:
    """The statements of a query; several only when the parameters are too many for one. Raises PlanError or Failure."""
    values = [evaluate(one, scope, generators) for one in query["args"]]
    kinds = query["argTypes"]
    if query["type"] == "rawSql":
        return [Statement(_text(query["sql"]) + comment, _arguments(zip(values, [*kinds, *[{}] * len(values)], strict=False)))]
    if query["type"] != "templateSql":
        raise malformed(f"a query of the type {query['type']!r} isn't known")
    items = list(_pair(query["fragments"], values, kinds))
    parts = _split(items) if query.get("chunkable") else [items]
    return [_render(part, query["placeholderFormat"], comment) for part in parts]


def comment_of(comments: object) -> str:
    """The comment that goes behind a statement; nothing when there is none. Raises PlanError."""
    if not comments:
        return ""
    if not isinstance(comments, dict) or not all(isinstance(text, str) for text in comments.values()):
        raise malformed("its comments are no texts")
    return " /*" + ",".join(f"{_quoted(name)}='{_quoted(comments[name])}'" for name in sorted(comments)) + "*/"


def _quoted(text: str) -> str:
    return quote(text, safe="!~*()'").replace("'", "\\'")


def _text(value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise malformed("a statement is no text")
    return value


def _pair(fragments: list[Node], values: list[Any], kinds: list[Any]) -> Iterator[Item]:
    at = 0
    for fragment in fragments:
        kind = fragment["type"]
        if kind == "stringChunk":
            yield fragment, None, None
            continue
        if at >= len(values) or at >= len(kinds):
            raise malformed("a template has more places than parameters")
        value = values[at]
        if kind == "parameterTuple":
            value = value if isinstance(value, list) else [value]
        elif kind == "parameterTupleList":
            if not isinstance(value, list) or not value or not all(isinstance(one, list) for one in value):
                raise malformed("a template wants a list of tuples")
        elif kind != "parameter":
            raise malformed(f"a fragment of the type {kind!r} isn't known")
        yield fragment, value, kinds[at]
        at += 1


def _render(items: list[Item], form: Node, comment: str) -> Statement:
    prefix, numbered = _text(form["prefix"]), form["hasNumbering"]
    sql: list[str] = []
    arguments: list[tuple[Any, Any]] = []

    def place(value: Any, kind: Any) -> str:
        arguments.append((value, kind))
        return f"{prefix}{len(arguments)}" if numbered else prefix

    for fragment, value, kind in items:
        match fragment["type"]:
            case "stringChunk":
                sql.append(_text(fragment["chunk"]))
            case "parameter":
                sql.append(place(value, kind))
            case "parameterTuple":
                each = [fragment["itemPrefix"] + place(*one) + fragment["itemSuffix"] for one in _typed(value, kind)]
                sql.append(f"({fragment['itemSeparator'].join(each) or 'NULL'})")
            case _:
                tuples = [fragment["itemSeparator"].join(place(*one) for one in _typed(row, kind)) for row in value]
                sql.append(fragment["groupSeparator"].join(fragment["itemPrefix"] + row + fragment["itemSuffix"] for row in tuples))
        if len(arguments) > MOST_PARAMETERS:
            raise PlanError("P2029", "The query parameter limit supported by your database is exceeded.")
    return Statement("".join(sql) + comment, _arguments(arguments))


def _typed(values: list[Any], kind: Any) -> Iterator[tuple[Any, Any]]:
    """Each value with its type: those of a tuple take turns."""
    if kind["arity"] != "tuple":
        yield from ((one, kind) for one in values)
        return
    elements = kind["elements"]
    if not elements or len(values) % len(elements):
        raise malformed(f"{len(values)} parameters stand where tuples of {len(elements)} are wanted")
    yield from ((one, elements[at % len(elements)]) for at, one in enumerate(values))


def _arguments(pairs: Any) -> tuple[bytes | None, ...]:
    return tuple(to_argument(value, kind) for value, kind in pairs)


def _size(value: Any, kind: str) -> int:
    if kind == "parameterTupleList":
        return sum(len(one) for one in value)
    return len(value) if kind == "parameterTuple" else int(kind == "parameter")


def _split(items: list[Item]) -> list[list[Item]]:
    """Several templates where one would have too many parameters: the longest list is cut."""
    sizes = [_size(value, fragment["type"]) for fragment, value, _ in items]
    total = sum(sizes)
    if total <= MOST_PARAMETERS:
        return [items]
    at = max(range(len(items)), key=sizes.__getitem__)
    fragment, value, kind = items[at]
    room = MOST_PARAMETERS - (total - sizes[at])
    each = 1 if fragment["type"] == "parameterTuple" else max(len(one) for one in value) if fragment["type"] == "parameterTupleList" else 0
    if each == 0 or room < each:
        return [items]  # which is refused
    step = room // each
    if len(value) > step * _MOST_STATEMENTS:
        raise PlanError("P2029", "The query parameter limit supported by your database is exceeded.")
    return [[*items[:at], (fragment, value[start : start + step], kind), *items[at + 1 :]] for start in range(0, len(value), step)]
