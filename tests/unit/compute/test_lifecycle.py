"""The table of states and moves."""

import itertools

import pytest

from torpor.compute.lifecycle import MOVES, TIERS, ComputeState, IllegalMove, check_move
from torpor.model.sleep import Tier

S = ComputeState


def test_every_state_has_moves_and_a_tier() -> None:
    assert set(MOVES) == set(TIERS) == set(ComputeState)
    assert set(TIERS.values()) == set(Tier) - {Tier.ARCHIVED}  # which a stopped one is, too, when its volume is elsewhere
    assert all(MOVES.values()), "no state is a dead end"


def test_the_table_is_closed_and_no_move_goes_nowhere() -> None:
    for before, after in MOVES.items():
        assert after <= set(ComputeState)
        assert before not in after


@pytest.mark.parametrize(("before", "after"), list(itertools.product(ComputeState, repeat=2)))
def test_only_moves_of_the_table_are_legal(before: ComputeState, after: ComputeState) -> None:
    if after in MOVES[before]:
        check_move(before, after)
    else:
        with pytest.raises(IllegalMove, match=f"from {before} to {after}"):
            check_move(before, after)


def test_whatever_has_processes_can_die() -> None:
    for state in set(ComputeState) - {S.STOPPED}:
        assert S.STOPPED in MOVES[state]


def test_every_state_leads_to_awake_and_to_stopped() -> None:
    for goal in (S.AWAKE, S.STOPPED):
        reaching = {goal}
        for _ in ComputeState:
            reaching |= {state for state, after in MOVES.items() if after & reaching}
        assert reaching == set(ComputeState)


def test_sleepers_are_never_told_to_stop() -> None:
    """They couldn't hear it: they are thawed first."""
    assert [state for state in ComputeState if S.STOPPING in MOVES[state]] == [S.AWAKE]


def test_nothing_is_frozen_without_being_asked() -> None:
    assert [state for state in ComputeState if S.FROZEN in MOVES[state]] == [S.FREEZING]
    assert [state for state in ComputeState if S.PAGED in MOVES[state]] == [S.FROZEN]
