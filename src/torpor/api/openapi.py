"""The OpenAPI 3.1 document, derived from the table of operations and from the types that they take and give. Pure.

msgspec can't describe a union of two enums (why a database is in its tier), so the few kinds of types that we use are described here.
"""

import dataclasses
import enum
import inspect
import re
import types
import typing
from collections.abc import Iterable
from typing import Any

import msgspec

from torpor import __version__
from torpor.api.asgi import MAX_BODY_BYTES
from torpor.api.calls import Operation
from torpor.api.faults import ErrorAnswer, MisdirectedRequest, RequestTimeout, RequestTooLarge, TooManyRequests, error_answer
from torpor.api.operations import OPERATIONS
from torpor.model.errors import Forbidden, InvalidRequest, PoolFull, TorporError, Unauthorized

_PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    type(None): {"type": "null"},
}
_PATH_EXAMPLES = {"name": "shop", "workspace": "acme", "key": "kx4tq7m2abcd", "job": "jk3v5q2mzab7w", "fingerprint": "5f2a9c1be07d4463"}
_PATH_NAMES = {
    "name": "The name of the database.",
    "workspace": "The name of the workspace; `self` is the one of the key that asks.",
    "key": "The id of the key.",
    "job": "The id of the job.",
    "fingerprint": "The fingerprint of the statement.",
}
_BOUNDS = {"ge": "minimum", "le": "maximum", "description": "description", "examples": "examples"}
_ABOUT = """Databases that sleep when nobody uses them. Everything but `/healthz` needs a bearer token: an API key of a workspace,
which sees and touches that workspace only (what belongs to others is not found), or the host's token, which Torpor keeps in the file
`token` of its data directory. Each operation tells the scope that it needs: `read` sees databases and their state, never what is in
them; `write` also makes, changes and removes them and gets at what is in them; `admin` also rules over the workspace's keys and sees its
audit log; `metrics` reads the host's metrics and nothing else; `host` is the host's token alone. Requests of a key are limited in their
rate (`RateLimit` headers); what changes something counts as five. Every error has the same shape: `kind` for programs, `message` and
`hint` for people, `sqlstate` as a PostgreSQL client would see it. Times are seconds since the epoch, sizes are bytes."""


def document(url: str) -> dict[str, Any]:
    """The document for an API at `url`, ready to be encoded as JSON."""
    schemas = Schemas()
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Torpor",
            "version": __version__,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": url}],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "An API key, or the content of the token file."}
            },
        },
    }


