"""What the process counts, told to the daemon every second that changed something: for its /metrics.

Kinds and results are ours, never the client's words, so that there are few series. Concurrency: plain numbers, on the event loop.
"""

import asyncio
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import msgspec

from torpor.gateway.http.control import encode

TELL_EVERY_S = 1.0
_KINDS = {"/sql": "sql", "/v2": "tunnel", "/v0/statement": "statement", "/v0/session": "session"} | dict.fromkeys(
    ("/query", "/connection-info", "/invalidate", "/transaction/start"), "accelerate"
)
_CLIENTS_FAULT, _OURS = 400, 500


class Figures(msgspec.Struct):
    """Counters since the process began, and gauges of now."""

    requests: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)
    """By kind and result."""
    seconds: dict[str, float] = msgspec.field(default_factory=dict)
    """That requests took, by kind; WebSockets live as long as they like, and aren't among them."""
    received: int = 0
    sent: int = 0
    connections: int = 0
    taken: int = 0
    waiting: int = 0
    kept: int = 0


class Count:
    """The counters of this process."""

    def __init__(self) -> None:
        self.received = self.sent = 0
        self._requests: dict[str, Counter[str]] = {}
        self._seconds: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<Count {sum(of_one.total() for of_one in self._requests.values())} requests>"

    def answered(self, path: str, status: int, is_whole: bool, elapsed_s: float | None) -> None:
        """A request is over. `status` is 0 when nothing was answered, `elapsed_s` None for a WebSocket."""
        kind = _KINDS.get(path) or ("accelerate" if path.startswith("/transaction/") else "other")
        self._requests.setdefault(kind, Counter())[_result(status, is_whole)] += 1
        if elapsed_s is not None:
            self._seconds[kind] = self._seconds.get(kind, 0.0) + elapsed_s

    def figures(self, connections: int, taken: int, waiting: int, kept: int) -> Figures:
        """All of them, with gauges that others know."""
        requests = {kind: dict(of_one) for kind, of_one in self._requests.items()}
        return Figures(requests, dict(self._seconds), self.received, self.sent, connections, taken, waiting, kept)


COUNT = Count()
"""Of this process."""


async def tell(control: socket.socket, look: Callable[[], Figures]) -> None:
    """Tell the daemon what changed, for ever."""
    told = Figures()
    while True:
        await asyncio.sleep(TELL_EVERY_S)
        if (now := look()) != told:
            with suppress(OSError):  # it doesn't listen just now: the next second is as good
                control.send(encode({"figures": msgspec.to_builtins(now)}))
                told = now


def _result(status: int, is_whole: bool) -> str:
    if not status:
        return "gone"
    if status >= _OURS:
        return "failed"
    if status >= _CLIENTS_FAULT:
        return "refused"
    return "ok" if is_whole else "cut"
