"""Runs a plan: a walk over the tree, which asks the database at its leaves.

Concurrency: the request's task; what works on many rows does so in a thread, so that others' requests go on. Safe to cancel. A
transaction that the plan asks for ends with it: committed when all went well, else rolled back.
"""

import asyncio
from collections import ChainMap
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from typing import Any, Final

from torpor.gateway.http.prisma.errors import PlanError, malformed
from torpor.gateway.http.prisma.generators import Generators
from torpor.gateway.http.prisma.mapping import map_data
from torpor.gateway.http.prisma.records import as_list, as_number, attach, difference, process, satisfies, validate
from torpor.gateway.http.prisma.rendering import Node, evaluate, render
from torpor.gateway.http.prisma.session import Rows, Session

NOTHING: Final = object()
"""What a plan without a result gives: JavaScript's undefined."""

_MANY = 500
_MOST_DEEP = 200
_NODES_A_TURN = 200

Scope = ChainMap[str, Any]


async def interpret(plan: object, parameters: MutableMapping[str, Any], comment: str, session: Session) -> Any:
    """The value of a plan; NOTHING when it has none. Raises PlanError."""
    try:
        return await _Walk(session, comment).node(plan, ChainMap(parameters))
    except RecursionError:
        raise malformed("it is nested too deep") from None
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:  # it isn't of the form that all plans have
        raise malformed(f"{type(error).__name__}: {str(error)[:200]}") from error


