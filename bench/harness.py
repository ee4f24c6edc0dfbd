"""What benchmarks share: results against targets, percentiles, the table, and bench/results.json. Single-threaded."""

import json
import math
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).with_name("results.json")


@dataclass(frozen=True, slots=True)
class Result:
    """One number. `target` is None for what is only shown; `at_least` says that more is better; `rival` names whose number it is when
    it isn't Torpor's."""

    bench: str
    metric: str
    unit: str
    value: float
    target: float | None = None
    at_least: bool = False
    rival: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of `values` that at least `percent` of them don't exceed (nearest rank)."""
    if not values:
        raise ValueError("no values were measured")
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def latencies(bench: str, metric: str, values_ms: Sequence[float], p50: float | None = None, p99: float | None = None) -> list[Result]:
    """p50 and p99 of `values_ms` against their targets, and the largest."""
    return [
        Result(bench, f"{metric} p50", "ms", percentile(values_ms, 50), p50),
        Result(bench, f"{metric} p99", "ms", percentile(values_ms, 99), p99),
        Result(bench, f"{metric} max", "ms", max(values_ms)),
    ]


def show(results: Iterable[Result]) -> None:
    """Print the results as a table."""
    table = Table(box=None, header_style="bold")
    for column in ("bench", "metric", "value", "target", ""):
        table.add_column(column, justify="right" if column in ("value", "target") else "left")
    for result in results:
        target = "" if result.target is None else f"{'>=' if result.at_least else '<='} {result.target:g} {result.unit}"
        verdict = {True: "[green]holds", False: "[red]missed", None: ""}[result.holds]
        name = f"{result.metric} ({result.rival})" if result.rival else result.metric
        table.add_row(result.bench, name, f"{result.value:.3g} {result.unit}", target, verdict)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def keep(results: Sequence[Result], file: Path = RESULTS) -> None:
    """Replace what `file` says of the same benchmarks by `results`."""
    benches = {result.bench for result in results}
    known = json.loads(file.read_text()) if file.exists() else []
    rows = [row for row in known if row["bench"] not in benches]
    for result in results:
        row = asdict(result)
        del row["at_least"]
        rows.append({**row, "value": float(f"{result.value:.6g}"), "holds": result.holds})
    partial = file.with_suffix(".partial")
    partial.write_text("[\n" + ",\n".join(json.dumps(row) for row in sorted(rows, key=lambda row: str(row["bench"]))) + "\n]\n")
    partial.replace(file)


def main(measure: Callable[[], list[Result]]) -> None:
    """Run one benchmark: measure, keep, show. A missed target isn't an error; a benchmark that can't run is.

    SIGTERM ends it like Ctrl-C: what it set up is taken down.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    results = measure()
    keep(results)
    show(results)
