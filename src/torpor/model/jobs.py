"""Long operations as the API shows them: what they are, how far they are, what became of them. Pure values.

running -> done | failed | cancelled | interrupted. None is ever left again.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType

JobId = NewType("JobId", str)
"""Identifies a job for ever: `j` and twelve characters of a-z2-7."""


class JobState(StrEnum):
    """Where a job is."""

    RUNNING = "running"  # it is being done
    DONE = "done"  # it was done
    FAILED = "failed"  # it could not be done; nothing of it is left
    CANCELLED = "cancelled"  # somebody stopped it; nothing of it is left
    INTERRUPTED = "interrupted"  # Torpor ended before it did; what it left was removed at the next start

    @property
    def is_final(self) -> bool:
        """Whether nothing will become of it any more."""
        return self is not JobState.RUNNING


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed, as the API's errors say it."""

    kind: str
    message: str
    hint: str
    sqlstate: str


@dataclass(frozen=True, slots=True)
class JobView:
    """A long operation. `database` is what it works on, by its name when it began.

    `done` of `total` (null while nobody knows) counts in `unit` (`bytes`, or what is counted); `note` says what is going on. `result`
    names what it made. `cancelling` says that somebody wants it stopped. `version` grows with each change.
    """

    id: JobId
    kind: str
    database: str
    state: JobState
    began_at: float
    ended_at: float | None = None
    done: int = 0
    total: int | None = None
    unit: str = ""
    note: str = ""
    cancelling: bool = False
    result: dict[str, str] = field(default_factory=dict)
    error: JobError | None = None
    version: int = 1


@dataclass(frozen=True, slots=True)
class JobList:
    """Jobs, the newest first."""

    jobs: tuple[JobView, ...]
