"""The entries of all databases of one worker, in bounded memory. Pure: times come in.

Memory: `limit_bytes` for all together, counted with what an entry costs beside its bytes; one entry has at most a sixteenth. Databases
share it: who loses when there is no room is the one that has the most, which is above its share whenever there is more than one. Within
a database that entry goes first which saves least for its bytes: milliseconds that it took to make, times how often it was asked for,
divided by its size, and aged (GreedyDual: what goes raises the mark that new and used entries begin from). Hits cost no order: they are
counted, and the order is looked at when something has to go.

Every entry can be found by its tags, tables, and statement, so a purge costs what it drops.
"""

import heapq
from collections.abc import Hashable, Iterable
from itertools import count

ENTRY_COST_BYTES = 700
MOST_TURNS = 1_000
"""Each of at most some kilobytes (`gateway.pool.caching`)."""
_INDEX_COST_BYTES = 150
_PART_OF_ALL = 16
_EXPIRED_AT_ONCE = 500


class Entry:
    """Something kept. `data` and `more` are what is served: in pieces, so that a slow connection copies no more than one of them. The other
    fields are its maker's."""

    __slots__ = (
        "base", "columns", "cost_ms", "data", "expires_at", "fingerprint", "hits", "is_dead", "key", "made_at", "more", "oids",
        "parameters", "reason", "refreshed_at", "seen", "shelf", "size", "tables", "tags",
    )  # fmt: skip

    def __init__(
        self,
        key: Hashable,
        data: bytes,
        *,
        more: tuple[bytes, ...] = (),
        made_at: float,
        expires_at: float,
        cost_ms: float = 0.0,
        tags: tuple[str, ...] = (),
        tables: tuple[str, ...] = (),
        fingerprint: str = "",
        columns: bytes | None = None,
        parameters: bytes | None = None,
        oids: tuple[int, ...] = (),
        seen: tuple[int, ...] | None = None,
        reason: str = "",
        other_bytes: int = 0,
    ) -> None:
        self.key, self.data, self.more = key, data, more
        self.made_at, self.expires_at, self.cost_ms = made_at, expires_at, cost_ms
        self.tags, self.tables, self.fingerprint = tags, tables, fingerprint
        self.columns = columns  # a RowDescription's body, as of a statement
        self.parameters = parameters  # a ParameterDescription's body
        self.oids = oids  # of the tables that it was read from
        self.seen = seen  # their counters before its statement was sent; None: not counted
        self.reason = reason  # why there is no result; it is kept to know that
        self.refreshed_at = -1e9  # when it was last tried to make it anew
        self.hits = 0
        self.base = 0.0
        self.is_dead = False
        self.shelf: Shelf | None = None
        self.size = (
            ENTRY_COST_BYTES + len(data) + sum(map(len, more)) + len(columns or b"") + len(parameters or b"") + other_bytes
            + _INDEX_COST_BYTES * (len(tags) + len(tables)) + 40 * len(oids)
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"<Entry {self.size} bytes, {self.hits} hits{f', {self.reason}' if self.reason else ''}>"

    @property
    def worth(self) -> float:
        """What it saves for its size, and its age."""
        return self.base + (self.cost_ms + 0.1) * (self.hits + 1) / self.size


class Shelf:
    """What one database has."""

    def __init__(self, store: "Store") -> None:
        self.entries: dict[Hashable, Entry] = {}
        self.bytes = 0
        self.mark = 0.0
        self.evicted = 0
        self._store = store
        self._numbers = count()
        self._order: list[tuple[float, int, Entry]] = []
        self._expiries: list[tuple[float, int, Entry]] = []
        self._by: dict[tuple[str, str], dict[Entry, None]] = {}

    def __repr__(self) -> str:
        return f"<Shelf {len(self.entries)} entries, {self.bytes} bytes>"

    def get(self, key: Hashable, now: float) -> Entry | None:
        """What is kept under that key, if it may still be served."""
        entry = self.entries.get(key)
        if entry is not None and now >= entry.expires_at:
            self.drop(entry)
            return None
        return entry

    def put(self, entry: Entry) -> bool:
        """Keep it in place of what was there. False when it is too large."""
        before = self.entries.get(entry.key)
        if before is not None:
            entry.hits = before.hits // 2  # who was asked for often will be, too
            self.drop(before)
        if not self._store.make_room(entry.size):
            return False
        entry.shelf, entry.base = self, self.mark
        self.entries[entry.key] = entry
        self.bytes += entry.size
        self._store.bytes += entry.size
        number = next(self._numbers)
        heapq.heappush(self._order, (entry.worth, number, entry))
        heapq.heappush(self._expiries, (entry.expires_at, number, entry))
        for place in _places(entry):
            self._by.setdefault(place, {})[entry] = None
        return True

    def hit(self, entry: Entry) -> None:
        """It was asked for."""
        entry.hits += 1
        entry.base = self.mark

    def drop(self, entry: Entry) -> None:
        """Keep it no longer. Idempotent."""
        if entry.is_dead or entry.shelf is not self:
            return
        entry.is_dead = True
        del self.entries[entry.key]
        self.bytes -= entry.size
        self._store.bytes -= entry.size
        for place in _places(entry):
            found = self._by[place]
            del found[entry]
            if not found:
                del self._by[place]
        for heap in (self._order, self._expiries):
            if len(heap) > 2 * len(self.entries) + 64:
                heap[:] = [each for each in heap if not each[2].is_dead]
                heapq.heapify(heap)

    def purge(self, by: str, values: Iterable[str]) -> int:
        """Drop what has one of these: `by` is tag, table, or statement; or all. How many results that were."""
        if by == "all":
            doomed = list(self.entries.values())
        else:
            doomed = list(dict.fromkeys(entry for value in values for entry in self._by.get((by, value), ())))
        for entry in doomed:
            self.drop(entry)
        return sum(bool(entry.data) for entry in doomed)

    def evict(self) -> bool:
        """Drop the one that is worth least; False when there is none."""
        while self._order:
            worth, number, entry = heapq.heappop(self._order)
            if entry.is_dead:
                continue
            if entry.worth > worth:  # it was used since
                heapq.heappush(self._order, (entry.worth, number, entry))
                continue
            self.mark = max(self.mark, worth)
            self.drop(entry)
            self.evicted += 1
            return True
        return False

    def expire(self, now: float) -> None:
        """Drop what may not be served any more, some at a time."""
        for _ in range(_EXPIRED_AT_ONCE):
            if not self._expiries or self._expiries[0][0] > now:
                return
            self.drop(heapq.heappop(self._expiries)[2])


class Store:
    """All of them."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.largest_bytes = limit_bytes // _PART_OF_ALL
        self.bytes = 0
        self.turns: dict[tuple[int, bytes], object] = {}
        """What clients said to the letter, and were answered from the store: at most `MOST_TURNS`, counted in no entry."""
        self._scopes = count(1)
        self._shelves: list[Shelf] = []

    def __repr__(self) -> str:
        return f"<Store {self.bytes} of {self.limit_bytes} bytes, {len(self._shelves)} databases>"

    def shelf(self) -> Shelf:
        """A place for one more database."""
        shelf = Shelf(self)
        self._shelves.append(shelf)
        return shelf

    def new_scope(self) -> int:
        """A number that stands for whose entries they are. Never given twice."""
        return next(self._scopes)

    def make_room(self, size: int) -> bool:
        """Whether there is room for so much now."""
        if size > self.largest_bytes:
            return False
        while self.bytes + size > self.limit_bytes:
            fullest = max(self._shelves, key=lambda shelf: shelf.bytes)
            if not fullest.evict():
                return False
        return True

    def expire(self, now: float) -> None:
        """Now and then."""
        for shelf in self._shelves:
            shelf.expire(now)


def _places(entry: Entry) -> list[tuple[str, str]]:
    found = [("tag", tag) for tag in entry.tags] + [("table", table) for table in entry.tables]
    return [*found, ("statement", entry.fingerprint)] if entry.fingerprint else found
