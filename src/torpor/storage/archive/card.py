"""The cards of databases: one small object each, sealed with the master key, so that the store and that key are enough to have them back.

    cards/<fingerprint of the master key>/<id of the database>/<digest>

The digest is of what the card says: one listing tells which cards are up to date. A changed card is stored beside the old one, which then
goes; between the two the newest counts. A card is bound to its name: it can't stand in for another database's, nor can it be made up or
changed by somebody who has the store but not the key. Who has several hosts, with a key each, may give them one store.

Concurrency: as the store. A card is sealed on the loop: it has some hundred bytes.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from torpor.base.logs import get_logger
from torpor.model.cards import Card
from torpor.model.errors import HistoryCorrupt, HistoryMissing
from torpor.model.names import DatabaseId, is_database_id
from torpor.storage.archive.bucket import Stored
from torpor.storage.archive.store import Store
from torpor.storage.archive.vault import MasterKey

log = get_logger(__name__)

FORMAT = 1
ROOT = "cards"
_DIGEST_CHARACTERS = 16
_PARTS = 4  # of a card's name
_CORRUPT_HINT = "copies of it may be in older versions of the store, where that keeps them"


class _Content(msgspec.Struct, frozen=True):
    """What is sealed. `at` is when, and no part of the digest."""

    format: int
    at: float
    card: Card


class _Head(msgspec.Struct, frozen=True):
    """What every format has."""

    format: int


_encoder = msgspec.msgpack.Encoder()
_head = msgspec.msgpack.Decoder(_Head)
_content = msgspec.msgpack.Decoder(_Content)


@dataclass(slots=True)
class Survey:
    """What cards there are: the names of ours by database, and of how many databases other master keys have some."""

    ours: dict[DatabaseId, list[str]] = field(default_factory=dict)
    foreign: dict[str, int] = field(default_factory=dict)


class CardBox:
    """All cards in a store."""

    def __init__(self, store: Store, master: MasterKey) -> None:
        self._store = store
        self._vault = master.card_vault()
        self._fingerprint = master.fingerprint

    def __repr__(self) -> str:
        return f"<CardBox {self._fingerprint} in {self._store.description}>"

    @property
    def fingerprint(self) -> str:
        """Of the master key."""
        return self._fingerprint

    @property
    def description(self) -> str:
        """Which store it is, for people."""
        return self._store.description

    def name(self, card: Card) -> str:
        """What its object is called: the same for the same card, however often it is stored."""
        return f"{self._directory(card.id)}/{self._vault.digest(_encoder.encode(card))[:_DIGEST_CHARACTERS]}"

    async def names(self, id: DatabaseId) -> list[str]:
        """What there is of one database, by asking the store."""
        return [stored.key for stored in await self._store.list(self._directory(id))]

    async def ours(self) -> dict[DatabaseId, list[str]]:
        """All names of cards that this master key has sealed."""
        return survey(await self._store.list(f"{ROOT}/{self._fingerprint}"), self._fingerprint).ours

    async def survey(self) -> Survey:
        """What cards there are, those of other master keys included."""
        return survey(await self._store.list(ROOT), self._fingerprint)

    async def put(self, card: Card, at: float) -> str:
        """Store a card; its name. Durable on return."""
        name = self.name(card)
        await self._store.put(name, self._vault.seal(name, _encoder.encode(_Content(FORMAT, at, card))))
        return name

    async def newest(self, names: Sequence[str]) -> Card:
        """The newest of the cards of one database. Raises HistoryCorrupt when none can be read, HistoryMissing when they have gone."""
        found, trouble = list[_Content](), None
        for name in names:
            try:
                found.append(await self._read(name))
            except (HistoryCorrupt, HistoryMissing) as error:
                log.warning("a card can't be read", key=name, cause=error.message)
                trouble = error
        if not found:
            raise trouble or HistoryMissing("there is no card of it")
        return max(found, key=lambda content: content.at).card

    async def remove(self, names: Iterable[str]) -> None:
        """Remove cards. Idempotent."""
        await self._store.delete(sorted(names))

    async def destroy(self, id: DatabaseId) -> None:
        """Remove all cards of a database. Idempotent."""
        await self.remove(await self.names(id))

    async def _read(self, name: str) -> _Content:
        """Read and open; once more when it came damaged, as that may have happened on the way."""
        try:
            return self._open(name, await self._store.get(name))
        except HistoryCorrupt:
            return self._open(name, await self._store.get(name))

    def _open(self, name: str, sealed: bytes) -> _Content:
        data = self._vault.open(name, sealed)
        try:
            if (version := _head.decode(data).format) != FORMAT:
                raise HistoryCorrupt(f"the card {name} has format {version}, this Torpor knows {FORMAT}", "use a newer Torpor")
            content = _content.decode(data)
        except msgspec.MsgspecError as error:
            raise HistoryCorrupt(f"the card {name} can't be read: {error}", _CORRUPT_HINT) from None
        return content

    def _directory(self, id: DatabaseId) -> str:
        return f"{ROOT}/{self._fingerprint}/{id}"


def survey(listed: Iterable[Stored], fingerprint: str) -> Survey:
    """What was listed, sorted. What isn't named like a card is none. Pure."""
    ours: dict[DatabaseId, list[str]] = defaultdict(list)
    foreign: dict[str, set[str]] = defaultdict(set)
    for stored in listed:
        parts = stored.key.split("/")
        if len(parts) != _PARTS or not is_database_id(parts[2]):
            continue
        if parts[1] == fingerprint:
            ours[DatabaseId(parts[2])].append(stored.key)
        else:
            foreign[parts[1]].add(parts[2])
    return Survey(dict(ours), {key: len(ids) for key, ids in foreign.items()})