class _Walk:
    def __init__(self, session: Session, comment: str) -> None:
        self._session = session
        self._comment = comment
        self._generators = Generators()
        self._depth = self._visited = 0

    async def node(self, node: Any, scope: Scope) -> Any:
        self._visited += 1
        if self._visited % _NODES_A_TURN == 0:
            await asyncio.sleep(0)
        if self._depth >= _MOST_DEEP:
            raise malformed("it is nested too deep")
        self._depth += 1
        try:
            return await self._node(node["type"], node.get("args"), scope)
        finally:
            self._depth -= 1

    async def _node(self, kind: str, args: Any, scope: Scope) -> Any:
        match kind:
            case "query" | "execute":
                return await self._ask(kind, args, scope)
            case "transaction":
                return await self._in_transaction(lambda: self.node(args, scope))
            case "value":
                return evaluate(args, scope, self._generators)
            case "unit":
                return NOTHING
            case "get":
                return scope.get(args["name"], NOTHING)
            case "getFirstNonEmpty":
                return next((scope[name] for name in args["names"] if not _is_empty(scope.get(name))), [])
            case "seq":
                value: Any = NOTHING
                for one in args:
                    value = await self.node(one, scope)
                return value
            case "let":
                inner = scope.new_child()
                for binding in args["bindings"]:
                    inner[binding["name"]] = await self.node(binding["expr"], inner)
                return await self.node(args["expr"], inner)
            case "concat":
                return [item for one in args for item in as_list(await self.node(one, scope))]
            case "sum":
                return sum([as_number(await self.node(one, scope)) for one in args])
            case "if":
                chosen = "then" if satisfies(_plain(await self.node(args["value"], scope)), args["rule"]) else "else"
                return await self.node(args[chosen], scope)
            case "join":
                return await self._join(args, scope)
            case "diff":
                left, right = _plain(await self.node(args["from"], scope)), _plain(await self.node(args["to"], scope))
                return await _aside(lambda: difference(left, right, args["fields"]), left)
            case "dataMap":
                data = _plain(await self.node(args["expr"], scope))
                return await _aside(lambda: map_data(data, args["structure"], args["enums"]), data)
            case "validate":
                checked = await self.node(args["expr"], scope)
                validate(_plain(checked), args["rules"], args)
                return checked
            case "process":
                records = _plain(await self.node(args["expr"], scope))
                operations = self._operations(args["operations"], scope)
                return await _aside(lambda: process(records, operations), records)
            case _:
                return await self._small(kind, args, scope)

    async def _small(self, kind: str, args: Any, scope: Scope) -> Any:
        """What does little with one value."""
        match kind:
            case "reverse":
                value = await self.node(args, scope)
                return value[::-1] if isinstance(value, list) else value
            case "unique":
                value = await self.node(args, scope)
                if not isinstance(value, list):
                    return value
                if len(value) > 1:
                    raise malformed(f"one row was expected, and {len(value)} came")
                return value[0] if value else None
            case "required":
                value = await self.node(args, scope)
                if _is_empty(value):
                    raise malformed("a value that is required is empty")
                return value
            case "mapField":
                return _map_field(_plain(await self.node(args["records"], scope)), args["field"])
            case "initializeRecord":
                await self.node(args["expr"], scope)
                return {name: self._initial(field, scope) for name, field in args["fields"].items()}
            case "mapRecord":
                record = _plain(await self.node(args["expr"], scope)) or {}
                for name, operation in args["fields"].items():
                    record[name] = self._operate(operation, record.get(name), scope)
                return record
        raise malformed(f"a node of the type {str(kind)[:50]!r} isn't known to this version of Torpor")

    async def _ask(self, kind: str, args: Node, scope: Scope) -> Any:
        statements = render(args, scope, self._generators, self._comment)
        is_raw = args["type"] == "rawSql"

        async def execute() -> int:
            return sum([await self._session.execute(one, is_raw) for one in statements])

        async def query() -> Any:
            all_rows: Rows | None = None
            for one in statements:
                found = await self._session.query(one, is_raw)
                if all_rows is None:
                    all_rows = found
                else:
                    all_rows.rows += found.rows
            assert all_rows is not None
            return all_rows.raw() if is_raw else all_rows.records()

        run: Callable[[], Any] = execute if kind == "execute" else query
        return await (run() if len(statements) == 1 else self._in_transaction(run))

    async def _in_transaction(self, run: Callable[[], Any]) -> Any:
        """All or nothing. Inside of a transaction it is that one's."""
        if not await self._session.begin():
            return await run()
        try:
            value = await run()
        except Exception:
            with suppress(PlanError):  # the error that led here is what counts
                await self._session.roll_back()
            raise
        await self._session.commit()
        return value

    async def _join(self, args: Node, scope: Scope) -> Any:
        parent = _plain(await self.node(args["parent"], scope))
        if parent is None:
            return None
        children = [(join, _plain(await self.node(join["child"], scope))) for join in args["children"]]
        return await _aside(lambda: attach(parent, children, args["canAssumeStrictEquality"]), parent, *(found for _, found in children))

    def _operations(self, operations: Node, scope: Scope) -> Node:
        """The operations with the variables of their cursors filled in."""
        page = operations["pagination"]
        if page and page["cursor"]:
            cursor = {name: evaluate(value, scope, self._generators) for name, value in page["cursor"].items()}
            page = {**page, "cursor": cursor}
        nested = {name: self._operations(one, scope) for name, one in operations["nested"].items()}
        return {**operations, "pagination": page, "nested": nested}

    def _initial(self, field: Node, scope: Scope) -> Any:
        if field["type"] == "value":
            return evaluate(field["value"], scope, self._generators)
        if field["type"] == "lastInsertId":
            return None  # PostgreSQL has none; plans for it don't ask
        raise malformed(f"a first value of the type {field['type']!r} isn't known")

    def _operate(self, operation: Node, value: Any, scope: Scope) -> Any:
        given = evaluate(operation["value"], scope, self._generators)
        match operation["type"]:
            case "set":
                return given
            case "add":
                return as_number(value) + as_number(given)
            case "subtract":
                return as_number(value) - as_number(given)
            case "multiply":
                return as_number(value) * as_number(given)
            case "divide":
                divisor = as_number(given)
                return as_number(as_number(value) / divisor) if divisor else None
        raise malformed(f"an operation of the type {operation['type']!r} isn't known")


def _plain(value: Any) -> Any:
    return None if value is NOTHING else value


def _is_empty(value: Any) -> bool:
    return value is NOTHING or value is None or value == []


def _map_field(value: Any, field: str) -> Any:
    match value:
        case list():
            return [_map_field(one, field) for one in value]
        case dict():
            return value.get(field)
    return value


async def _aside(work: Callable[[], Any], *data: Any) -> Any:
    """Do it at once when the rows are few, else in a thread."""
    many = sum(len(one) for one in data if isinstance(one, list | str)) > _MANY
    return await asyncio.to_thread(work) if many else work()
