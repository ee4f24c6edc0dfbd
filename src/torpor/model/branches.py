"""Branches: their steps, and what the API says of them. Pure."""

from dataclasses import dataclass
from enum import StrEnum

from torpor.model.errors import InvalidRequest
from torpor.model.jobs import JobView
from torpor.model.views import Credentials, DatabaseView, StepView

SHORTEST_LIFE_S = 60.0
LONGEST_LIFE_S = 10 * 365 * 86400.0


class BranchStep(StrEnum):
    """The steps of a branch and of a reset, in order. Whatever is killed after any of them, the next start finds either the whole thing
    or removes what is there of it."""

    RECORDED = "recorded"  # its row is in the catalog
    COPIED = "copied"  # its volume is whole
    STARTED = "started"  # PostgreSQL has recovered on it
    NAMED = "named"  # inner database and owner have its name; passwords are those that it is to have; it is durable
    READY = "ready"  # a branch: it is a database like any other
    STOPPED = "stopped"  # a reset: what it is reset to, and itself, are stopped
    EXCHANGED = "exchanged"  # a reset: the volumes have changed places, and the old one is still there


BRANCH_STEPS = (BranchStep.RECORDED, BranchStep.COPIED, BranchStep.STARTED, BranchStep.NAMED, BranchStep.READY)
RESET_STEPS = (*BRANCH_STEPS[:-1], BranchStep.STOPPED, BranchStep.EXCHANGED)


@dataclass(frozen=True, slots=True)
class Branched:
    """A new branch. `credentials` are its owner's, shown this once; None when the passwords of its parent were kept."""

    database: DatabaseView
    credentials: Credentials | None
    elapsed_ms: float
    steps: tuple[StepView, ...]


@dataclass(frozen=True, slots=True)
class BranchList:
    """The branches of a database, oldest first."""

    branches: tuple[DatabaseView, ...]


def check_life(ttl_s: float | None) -> float | None:
    """A time to live, None for one without end. Raises InvalidRequest."""
    if ttl_s is not None and not SHORTEST_LIFE_S <= ttl_s <= LONGEST_LIFE_S:
        raise InvalidRequest(f"a time to live must be between {SHORTEST_LIFE_S:.0f} and {LONGEST_LIFE_S:.0f} seconds")
    return ttl_s


@dataclass(frozen=True, slots=True)
class PastBranch:
    """A branch of the past that is being made: the job that does it, and the owner's password, which works once that is done. `credentials`
    is None where passwords are kept: then they are those of that moment."""

    job: JobView
    name: str
    credentials: Credentials | None
