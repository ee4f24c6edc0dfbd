"""The use cases on the cache of a database: what holds for it, and dropping what is in it.

What is cached lies with the workers of the pool, in memory; what holds is in the catalog, and a branch gets what its parent has. A change
reaches the worker before the call returns, in order with all that it is told.

Concurrency: called from many tasks; a change is one step (catalog, fleet, worker). A purge waits for its worker's answer.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from torpor.catalog.catalog import Catalog
from torpor.compute.fleet import Fleet
from torpor.model.cache import (
    MAX_PURGED_AT_ONCE,
    MAX_RULES,
    MAX_STATEMENT_SHOWN,
    MAX_VALUE,
    NO_CACHE,
    CachePolicy,
    CacheRule,
    CacheStatus,
    PurgeBy,
)
from torpor.model.cachewords import read_words
from torpor.model.errors import Conflict, DatabaseNotFound, InvalidRequest
from torpor.model.fingerprint import FINGERPRINT, fingerprint
from torpor.model.names import DatabaseId
from torpor.model.pool import PoolView
from torpor.storage.writes import WriteCounters


class Pools(Protocol):
    """Where results are cached."""

    def view(self, id: DatabaseId) -> PoolView | None:
        """How the pool of a database is doing; None when nobody uses it."""
        ...

    def cache_changed(self, id: DatabaseId) -> None:
        """Something else holds for its cache."""
        ...

    def contents_changed(self, id: DatabaseId) -> None:
        """It holds something else now: nothing that was read before is served."""
        ...

    async def purge(self, id: DatabaseId, by: PurgeBy, values: Sequence[str]) -> int:
        """Drop what is cached; how many results that were."""
        ...


class Caching:
    """All databases' caches. It doesn't ask to whom a database belongs."""

    def __init__(self, catalog: Catalog, fleet: Fleet, pools: Pools, writes: WriteCounters | None) -> None:
        self._catalog, self._fleet, self._pools, self._writes = catalog, fleet, pools, writes

    def __repr__(self) -> str:
        return "<Caching>"

    def show(self, id: DatabaseId) -> CacheStatus:
        """What holds, and how it is doing."""
        policy, pool = self._policy(id), self._pools.view(id)
        return CacheStatus(policy.on_write, policy.rules, pool.cache if pool is not None else NO_CACHE)

    def set_on_write(self, id: DatabaseId, on: bool) -> CacheStatus:
        """Whether a committed write drops what was read from the tables that it wrote to. From now on; what is cached without it isn't
        served with it."""
        return self._replace(id, replace(self._policy(id), on_write=on))

    def set_rule(self, id: DatabaseId, statement: str, words: str) -> CacheStatus:
        """Cache statements like this one (or those of a fingerprint) by these words, unless a client says something else. Replaces
        the rule of that fingerprint. Raises InvalidRequest for words that say nothing, and Conflict when there are too many rules."""
        if read_words(words) is None:
            raise InvalidRequest(
                f"these words don't say how to cache: {words[:MAX_VALUE]!r}", "such as 'ttl=60 swr=300 tags=users,home'; ttl=0 forbids it"
            )
        found = fingerprint_of(statement)
        policy = self._policy(id)
        shown = "" if FINGERPRINT.fullmatch(statement.strip()) else " ".join(statement.split())[:MAX_STATEMENT_SHOWN]
        others = tuple(rule for rule in policy.rules if rule.fingerprint != found)
        if len(others) >= MAX_RULES:
            raise Conflict(f"a database can have {MAX_RULES} rules of its cache", "remove one, or say it in front of the statement")
        return self._replace(id, replace(policy, rules=(*others, CacheRule(found, words, shown))))

    def remove_rule(self, id: DatabaseId, statement: str) -> CacheStatus:
        """Take the rule away that statements like this one (or those of a fingerprint) have. Raises InvalidRequest when there is none."""
        policy, found = self._policy(id), fingerprint_of(statement)
        rest = tuple(rule for rule in policy.rules if rule.fingerprint != found)
        if len(rest) == len(policy.rules):
            raise InvalidRequest(f"the cache has no rule for {found}", "`torpor cache` shows which there are")
        return self._replace(id, replace(policy, rules=rest))

    async def purge(self, id: DatabaseId, by: PurgeBy, values: Sequence[str]) -> int:
        """Drop results; how many there were. When it returns none of them is served. Statements may be given as they are, or by their
        fingerprints. Raises InvalidRequest for what can't be meant."""
        if (by is PurgeBy.ALL) != (not values):
            raise InvalidRequest(
                "all of it is dropped without naming anything" if values else f"say by which {by} what is to be dropped is found"
            )
        if len(values) > MAX_PURGED_AT_ONCE or not all(0 < len(value) <= MAX_VALUE or by is PurgeBy.STATEMENT for value in values):
            raise InvalidRequest(
                f"at most {MAX_PURGED_AT_ONCE} at once, of 1 to {MAX_VALUE} characters each", "purge several times: there is no limit"
            )
        wanted = [fingerprint_of(value) for value in values] if by is PurgeBy.STATEMENT else list(values)
        return await self._pools.purge(id, by, wanted)

    def contents_changed(self, id: DatabaseId) -> None:
        """Its volume is another one now."""
        if self._writes is not None:
            self._writes.changed(id)
        self._pools.contents_changed(id)

    def sweep(self) -> None:
        """At the start: remove the counters of databases that are gone."""
        if self._writes is not None:
            self._writes.sweep({database.id for database in self._catalog.databases()})

    def _policy(self, id: DatabaseId) -> CachePolicy:
        compute = self._fleet.get(id)
        if compute is None:
            raise DatabaseNotFound("the database has been removed", "`torpor ls` lists the databases")
        return compute.database.cache

    def _replace(self, id: DatabaseId, policy: CachePolicy) -> CacheStatus:
        compute = self._fleet.get(id)
        assert compute is not None
        self._catalog.set_cache(id, policy)
        self._fleet.update(replace(compute.database, cache=policy))
        self._pools.cache_changed(id)
        return self.show(id)


def fingerprint_of(statement: str) -> str:
    """The fingerprint of a statement, or the one that was given. Raises InvalidRequest for an empty one."""
    text = statement.strip()
    if not text:
        raise InvalidRequest("the statement is empty", "give a statement, or its fingerprint of 16 hexadecimal digits")
    return text if FINGERPRINT.fullmatch(text) else fingerprint(text.encode("utf-8", "surrogateescape"))
