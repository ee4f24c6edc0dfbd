"""The use cases on access lists: shown, replaced, and held to at once, for sessions that live already too.

Concurrency: called from many tasks. A change is one step (catalog, then the book that the door asks); after it one pass over all
sessions ends those that the lists forbid now. A login that was under way asks the new book before and after its hand-over.
"""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Protocol

from torpor.base.logs import get_logger
from torpor.base.tasks import TaskOwner
from torpor.catalog.access import AccessRecords
from torpor.compute.compute import Compute
from torpor.compute.sessions import Session
from torpor.model.access import AccessBook, AccessList, ScopeKey, access_list
from torpor.model.access_views import AccessView
from torpor.model.errors import AddressForbidden, Conflict, TorporError
from torpor.model.sleep import Tier
from torpor.pgwire.replies import error_response

log = get_logger(__name__)

_GRACE_S = 0.5  # a session at rest ends by itself and its client is told why; after this it is severed, whatever it does
_PATIENCE_S = 5.0
_LOOKS_A_TURN = 1000
_LINES = 100
_VERSION_CHARACTERS = 16


class Computes(Protocol):
    """Who has sessions."""

    def with_sessions(self) -> Iterable[Compute]:
        """The computes that have sessions of clients."""
        ...


class AccessControl:
    """All access lists of the host. `publish` gives the door a new book."""

    def __init__(self, records: AccessRecords, fleet: Computes, tasks: TaskOwner, publish: Callable[[AccessBook], None]) -> None:
        self._records = records
        self._fleet = fleet
        self._tasks = tasks
        self._publish = publish
        self.on_change: Callable[[ScopeKey], None] = lambda _key: None
        self._lists = records.lists()
        self._book = AccessBook()
        for key, lists in self._lists.items():
            self._book = self._book.with_lists(key, lists)
        publish(self._book)

    def __repr__(self) -> str:
        return f"<AccessControl {self._book!r}>"

    def show(self, key: ScopeKey) -> AccessView:
        """The lists of a scope; empty ones forbid nobody."""
        lists = self._lists.get(key, AccessList())
        return AccessView(lists.allow, lists.deny, _version(lists))

    async def replace(self, key: ScopeKey, allow: Iterable[str], deny: Iterable[str], version: str | None, by: str) -> AccessView:
        """Replace the lists of a scope. In force when it returns; sessions that they forbid end within half a second.

        Raises InvalidRequest for what is no network, and Conflict when the lists aren't those of `version` any more.
        """
        current = self._lists.get(key, AccessList())
        if version is not None and version != _version(current):
            raise Conflict("the access lists have been changed meanwhile", "look at them, and try again")
        lists = access_list(allow, deny)
        self._records.replace(key, lists)
        self._lists.pop(key, None)
        if lists:
            self._lists[key] = lists
        self._book = self._book.with_lists(key, lists)
        self._publish(self._book)
        self.on_change(key)
        closed = await self.enforce(by)
        return AccessView(lists.allow, lists.deny, _version(lists), closed)

    async def enforce(self, by: str) -> int:
        """End every session that the lists forbid; how many there were. Some µs for each session of the host."""
        barred: list[tuple[Compute, Session]] = []
        looks = 0
        for compute in list(self._fleet.with_sessions()):
            database = compute.database
            for session in compute.sessions():
                looks += 1
                if looks % _LOOKS_A_TURN == 0:
                    await asyncio.sleep(0)
                why = self._book.bars(session.client_host, database.workspace or "", database.id)
                if why is None or session.ended:
                    continue
                barred.append((compute, session))
                if len(barred) <= _LINES:
                    log.warning(
                        "session closed", client=session.client_host, database=database.label, pid=session.pid, because=str(why), by=by
                    )
                text = f"connections from {session.client_host} are forbidden now: {why}"
                session.dismiss(error_response(AddressForbidden.sqlstate, text, "whoever runs it can change that: `torpor access`"))
        if barred:
            if len(barred) > _LINES:
                log.warning("more sessions closed", sessions=len(barred) - _LINES, by=by)
            self._tasks.spawn(sever(barred), "sever forbidden sessions")
        return len(barred)

    def forget(self, key: ScopeKey) -> None:
        """Its database or workspace is gone. Idempotent."""
        if self._lists.pop(key, None) is not None:
            self._book = self._book.with_lists(key, AccessList())
            self._publish(self._book)


async def sever(barred: Iterable[tuple[Compute, Session]]) -> None:
    """Cut off whoever is still there. A backend in the middle of a statement doesn't notice: it is told to end."""
    await asyncio.sleep(_GRACE_S)
    left: dict[Compute, list[Session]] = {}
    for compute, session in barred:
        if not session.ended:
            session.cut()
            left.setdefault(compute, []).append(session)
    await asyncio.sleep(_GRACE_S)
    for compute, sessions in left.items():
        pids = [session.pid for session in sessions if session.pid is not None and not session.ended]
        if pids and compute.tier is Tier.AWAKE:
            with contextlib.suppress(TorporError, TimeoutError):  # a compute that is hostile, or ends: its clients are gone all the same
                async with asyncio.timeout(_PATIENCE_S):
                    await (await compute.live().service()).end_backends(pids)


def _version(lists: AccessList) -> str:
    return hashlib.sha256(json.dumps([lists.allow, lists.deny]).encode()).hexdigest()[:_VERSION_CHARACTERS]
