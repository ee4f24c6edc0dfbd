"""The states of a compute and the legal moves between them. Pure."""

from enum import StrEnum

from torpor.model.sleep import SleepPolicy, Tier


class ComputeState(StrEnum):
    """Where a compute is in its life."""

    STOPPED = "stopped"  # no processes
    STARTING = "starting"  # the postmaster was launched and is not ready yet
    AWAKE = "awake"  # runs
    FREEZING = "freezing"  # is being asked whether it may freeze, and frozen; still runs
    FROZEN = "frozen"  # held by the freezer
    PAGED = "paged"  # frozen, and its memory was reclaimed
    STOPPING = "stopping"  # told to shut down


S = ComputeState

MOVES: dict[ComputeState, frozenset[ComputeState]] = {
    S.STOPPED: frozenset({S.STARTING}),
    S.STARTING: frozenset({S.AWAKE, S.STOPPED}),  # STOPPED: it failed to start
    S.AWAKE: frozenset({S.FREEZING, S.STOPPING, S.STOPPED}),  # STOPPED: it crashed
    S.FREEZING: frozenset({S.FROZEN, S.AWAKE, S.STOPPED}),  # AWAKE: something was going on after all
    S.FROZEN: frozenset({S.PAGED, S.AWAKE, S.STOPPED}),
    S.PAGED: frozenset({S.AWAKE, S.STOPPED}),
    S.STOPPING: frozenset({S.STOPPED}),
}
"""A sleeping compute is thawed before it is told to stop, so that it can end in order: there is no move from asleep to STOPPING."""

TIERS: dict[ComputeState, Tier] = {
    S.STOPPED: Tier.STOPPED,
    S.STARTING: Tier.STOPPED,
    S.AWAKE: Tier.AWAKE,
    S.FREEZING: Tier.AWAKE,
    S.FROZEN: Tier.FROZEN,
    S.PAGED: Tier.PAGED,
    S.STOPPING: Tier.AWAKE,
}
"""What users are shown."""


class IllegalMove(AssertionError):
    """A programming error: the table doesn't have this move."""


def check_move(before: ComputeState, after: ComputeState) -> None:
    """Raise IllegalMove unless the table has it."""
    if after not in MOVES[before]:
        raise IllegalMove(f"a compute can't go from {before} to {after}")


def next_step(
    tier: Tier, policy: SleepPolicy, idle_s: float, asleep_s: float, can_page: bool, connected: bool
) -> tuple[Tier, float] | None:
    """The next step down and in how many seconds it is due if nothing happens; None when none will come."""
    match tier:
        case Tier.AWAKE if policy.freeze_after_s is not None:
            return Tier.FROZEN, policy.freeze_after_s - idle_s
        case Tier.FROZEN if policy.page_after_s is not None and can_page:
            return Tier.PAGED, policy.page_after_s - asleep_s
        case Tier.FROZEN | Tier.PAGED if policy.stop_after_s is not None and not connected:
            return Tier.STOPPED, policy.stop_after_s - asleep_s
        case _:
            return None
