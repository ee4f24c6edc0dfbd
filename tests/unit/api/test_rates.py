"""Token buckets, against a plain one."""

from hypothesis import given
from hypothesis import strategies as st

from torpor.api.rates import Buckets


class PlainBucket:
    def __init__(self, per_s: float, burst: float) -> None:
        self.per_s, self.burst, self.level, self.at = per_s, burst, burst, 0.0

    def take(self, now: float, cost: float) -> bool:
        self.level = min(self.burst, self.level + (now - self.at) * self.per_s)
        self.at = now
        if self.level < cost - 1e-6:
            return False
        self.level -= cost
        return True


@given(st.lists(st.tuples(st.integers(0, 300), st.sampled_from([1.0, 5.0])), max_size=100), st.sampled_from([0.5, 1.0, 7.0, 50.0]))
def test_as_a_plain_bucket(steps: list[tuple[int, float]], per_s: float) -> None:
    buckets, plain, now = Buckets(per_s, per_s * 10), PlainBucket(per_s, per_s * 10), 0.0
    for wait, cost in steps:
        now += wait / 64
        taken = buckets.take("key", now, cost)
        assert taken.allowed == plain.take(now, cost)
        assert abs(taken.left - plain.level) <= 1
        if not taken.allowed and cost <= plain.burst:
            early, due = Buckets(per_s, per_s * 10), now + taken.retry_in_s
            early._full_at = buckets._full_at.copy()
            assert not early.take("key", due - 0.001, cost).allowed
            assert early.take("key", due + 0.001, cost).allowed


def test_keys_have_buckets_of_their_own() -> None:
    buckets = Buckets(1, 2)
    assert [buckets.take("a", 0).allowed for _ in range(3)] == [True, True, False]
    assert buckets.take("b", 0).left == 1
    assert buckets.take("a", 1).allowed


def test_memory_is_bounded_however_many_addresses() -> None:
    buckets = Buckets(1, 10, max_keys=1000)
    for number in range(100_000):
        buckets.take(number, number / 1000)
        assert len(buckets) <= 1000
    for number in range(3000):  # all of them at one moment: none is full yet
        buckets.take(-number, 2000)
    assert len(buckets) <= 1000
