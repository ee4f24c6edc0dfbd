"""`torpor size`, and sizes as people write and read them: "0.5:2" processors, "256MB:1GB" of memory. Parsing and texts are pure."""

import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from torpor.cli import text
from torpor.cli.client import database_path
from torpor.cli.invocation import Invocation, with_invocation
from torpor.model.size import GIB, MIB, Pace
from torpor.model.views import Decision, SizeView

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT = "default"
_UNITS = {"b": 1, "kb": 1 << 10, "mb": MIB, "gb": GIB, "tb": GIB << 10}
_BYTES = re.compile(r"(\d+(?:\.\d+)?) ?([kmgt]?i?b|[kmgt])", re.IGNORECASE)
_LABEL_WIDTH = 13


def parse_bytes(value: str) -> int:
    """ "256MB", "1.5 GB", "1G", "1GiB": powers of 1024, as PostgreSQL counts. Raises ValueError."""
    match = _BYTES.fullmatch(value.strip())
    if match is None:
        raise ValueError(f"{value!r} is not a size: give a number and a unit, such as 512MB or 2GB")
    unit = match[2].lower().replace("i", "")
    return int(float(match[1]) * _UNITS[unit if unit.endswith("b") else f"{unit}b"])


def parse_cpu(value: str) -> float:
    """ "2", "0.5", "500m". Raises ValueError."""
    try:
        return float(value[:-1]) / 1000 if value.endswith("m") else float(value)
    except ValueError:
        raise ValueError(f"{value!r} is not a number of processors: give for instance 0.5 or 2") from None


class Range(click.ParamType[tuple[Any, Any]]):
    """ "LEAST:MOST" or just "MOST"; "default" for both, or for either end."""

    def __init__(self, name: str, parse: Callable[[str], float]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, Any]:
        """Two ends: a number, "default", or None for one that isn't given."""
        if isinstance(value, tuple):
            return value
        low, colon, high = str(value).partition(":")
        try:
            if not colon:
                return (DEFAULT, DEFAULT) if low == DEFAULT else (None, self._parse(low))
            return self._end(low), self._end(high)
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def _end(self, value: str) -> Any:
        return None if not value else DEFAULT if value == DEFAULT else self._parse(value)


