"""Databases whose volume is in the store. Pure values."""

from dataclasses import dataclass
from enum import StrEnum

from torpor.model.names import DatabaseId


class ArchivedState(StrEnum):
    """Where the bytes of a database are, that has been archived or is to be. Recorded before it is relied on."""

    STORING = "storing"  # on the pool; what is in the store may be half of it, and goes
    ARCHIVED = "archived"  # in the store, as a whole, unless a volume is on the pool: then that is it, and what is in the store goes
    BACK = "back"  # on the pool again; what is in the store goes


@dataclass(frozen=True, slots=True)
class Archived:
    """What the catalog knows of it. `store` says in words where it is."""

    id: DatabaseId
    wrapped_key: bytes
    state: ArchivedState
    store: str
    at: float
    size_bytes: int = 0
    stored_bytes: int = 0
