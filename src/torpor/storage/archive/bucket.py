"""What every kind of object store can do, in one attempt: the port that directory, S3 and the twins of the tests have in common.

A key is made of letters, digits and `-_.`, with slashes between; keys that begin with `directory/` are the objects of `directory`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Stored:
    """An object as it is listed. `at` is when it was stored, by the store's clock, in seconds since the epoch."""

    key: str
    size_bytes: int
    at: float


class Bucket(Protocol):
    """Objects by key. Each call is one attempt, safe to cancel; one that was cut off may have been done all the same.

    All raise HistoryUnreachable (trying again may help), HistoryRefused (credentials, permissions, no such bucket) and HistoryFull.
    An object is there as a whole and durable once `put` has returned, or not at all.
    """

    @property
    def description(self) -> str:
        """Which store it is, for people; without credentials."""
        ...

    async def put(self, key: str, data: bytes, if_absent: bool) -> bool:
        """Store an object, or replace it. With `if_absent`, leave one that is there as it is and say False."""
        ...

    async def get(self, key: str) -> bytes:
        """All bytes of it. Raises HistoryMissing."""
        ...

    async def list(self, directory: str) -> list[Stored]:
        """All objects below a directory, in no order. None, if there are none."""
        ...

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; those that aren't there are none the less gone."""
        ...
