"""The key sets of issuers of tokens, fetched from their URLs and kept.

Keys are good for an hour after they were fetched; after five minutes who uses them has them fetched anew, without waiting. A token
with a key that isn't among them has them fetched at once, but not more often than every 30 seconds: so keys can be rotated, and
strangers can't make Torpor a hammer. While an issuer can't be reached its last keys serve for that hour.

Concurrency: belongs to one event loop. One fetch of a URL at a time, however many wait; 8 in all.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from torpor.base.clock import Clock
from torpor.base.fetching import FetchFailed
from torpor.base.jwt import BadKeys, Key, read_keys
from torpor.base.logs import get_logger
from torpor.base.tasks import TaskOwner
from torpor.model.errors import Unavailable
from torpor.model.tokens import MAX_JWKS_BYTES

log = get_logger(__name__)

GOOD_FOR_S = 3600.0
FRESH_FOR_S = 300.0
AGAIN_AFTER_S = 30.0
_AT_ONCE = 8

Fetch = Callable[[str, int], Awaitable[bytes]]
"""Fetches a document of at most so many bytes. Raises FetchFailed."""


@dataclass(slots=True)
class _Set:
    keys: tuple[Key, ...] = ()
    fetched_at: float | None = None
    tried_at: float | None = None
    failure: str = ""
    running: "asyncio.Task[None] | None" = None


class KeySets:
    """The sets of all URLs in use."""

    def __init__(self, fetch: Fetch, clock: Clock, tasks: TaskOwner) -> None:
        self._fetch = fetch
        self._clock = clock
        self._tasks = tasks
        self._sets: dict[str, _Set] = {}
        self._turns = asyncio.Semaphore(_AT_ONCE)

    def __repr__(self) -> str:
        return f"<KeySets {len(self._sets)}>"

    def count(self, url: str) -> int:
        """How many keys are known of a set."""
        return len(self._sets[url].keys) if url in self._sets else 0

    async def keys(self, url: str) -> tuple[Key, ...]:
        """The keys. Raises Unavailable when there are none that are still good."""
        found = self._sets.setdefault(url, _Set())
        age_s = self._age_s(found.fetched_at)
        if age_s is None or age_s > GOOD_FOR_S:
            if self._may_try(found):
                await self._refreshed(url, found)
            if (age_s := self._age_s(found.fetched_at)) is None or age_s > GOOD_FOR_S:
                raise Unavailable(f"the keys of the tokens' issuer can't be fetched: {found.failure}", "see that their URL answers")
        elif age_s > FRESH_FOR_S and self._may_try(found):
            self._begin(url, found)
        return found.keys

    async def changed(self, url: str) -> tuple[Key, ...]:
        """The keys, fetched anew if that wasn't tried just now: one is asked for that isn't among them."""
        found = self._sets.setdefault(url, _Set())
        if self._may_try(found):
            await self._refreshed(url, found)
        return found.keys

    async def look(self, url: str) -> tuple[Key, ...]:
        """Fetch now. Raises Unavailable."""
        found = self._sets.setdefault(url, _Set())
        await self._refreshed(url, found)
        if found.failure:
            raise Unavailable(f"the keys can't be fetched: {found.failure}", "give a URL that answers with a JSON Web Key Set")
        return found.keys

    def forget(self, url: str) -> None:
        """It isn't used any more. Idempotent."""
        self._sets.pop(url, None)

    def _age_s(self, at: float | None) -> float | None:
        return None if at is None else self._clock.monotonic() - at

    def _may_try(self, found: _Set) -> bool:
        age_s = self._age_s(found.tried_at)
        return found.running is not None or age_s is None or age_s >= AGAIN_AFTER_S

    async def _refreshed(self, url: str, found: _Set) -> None:
        await asyncio.shield(self._begin(url, found))

    def _begin(self, url: str, found: _Set) -> "asyncio.Task[None]":
        if found.running is None:
            found.running = self._tasks.spawn(self._refresh(url, found), "fetch keys")
        return found.running

    async def _refresh(self, url: str, found: _Set) -> None:
        try:
            async with self._turns:
                keys = read_keys(await self._fetch(url, MAX_JWKS_BYTES))
        except (FetchFailed, BadKeys) as error:
            found.failure = str(error)
            log.warning("the keys of an issuer of tokens can't be fetched", url=url, cause=str(error))
        else:
            found.keys, found.fetched_at, found.failure = keys, self._clock.monotonic(), ""
        finally:
            found.tried_at, found.running = self._clock.monotonic(), None
