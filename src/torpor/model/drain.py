"""What is shown of a drain: how far it is, and what it waits for. Pure."""

from dataclasses import dataclass
from enum import StrEnum


class DrainState(StrEnum):
    """Whether a Torpor lets clients in."""

    SERVING = "serving"  # it does
    DRAINING = "draining"  # it waits for what still runs, and lets nobody in


@dataclass(frozen=True, slots=True)
class RunningView:
    """A session that a drain waits for. `state` is PostgreSQL's word for it, `since` when its latest statement began."""

    database: str
    session: str
    statement: str
    state: str
    since: float


@dataclass(frozen=True, slots=True)
class DrainView:
    """How far a drain is. What still runs at `deadline_at` is ended; both times are None while nobody asked for a drain.

    `computes` and `connections` count what is left; `running` are those that have begun something, longest first. `torpor` names this run
    of Torpor: another one has another.
    """

    state: DrainState
    torpor: str
    began_at: float | None
    deadline_at: float | None
    computes: int
    connections: int
    running: tuple[RunningView, ...]
