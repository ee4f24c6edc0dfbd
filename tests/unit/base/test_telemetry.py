"""The text format, read back with Prometheus' own parser."""

import math
import time
from collections.abc import Callable, Iterator

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Gauge as LibraryGauge
from prometheus_client.parser import text_string_to_metric_families

from torpor.base.telemetry import Counter, Gauge, Histogram, Metric, Reading, Readings, Telemetry

HOSTILE = 'a"b\\c\nd} 1\n# TYPE forged counter\r\x00\u2028é{'


def parse(*metrics: Metric) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    telemetry = Telemetry()
    for metric in metrics:
        telemetry.add(metric)
    text = telemetry.render().decode()
    assert text.endswith("\n")
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def test_a_counter_with_and_without_labels() -> None:
    plain = Counter("logins_total", "Logins.")
    refused = Counter("refused_total", "Refused, by kind.", ("kind",))
    refused.add("wrong_password")
    refused.add("wrong_password", amount=2)
    assert parse(plain, refused) == {"logins_total": {(): 0}, "refused_total": {(("kind", "wrong_password"),): 3}}
    refused.forget("wrong_password")
    assert refused.value("wrong_password") == 0
    assert "refused_total" not in parse(refused)


@pytest.mark.parametrize("value", [HOSTILE, "", " ", "\\", '"', "\\n"])
def test_hostile_label_values_come_back_unchanged(value: str) -> None:
    counter = Counter("seen_total", "Seen.", ("name", "other"))
    counter.add(value, "x")
    assert parse(counter) == {"seen_total": {(("name", value), ("other", "x")): 1}}


def test_what_is_not_unicode_is_still_rendered() -> None:
    counter = Counter("seen_total", "Seen.", ("name",))
    counter.add("\ud800")
    assert len(parse(counter)["seen_total"]) == 1


def test_long_label_values_are_cut() -> None:
    counter = Counter("seen_total", "Seen.", ("name",))
    counter.add("x" * 1_000_000)
    telemetry = Telemetry()
    telemetry.add(counter)
    assert len(telemetry.render()) < 1000


def test_series_are_bounded() -> None:
    counter = Counter("seen_total", "Seen.", ("name",), max_series=3)
    histogram = Histogram("took_ms", "Took.", ("name",), max_series=3)
    for n in range(1000):
        counter.add(str(n))
        histogram.observe(n, str(n))
    counter.add("1")
    series = parse(counter)["seen_total"]
    assert series == {(("name", "0"),): 1, (("name", "1"),): 2, (("name", "2"),): 1, (("name", "other"),): 997}
    assert len(parse(histogram)["took_ms_count"]) == 4


def test_a_histogram_cumulates_its_buckets() -> None:
    histogram = Histogram("took_ms", "Took.", ("tier",), buckets=(1, 2, 4))
    for value in (0.5, 1, 1.5, 4, 99):
        histogram.observe(value, "frozen")
    assert histogram.counts("frozen") == (2, 1, 1, 1)
    found = parse(histogram)
    assert found["took_ms_bucket"] == {(("le", le), ("tier", "frozen")): n for le, n in (("1", 2), ("2", 3), ("4", 4), ("+Inf", 5))}
    assert found["took_ms_count"] == {(("tier", "frozen"),): 5}
    assert found["took_ms_sum"] == {(("tier", "frozen"),): 106}


def test_gauges_and_readings() -> None:
    gauge = Gauge("up", "Whether it is up.")
    gauge.value = 1.5
    readings = Readings("bytes_total", "Bytes.", lambda: [(("a",), 1e15), (("b",), 2.25)], ("database",), type="counter")
    assert parse(gauge, readings) == {"up": {(): 1.5}, "bytes_total": {(("database", "a"),): 1e15, (("database", "b"),): 2.25}}


def test_odd_numbers() -> None:
    found = parse(Readings("odd", "Odd.", lambda: [(("a",), math.inf), (("b",), -math.inf), (("c",), 2**70)], ("x",)))["odd"]
    assert list(found.values()) == [math.inf, -math.inf, float(2**70)]
    assert math.isnan(parse(Gauge("odd", "Odd.", math.nan))["odd"][()])


def test_a_failing_callback_hides_only_its_own_family(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> Iterator[Reading]:
        yield (), 1
        raise RuntimeError("broken")

    assert parse(Readings("bad", "Bad.", fail), Gauge("good", "Good.", 1)) == {"good": {(): 1}}
    assert "a metric could not be read" in capsys.readouterr().err


def test_help_texts_are_escaped() -> None:
    telemetry = Telemetry()
    telemetry.add(Gauge("up", "a\nb\\c"))
    (family,) = text_string_to_metric_families(telemetry.render().decode())
    assert family.documentation == "a\nb\\c"


def test_mistakes_are_noticed() -> None:
    telemetry = Telemetry()
    telemetry.add(Gauge("up", "Up."))
    with pytest.raises(ValueError, match="there already"):
        telemetry.add(Gauge("up", "Up."))
    with pytest.raises(ValueError, match="can't name a metric"):
        Gauge("a b", "")
    with pytest.raises(ValueError, match="can't name a label"):
        Counter("a", "", ("le",))
    with pytest.raises(ValueError, match="ascend"):
        Histogram("a", "", buckets=(2, 1))
    with pytest.raises(ValueError, match="expected values for x"):
        Counter("a", "", ("x",)).add()


def test_a_thousand_databases_render_much_faster_than_with_the_library() -> None:
    """Rendering holds up the loop. A ratio, since machines differ: prometheus-client takes some 200 ms here, this registry 15."""
    names = [f"tenant-{n:05}" for n in range(1000)]
    metrics = ("connections", "cpu_seconds", "memory_bytes", "swap_bytes", "ingress_bytes", "egress_bytes", "wakes")
    telemetry, library = Telemetry(), CollectorRegistry()
    for metric in metrics:
        telemetry.add(Readings(f"torpor_database_{metric}", "X.", lambda: [((name,), 12345.678) for name in names], ("database",)))
        gauge = LibraryGauge(f"torpor_database_{metric}", "X.", ["database"], registry=library)
        for name in names:
            gauge.labels(name).set(12345.678)

    def fastest(render: Callable[[], bytes]) -> float:
        took = []
        for _ in range(5):
            start = time.process_time()
            assert render().count(b"\n") > 7000
            took.append(time.process_time() - start)
        return min(took)

    assert fastest(telemetry.render) < fastest(lambda: generate_latest(library)) / 2
