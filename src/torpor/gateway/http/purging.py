"""Purges that clients ask for over HTTP: told to the daemon, which tells the pool, and answered when they are done.

The process knows no database: it passes on how the client called the one that it has just logged in to, and the daemon finds it as the
door does. Concurrency: belongs to one event loop; a purge that isn't answered in time is refused. Idempotent, so it may be asked again.
"""

import asyncio
import socket
from typing import Any

from torpor.gateway.http.control import encode
from torpor.gateway.http.credentials import Target
from torpor.gateway.http.prisma.errors import PlanError

_PATIENCE_S = 30.0
_UNAVAILABLE = 503


class Purger:
    """Asks the daemon."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._last = 0

    def __repr__(self) -> str:
        return f"<Purger {len(self._waiting)} waiting>"

    async def purge(self, target: Target, tags: list[str] | None) -> int:
        """Drop what has one of the tags, or all; how many results. Raises PlanError."""
        self._last += 1
        ticket = self._last
        answer = self._waiting[ticket] = asyncio.get_running_loop().create_future()
        try:
            self._control.send(encode({"purge": {"ticket": ticket, "startup": target.startup(), "host": target.host, "tags": tags}}))
            async with asyncio.timeout(_PATIENCE_S):
                found = await answer
        except (OSError, TimeoutError):
            raise PlanError("P6008", "the cache can't be purged just now; ask again in a moment", status=_UNAVAILABLE) from None
        finally:
            del self._waiting[ticket]
        if "error" in found:
            raise PlanError("P6008", str(found["error"]), status=_UNAVAILABLE)
        return int(found["dropped"])

    def hear(self, answer: dict[str, Any]) -> None:
        """The daemon's answer came."""
        waiting = self._waiting.get(answer["ticket"])
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)
