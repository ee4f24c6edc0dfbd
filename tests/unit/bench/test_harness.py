"""What the benchmarks share: a wrong percentile or verdict would make every claim wrong."""

import json
from pathlib import Path

import pytest

from bench.harness import Result, keep, latencies, percentile


def test_percentile_is_a_value_that_was_measured() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert [percentile(values, percent) for percent in (0, 1, 50, 99, 100)] == [1, 1, 50, 99, 100]
    assert percentile([7.0], 99) == 7
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_a_target_holds_on_its_own_side() -> None:
    assert Result("b", "m", "ms", 2, 2).holds is True
    assert Result("b", "m", "ms", 2.1, 2).holds is False
    assert Result("b", "m", "ratio", 0.98, 0.97, at_least=True).holds is True
    assert Result("b", "m", "ratio", 0.42, 0.97, at_least=True).holds is False
    assert Result("b", "m", "ms", 2).holds is None


def test_keep_replaces_only_the_same_benchmark(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    keep([Result("a", "m", "ms", 1), Result("b", "m", "ms", 2)], file)
    keep(latencies("a", "query", [3.0, 1.0, 2.0], p50=2), file)
    rows = json.loads(file.read_text())
    assert [(row["bench"], row["metric"], row["value"], row["holds"]) for row in rows] == [
        ("a", "query p50", 2, True),
        ("a", "query p99", 3, None),
        ("a", "query max", 3, None),
        ("b", "m", 2, None),
    ]
    assert set(rows[0]) == {"bench", "metric", "unit", "value", "target", "holds", "rival"}
