"""Who may exchange, send away or replace the volume of a database: one at a time. A second one is told so, and nothing is begun.

A removal needs no claim: it wins, whatever goes on, and who has one finds out.

Concurrency: on the loop; taking and giving back never wait.
"""

from types import TracebackType
from typing import Self

from torpor.compute.compute import Compute
from torpor.model.errors import Conflict
from torpor.model.names import DatabaseId


class Claims:
    """All that are held now."""

    def __init__(self) -> None:
        self._held: dict[DatabaseId, Claim] = {}

    def __repr__(self) -> str:
        return f"<Claims {len(self._held)}>"

    def take(self, doing: str, *computes: Compute) -> "Claim":
        """Claim databases, all or none; `doing` is what is being done to them ("archived"). Raises Conflict where one is claimed."""
        for compute in computes:
            if (held := self._held.get(compute.database.id)) is not None:
                raise Conflict(f"database {compute.database.label} is being {held.doing}", "try again when that has ended")
        claim = Claim(doing, self._held, [compute.database.id for compute in computes])
        self._held.update(dict.fromkeys(claim.ids, claim))
        return claim


class Claim:
    """One that is held until `release`, or the end of the `with` that it is used in."""

    def __init__(self, doing: str, held: "dict[DatabaseId, Claim]", ids: list[DatabaseId]) -> None:
        self.doing = doing
        self.ids = ids
        self._held = held

    def release(self) -> None:
        """Give it back. Idempotent."""
        for id in self.ids:
            if self._held.get(id) is self:
                del self._held[id]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()
