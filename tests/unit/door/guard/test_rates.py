"""Rates over several windows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.door.guard.rates import RateLimit
from torpor.model.errors import BadSettings
from torpor.model.limits import Rates, parse_rates


def allowed(limit: "RateLimit[str]", key: str, now: float) -> bool:
    if limit.wait_s(key, now):
        return False
    limit.note(key, now)
    return True


def test_each_window_holds() -> None:
    limit: RateLimit[str] = RateLimit(parse_rates("x", "10/2/1"))
    assert sum(allowed(limit, "a", 0.0) for _ in range(50)) == 10  # a second's worth at once
    taken = sum(allowed(limit, "b", tick / 20) for tick in range(20 * 3600))
    assert 3600 <= taken <= 3600 + 600 + 10  # a mean of one a second in the long run


def test_the_wait_is_exact_and_others_are_not_concerned() -> None:
    limit: RateLimit[str] = RateLimit(parse_rates("x", "4/4/4"))
    while allowed(limit, "a", 0.0):
        pass
    wait = limit.wait_s("a", 0.0)
    assert wait == pytest.approx(0.25)
    assert limit.wait_s("a", wait - 0.01)
    assert allowed(limit, "a", wait + 1e-6)
    assert allowed(limit, "b", 0.0)


def test_what_could_not_be_refused_locks_nobody_out_for_longer_than_a_window() -> None:
    limit: RateLimit[str] = RateLimit(parse_rates("x", "10/10/10"))
    for _ in range(100_000):
        limit.note("a", 0.0)
    assert limit.wait_s("a", 0.0) <= 0.11
    assert allowed(limit, "a", 0.2)


def test_the_quiet_are_forgotten() -> None:
    limit: RateLimit[str] = RateLimit(parse_rates("x", "300/200/100"))
    for number in range(100_000):
        limit.note(str(number), number * 0.01)
    assert len(limit) < 4_000


def test_no_windows_no_limit() -> None:
    limit: RateLimit[str] = RateLimit(Rates())
    assert all(allowed(limit, "a", 0.0) for _ in range(1000))


@given(st.lists(st.floats(0, 5), min_size=1, max_size=300))
def test_never_more_than_burst_and_rate(pauses: list[float]) -> None:
    limit: RateLimit[str] = RateLimit(Rates(((5.0, 1.0), (2.0, 60.0))))
    now, times = 0.0, []
    for pause in pauses:
        now += pause / 5
        if allowed(limit, "a", now):
            times.append(now)
    for first in range(len(times)):
        for last in range(first, len(times)):
            span = times[last] - times[first]
            assert last - first + 1 <= 5 + 5 * span + 1e-6
            assert last - first + 1 <= 120 + 2 * span + 1e-6


@pytest.mark.parametrize("text", ["300", "300/200", "a/b/c", "0/0/0", "0.5/1/1", "1e9/1/1", "1/1/1/1", "nan/1/1"])
def test_odd_rates_are_refused(text: str) -> None:
    with pytest.raises(BadSettings, match=r"wake_rate_overall must be"):
        parse_rates("wake_rate_overall", text)


def test_never_is_no_limit() -> None:
    assert parse_rates("x", "never") == Rates()
    assert parse_rates("x", "300/200/100") == Rates(((300.0, 1.0), (200.0, 60.0), (100.0, 600.0)))
