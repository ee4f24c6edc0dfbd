"""What the API needs of the use cases. The composition root passes the real ones; tests have a twin in memory.

Concurrency: called on the loop; methods that aren't coroutines answer from memory. All raise errors of torpor.model.errors.
A call isn't cancelled when its client goes away, only when Torpor stops.
"""

from pathlib import Path
from typing import Protocol

from torpor.model.sleep import SleepOverrides, Tier
from torpor.model.views import Created, Credentials, DatabaseDetail, DatabasePage, DatabaseView, HostView, WakeView


class Databases(Protocol):
    """The use cases. Every `name` is a database's name as a stranger typed it: unknown or odd ones raise DatabaseNotFound."""

    async def create(self, name: str | None, major: int | None, overrides: SleepOverrides) -> Created:
        """Make a database; a name is made up when none is given, the major is the daemon's when none is given."""
        ...

    def get(self, name: str) -> DatabaseView:
        """One database as lists show it."""
        ...

    def list(self, after: str | None, limit: int, tier: Tier | None, search: str | None) -> DatabasePage:
        """Databases in the order of their names, from the first after `after`."""
        ...

    async def detail(self, name: str) -> DatabaseDetail:
        """All about one database; PostgreSQL is asked why it is awake, if it is."""
        ...

    async def update(self, name: str, overrides: SleepOverrides) -> DatabaseDetail:
        """Replace the database's own idle times."""
        ...

    async def delete(self, name: str, force: bool) -> None:
        """Remove a database and its data. Raises DatabaseInUse with open connections, unless forced."""
        ...

    async def sleep(self, name: str, tier: Tier, force: bool) -> DatabaseView:
        """Bring a database down to frozen, paged or stopped; forced, also while it is busy."""
        ...

    async def wake(self, name: str) -> WakeView | None:
        """Wake a database. None when it was awake."""
        ...

    async def reset_password(self, name: str) -> Credentials:
        """Give the owner a new password."""
        ...

    async def ticket(self, name: str) -> Credentials:
        """A password of short life for the owner."""
        ...

    def wakes(self, name: str, limit: int) -> tuple[WakeView, ...]:
        """The newest wakes, newest first."""
        ...

    def log_file(self, name: str) -> Path:
        """Where PostgreSQL writes the log of this database; the file need not exist."""
        ...

    def host(self) -> HostView:
        """The host at a glance."""
        ...
