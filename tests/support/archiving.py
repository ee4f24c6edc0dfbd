"""Makes, and expires, histories without end, to be killed at any moment: `python -m tests.support.archiving <directory> <key>`.

Each turn changes a cluster of one large and some small files, stores its log and a base, and expires the older ones. A line on its output
says what is surely stored: `log <position>` or `base <number>`.
"""

import asyncio
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torpor.model.names import DatabaseId
from torpor.storage.archive.archive import Archive
from torpor.storage.archive.directory import DirectoryBucket
from torpor.storage.archive.retention import BaseFacts, Retention
from torpor.storage.archive.store import Store
from torpor.storage.archive.vault import MasterKey

ID = DatabaseId("d" + "a" * 12)
MASTER = MasterKey(bytes(range(32)))


def archive(directory: Path, executor: ThreadPoolExecutor) -> Archive:
    """What both sides see."""
    return Archive(Store(DirectoryBucket(directory / "history", executor)), MASTER, executor)


def log_at(lsn: int, length: int) -> bytes:
    """The log there, the same for whoever asks."""
    return b"".join((at // 8).to_bytes(8, "big") for at in range(lsn, lsn + length, 8))


async def run(directory: Path, wrapped: bytes) -> None:
    """Until we are killed."""
    dice = random.Random()
    with ThreadPoolExecutor(4) as executor:
        repository = archive(directory, executor).repository(ID, wrapped)
        lsn = max((piece.end_lsn for piece in await repository.wal_pieces()), default=8)
        cluster = directory / "cluster"
        cluster.mkdir(exist_ok=True)
        while True:
            for name in range(12):
                (cluster / str(name)).write_bytes(dice.randbytes(3000))
            (cluster / "large").write_bytes(dice.randbytes(600_000))
            start = lsn
            lsn = await repository.put_wal(1, lsn, log_at(lsn, 8000))
            print("log", lsn, flush=True)
            base = await repository.put_base(cluster, BaseFacts(1, start, lsn, 0.0, 18))
            print("base", base.number, flush=True)
            await repository.expire(Retention(0.0, 2), 1.0)


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1]), bytes.fromhex(sys.argv[2])))
