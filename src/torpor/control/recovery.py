"""Databases of a machine that was lost: brought back from what the store holds of them and a copy of the master key, and nothing else.

Each has a card in the store (`control/cards.py`), which has its keys. What is made is always a new database, with an id, a key and a
history of its own; what it was is only read. So nothing happens to a machine that was thought to be lost and isn't, whatever both do from
then on, and a recovery that fails can be begun again. What it was stays in the store until it is forgotten.

Making one is making a branch (`control.branches`) of what the store holds (RECOVER_STEPS, with those of branches and restores between
them); whatever fails or is killed leaves no database, and what a kill leaves is removed by the next start (`control.reconcile`). A whole
volume that was archived is taken where its history goes no further, else the newest base with all log after it.

Concurrency: each is a job, a few at a time; one of the same database at a time. Any number of Torpors may recover from one store.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from torpor.base.logs import get_logger
from torpor.catalog.catalog import Catalog
from torpor.compute.compute import Compute
from torpor.compute.fleet import Fleet
from torpor.compute.surroundings import Surroundings
from torpor.control.access import AccessControl
from torpor.control.branches import Branches
from torpor.control.cards import Cards
from torpor.control.claims import Claims
from torpor.control.history import Histories
from torpor.control.jobs import Jobs, Progress
from torpor.control.provisioning import Provisioner, new_id
from torpor.control.restore import Restores, Route, routes
from torpor.control.workspaces import Workspaces
from torpor.model.access import ListScope
from torpor.model.cards import Card, CardArchive
from torpor.model.database import Database, DatabaseState
from torpor.model.errors import (
    Conflict,
    DatabaseExists,
    DatabaseNotFound,
    HistoryCorrupt,
    HistoryMissing,
    InvalidRequest,
    KeyFileUnusable,
    TorporError,
    WorkspaceNotFound,
)
from torpor.model.history import History, Moment, Shipped
from torpor.model.lsn import format_lsn
from torpor.model.names import DatabaseId, check_database_name, check_new_database_name, is_database_id
from torpor.model.recovery_views import RecoverableList, RecoverableView, Recovering
from torpor.model.workspace import Workspace
from torpor.storage.archive.archive import Archive
from torpor.storage.archive.repository import Repository
from torpor.storage.archive.retention import Base, LogPiece, spans

log = get_logger(__name__)

_AT_ONCE = 4
_READ_AT_ONCE = 64
_FORGOTTEN_WITHIN_S = 5.0
_GONE_WITHIN_S = 1.0
_LIVELY_S = 600.0
MAX_PAGE = 1000
_USUAL_SEGMENT_BYTES = 1 << 20
_LIST_HINT = "`torpor recover` lists what the store holds"


class RecoverStep(StrEnum):
    """The steps of bringing a database back, in order; between CHOSEN and MADE lie those of a restore and of a branch."""

    OWNED = "owned"  # its workspace is there
    CHOSEN = "chosen"  # what of the store it is made of
    MADE = "made"  # it runs, and nobody can use it yet
    SETTLED = "settled"  # its access lists and its retention are as they were
    READY = "ready"  # it can be used


RECOVER_STEPS = tuple(RecoverStep)


@dataclass(frozen=True, slots=True)
class Held:
    """What the store holds of a database: its whole volume, if that is the newest, and what of the log leads to the moment."""

    shelf: Base | None
    routes: tuple[Route, ...]
    lacks: str = ""
    """What of it can't be brought back by these routes, though the newest is wanted and the store has log of it."""

    @property
    def major(self) -> int:
        """Of the first that is tried."""
        return (self.shelf or self.routes[0].base).facts.major

    @property
    def size_bytes(self) -> int:
        """What it takes on the pool, about."""
        if self.shelf is not None:
            return self.shelf.size_bytes
        first = self.routes[0]
        return first.base.size_bytes + first.until - first.base.facts.start_lsn


def goes_beyond(archive: CardArchive, pieces: list[LogPiece]) -> bool:
    """Whether there is log of what was written after the volume was archived. Pure."""
    return any(piece.timeline > archive.line or (piece.timeline == archive.line and piece.end_lsn > archive.lsn) for piece in pieces)