class Schemas:
    """JSON schemas of types; those with a name are collected as components."""

    def __init__(self) -> None:
        self.components: dict[str, dict[str, Any]] = {}

    def of(self, kind: Any) -> dict[str, Any]:
        """The schema of a type, by reference when it has a name."""
        if kind in _PLAIN:
            return dict(_PLAIN[kind])
        if isinstance(kind, typing.NewType):
            return self.of(kind.__supertype__)
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin is typing.Annotated:
            return {**self.of(arguments[0]), **_constraints(arguments[1:])}
        if origin is typing.Literal:
            return {"type": "string", "enum": list(arguments)}
        if origin in (typing.Union, types.UnionType):
            return _any_of([self.of(each) for each in arguments if each is not msgspec.UnsetType])
        if origin is tuple:
            return {"type": "array", "items": self.of(arguments[0])}
        if origin is dict:
            return {"type": "object", "additionalProperties": self.of(arguments[1])}
        return self._named(kind)

    def fields(self, kind: type) -> Iterable[tuple[str, dict[str, Any], bool]]:
        """Name, schema and whether it must be given, of each field."""
        hints = typing.get_type_hints(kind, include_extras=True)
        if dataclasses.is_dataclass(kind):
            yield from ((field.name, self.of(hints[field.name]), True) for field in dataclasses.fields(kind))
            return
        for field in msgspec.structs.fields(kind):
            schema = self.of(hints[field.name])
            if not field.required and field.default is not msgspec.UNSET:
                schema["default"] = field.default
            yield field.encode_name, schema, field.required

    def _named(self, kind: type) -> dict[str, Any]:
        if kind.__name__ not in self.components:
            schema: dict[str, Any] = {"description": inspect.cleandoc(kind.__doc__ or "")}
            self.components[kind.__name__] = schema
            if issubclass(kind, enum.Enum):
                schema.update(type="string", enum=[member.value for member in kind])
            else:
                listed = list(self.fields(kind))
                schema.update(type="object", properties={name: field for name, field, _ in listed})
                if required := [name for name, _, needed in listed if needed]:
                    schema["required"] = required
                if getattr(getattr(kind, "__struct_config__", None), "forbid_unknown_fields", False):
                    schema["additionalProperties"] = False
        return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _operation(operation: Operation, schemas: Schemas) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.id,
        "summary": operation.summary,
        "description": f"{inspect.cleandoc(operation.handle.__doc__ or '')}\n\n{_needs(operation)}",
        "tags": [_tag(operation.path)],
        "parameters": [
            {
                "name": name,
                "in": "path",
                "required": True,
                "description": _PATH_NAMES[name],
                "schema": {"type": "string"},
                "example": _PATH_EXAMPLES[name],
            }
            for name in re.findall(r"\{(\w+)\}", operation.path)
        ],
        "responses": {str(operation.status): _success(operation, schemas), **_refusals(operation, schemas)},
        "security": [] if operation.scope is None else [{"key": [operation.scope.value]}],
    }
    for name, schema, required in schemas.fields(operation.query):
        text = schema.pop("description", "")
        described["parameters"].append({"name": name, "in": "query", "required": required, "description": text, "schema": schema})
    if operation.body is not None:
        content = {"schema": schemas.of(operation.body), "example": operation.body_example}
        described["requestBody"] = {
            "required": False,
            "description": f"At most {MAX_BODY_BYTES} bytes. Unknown fields are refused.",
            "content": {"application/json": content},
        }
    return described


def _needs(operation: Operation) -> str:
    return "Needs no key." if operation.scope is None else f"Needs the scope `{operation.scope}`."


def _tag(path: str) -> str:
    kinds = {"databases": "databases", "workspaces": "workspaces", "audit": "audit", "jobs": "jobs"}
    return kinds.get(path.split("/")[2] if path.startswith("/v1/") else "", "host")


def _success(operation: Operation, schemas: Schemas) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": "Done." if operation.result is None else operation.summary + ": done."}
    if operation.result is not None:
        content: dict[str, Any] = {"schema": schemas.of(operation.result)}
        if operation.example is not None:
            content["example"] = msgspec.to_builtins(operation.example)
        answer["content"] = {operation.media.partition(";")[0]: content}
    return answer


def _refusals(operation: Operation, schemas: Schemas) -> dict[str, Any]:
    common: tuple[type[TorporError], ...] = (InvalidRequest, MisdirectedRequest, TooManyRequests)
    common += () if operation.scope is None else (Unauthorized, Forbidden)
    common += () if operation.body is None else (RequestTooLarge, RequestTimeout)
    common += (PoolFull,) if operation.action and PoolFull not in operation.refusals else ()
    by_status: dict[str, list[type[TorporError]]] = {}
    for error in (*common, *operation.refusals):
        by_status.setdefault(str(error.http_status), []).append(error)
    return {
        status: {
            "description": " or ".join(f"`{error.kind}` ({error.sqlstate})" for error in listed),
            "content": {
                "application/json": {
                    "schema": schemas.of(ErrorAnswer),
                    "examples": {
                        error.kind: {"value": msgspec.to_builtins(error_answer(error("what went wrong", "what to do next")))}
                        for error in listed
                    },
                }
            },
        }
        for status, listed in sorted(by_status.items())
    }


def _any_of(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _constraints(annotations: Iterable[object]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for meta in annotations:
        if isinstance(meta, msgspec.Meta):
            found.update({name: getattr(meta, key) for key, name in _BOUNDS.items() if getattr(meta, key) is not None})
    return found
