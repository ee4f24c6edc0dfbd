"""Numbers about what runs, in Prometheus' text format, off nothing but memory.

Our own small registry, since prometheus-client takes 200 ms to render 1,000 databases, and the loop stands still for as long.
Counters and histograms remember; a `Readings` family asks a callback at the moment of rendering and remembers nothing.

Bounded: a counter or histogram keeps at most `max_series` sets of label values, and adds what comes after them to one set in which
every value is "other". Label values are hostile (names of databases) and are escaped.
Concurrency: everything is synchronous and meant for the loop's thread; `render` calls the callbacks, which must not block.
"""

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Literal, Protocol, TypeVar

from torpor.base.logs import get_logger

log = get_logger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

LATENCY_BUCKETS_MS = tuple(float(1 << n) for n in range(13))
"""1, 2, 4 … 4096 ms."""

Reading = tuple[tuple[str, ...], float]
"""Label values, and the number that belongs to them."""

_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_UNSAFE = re.compile(r'[\\"\n]')
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n"}
_MAX_LABEL_LENGTH = 200


class Metric(Protocol):
    """A family of series under one name."""

    @property
    def name(self) -> str: ...

    def lines(self) -> Iterable[str]:
        """The family in the text format, line by line, without line ends."""
        ...


M = TypeVar("M", bound=Metric)


class Telemetry:
    """All metrics of a process, by name."""

    def __init__(self) -> None:
        self._metrics: dict[str, Metric] = {}

    def __repr__(self) -> str:
        return f"<Telemetry of {len(self._metrics)} metrics>"

    def add(self, metric: M) -> M:
        """Show `metric` from now on, and return it. Raises ValueError when its name is taken."""
        if metric.name in self._metrics:
            raise ValueError(f"metric {metric.name} is there already")
        self._metrics[metric.name] = metric
        return metric

    def render(self) -> bytes:
        """All metrics in the text format. A metric whose callback fails is left out and logged; the others are shown."""
        parts: list[str] = []
        for metric in self._metrics.values():
            try:
                parts.append("\n".join(metric.lines()))
            except Exception:
                log.exception("a metric could not be read", metric=metric.name)
        parts.append("")
        return "\n".join(parts).encode("utf-8", "backslashreplace")


class Readings:
    """A gauge or counter family that `read` gives at the moment of rendering: for what is counted elsewhere anyway."""

    def __init__(
        self,
        name: str,
        help: str,
        read: Callable[[], Iterable[Reading]],
        labels: Sequence[str] = (),
        type: Literal["gauge", "counter"] = "gauge",
    ) -> None:
        self.name = _check_name(name)
        self._read = read
        self._labels = _check_labels(labels)
        self._head = _head(name, help, type)

    def lines(self) -> Iterator[str]:
        """See Metric."""
        yield from self._head
        name, labels = self.name, self._labels
        for values, number in self._read():
            yield f"{name}{_series(labels, values)} {_number(number)}"


class Gauge:
    """One number without labels, set by whoever knows it."""

    def __init__(self, name: str, help: str, value: float = 0) -> None:
        self.name = _check_name(name)
        self.value = value
        self._head = _head(name, help, "gauge")

    def __repr__(self) -> str:
        return f"<Gauge {self.name} {_number(self.value)}>"

    def lines(self) -> Iterator[str]:
        """See Metric."""
        yield from self._head
        yield f"{self.name} {_number(self.value)}"


class Counter:
    """Numbers that only grow, one for each set of label values. End the name in `_total`."""

    def __init__(self, name: str, help: str, labels: Sequence[str] = (), max_series: int = 1000) -> None:
        self.name = _check_name(name)
        self._labels = _check_labels(labels)
        self._head = _head(name, help, "counter")
        self._max_series = max_series
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0}

    def __repr__(self) -> str:
        return f"<Counter {self.name} of {len(self._values)} series>"

    def add(self, *labels: str, amount: float = 1) -> None:
        """Count `amount` more for these label values."""
        key = _key(self._values, labels, self._labels, self._max_series)
        self._values[key] = self._values.get(key, 0) + amount

    def value(self, *labels: str) -> float:
        """What was counted for these label values."""
        return self._values.get(labels, 0)

    def forget(self, *labels: str) -> None:
        """Drop the series of what no longer exists."""
        self._values.pop(labels, None)

    def lines(self) -> Iterator[str]:
        """See Metric."""
        yield from self._head
        for values, number in self._values.items():
            yield f"{self.name}{_series(self._labels, values)} {_number(number)}"