class Amount(click.ParamType[Any]):
    """One number, or "default"."""

    def __init__(self, name: str, parse: Callable[[str], float]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or the word."""
        if not isinstance(value, str) or value == DEFAULT:
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _count(value: str) -> int:
    if not value.isdigit():
        raise ValueError(f"{value!r} is not a number of connections")
    return int(value)


def with_size(command: F) -> F:
    """Give a command the options that make up a size."""
    for option in (
        click.option("--disk", type=Amount("size", parse_bytes), help="What its volume may take, such as 10GB."),
        click.option("--connections", type=Amount("number", _count), help="Connections of clients at once."),
        click.option("--memory", type=Range("least:most", parse_bytes), help="Memory, such as 1GB or 256MB:1GB."),
        click.option("--cpu", type=Range("least:most", parse_cpu), help="Processors: the most (2), or the least and the most (0.5:2)."),
    ):
        command = option(command)
    return command


def size_body(cpu: Any, memory: Any, connections: Any, disk: Any) -> dict[str, Any]:
    """The fields that were given, as the API wants them; null goes back to the daemon's setting."""
    low_cpu, high_cpu = cpu or (None, None)
    low_memory, high_memory = memory or (None, None)
    given = {
        "min_cpu": low_cpu,
        "max_cpu": high_cpu,
        "min_memory_bytes": low_memory,
        "max_memory_bytes": high_memory,
        "connections": connections,
        "disk_bytes": disk,
    }
    return {name: None if value == DEFAULT else value for name, value in given.items() if value is not None}


@click.command(name="size")
@click.argument("name")
@with_size
@with_invocation
def size(invocation: Invocation, name: str, cpu: Any, memory: Any, connections: Any, disk: Any) -> None:
    """What a database may use, what it may use now, and why; with options, change that. "default" goes back to Torpor's own."""
    client = invocation.connect()
    if body := size_body(cpu, memory, connections, disk):
        client.patch(database_path(name), {"size": body})
    answer = client.get(database_path(name, "size"))
    invocation.emit(answer, lambda: "\n".join(page(client.decode(SizeView, answer), time.time())))


def page(view: SizeView, now: float) -> list[str]:
    """Everything on a size. Pure."""
    lines = summary(view)
    lines += [_line("held by", "; ".join(f"{name}: {text.clean(how)}" for name, how in view.held.items()))] if view.held else []
    if not view.decisions:
        return [*lines, "", "no decisions since Torpor started"]
    rows = [
        [
            f"{text.age(each.at, now)} ago",
            each.kind,
            _ceiling(each, each.before),
            _ceiling(each, each.after),
            str(each.reason),
            inputs(each),
        ]
        for each in view.decisions
    ]
    return [
        *lines,
        "",
        "why this size, newest first:",
        *text.table(["WHEN", "WHAT", "FROM", "TO", "REASON", "FROM THESE"], rows).splitlines(),
    ]


def summary(view: SizeView) -> list[str]:
    """A size in four lines: what may be, and what is. Pure."""
    size, own = view.size, view.overrides
    awake = view.pace is not None
    cpu, memory = f"{size.min_cpu:g} to {size.max_cpu:g}", f"{text.size(size.min_memory_bytes)} to {text.size(size.max_memory_bytes)}"
    now_cpu = f"; now {_now(view)}, uses {view.cpu_use:.2f}" if awake else ""
    limit = "" if view.connection_limit in (0, size.connections) else f", {view.connection_limit} until its next start"
    soft = f", kept up to {text.size(view.memory_ceiling_bytes)}" if view.memory_ceiling_bytes is not None and awake else ""
    used = f"; now {text.size(view.memory_bytes)}{soft}" if view.memory_bytes else ""
    return [
        _line("processors", cpu + _mark(own.min_cpu, own.max_cpu) + now_cpu),
        _line("memory", memory + _mark(own.min_memory_bytes, own.max_memory_bytes) + used),
        _line("connections", f"{view.connections} of {size.connections}{_mark(own.connections)}{limit}"),
        _line("disk", f"{text.size(view.disk_bytes)} of {text.size(size.disk_bytes)}{_mark(own.disk_bytes)}{_shared(view)}"),
    ]


def inputs(decision: Decision) -> str:
    """The figures that a decision follows from, in a cell. Pure."""
    parts = []
    for name, value in decision.inputs.items():
        word = name.removesuffix("_bytes").replace("_per_s", "/s").replace("_", " ")
        parts.append(f"{word} {text.size(value) if name.endswith('_bytes') else f'{value:g}'}")
    return ", ".join(parts)


def _now(view: SizeView) -> str:
    words = {Pace.BOOSTED: "all of them (it woke a moment ago)", Pace.YIELDING: ", yields to who uses less"}
    ceiling = "all of them" if view.cpu_ceiling is None else f"{view.cpu_ceiling:.2g}"
    if view.pace is Pace.BOOSTED:
        return words[Pace.BOOSTED]
    return ceiling + (words[Pace.YIELDING] if view.pace is Pace.YIELDING else "")


def _ceiling(decision: Decision, value: float | None) -> str:
    if decision.kind == "pace":
        return "-" if value is None else f"{value:.2g}"
    if value is None:
        return "none"
    return text.size(value) if decision.kind == "memory" else f"{value:.2g}"


def _shared(view: SizeView) -> str:
    """Told where it is more than the slack of rounding."""
    if view.disk_own_bytes is None or view.disk_bytes - view.disk_own_bytes < MIB:
        return ""
    return f"; {text.size(view.disk_own_bytes)} count for it, the rest for what it was copied from"


def _mark(*own: object) -> str:
    return " (own)" if any(value is not None for value in own) else ""


def _line(label: str, value: str) -> str:
    return f"{label.ljust(_LABEL_WIDTH)}{value}"
