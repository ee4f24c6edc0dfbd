"""Cards: what the store itself knows of a database, so that it can be brought back when its machine is lost, and the catalog with it. Pure.

A card is sealed with the master key. It has the wrapped keys of what the store holds of the database, and all that can't be read from that.
"""

from dataclasses import dataclass

from torpor.model.cache import NO_POLICY, CachePolicy
from torpor.model.names import DatabaseId
from torpor.model.pool import NO_POOL_OVERRIDES, PoolOverrides
from torpor.model.size import SizeOverrides
from torpor.model.sleep import SleepOverrides


@dataclass(frozen=True, slots=True)
class CardHistory:
    """What opens the history of a database, and how much of it is kept."""

    wrapped_key: bytes
    segment_bytes: int | None = None
    keep_s: float | None = None
    keep_bases: int | None = None


@dataclass(frozen=True, slots=True)
class CardArchive:
    """What opens a whole volume that is, or is just being, archived. `line` and `lsn` are how far the history was then: what goes beyond is
    newer than the volume."""

    wrapped_key: bytes
    is_archived: bool
    at: float
    size_bytes: int
    line: int = 0
    lsn: int = 0


@dataclass(frozen=True, slots=True)
class Card:
    """One database. `workspace` is a name; `disk_bytes` what it might take, by its own size or the daemon's setting.

    `parent` is of which it is a branch, or, without `branched_at`, which one it was before its machine was lost.
    """

    id: DatabaseId
    name: str
    workspace: str
    major: int
    created_at: float
    disk_bytes: int
    overrides: SleepOverrides
    size: SizeOverrides
    superuser: bool = False
    parent: DatabaseId | None = None
    branched_at: float | None = None
    expires_at: float | None = None
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    history: CardHistory | None = None
    archive: CardArchive | None = None
    pool: PoolOverrides = NO_POOL_OVERRIDES
    cache: CachePolicy = NO_POLICY

    @property
    def recovered_from(self) -> DatabaseId | None:
        """Which database it was before its machine was lost."""
        return self.parent if self.branched_at is None else None
