"""One archive for the daemon: where histories are stored, with which master key, and the repository of each database.

Concurrency: belongs to one event loop. Its threads end with `close`; until then they read, compress, encrypt and write for all.
"""

import asyncio
import os
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from weakref import WeakValueDictionary

from torpor.model.names import DatabaseId
from torpor.model.settings import NO_HISTORY, Settings
from torpor.storage.archive.bucket import Bucket
from torpor.storage.archive.card import CardBox
from torpor.storage.archive.directory import DirectoryBucket
from torpor.storage.archive.format import SHELVES, Keys
from torpor.storage.archive.repository import Repository
from torpor.storage.archive.s3 import S3Bucket
from torpor.storage.archive.store import Store
from torpor.storage.archive.vault import MasterKey

_THREADS = 4
_CHUNKS_IN_MEMORY = 12  # of 4 MB, opened and sealed: below 100 MB, however many bases are made at once


class Archive:
    """The histories of all databases."""

    def __init__(self, store: Store, master: MasterKey, executor: ThreadPoolExecutor) -> None:
        self.store, self.master = store, master
        self.cards = CardBox(store, master)
        self._executor = executor
        self._turns = asyncio.Semaphore(_CHUNKS_IN_MEMORY)
        self._repositories: WeakValueDictionary[tuple[str, bytes], Repository] = WeakValueDictionary()

    def __repr__(self) -> str:
        return f"<Archive {self.store.description}>"

    def new_key(self, id: DatabaseId) -> bytes:
        """A fresh key for a database, wrapped: the catalog and the database's card keep it, and its removal is the end of the history."""
        return self.master.new_data_key(id)

    def repository(self, id: DatabaseId, wrapped_key: bytes) -> Repository:
        """The history of a database: the same object for all who hold it at a time. Raises KeyFileUnusable."""
        return self._repository(id, wrapped_key, Keys(id))

    def shelf(self, id: DatabaseId, wrapped_key: bytes) -> Repository:
        """Where the volume of a database is while it is archived: apart from its history. Raises KeyFileUnusable."""
        return self._repository(id, wrapped_key, Keys(id, SHELVES))

    def _repository(self, id: DatabaseId, wrapped_key: bytes, keys: Keys) -> Repository:
        # By the key, too: what is archived once more has another one, while a failure still holds on to the repository of the first time.
        if (found := self._repositories.get((keys.root, wrapped_key))) is None:
            found = Repository(self.store, self.master.vault(id, wrapped_key), id, self._executor, self._turns, keys)
            self._repositories[keys.root, wrapped_key] = found
        return found

    async def destroy(self, id: DatabaseId) -> None:
        """Remove all that is stored of a database whose keys are gone from the catalog, first the card that has them, too.

        Idempotent; may be called again after any failure.
        """
        await self.cards.destroy(id)
        for root in (Keys(id).root, Keys(id, SHELVES).root):
            for found in [one for (at, _), one in self._repositories.items() if at == root]:
                await found.destroy()
            await self.store.delete([stored.key for stored in await self.store.list(root)])

    def close(self) -> None:
        """End its threads, once what they are at is done. Cancel who uses it before."""
        self._executor.shutdown(wait=True, cancel_futures=True)


def open_archive(settings: Settings, environ: Mapping[str, str] = os.environ) -> Archive | None:
    """The archive that the settings ask for, None for none. Asks no store yet. Raises BadSettings and KeyFileUnusable."""
    if settings.history_store == NO_HISTORY:
        return None
    executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="archive")
    bucket = _bucket(settings, environ, executor)
    return Archive(Store(bucket), MasterKey.load_or_make(Path(settings.key_file)), executor)


def _bucket(settings: Settings, environ: Mapping[str, str], executor: Executor) -> Bucket:
    if settings.history_store.startswith("s3://"):
        return S3Bucket(settings.history_store, settings.history_endpoint, environ)
    return DirectoryBucket(Path(settings.history_store), executor)
