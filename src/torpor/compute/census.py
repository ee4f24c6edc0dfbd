"""Who is connected: the live sessions of all computes, counted by the address of their clients.

There is no counter that could drift: what is counted are the sessions themselves, each put in when it begins to live (handed over
or adopted) and taken out when it ends or is let go. Concurrency: plain calls on the loop.
"""

from torpor.model.access import address_key


class Census:
    """The sessions of one Torpor. Both ways of changing it are idempotent."""

    def __init__(self) -> None:
        self._by_key: dict[str, set[object]] = {}
        self._total = 0

    def __repr__(self) -> str:
        return f"<Census {self._total} sessions of {len(self._by_key)} addresses>"

    def add(self, session: object, host: str) -> None:
        """A session lives."""
        sessions = self._by_key.setdefault(address_key(host), set())
        before = len(sessions)
        sessions.add(session)
        self._total += len(sessions) - before

    def remove(self, session: object, host: str) -> None:
        """It doesn't any more."""
        key = address_key(host)
        sessions = self._by_key.get(key)
        if sessions is None or session not in sessions:
            return
        sessions.remove(session)
        self._total -= 1
        if not sessions:
            del self._by_key[key]

    def total(self) -> int:
        """How many sessions live."""
        return self._total

    def from_address(self, key: str) -> int:
        """How many of them come from an address, by its `address_key`."""
        return len(self._by_key.get(key, ()))

    def addresses(self) -> int:
        """How many addresses have sessions."""
        return len(self._by_key)
