"""What the door asks of the computes. The composition root passes the real ones, tests an in-memory twin.

Concurrency: everything is called on the door's event loop; only the `async` ones may wait.
"""

import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from torpor.metering.traffic import Carrier
from torpor.model.database import Database, Role
from torpor.model.pool import PoolMode
from torpor.model.sleep import WakeReason
from torpor.model.tokens import Admission
from torpor.pgwire.startup import StartupMessage


class Session(Protocol):
    """A client's session inside a compute."""

    @property
    def pid(self) -> int | None:
        """The backend's pid as PostgreSQL knows it; None until it is reported."""
        ...

    async def wait_ended(self) -> None:
        """Return when the backend has ended. Safe to cancel."""
        ...

    def cut(self) -> None:
        """Sever the connection at once."""
        ...

    def dismiss(self, farewell: bytes) -> None:
        """End it when it waits for its client, and tell that why."""
        ...

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Call `callback` when the backend has ended."""
        ...


class AwakeCompute(Protocol):
    """A compute that takes connections."""

    @property
    def major(self) -> int:
        """PostgreSQL's major version."""
        ...

    async def hand_over(
        self,
        client: socket.socket,
        address: tuple[str, int],
        startup: bytes,
        carrier: Carrier | None = None,
        claims: bytes = b"",
    ) -> Session:
        """Make `client` a connection of this PostgreSQL, which sees it come from `address` and reads `startup` (a whole packet) first.

        The caller still owns its socket and closes it; the compute keeps a duplicate. `carrier` counts the bytes of a client that
        isn't a TCP socket itself; `claims` are those of the token by which it logged in. Raises ComputeLost.
        """
        ...


class Computes(Protocol):
    """All databases that clients may reach."""

    def find(self, name: str) -> Database | None:
        """The database of that name, when it is ready for clients. In memory."""
        ...

    async def role(self, database: Database, name: str) -> Role | None:
        """The role as it is now, None when there is none. Doesn't wake a compute that went to sleep in good order."""
        ...

    def sleeps(self, database: Database) -> bool:
        """Whether `awake` would wake its compute now: it sleeps, and nobody is waking it already."""
        ...

    async def turn(self, database: Database) -> None:
        """Wait for the turn of one login of this database."""
        ...

    def awake(self, database: Database, reason: WakeReason, detail: str) -> AbstractAsyncContextManager[AwakeCompute]:
        """Wake the database's compute, and hold it awake inside the context. Raises Unavailable."""
        ...

    def cancel(self, client_host: str, pid: int) -> Sequence[AwakeCompute]:
        """The awake computes in which a client from `client_host` has a live session with that pid."""
        ...


class Tokens(Protocol):
    """Who looks at tokens, by which one can log in instead of by a password."""

    def takes(self, database: Database, role: str) -> bool:
        """Whether a token can be the way in for a role."""
        ...

    async def admit(self, database: Database, token: str) -> Admission:
        """Whom a token admits. Takes seconds when keys are fetched. Raises WrongToken, Unavailable."""
        ...

    def begun(self, database: Database, session: Session, admission: Admission) -> bool:
        """A session began by a token, and is to end with it. False when the database takes other tokens by now."""
        ...


class PooledClient(Protocol):
    """A client that the pool has."""

    def cut(self) -> None:
        """Send it away."""
        ...


class Pools(Protocol):
    """Who serves clients that don't need a backend of their own."""

    @property
    def default(self) -> PoolMode:
        """What holds for clients that don't say, of databases that aren't set to anything."""
        ...

    def check_room(self, database: Database) -> None:
        """Raises TooManyInDatabase when the database's pool takes no more clients."""
        ...

    def admit(self, database: Database, startup: StartupMessage, sock: socket.socket, address: tuple[str, int], auto: bool) -> PooledClient:
        """Take a client that has proven who it is, and greet it. With `auto` it gets a backend of its own when it needs one.

        The caller still owns its socket and closes it. Raises Unavailable, TooManyInDatabase.
        """
        ...

    def cancel(self, host: str, number: int, key: bytes) -> bool:
        """Pass a cancel request on if `number` can be a pooled client's; whether it can."""
        ...
