"""Keeps the card of every database in the store up to date, so that it can be brought back without this machine (`control/recovery.py`).

A database that has something in the store, a history or its archived volume, has a card there; before that no base is stored, and no
volume removed from the pool. What is on it and changes is stored within a second, or as soon as the store allows (it is tried each minute
at least): nothing waits for it, and nobody is woken. With each base it is read, and stored again if it is damaged. As a database is removed
its card is the first that goes from the store. At start all are compared with what the store lists, so what a kill cut off is made up for,
and a new store gets them all.

Concurrency: on the loop. Cards of one database take turns, a few of several at once. What is changed meanwhile is written once more. Safe
to cancel; a put that was cut off may have been done, so what the store has of that database is asked for the next time.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Protocol
from weakref import WeakValueDictionary

from torpor.base.clock import Clock
from torpor.base.logs import get_logger
from torpor.base.tasks import TaskOwner
from torpor.catalog.archived import ArchivedRecords
from torpor.catalog.histories import HistoryRecords
from torpor.compute.fleet import Fleet
from torpor.model.access_views import AccessView
from torpor.model.archived import Archived, ArchivedState
from torpor.model.cards import Card, CardArchive, CardHistory
from torpor.model.database import Database, DatabaseState
from torpor.model.errors import HistoryCorrupt, HistoryError, HistoryMissing, TorporError
from torpor.model.history import History, line_of
from torpor.model.names import DatabaseId
from torpor.model.size import Size
from torpor.model.workspace import WorkspaceId
from torpor.storage.archive.card import CardBox

log = get_logger(__name__)

_GATHER_S = 0.2  # several changes of one operation are one card
_AGAIN_S = 1.0
_AGAIN_MOST_S = 60.0
_AT_ONCE = 4
_COMPARED_A_TURN = 50


class CardKeeper(Protocol):
    """What others tell of changes."""

    def touch(self, id: DatabaseId) -> None:
        """Something that may be on the card of a database has changed. Costs next to nothing."""
        ...

    async def ensure(self, id: DatabaseId, check: bool = False) -> None:
        """Have the card in the store as it should be now; `check` also that what is there can be read. Raises what the store raises."""
        ...


class NoCards:
    """Where there is no store."""

    def touch(self, id: DatabaseId) -> None:
        """Nothing happens."""

    async def ensure(self, id: DatabaseId, check: bool = False) -> None:
        """Nothing happens."""


def card_of(
    database: Database, workspace: str, lists: AccessView, size: Size, history: History | None, archived: Archived | None
) -> Card | None:
    """What the card of a database says now; None when it has none. Pure."""
    if database.state is not DatabaseState.READY or database.name is None or (history is None and archived is None):
        return None
    of_history = of_archive = None
    if history is not None:
        segment_bytes = history.shipped.segment_bytes if history.shipped is not None else None
        of_history = CardHistory(history.wrapped_key, segment_bytes, history.keep_s, history.keep_bases)
    if archived is not None and archived.state is not ArchivedState.BACK:
        is_archived = archived.state is ArchivedState.ARCHIVED
        of_archive = CardArchive(archived.wrapped_key, is_archived, archived.at, archived.size_bytes, *_reached(history))
    return Card(
        database.id,
        database.name,
        workspace,
        database.major,
        database.created_at,
        database.size.apply(size).disk_bytes,
        database.overrides,
        database.size,
        database.superuser,
        database.parent,
        database.branched_at,
        database.expires_at,
        lists.allow,
        lists.deny,
        of_history,
        of_archive,
        database.pool,
        database.cache,
    )


def _reached(history: History | None) -> tuple[int, int]:
    """How far a history is; where its volume was exchanged, and nothing shipped since, it is behind whatever comes next."""
    if history is None:
        return 0, 0
    if history.shipped is None:
        return line_of(history.run + 1, 0), 0
    return line_of(history.run, history.shipped.timeline), history.shipped.lsn


class Cards:
    """The cards of all databases of one Torpor."""

    def __init__(
        self,
        box: CardBox,
        fleet: Fleet,
        histories: HistoryRecords,
        archived: ArchivedRecords,
        workspace: Callable[[WorkspaceId | None], str],
        lists: Callable[[DatabaseId], AccessView],
        size: Size,
        clock: Clock,
        tasks: TaskOwner,
    ) -> None:
        """`workspace` names one, `lists` has the access lists of a database, `size` is that of databases that have none of their own."""
        self._box = box
        self._fleet = fleet
        self._histories = histories
        self._archived = archived
        self._workspace = workspace
        self._lists = lists
        self._size = size
        self._clock = clock
        self._tasks = tasks
        self._stored: dict[DatabaseId, frozenset[str]] = {}
        self._unsure: set[DatabaseId] = set()  # what the store has of these must be asked for
        self._is_compared = False  # those that aren't in `_stored` have none
        self._dirty: set[DatabaseId] = set()
        self._writing: set[DatabaseId] = set()
        self._changed = asyncio.Event()
        self._turns: WeakValueDictionary[DatabaseId, asyncio.Lock] = WeakValueDictionary()

    def __repr__(self) -> str:
        return f"<Cards {len(self._stored)} stored, {len(self._dirty)} behind>"

    @property
    def behind(self) -> int:
        """How many cards aren't in the store as they should be, or should be gone."""
        return len(self._dirty | self._writing)

    def start(self) -> None:
        """Begin to work: all databases are known, and none is half made any more."""
        self._tasks.spawn_endless(self._run, "keep cards")

    async def finish(self, patience_s: float) -> None:
        """At the end of Torpor: store what is behind, for some seconds at most. The next Torpor stores what is left."""
        with contextlib.suppress(TorporError, TimeoutError):
            async with asyncio.timeout(patience_s):
                await self._write_dirty()

    def touch(self, id: DatabaseId) -> None:
        """See CardKeeper."""
        self._dirty.add(id)
        self._changed.set()

    async def ensure(self, id: DatabaseId, check: bool = False) -> None:
        """See CardKeeper."""
        async with self._turn(id):
            self._dirty.discard(id)
            self._writing.add(id)
            try:
                await self._write(id, check)
            except BaseException:
                self._stored.pop(id, None)
                self._unsure.add(id)
                self.touch(id)
                raise
            finally:
                self._writing.discard(id)

    async def is_gone(self, id: DatabaseId, patience_s: float) -> bool:
        """Of a database that was removed: until its card is, too, but not longer than `patience_s`. Whether it is."""
        with contextlib.suppress(TorporError, TimeoutError):
            async with asyncio.timeout(patience_s):
                await self.ensure(id)
                return True
        return False

    def describe(self, id: DatabaseId) -> Card | None:
        """What the card of a database should say now; None when it should have none."""
        if (compute := self._fleet.get(id)) is None:
            return None
        database = compute.database
        facts = self._histories.get(id), self._archived.get(id)
        return card_of(database, self._workspace(database.workspace), self._lists(id), self._size, *facts)

    # -- inside

    async def _write(self, id: DatabaseId, check: bool) -> None:
        there = await self._names(id)
        card = self.describe(id)
        wanted = frozenset[str]() if card is None else frozenset([self._box.name(card)])
        if card is not None and not (wanted <= there and (not check or await self._is_readable(wanted))):
            await self._box.put(card, self._clock.time())
        if there - wanted:
            await self._box.remove(there - wanted)
        self._unsure.discard(id)
        self._stored.pop(id, None)
        if wanted:
            self._stored[id] = wanted

    async def _is_readable(self, names: frozenset[str]) -> bool:
        try:
            await self._box.newest(list(names))
        except (HistoryCorrupt, HistoryMissing):
            return False
        return True

    async def _names(self, id: DatabaseId) -> frozenset[str]:
        if (known := self._stored.get(id)) is not None:
            return known
        if self._is_compared and id not in self._unsure:
            return frozenset()
        return frozenset(await self._box.names(id))

    async def _run(self) -> None:
        pause_s = _AGAIN_S
        while True:
            try:
                if not self._is_compared:
                    await self._compare()
                await self._changed.wait()
                await self._clock.sleep(_GATHER_S)
                self._changed.clear()
                await self._write_dirty()
                pause_s = _AGAIN_S
            except TorporError as error:
                log.warning("cards of databases are behind in the store", databases=len(self._dirty), cause=error.message)
                await self._clock.sleep(pause_s)
                pause_s = min(_AGAIN_MOST_S, pause_s * 2)

    async def _compare(self) -> None:
        """Once: which cards does the store have, and which of them aren't what they should be? Those of others are left alone."""
        there = await self._box.ours()
        if lost := there.keys() - {id for id in there if self._fleet.get(id) is not None} - {id for id, _ in self._histories.doomed()}:
            log.info("the store holds databases that aren't here: `torpor recover` lists them", databases=len(lost))
        for number, id in enumerate({*self._histories.ids(), *(archived.id for archived in self._archived.all())}):
            if number % _COMPARED_A_TURN == _COMPARED_A_TURN - 1:
                await asyncio.sleep(0)
            if id in self._stored or id in self._unsure:  # it was written meanwhile
                continue
            self._stored[id] = frozenset(there.get(id, ()))
            card = self.describe(id)
            if self._stored[id] != (frozenset() if card is None else frozenset([self._box.name(card)])):
                self.touch(id)
        self._is_compared = True

    async def _write_dirty(self) -> None:
        """All of them, unless the store fails. Raises what failed once those that are under way have ended."""
        waiting, failures = list(self._dirty), list[BaseException]()
        while waiting and not any(isinstance(failure, HistoryError) for failure in failures):
            some, waiting = waiting[:_AT_ONCE], waiting[_AT_ONCE:]
            outcomes = await asyncio.gather(*map(self.ensure, some), return_exceptions=True)
            failures += [outcome for outcome in outcomes if outcome is not None]
        if failures:
            raise failures[0]

    def _turn(self, id: DatabaseId) -> asyncio.Lock:
        if (turn := self._turns.get(id)) is None:
            turn = self._turns[id] = asyncio.Lock()
        return turn
