"""What is shown of databases that are in the store and not here, as those of a lost machine. Pure values; times as in `model.views`."""

from dataclasses import dataclass

from torpor.model.jobs import JobView


@dataclass(frozen=True, slots=True)
class RecoverableView:
    """A database that can be brought back, to any moment between `from_at` and `to_at`; null while nobody knows, or when there is none.

    `size_bytes` is what it takes on the pool. `archived` says that it was archived when it was seen last. `recovered_as` names the database
    that was made of it already, `branch_of` the one that it was a branch of. `trouble` says why it can't be brought back.
    """

    id: str
    name: str
    workspace: str = ""
    major: int | None = None
    created_at: float | None = None
    archived: bool = False
    size_bytes: int | None = None
    from_at: float | None = None
    to_at: float | None = None
    recovered_as: str = ""
    branch_of: str = ""
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class RecoverableList:
    """A page of them in the order of names; `next` is where to continue, null at the end.

    `here` counts the databases in the store that are this Torpor's own, which aren't listed, `foreign` those that another master key than
    `master_key` (its fingerprint) has sealed, and `behind` the own ones of which the store doesn't have the newest card.
    """

    databases: tuple[RecoverableView, ...]
    next: str | None
    store: str
    master_key: str
    here: int
    foreign: int
    behind: int


@dataclass(frozen=True, slots=True)
class Recovering:
    """A database that is being brought back. It is called `name` once the job is done."""

    job: JobView
    name: str
