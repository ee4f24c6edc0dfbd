"""What one database's cache shares: which values of the shared store are for what is asked, and what is made of them. Pure.

A lookup is asked once for all who want the same; they wait for it in `Lookup.waiters`, as for a miss. What it finds is an entry as any
other from then on, with the age that it has.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Protocol

from torpor.gateway.cache.sealed import Seal, Shared, parts
from torpor.gateway.cache.store import Entry
from torpor.gateway.pool.flights import Ask
from torpor.gateway.pool.values import Key
from torpor.model.fingerprint import fingerprint

if TYPE_CHECKING:
    from torpor.gateway.pool.client import Client

Scope = tuple[Key, frozenset[tuple[bytes, bytes]]]
"""For whom an entry is good: how its session began, and the settings that it has."""
LARGEST_BYTES = 1 << 20
"""Of a value: more would hold up what is asked for meanwhile."""
_PIECE_BYTES = 65_536

Found = Callable[[Sequence[bytes | None] | None], None]
"""Is given the values, None for each that isn't there; or None for all, when the store didn't answer."""


class Remote(Protocol):
    """A store, as the caches of databases use it."""

    def get(self, names: Sequence[bytes], found: Found) -> bool:
        """Ask for these. False when it isn't asked now; else `found` is called soon, and never from here."""
        ...

    def put(self, name: bytes, value: bytes, life_ms: int) -> None:
        """Have it kept, if that can be."""
        ...


class Lookup:
    """What is being asked of the shared store."""

    __slots__ = ("ask", "names", "sharing", "waiters")

    def __init__(self, ask: Ask, names: list[tuple[Hashable, bytes]], sharing: "Sharing") -> None:
        self.ask, self.names, self.sharing = ask, names, sharing
        self.waiters: list[Client] = []


class Sharing:
    """For one database, as long as it has this secret."""

    def __init__(self, remote: Remote, secret: bytes, wall: Callable[[], float]) -> None:
        self.remote, self.secret = remote, secret
        self._seal = Seal(secret)
        self._wall = wall

    def __repr__(self) -> str:
        return f"<Sharing {self.remote!r}>"

    def names(self, ask: Ask, scope: Scope) -> list[tuple[Hashable, bytes]]:
        """What may be kept for it: keys of entries, and what these are called in the store. The result comes first."""
        found = [(ask.key, self._result(ask, scope))] if ask.executes else []
        return found if ask.unit is None else [*found, ((ask.scope, ask.body), self._description(ask, scope))]

    def give(self, ask: Ask, scope: Scope, entry: Entry) -> None:
        """Have an entry that was made now kept for others. One without rows is a description."""
        if len(entry.data) + sum(map(len, entry.more)) > LARGEST_BYTES:
            return
        name = self._result(ask, scope) if entry.data else self._description(ask, scope)
        age_s = 0.0 if not entry.cost_ms else entry.cost_ms / 1000
        life_ms = int((entry.expires_at - entry.made_at) * 1000)
        made_ms = int((self._wall() - age_s) * 1000)
        data = b"".join((entry.data, *entry.more))
        shared = Shared(made_ms, life_ms, entry.cost_ms, data, entry.columns, entry.parameters, entry.tables)
        self.remote.put(name, self._seal.close(name, shared), life_ms - int(age_s * 1000))

    def entry(self, ask: Ask, key: Hashable, name: bytes, value: bytes, now: float) -> Entry | None:
        """What was found under that name, if it is what it should be."""
        now_ms = int(self._wall() * 1000)
        shared = self._seal.open(name, value, now_ms)
        is_result = ask.executes and key == ask.key
        if shared is None or bool(shared.data) is not is_result:
            return None
        made_at = now - max(0, now_ms - shared.made_ms) / 1000
        unit, data = ask.unit, shared.data
        return Entry(
            key,
            data[:_PIECE_BYTES],
            more=tuple(data[at : at + _PIECE_BYTES] for at in range(_PIECE_BYTES, len(data), _PIECE_BYTES)),
            made_at=made_at,
            expires_at=made_at + shared.life_ms / 1000,
            cost_ms=shared.cost_ms,
            tags=ask.words.tags if is_result else (),
            tables=shared.tables,
            fingerprint=fingerprint(ask.text),
            columns=shared.columns,
            parameters=shared.parameters,
            other_bytes=len(ask.text) + len(ask.body) + len(unit.rest or b"" if unit is not None else b""),
        )

    def _result(self, ask: Ask, scope: Scope) -> bytes:
        unit, tags = ask.unit, parts(tag.encode() for tag in ask.words.tags)
        said = (b"simple", ask.text) if unit is None else (b"extended", ask.body, unit.rest or b"")
        return self._seal.name(parts((*said, tags, b"%d" % ask.words.force, _flat(scope))))

    def _description(self, ask: Ask, scope: Scope) -> bytes:
        return self._seal.name(parts((b"described", ask.body, _flat(scope))))


def _flat(scope: Scope) -> bytes:
    key, settings = scope
    texts = (key.role, key.inner_database, *(text for pair in key.parameters for text in pair))
    flat = [part for pair in sorted(settings) for part in pair]
    return parts((parts(text.encode("utf-8", "surrogatepass") for text in texts), parts(flat)))
