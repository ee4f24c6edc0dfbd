"""The autoscaler against loads, synthetic and recorded: scores, and what must hold whatever the load."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import loads
from tests.support.loads import Score, simulate
from torpor.control.autoscale import CpuSample, CpuScaler, DiskFairness, Fairness, MemorySample, MemoryScaler
from torpor.model.size import GIB, MIB, ScaleReason, Size

SIZE = Size(0.25, 2.0, 128 * MIB, GIB)


@pytest.mark.parametrize(
    ("load", "floor"),
    [
        # withheld, spare processors, changes an hour, longest time held back in one go: none may be worse
        pytest.param(loads.steady(0.05), Score(0.0, 0.3, 2, 0), id="steady, little"),
        pytest.param(loads.steady(0.2), Score(0.0, 0.8, 2, 0), id="steady"),
        pytest.param(loads.steady(1.0), Score(0.0, 1.1, 2, 0), id="steady, much"),
        pytest.param(loads.spiky(0.05, 1.8, 120, 10), Score(0.0, 1.9, 2, 0), id="spiky within the window"),
        pytest.param(loads.spiky(0.05, 1.8, 400, 10), Score(0.01, 1.9, 30, 0.5), id="spikes rarer than the window"),
        pytest.param(loads.diurnal(1.5), Score(0.01, 1.0, 2, 0.5), id="a day"),
        pytest.param(loads.random_walk(2.0), Score(0.01, 1.7, 10, 1.0), id="a random walk"),
        pytest.param([2 * n / 7200 for n in range(7200)], Score(0.0, 0.8, 16, 0), id="a ramp"),
        pytest.param(loads.spiky(0.05, 2.0, 1, 0.5), Score(0.0, 1.0, 2, 0), id="adversarial: every other half second"),
        pytest.param(loads.spiky(0.05, 2.0, 130, 65), Score(0.0, 1.1, 2, 0), id="adversarial: on and off just over a minute"),
        pytest.param(loads.spiky(0.05, 1.5, 361, 2), Score(0.05, 2.0, 40, 1.0), id="adversarial: just as the ceiling has come down"),
        *(
            pytest.param(loads.recorded(path.stem) * 8, Score(0.005, 1.9, 20, 0.5), id=f"recorded: {path.stem}")
            for path in sorted(loads.RECORDED.glob("*.txt"))
        ),
    ],
)
def test_scores(load: list[float], floor: Score) -> None:
    score, _ = simulate(load, SIZE)
    for name in Score.__slots__:
        assert getattr(score, name) <= getattr(floor, name) + 1e-9, (name, score)


def test_a_spike_has_the_maximum_within_a_second() -> None:
    score, changes = simulate([0.02] * 1200 + [5.0] * 20, Size(0.1, 4.0))
    spike = [(at - 600, change.after, change.reason) for at, change in changes if at > 600]
    assert spike == [(0.5, pytest.approx(0.42, rel=0.05), ScaleReason.SATURATED), (1.0, 4.0, ScaleReason.SATURATED)]
    assert score.longest_withheld_s <= 1.0


def test_the_ceiling_is_four_times_the_average_or_a_third_over_the_peak() -> None:
    """Rounded up to the next of four steps to a doubling."""
    _, changes = simulate([0.2] * 100, SIZE)
    assert [change.after for _, change in changes] == [pytest.approx(0.8, rel=0.06)]
    _, changes = simulate(([0.0] * 98 + [0.9] * 2) * 3, SIZE)
    assert changes[-1][1].after == pytest.approx(1.33 * 0.9, rel=0.19)
    assert changes[-1][1].inputs["peak"] == pytest.approx(0.9)


def test_while_boosted_there_is_no_ceiling() -> None:
    scaler = CpuScaler(100.0, 3.0)
    changes = [scaler.decide(CpuSample(100 + n / 2, 0.5, 2.0, 0.0), SIZE) for n in range(1, 6)]
    assert changes == [None] * 5
    assert scaler.boosted
    change = scaler.decide(CpuSample(103.0, 0.5, 2.0, 0.0), SIZE)
    assert change is not None
    assert (change.after, change.reason) == (2.0, ScaleReason.BOOST_OVER)


def test_another_size_takes_effect_with_the_next_sample() -> None:
    scaler = CpuScaler(0.0, 0.0)
    assert scaler.decide(CpuSample(1, 0.5, 0.1, 0), SIZE)
    change = scaler.decide(CpuSample(2, 0.5, 0.1, 0), Size(1.5, 1.5))
    assert change is not None
    assert (change.after, change.reason) == (1.5, ScaleReason.RESIZED)
    change = scaler.decide(CpuSample(3, 0.5, 0.1, 0), Size(0.1, 0.3))
    assert change is not None
    assert change.after == 0.3


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 8), st.integers(1, 200)), min_size=1, max_size=20),
    st.floats(0.05, 1.0),
    st.floats(1.0, 4.0),
)
def test_whatever_the_load(parts: list[tuple[float, int]], low: float, high: float) -> None:
    """The ceiling stays within the size; down comes a minute after anything else, so nothing flaps."""
    _, changes = simulate([use for use, count in parts for _ in range(count)], Size(low, high))
    before, last_at = None, -60.0
    for at, change in changes:
        assert change.after is not None
        assert low <= change.after <= high
        if before is not None and change.after < before:
            assert change.reason is ScaleReason.QUIET
            assert at - last_at >= 59.5
        before, last_at = change.after, at


# -- memory


def memory(scaler: MemoryScaler, at: float, working_set: float, refaults: float = 0.0, used: float | None = None) -> float | None:
    sample = MemorySample(at, int((working_set if used is None else used) * MIB), int(working_set * MIB), refaults)
    change = scaler.decide(sample, SIZE)
    return None if change is None or change.after is None else round(change.after / MIB)


def test_memory_follows_the_working_set() -> None:
    scaler = MemoryScaler()
    assert memory(scaler, 1, 40) == 128  # the minimum
    assert memory(scaler, 2, 60) is None
    assert memory(scaler, 3, 400) == 609  # up at once: 400 and a quarter, 32 MB to spare, rounded up to a step
    assert [memory(scaler, 4 + n, 60) for n in range(290)] == [None] * 290  # the window still holds it
    lower = [after for n in range(294, 400) if (after := memory(scaler, n, 60)) is not None]
    assert lower == [128]
    assert memory(scaler, 500, 4000) == 1024  # the maximum


def test_pages_that_are_read_again_ask_for_more() -> None:
    scaler = MemoryScaler()
    assert memory(scaler, 1, 90) == 152
    assert memory(scaler, 2, 90, refaults=5000, used=150) == 256
    assert memory(scaler, 3, 90, refaults=5000, used=150) is None  # it has room now
    assert memory(scaler, 4, 90, refaults=5000, used=256) == 431
    assert memory(scaler, 5, 90, refaults=10, used=431) is None


# -- who yields


def over(uses: dict[str, tuple[float, float]], cpus: float = 2) -> set[str]:
    return Fairness[str](cpus).decide(0, uses, 0)


def test_who_uses_more_than_a_fair_share_yields() -> None:
    quiet, busy = (0.7, 0.25), (1.3, 0.25)
    assert over({"a": busy, "b": quiet}) == {"a"}
    assert over({"a": busy}) == {"a"}  # so that who wakes beside it goes first at once
    assert over({"a": (1.05, 0.25)}) == set()
    assert over({"a": (0.2, 0.25), "b": (0.2, 0.25)}, 0.1) == set()  # not more than their minimum
    assert over({"a": (1.5, 4.0), "b": (0.2, 0.25)}) == set()  # it has a right to
    assert over({"a": (0.6, 0.25), "b": (0.6, 0.25), "c": (0.6, 0.25), "d": (0.1, 0.25)}) == {"a", "b", "c"}
    assert over({}) == over({"a": (0.001, 0.25)}) == set()


def test_yielding_ends_when_it_uses_less_though_there_is_room() -> None:
    fairness: Fairness[str] = Fairness(2)
    busy, less = {"a": (1.9, 0.25)}, {"a": (0.3, 0.25)}
    assert fairness.decide(0, busy, 0.0) == {"a"}
    assert fairness.decide(1, less, 1.5) == {"a"}  # not in the very next moment
    assert fairness.decide(3, {"a": (0.9, 0.25)}, 1.0) == {"a"}  # not much less
    assert fairness.decide(4, less, 1.5) == set()
    assert fairness.decide(5, busy, 0.0) == {"a"}


def test_who_gets_little_because_it_yields_goes_on_yielding() -> None:
    """Tried after 30 seconds; when that was wrong, after 60, 120 …"""
    fairness: Fairness[str] = Fairness(2)
    neighbour = (1.6, 1.0)
    yielded, tried_at = True, []
    for half_seconds in range(1200):
        at = half_seconds / 2
        uses = {"greedy": (0.3 if yielded else 1.0, 0.25), "neighbour": neighbour}
        yields = "greedy" in fairness.decide(at, {"greedy": (1.5, 0.25), "neighbour": neighbour} if at == 0 else uses, 0.0)
        if yielded and not yields:
            tried_at.append(at)
        yielded = yields
    assert tried_at == [30, 90.5, 211, 451.5]


def test_who_writes_much_yields_at_the_disk_until_it_has_written_little_for_a_while() -> None:
    fairness = DiskFairness()
    rates = {0: 5, 1: 20, 2: 30, 3: 5, 10: 5, 20: 10, 21: 1, 30: 1, 41: 1, 42: 20}
    changes = [(at, fairness.yields) for at, rate in rates.items() if fairness.decide(at, rate * MIB)]
    assert changes == [(2, True), (41, False)]


def test_nothing_is_remembered_of_who_is_gone() -> None:
    fairness: Fairness[int] = Fairness(2)
    for number in range(1000):
        fairness.decide(number, {number: (1.9, 0.25)}, 0.0)
    assert len(fairness._now) == 1
    assert len(fairness._released) <= 1
