"""A wall's clock that is set."""

from torpor.base.jumps import Jumps


def test_a_clock_that_is_set_is_noticed_and_forgiven_after_a_while() -> None:
    wall, steady = 1_700_000_000.0, 50.0
    jumps = Jumps(lambda: wall, lambda: steady)
    for passed_s, set_by_s, seen in (
        (60, 0, 0),
        (86_400, 0.5, 0),
        (60, 40 * 86_400, 40 * 86_400),
        (60, 0, 0),
        (60, -40 * 86_400, -40 * 86_400),
    ):
        assert jumps.look() == 0
        was_within = jumps.within(3600)
        wall, steady = wall + passed_s + set_by_s, steady + passed_s
        assert abs(jumps.look() - seen) < 1
        assert jumps.within(3600) == (bool(seen) or (was_within and passed_s < 3600))
    steady, wall = steady + 3600, wall + 3600
    assert jumps.look() == 0
    assert not jumps.within(3600)


def test_the_real_one_goes_evenly() -> None:
    jumps = Jumps()
    assert jumps.look() == 0
    assert not jumps.within(1e9)