def unreachable(route: Route, pieces: Sequence[LogPiece]) -> str:
    """What log there is behind the end of a route, in words; nothing where there is none. Pure."""
    line = route.base.facts.timeline
    if any(piece.timeline == line and piece.end_lsn > route.end for piece in pieces):
        return f"the log after {format_lsn(route.end)}: a piece of it is missing in the store"
    if any(piece.timeline > line for piece in pieces):
        return "what was written after its last run of log began: no base copy of that had been taken yet"
    return ""


class Recovery:
    """All use cases on databases that are in the store and not here."""

    def __init__(
        self,
        archive: Archive,
        cards: Cards,
        histories: Histories,
        restores: Restores,
        branches: Branches,
        workspaces: Workspaces,
        access: AccessControl,
        catalog: Catalog,
        fleet: Fleet,
        provisioner: Provisioner,
        around: Surroundings,
        majors: Callable[[], Mapping[int, object]],
        allows_superusers: bool,
        expires: Callable[[Database], None],
        jobs: Jobs,
        claims: Claims,
    ) -> None:
        self._archive = archive
        self.cards = cards
        self._histories = histories
        self._restores = restores
        self._branches = branches
        self._workspaces = workspaces
        self._access = access
        self._catalog = catalog
        self._fleet = fleet
        self._provisioner = provisioner
        self._around = around
        self._majors = majors
        self._allows_superusers = allows_superusers
        self._expires = expires
        self._jobs = jobs
        self._claims = claims
        self._turns = asyncio.Semaphore(_AT_ONCE)

    def __repr__(self) -> str:
        return f"<Recovery from {self._archive.store.description}>"

    # -- what users ask for

    async def list(self, after: str | None, limit: int) -> RecoverableList:
        """What can be brought back, a page. Reads every card that isn't of a database here, and the history of those on the page."""
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidRequest(f"limit must be between 1 and {MAX_PAGE}")
        found = await self._archive.cards.survey()
        lost = self._lost(found.ours)
        cards = await self._read(lost)
        ordered = sorted(cards, key=lambda id: _place(id, cards[id]))
        page = [id for id in ordered if after is None or _place(id, cards[id]) > after][: limit + 1]
        made_of = self._made_of(cards)
        names = {id: card.name for id, card in cards.items() if isinstance(card, Card)}
        views = await asyncio.gather(*(self._view(id, cards[id], made_of, names) for id in page[:limit]))
        return RecoverableList(
            tuple(views),
            _place(page[limit - 1], cards[page[limit - 1]]) if len(page) > limit else None,
            self._archive.store.description,
            self._archive.cards.fingerprint,
            sum(self._fleet.get(id) is not None for id in found.ours),
            sum(found.foreign.values()),
            self.cards.behind,
        )

    async def recover(self, wanted: str, name: str | None, moment: Moment, by: str) -> Recovering:
        """Bring back the database of that name, or id, as a job; called as it was, or `name`.

        Raises DatabaseNotFound for what the store doesn't hold, HistoryCorrupt for a card that can't be read, DatabaseExists, InvalidName,
        Conflict for what this Torpor can't run, TooManyJobs.
        """
        card = await self._find(wanted)
        name = check_new_database_name(name) if name else check_database_name(card.name)
        if self._fleet.find(name) is not None:
            raise DatabaseExists(f"database {name!r} exists already", "call it something else: `torpor recover … --as NAME`")
        if card.superuser and not self._allows_superusers:
            raise Conflict(
                f"the owner of {card.name} is a superuser of PostgreSQL, which this Torpor allows nobody to be",
                "it takes the setting tenant_superuser, and a sandbox level that holds one (`torpor doctor`)",
            )
        if card.id in self._histories.doomed():
            raise DatabaseNotFound(f"what the store held of {card.name} was forgotten meanwhile", _LIST_HINT)

        async def work(progress: Progress) -> dict[str, str]:
            async with self._turns:
                return await self._recover(card, name, workspace, moment, progress)

        workspace = self._own(card)
        _reached(RecoverStep.OWNED, card)
        wanted_now = self._wanted(card, name, card.major, workspace)
        claim = self._claims.take("recovered", self._was(card, wanted_now))
        return Recovering(self._jobs.start("recover", wanted_now, work, by, claim), name)

    async def forget(self, wanted: str, force: bool) -> str:
        """Have all removed that the store holds of a database that isn't here: first its keys, the rest when the store lets us. Its name.

        Raises DatabaseNotFound, Conflict while it is being recovered, or, unless `force`, when another Torpor wrote to it a moment ago.
        """
        ours = (await self._archive.cards.survey()).ours
        if is_database_id(wanted) and wanted in self._lost(ours):
            id = DatabaseId(wanted)
            card = (await self._read({id: ours[id]}))[id]
        else:
            card = await self._find(wanted)
            id = card.id
        if not isinstance(card, Card):  # nobody can be at it
            await self._doom(id)
            return id
        if not force:
            await self._check_lifeless(card)
        with self._claims.take("forgotten", self._was(card, self._wanted(card, card.name, card.major, None))):
            await self._doom(id)
        return card.name

    async def _doom(self, id: DatabaseId) -> None:
        """Once that is recorded it is done, however long it takes."""
        self._histories.doom(id)
        try:
            async with asyncio.timeout(_FORGOTTEN_WITHIN_S):
                await self._archive.cards.destroy(id)
        except (TorporError, TimeoutError) as error:
            log.warning("the keys of what is forgotten are in the store until that answers", id=id, cause=str(error))

    async def keys_are_gone(self, id: DatabaseId) -> bool:
        """Of a database that was removed here: whether the store has its keys no more, which is waited for a moment. Else that is tried
        again for as long as it takes."""
        return await self.cards.is_gone(id, _GONE_WITHIN_S)

    # -- finding

    def _lost(self, ours: Mapping[DatabaseId, Sequence[str]]) -> dict[DatabaseId, Sequence[str]]:
        """Those that are neither here nor to be removed."""
        doomed = self._histories.doomed()
        return {id: names for id, names in ours.items() if self._fleet.get(id) is None and id not in doomed}

    async def _read(self, lost: Mapping[DatabaseId, Sequence[str]]) -> dict[DatabaseId, Card | TorporError]:
        """The newest card of each, or why there is none to be read. Raises what the store raises."""
        found: dict[DatabaseId, Card | TorporError] = {}
        waiting = list(lost.items())
        for start in range(0, len(waiting), _READ_AT_ONCE):
            some = waiting[start : start + _READ_AT_ONCE]
            for (id, _), card in zip(some, await asyncio.gather(*(self._open(id, names) for id, names in some)), strict=True):
                if not isinstance(card, HistoryMissing):  # it went meanwhile
                    found[id] = card
        return found

    async def _open(self, id: DatabaseId, names: Sequence[str]) -> Card | TorporError:
        try:
            card = await self._archive.cards.newest(names)
        except (HistoryCorrupt, HistoryMissing) as error:
            return error
        return card if card.id == id else HistoryCorrupt(f"the card of {id} is another one's")

    async def _find(self, wanted: str) -> Card:
        """The card that is meant. Of several of one name the one that nothing was made of yet, if that is one only."""
        found = await self._archive.cards.survey()
        lost = self._lost(found.ours)
        if is_database_id(wanted) and wanted in lost:
            card = (await self._read({DatabaseId(wanted): lost[DatabaseId(wanted)]})).get(DatabaseId(wanted))
            if isinstance(card, Card):
                return card
            raise card or HistoryMissing(f"{wanted} was removed meanwhile")
        cards = {id: card for id, card in (await self._read(lost)).items() if isinstance(card, Card)}
        named = [card for card in cards.values() if card.name == wanted]
        made_of = self._made_of(cards)
        fitting = [card for card in named if card.id not in made_of] or named
        if len(fitting) > 1:
            ids = ", ".join(sorted(card.id for card in fitting))
            raise Conflict(f"the store holds {len(fitting)} databases of the name {wanted}: {ids}", "say which by its id")
        if not fitting:
            unread = sum(found.foreign.values())
            lock = f"; {unread} more are sealed with another master key than {self._archive.cards.fingerprint}" if unread else ""
            hint = "put back the master key that was used before (key_file)" if unread and not cards else _LIST_HINT
            raise DatabaseNotFound(f"the store holds no database {wanted[:63]!r} that isn't here{lock}", hint)
        return fitting[0]

    def _made_of(self, cards: Mapping[DatabaseId, Card | TorporError]) -> dict[DatabaseId, str]:
        """Of which databases others were made already, here or by another Torpor, and what those are called; one that is called as it was
        before others, which may be copies of its past."""
        known = [card for card in cards.values() if isinstance(card, Card)]
        was = {card.id: card.name for card in known}
        here = (self._fleet.compute(name).database for name in self._fleet.names())
        pairs = [
            *((card.recovered_from, card.name) for card in known),
            *((database.parent, database.label) for database in here if database.branched_at is None),
        ]
        made: dict[DatabaseId, str] = {}
        for id, name in pairs:
            if id is not None and made.get(id) != was.get(id):
                made[id] = name
        return made

    async def _view(
        self, id: DatabaseId, card: Card | TorporError, made_of: Mapping[DatabaseId, str], names: Mapping[DatabaseId, str]
    ) -> RecoverableView:
        if not isinstance(card, Card):
            return RecoverableView(id, "", trouble=card.message)
        archive, size_bytes, trouble = card.archive, None, ""
        from_at = to_at = None
        try:
            if card.history is not None:
                repository = self._repository(card)
                found = spans(bases := await repository.bases(), await repository.wal_pieces())
                if found:
                    from_at, to_at = min(span.from_at for span in found), max(span.to_at for span in found)
                    size_bytes = max(bases, key=lambda base: base.number).size_bytes
        except (HistoryCorrupt, HistoryMissing, KeyFileUnusable) as error:
            trouble = error.message
        if archive is not None and archive.is_archived:
            from_at, to_at, size_bytes = from_at or archive.at, max(to_at or 0.0, archive.at), size_bytes or archive.size_bytes
        elif to_at is None and not trouble:
            trouble = "its first base copy was never taken"
        return RecoverableView(
            id,
            card.name,
            card.workspace,
            card.major,
            card.created_at,
            archive is not None and archive.is_archived,
            size_bytes,
            from_at,
            to_at,
            made_of.get(id, ""),
            names.get(card.parent, "") if card.parent is not None and card.branched_at is not None else "",
            trouble,
        )

    def _repository(self, card: Card) -> Repository:
        assert card.history is not None
        return self._archive.repository(card.id, card.history.wrapped_key)

    async def _check_lifeless(self, card: Card) -> None:
        if card.history is None:
            return
        newest = max((piece.at for piece in await self._repository(card).wal_pieces()), default=0.0)
        if abs(self._around.clock.time() - newest) < _LIVELY_S:
            raise Conflict(
                f"something was written to the history of {card.name} minutes ago: another Torpor may still run it",
                "if none does, use force; what is forgotten can't be brought back",
            )

    # -- bringing back

    async def _recover(self, card: Card, name: str, workspace: Workspace, moment: Moment, progress: Progress) -> dict[str, str]:
        progress(0, None, "bytes", "looking")
        held = await self._held(card, moment)
        _reached(RecoverStep.CHOSEN, card)
        try:
            made = await self._make(card, name, workspace, held, moment, progress)
        except (HistoryCorrupt, HistoryMissing) as error:
            if held.shelf is None or not held.routes:
                raise
            log.warning("an archived volume can't be read, its history is taken", database=card.name, cause=error.message)
            held = replace(held, shelf=None)
            made = await self._make(card, name, workspace, held, moment, progress)
        result = {"database": made.label, "id": made.id, "from": card.id}
        if held.shelf is None and held.lacks:
            log.warning("recovered without what was written last", database=made.label, cause=held.lacks)
            result["lacks"] = held.lacks
        return result

    async def _held(self, card: Card, moment: Moment) -> Held:
        """What there is of it. Raises HistoryMissing, HistoryCorrupt."""
        trouble: TorporError | None = None
        found, pieces, shelf = list[Route](), list[LogPiece](), None
        if card.history is not None:
            repository, history = self._repository(card), History(card.id, card.history.wrapped_key)
            try:
                pieces = await repository.wal_pieces()
                found = routes(await repository.bases(), pieces, history, moment)
            except HistoryMissing:
                pass  # said below
            except HistoryCorrupt as error:
                trouble = error
        if (archive := card.archive) is not None and moment == Moment():
            try:
                bases = await self._shelf(card).bases()
            except (HistoryCorrupt, HistoryMissing) as error:
                bases, trouble = [], error
            if bases and not (found and goes_beyond(archive, pieces)):
                shelf = bases[-1]
        if shelf is None and not found:
            raise trouble or HistoryMissing(
                f"{card.name} can't be brought back to {moment}: the store doesn't hold it",
                "`torpor recover` tells from when to when it does",
            )
        # Several lead to a transaction: one of another major than the first would need another PostgreSQL.
        same = (shelf or found[0].base).facts.major
        lacks = unreachable(found[0], pieces) if found and moment == Moment() else ""
        return Held(shelf, tuple(route for route in found if route.base.facts.major == same), lacks)

    def _shelf(self, card: Card) -> Repository:
        assert card.archive is not None
        return self._archive.shelf(card.id, card.archive.wrapped_key)

    async def _make(self, card: Card, name: str, workspace: Workspace, held: Held, moment: Moment, progress: Progress) -> Database:
        """A new database of it, ready. All or nothing."""
        if held.major not in self._majors():
            have = ", ".join(map(str, sorted(self._majors())))
            raise Conflict(f"{card.name} is of PostgreSQL {held.major}, which isn't installed (installed: {have})", _install(held.major))
        self._around.volumes.check_room(held.size_bytes)
        wanted = self._wanted(card, name, held.major, workspace)
        was = self._was(card, wanted)

        async def fill(_source: Compute, data: Path, uid: int) -> None:
            if held.shelf is not None:
                shelf = self._shelf(card)
                await shelf.get_base(held.shelf.number, data, lambda done, total: progress(done, total, "bytes", "fetching"))
                return
            shipped = Shipped(0, (card.history and card.history.segment_bytes) or _USUAL_SEGMENT_BYTES, 0, 0.0, b"")
            history = History(card.id, b"", shipped=shipped)
            await self._restores.fill(was.database, history, self._repository(card), held.routes, moment, data, uid, progress)

        compute = await self._branches.make(wanted, was, name, fill, None)
        try:
            _reached(RecoverStep.MADE, card)
            await self._settle(compute, card)
            _reached(RecoverStep.SETTLED, card)
            self._catalog.set_state(wanted.id, DatabaseState.READY)
        except BaseException:
            await self._provisioner.remove(compute)
            self._access.forget((ListScope.DATABASE, wanted.id))
            self._histories.forget(wanted.id)
            raise
        database = replace(compute.database, state=DatabaseState.READY)
        self._fleet.update(database)
        self._expires(database)
        _reached(RecoverStep.READY, card)
        log.info("recovered", database=name, id=database.id, was=card.id, moment=str(moment))
        return database

    async def _settle(self, compute: Compute, card: Card) -> None:
        """What isn't in its volume, as it was."""
        id = compute.database.id
        if card.allow or card.deny:
            await self._access.replace((ListScope.DATABASE, id), card.allow, card.deny, None, "torpor")
        if card.history is not None and (card.history.keep_s is not None or card.history.keep_bases is not None):
            self._histories.set_retention(id, card.history.keep_s, card.history.keep_bases)
        await self._provisioner.hold(compute)

    def _was(self, card: Card, wanted: Database) -> Compute:
        """What it was, for those who ask what they make a branch of, or claim. It is in no fleet, and nobody can wake it."""
        return Compute(replace(wanted, id=card.id, name=card.name, parent=None), self._around, self._fleet)

    def _wanted(self, card: Card, name: str, major: int, workspace: Workspace | None) -> Database:
        """The new database. It has the room that it had, also where this daemon's setting gives less."""
        size = card.size
        if size.apply(self._around.size).disk_bytes < card.disk_bytes:
            size = replace(size, disk_bytes=card.disk_bytes)
        expires_at = card.expires_at if card.expires_at is not None and card.expires_at > self._around.clock.time() else None
        return Database(
            new_id(),
            name,
            DatabaseState.BRANCHING,
            major,
            0,
            card.created_at,
            card.overrides,
            size,
            workspace.id if workspace is not None else None,
            card.superuser,
            card.id,
            None,
            expires_at,
            card.pool,
            card.cache,
        )

    def _own(self, card: Card) -> Workspace:
        """The workspace that it belongs to, made when it isn't there."""
        with contextlib.suppress(WorkspaceNotFound):
            return self._workspaces.find(card.workspace)
        self._workspaces.create(card.workspace)
        log.info("workspace made", workspace=card.workspace, for_database=card.name)
        return self._workspaces.find(card.workspace)


def _place(id: DatabaseId, card: Card | TorporError) -> str:
    """What pages are in the order of; the comma sorts before all that is in a name. Pure."""
    return f"{card.name if isinstance(card, Card) else ''},{id}"


def _install(major: int) -> str:
    return f"install it: `torpor postgres install {major}`"


def _reached(step: RecoverStep, card: Card) -> None:
    """Every step goes through here."""
    log.debug("recover", database=card.name, step=str(step))
