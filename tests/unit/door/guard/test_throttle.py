"""Failed logins: the penalties, and a table that a million addresses can't fill or empty to their liking."""

import random
import resource
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.pace import in_time
from torpor.door.guard.throttle import LONGEST_PENALTY_S, FailedLogins

SECRET = b"secret"


def test_penalties_double_from_a_second_to_an_hour() -> None:
    failures, now = FailedLogins(SECRET, 0.0, capacity=64), 100.0
    penalties = []
    for _ in range(15):
        assert failures.blocked_for("203.0.113.7", "d1", now) == 0
        penalty = failures.failed("203.0.113.7", "d1", now)
        penalties.append(penalty)
        assert -1e-6 < failures.blocked_for("203.0.113.7", "d1", now) - penalty < 0.2
        assert failures.blocked_for("203.0.113.7", "d1", now + penalty - 0.2) > 0
        now += penalty + 0.2
    assert penalties == [min(2.0**n, 3600.0) for n in range(15)]


def test_a_pair_is_an_address_and_a_database() -> None:
    failures = FailedLogins(SECRET, 0.0, capacity=64)
    failures.failed("203.0.113.7", "d1", 10.0)
    assert failures.blocked_for("203.0.113.7", "d1", 10.5)
    for other in (("203.0.113.8", "d1"), ("203.0.113.7", "d2"), ("203.0.113.7d", "1"), ("", "203.0.113.7d1")):
        assert not failures.blocked_for(*other, 10.5)


def test_the_next_torpor_goes_on_with_it() -> None:
    first = FailedLogins(SECRET, 100.0, capacity=64)
    for _ in range(5):
        first.failed("a", "d", 100.0)
    second = FailedLogins(SECRET, 105.0, capacity=64, remembered=first.release())
    first.close()
    assert 10.8 < second.blocked_for("a", "d", 105.0) < 11.2
    assert second.failed("a", "d", 117.0) == 32.0
    other = FailedLogins(SECRET, 117.0, capacity=128, remembered=second.release())
    assert not other.blocked_for("a", "d", 117.0), "another layout begins anew"
    other.close()
    other.close()


def test_a_right_password_clears_all() -> None:
    failures = FailedLogins(SECRET, 0.0, capacity=64)
    for now in (0.0, 10.0, 20.0):
        failures.failed("a", "d", now)
    failures.cleared("a", "d")
    failures.cleared("a", "d")
    assert not failures.blocked_for("a", "d", 20.0)
    assert failures.failed("a", "d", 20.0) == 1.0


def test_an_hour_of_quiet_forgives_one_failure() -> None:
    failures = FailedLogins(SECRET, 0.0, capacity=64)
    for _ in range(5):
        failures.failed("a", "d", 0.0)  # 16 s
    assert failures.failed("a", "d", 16.2 + 2 * 3600 + 1) == 8.0  # 5 - 2 + 1 = 4
    assert failures.failed("a", "d", 30 * 3600.0) == 1.0


def test_whoever_goes_on_for_days_gets_one_guess_an_hour() -> None:
    failures, now, guesses = FailedLogins(SECRET, 0.0, capacity=64), 0.0, 0
    while now < 3 * 86_400:
        now += failures.failed("a", "d", now) + 0.2
        guesses += 1
    assert guesses <= 3 * 24 + 12


def test_without_a_penalty_nothing_is_kept() -> None:
    failures = FailedLogins(SECRET, 0.0, first_penalty_s=0.0, capacity=64)
    assert failures.failed("a", "d", 1.0) == 0
    assert not failures.blocked_for("a", "d", 1.0)
    assert failures.entries(1.0) == 0


def test_a_million_addresses_take_16_mib_and_are_kept() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    failures = FailedLogins(SECRET, 0.0)
    count = 1_000_000
    for number in range(count):
        failures.failed(f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", "d1", 1.0)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert failures.size_bytes == 16 << 20
    assert grown_kib < 20 << 10, grown_kib
    kept = failures.entries(1.0)
    # Chance puts nine or more into some sets of eight: a seventh of a million weak entries has to go when the table is that full.
    assert kept + failures.evicted == count
    assert kept > 0.82 * count
    failures.close()


def test_a_flood_does_not_wash_away_who_failed_often() -> None:
    failures = FailedLogins(SECRET, 0.0, capacity=8_000)
    for _ in range(6):
        failures.failed("203.0.113.7", "d1", 1.0)
    for number in range(200_000):  # each set is overrun 25 times
        failures.failed(f"2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::/64", "d1", 2.0)
    assert failures.evicted > 150_000
    assert failures.blocked_for("203.0.113.7", "d1", 2.0) > 30
    # And one who fails in the flood is noted like any other.
    failures.failed("198.51.100.1", "d1", 3.0)
    assert failures.blocked_for("198.51.100.1", "d1", 3.0) > 0.9


def test_places_depend_on_the_secret() -> None:
    one, other = FailedLogins(b"one", 0.0, capacity=8_000), FailedLogins(b"other", 0.0, capacity=8_000)
    places = {(one._place(f"a{n}", "d")[0], other._place(f"a{n}", "d")[0]) for n in range(100)}
    assert sum(mine == theirs for mine, theirs in places) < 10


def test_asking_takes_as_long_for_known_pairs_as_for_unknown_ones() -> None:
    failures, chance = FailedLogins(SECRET, 0.0), random.Random(1)
    for number in range(10_000):
        failures.failed(f"known{number}", "d1", 1.0)

    def fastest_us(kind: str) -> float:
        times = []
        for _ in range(400):
            name = f"{kind}{chance.randrange(10_000)}"
            began = time.perf_counter()
            failures.blocked_for(name, "d1", 1.0)
            times.append(time.perf_counter() - began)
        return sorted(times)[100] * 1e6

    for _ in range(5):  # others use this machine, too
        known, unknown = fastest_us("known"), fastest_us("unown")
        if alike := abs(known - unknown) < 20:
            break
    assert alike, (known, unknown)
    assert in_time(known, 60)  # both some µs, beneath what can be told over a network


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from("abcdefghijklmnop"), st.sampled_from(["fail", "clear", "ask"]), st.floats(0, 4000)), max_size=200)
)
def test_it_behaves_like_a_table_without_bounds_while_there_is_room(steps: list[tuple[str, str, float]]) -> None:
    failures, model, now = FailedLogins(SECRET, 0.0, capacity=4096), dict[str, tuple[int, float]](), 0.0
    for name, step, pause in steps:
        now += pause
        count, until = model.get(name, (0, 0.0))
        count = max(0, count - int(max(0.0, now - until - 0.2) / 3600)) if count else 0
        nearly_forgiven = count and now > until and (now - until) % 3600 > 3599.5
        if step == "fail" and not nearly_forgiven:
            penalty = failures.failed(name, "d", now)
            assert penalty == min(2.0**count, LONGEST_PENALTY_S)
            model[name] = (count + 1, now + penalty)
        elif step == "clear":
            failures.cleared(name, "d")
            model.pop(name, None)
        else:
            assert abs(failures.blocked_for(name, "d", now) - max(0.0, model.get(name, (0, 0.0))[1] - now)) < 0.21
