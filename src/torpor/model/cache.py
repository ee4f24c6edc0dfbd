"""The cache of one database: what holds for it, and how it is doing, as users see it. Values."""

from dataclasses import dataclass, field
from enum import StrEnum

MAX_RULES = 50
"""Of one database: all of them travel to a worker in one packet."""

MAX_PURGED_AT_ONCE = 100
MAX_VALUE = 200
"""Characters of a tag or of the name of a table."""

MAX_STATEMENT_SHOWN = 200


class PurgeBy(StrEnum):
    """What entries are found by, that are to be dropped."""

    TAG = "tag"
    TABLE = "table"  # that they were read from: `schema.name`, or a name alone for one of `public`
    STATEMENT = "statement"  # its fingerprint
    ALL = "all"


@dataclass(frozen=True, slots=True)
class CacheRule:
    """Statements of a fingerprint are cached as if the words stood in front of them."""

    fingerprint: str
    words: str
    statement: str = ""
    """How the statement reads, for people; empty when the rule was made by its fingerprint."""


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """What holds for the cache of one database."""

    on_write: bool = False
    """Whether a committed write drops what was read from the tables that it wrote to."""
    rules: tuple[CacheRule, ...] = ()


NO_POLICY = CachePolicy()
"""Shared: most databases have none."""


@dataclass(frozen=True, slots=True)
class CacheView:
    """One database's cache, up to a second ago. Counts of what happened are since its worker was started."""

    entries: int = 0
    bytes: int = 0
    hits: int = 0
    stale: int = 0
    misses: int = 0
    bypasses: dict[str, int] = field(default_factory=dict)
    fills: int = 0
    evicted: int = 0
    purged: int = 0
    shared: int = 0
    """Results that were found in the shared store."""
    skipped: int = 0
    """Times that the shared store gave no answer."""


NO_CACHE = CacheView()


@dataclass(frozen=True, slots=True)
class CacheStatus:
    """What holds for the cache of a database, and how it is doing."""

    on_write: bool
    rules: tuple[CacheRule, ...]
    figures: CacheView


@dataclass(frozen=True, slots=True)
class Purged:
    """How many results were dropped."""

    dropped: int
