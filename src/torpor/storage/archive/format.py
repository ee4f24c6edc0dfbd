"""What is stored of a base: a manifest, which names index chunks, which list directories, files and links, and the chunks of their bytes.

    databases/<id>/bases/<number>          manifest; a base without it doesn't exist
    databases/<id>/chunks/<2 digits>/<62>  4 MB at most of bytes of files, or of the index, named by their digest
    databases/<id>/wal/<timeline>/<from>-<to>

What an archived database consists of is a base, too, of its own below archived/<id>.

All are sealed. Chunks are cut so that what changed little shares most: large files at multiples of 4 MB; small ones are packed in the order
of their paths, and a pack ends where the name of a file says so, not where a size is reached, so that one file more moves no others.
Paths are bytes, as the kernel has them.
"""

import struct
import zlib
from typing import TypeAlias

import msgspec

from torpor.model.errors import HistoryCorrupt
from torpor.model.names import DatabaseId
from torpor.storage.archive.bucket import Stored
from torpor.storage.archive.retention import Base, LogPiece

FORMAT = 1
HISTORIES, SHELVES = "databases", "archived"
CHUNK_BYTES = 4 << 20
SMALL_BYTES = 256 << 10
"""Files up to this size are packed."""
PACK_BYTES = 2 << 20
"""What ends a pack in any case."""
INDEX_BYTES = 1 << 20
_ENDS_PACK = 32  # one file of so many ends a pack


class Directory(msgspec.Struct, tag="d", array_like=True, frozen=True):
    """A directory; those above it were listed before."""

    path: bytes
    mode: int


class File(msgspec.Struct, tag="f", array_like=True, frozen=True):
    """A file; what no content covers is zeros, and was a hole or may be one."""

    path: bytes
    mode: int
    size_bytes: int


class Link(msgspec.Struct, tag="l", array_like=True, frozen=True):
    """A symbolic link."""

    path: bytes
    target: bytes


class Twin(msgspec.Struct, tag="t", array_like=True, frozen=True):
    """Another name of a file that was listed before: a hard link, or what takes 1 GB here could take a thousand there."""

    path: bytes
    of: bytes


class Content(msgspec.Struct, tag="c", array_like=True, frozen=True):
    """A chunk: the bytes of its parts (path, offset, length), one after the other. Their files were listed before."""

    digest: str
    parts: list[tuple[bytes, int, int]]


Entry: TypeAlias = Directory | File | Link | Twin
Record: TypeAlias = Entry | Content


class Manifest(msgspec.Struct, frozen=True):
    """What is stored under the number of a base, last of all."""

    format: int
    base: Base
    index: list[str]


_encoder = msgspec.msgpack.Encoder()
_records = msgspec.msgpack.Decoder(list[Record])
_manifest = msgspec.msgpack.Decoder(Manifest)


class Index:
    """Gathers records, and gives them out in chunks."""

    def __init__(self) -> None:
        self._items: list[bytes] = []
        self._size_bytes = 0

    def add(self, record: Record) -> None:
        """One more."""
        item = _encoder.encode(record)
        self._items.append(item)
        self._size_bytes += len(item)

    @property
    def full(self) -> bool:
        """Whether it is time to `take` them."""
        return self._size_bytes >= INDEX_BYTES

    def take(self) -> bytes:
        """All that were gathered since, encoded."""
        data = b"\xdd" + struct.pack(">I", len(self._items)) + b"".join(self._items)  # an array of MessagePack
        self._items, self._size_bytes = [], 0
        return data


def records(data: bytes) -> list[Record]:
    """The records of an index chunk."""
    try:
        return _records.decode(data)
    except msgspec.MsgspecError as error:
        raise HistoryCorrupt(f"an index can't be read: {error}") from None


def encode_manifest(base: Base, index: list[str]) -> bytes:
    """What is stored for a base."""
    return _encoder.encode(Manifest(FORMAT, base, index))


def decode_manifest(data: bytes) -> Manifest:
    """What was stored for it."""
    try:
        manifest = _manifest.decode(data)
    except msgspec.MsgspecError as error:
        raise HistoryCorrupt(f"a manifest can't be read: {error}") from None
    if manifest.format != FORMAT:
        raise HistoryCorrupt(f"a base has format {manifest.format}, this Torpor knows {FORMAT}", "use a newer Torpor")
    return manifest


def ends_pack(path: bytes) -> bool:
    """Whether a pack ends behind that file."""
    return zlib.crc32(path) % _ENDS_PACK == 0


class Keys:
    """The names of a database's objects."""

    def __init__(self, id: DatabaseId, kind: str = HISTORIES) -> None:
        self.root = f"{kind}/{id}"
        self.bases = f"{self.root}/bases"
        self.chunks = f"{self.root}/chunks"
        self.log = f"{self.root}/wal"

    def base(self, number: int) -> str:
        """A manifest."""
        return f"{self.bases}/{number:08d}"

    def chunk(self, digest: str) -> str:
        """A chunk."""
        return f"{self.chunks}/{digest[:2]}/{digest[2:]}"

    def piece(self, timeline: int, start_lsn: int, end_lsn: int) -> str:
        """A piece of the log."""
        return f"{self.log}/{timeline:08X}/{start_lsn:016X}-{end_lsn:016X}"

    @staticmethod
    def number(stored: Stored) -> int | None:
        """Which base a manifest is for."""
        tail = stored.key.rpartition("/")[2]
        return int(tail) if tail.isdigit() else None

    @staticmethod
    def digest(stored: Stored) -> str:
        """What a chunk holds."""
        return "".join(stored.key.split("/")[-2:])

    @staticmethod
    def log_piece(stored: Stored) -> LogPiece | None:
        """Which piece of log an object is."""
        try:
            timeline, span = stored.key.split("/")[-2:]
            start, end = span.split("-")
            piece = LogPiece(int(timeline, 16), int(start, 16), int(end, 16), stored.size_bytes, stored.at)
        except ValueError:
            return None
        return piece if piece.start_lsn < piece.end_lsn else None
