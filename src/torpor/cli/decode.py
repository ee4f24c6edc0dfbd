"""JSON values into the frozen values of `torpor.model.views`. Pure.

Our own, because importing msgspec takes longer than most commands do. Unknown fields are ignored and absent ones take their default,
so that a command and a daemon of neighbouring versions understand each other.
"""

import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


class Undecodable(ValueError):
    """The value doesn't have the shape that was expected."""


def decode(kind: type[T], value: Any) -> T:
    """`value` as a `kind`. Raises Undecodable, naming the place."""
    decoder: Decoder = _decoder(typing.cast(Any, kind))
    return typing.cast(T, decoder(value, kind.__name__))


Decoder = Callable[[Any, str], Any]


@cache
def _decoder(kind: Any) -> Decoder:
    kind = getattr(kind, "__supertype__", kind)  # a NewType decodes as what it stands for
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _union(arguments)
    if origin is tuple:
        return _tuple(_decoder(arguments[0]))
    if origin is dict:
        return _dict(_decoder(arguments[0]), _decoder(arguments[1]))
    if is_dataclass(kind):
        return _dataclass(kind)
    return _scalar(kind)


def _scalar(kind: Any) -> Decoder:
    def scalar(value: Any, place: str) -> Any:
        if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
            return value
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if issubclass(kind, Enum):
            try:
                return kind(value)
            except ValueError:
                pass
        raise Undecodable(f"{place}: {value!r:.60} is no {kind.__name__}")

    return scalar


def _union(arguments: tuple[Any, ...]) -> Decoder:
    nullable = types.NoneType in arguments
    decoders = [_decoder(kind) for kind in arguments if kind is not types.NoneType]

    def union(value: Any, place: str) -> Any:
        if value is None and nullable:
            return None
        for position, one in enumerate(decoders, 1):
            try:
                return one(value, place)
            except Undecodable:
                if position == len(decoders):
                    raise
        raise Undecodable(f"{place}: nothing fits")

    return union


def _tuple(item: Decoder) -> Decoder:
    def sequence(value: Any, place: str) -> Any:
        if not isinstance(value, list):
            raise Undecodable(f"{place}: {value!r:.60} is no list")
        return tuple(item(one, place) for one in value)

    return sequence


def _dict(key: Decoder, item: Decoder) -> Decoder:
    def mapping(value: Any, place: str) -> Any:
        if not isinstance(value, dict):
            raise Undecodable(f"{place}: {value!r:.60} is no object")
        return {key(name, place): item(one, place) for name, one in value.items()}

    return mapping


def _dataclass(kind: Any) -> Decoder:
    hints = typing.get_type_hints(kind)
    parts = [
        (f.name, _decoder(hints[f.name]), f"{kind.__name__}.{f.name}", f.default is MISSING and f.default_factory is MISSING)
        for f in fields(kind)
    ]

    def record(value: Any, place: str) -> Any:
        if not isinstance(value, dict):
            raise Undecodable(f"{place}: {value!r:.60} is no object")
        given = {}
        for name, one, where, required in parts:
            if name in value:
                given[name] = one(value[name], where)
            elif required:
                raise Undecodable(f"{where} is missing")
        return kind(**given)

    return record