class Histogram:
    """How often values fell into which bucket, for each set of label values. Buckets are upper bounds, ascending."""

    def __init__(
        self, name: str, help: str, labels: Sequence[str] = (), buckets: Sequence[float] = LATENCY_BUCKETS_MS, max_series: int = 1000
    ) -> None:
        if not buckets or list(buckets) != sorted(set(buckets)):
            raise ValueError(f"buckets of {name} must ascend")
        self.name = _check_name(name)
        self._labels = _check_labels(labels)
        self._head = _head(name, help, "histogram")
        self._max_series = max_series
        self._buckets = tuple(float(b) for b in buckets)
        self._bounds = (*map(_number, self._buckets), "+Inf")
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}

    def __repr__(self) -> str:
        return f"<Histogram {self.name} of {len(self._counts)} series>"

    def observe(self, value: float, *labels: str) -> None:
        """Count one `value` for these label values."""
        key = _key(self._counts, labels, self._labels, self._max_series)
        counts = self._counts.get(key)
        if counts is None:
            counts = self._counts[key] = [0] * len(self._bounds)
            self._sums[key] = 0.0
        counts[bisect_left(self._buckets, value)] += 1
        self._sums[key] += value

    def counts(self, *labels: str) -> tuple[int, ...]:
        """How many values each bucket holds, not cumulated; the last one holds those above all bounds."""
        return tuple(self._counts.get(labels, [0] * len(self._bounds)))

    def lines(self) -> Iterator[str]:
        """See Metric."""
        yield from self._head
        for values, counts in self._counts.items():
            total = 0
            for bound, count in zip(self._bounds, counts, strict=True):
                total += count
                yield f"{self.name}_bucket{_series((*self._labels, 'le'), (*values, bound))} {total}"
            series = _series(self._labels, values)
            yield f"{self.name}_sum{series} {_number(self._sums[values])}"
            yield f"{self.name}_count{series} {total}"


def _key(known: Collection[tuple[str, ...]], values: tuple[str, ...], labels: tuple[str, ...], max_series: int) -> tuple[str, ...]:
    if values in known:
        return values
    if len(values) != len(labels):
        raise ValueError(f"expected values for {', '.join(labels) or 'no labels'}, got {len(values)}")
    return values if len(known) < max_series else ("other",) * len(labels)


def _series(labels: tuple[str, ...], values: tuple[str, ...]) -> str:
    if not labels:
        return ""
    return "{" + ",".join([f'{label}="{_escape(value)}"' for label, value in zip(labels, values, strict=True)]) + "}"


def _escape(value: str) -> str:
    if len(value) > _MAX_LABEL_LENGTH:
        value = value[:_MAX_LABEL_LENGTH] + "…"
    return _UNSAFE.sub(_escape_character, value) if _UNSAFE.search(value) else value


def _escape_character(match: re.Match[str]) -> str:
    return _ESCAPES[match[0]]


def _number(value: float) -> str:
    if isinstance(value, float):
        if value.is_integer() and abs(value) < 1e15:
            return str(int(value))
        if math.isinf(value):
            return "+Inf" if value > 0 else "-Inf"
        if math.isnan(value):
            return "NaN"
    return repr(value)


def _head(name: str, help: str, type: str) -> tuple[str, str]:
    help = help.replace("\\", "\\\\").replace("\n", "\\n")
    return f"# HELP {name} {help}", f"# TYPE {name} {type}"


def _check_name(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{name!r} can't name a metric")
    return name


def _check_labels(labels: Sequence[str]) -> tuple[str, ...]:
    for label in labels:
        if _NAME.fullmatch(label) is None or label == "le":
            raise ValueError(f"{label!r} can't name a label")
    return tuple(labels)
