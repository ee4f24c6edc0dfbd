"""Keys, and what they seal: whoever has the store, or a disk of it, but not the master key learns sizes, times and nothing else.

Each database has a random key of its own, wrapped by the master key; the wrapped key lies in the catalog, and on the database's card in
the store (`card.py`). Where both are removed, what it sealed can't be opened any more, wherever copies of that are.

What is sealed: `TH1`, one byte that says how it is compressed, 12 random bytes, then AES-256-GCM over the compressed bytes. Associated
data are these 16 bytes and the object's name, so that neither can be exchanged. Objects are sealed and digested with different keys, both
derived from the database's key.

Concurrency: everything here blocks, for milliseconds per MB, and lets go of the interpreter lock; any number of threads at once.
"""

import contextlib
import hashlib
import os
import secrets
from pathlib import Path

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from torpor.base.files import sync_directory
from torpor.base.logs import get_logger
from torpor.model.errors import HistoryCorrupt, KeyFileUnusable
from torpor.model.names import DatabaseId

log = get_logger(__name__)

_KEY_BYTES = 32
_NONCE_BYTES = 12
_MAGIC = b"TH1"
_PLAIN, _ZSTD = b"\0", b"\1"
_HEADER_BYTES = len(_MAGIC) + 1 + _NONCE_BYTES
_LEVEL = 3  # 1 GB of pages in 3 s on one core, to about a quarter
_WRAPPED = b"TK1"
MAX_OBJECT_BYTES = 64 << 20
"""What one object may hold at most when it is opened."""


class MasterKey:
    """Wraps the keys of databases. Its file is the one thing that has to be kept elsewhere, too: without it no history can be read."""

    def __init__(self, key: bytes) -> None:
        if len(key) != _KEY_BYTES:
            raise ValueError("a master key has 32 bytes")
        self._key = key

    def __repr__(self) -> str:
        return f"<MasterKey {self.fingerprint}>"

    @classmethod
    def load_or_make(cls, path: Path) -> "MasterKey":
        """The key in that file, 64 hexadecimal digits, which is made (mode 0600, durable) when it isn't there. Raises KeyFileUnusable."""
        try:
            with contextlib.suppress(FileExistsError):
                if not path.exists():
                    _make(path)
                    log.info("a master key was made: with a copy of it elsewhere a lost machine can be recovered", key_file=str(path))
            status = path.stat()
            if status.st_mode & 0o077:
                raise KeyFileUnusable(f"others may read the key file {path}", f"chmod 600 {path}")
            text = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it isn't text"
            raise KeyFileUnusable(f"the key file {path} can't be used: {reason}", "look at its owner, mode and content") from error
        try:
            return cls(bytes.fromhex(text))
        except ValueError:
            raise KeyFileUnusable(f"the key file {path} doesn't hold 64 hexadecimal digits", "restore it from where it is kept") from None

    @property
    def fingerprint(self) -> str:
        """Tells keys apart without telling anything of them."""
        return hashlib.blake2b(b"", key=self._key, person=b"torpor finger", digest_size=8).hexdigest()

    def new_data_key(self, id: DatabaseId) -> bytes:
        """A fresh random key for a database, wrapped: what the catalog keeps. Bound to its id."""
        nonce = os.urandom(_NONCE_BYTES)
        return _WRAPPED + nonce + AESGCM(self._key).encrypt(nonce, secrets.token_bytes(_KEY_BYTES), _WRAPPED + id.encode())

    def vault(self, id: DatabaseId, wrapped: bytes) -> "Vault":
        """What seals for that database. Raises KeyFileUnusable when the key was wrapped by another master key, or for another database."""
        nonce, sealed = wrapped[len(_WRAPPED) : len(_WRAPPED) + _NONCE_BYTES], wrapped[len(_WRAPPED) + _NONCE_BYTES :]
        try:
            if not wrapped.startswith(_WRAPPED) or len(nonce) != _NONCE_BYTES:
                raise InvalidTag
            return Vault(AESGCM(self._key).decrypt(nonce, sealed, _WRAPPED + id.encode()))
        except InvalidTag:
            raise KeyFileUnusable(
                f"the key of database {id} can't be unwrapped with master key {self.fingerprint}",
                "put back the key file that was used before",
            ) from None

    def card_vault(self) -> "Vault":
        """What seals the cards of databases: whoever has this master key opens them, without any catalog."""
        return Vault(hashlib.blake2b(b"cards", key=self._key, person=b"torpor derive", digest_size=_KEY_BYTES).digest())


class Vault:
    """Seals and opens the objects of one database, or the cards of all."""

    def __init__(self, data_key: bytes) -> None:
        self._cipher = AESGCM(hashlib.blake2b(b"seal", key=data_key, person=b"torpor derive", digest_size=_KEY_BYTES).digest())
        self._digest_key = hashlib.blake2b(b"digest", key=data_key, person=b"torpor derive", digest_size=_KEY_BYTES).digest()

    def __repr__(self) -> str:
        return "<Vault>"

    def digest(self, data: bytes) -> str:
        """Names content: 64 digits that are the same for the same bytes of the same database, and tell nothing without its key."""
        return hashlib.blake2b(data, key=self._digest_key, digest_size=32).hexdigest()

    def seal(self, name: str, data: bytes) -> bytes:
        """Compress and encrypt, bound to the name that it will be stored under. At most MAX_OBJECT_BYTES."""
        if len(data) > MAX_OBJECT_BYTES:
            raise ValueError(f"{name} has {len(data)} bytes")
        squeezed = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False).compress(data)
        kind, body = (_ZSTD, squeezed) if len(squeezed) < len(data) else (_PLAIN, data)
        nonce = os.urandom(_NONCE_BYTES)
        header = _MAGIC + kind + nonce
        return header + self._cipher.encrypt(nonce, body, header + name.encode())

    def open(self, name: str, sealed: bytes) -> bytes:
        """What was sealed under that name. Raises HistoryCorrupt for anything else."""
        header = sealed[:_HEADER_BYTES]
        try:
            if len(header) != _HEADER_BYTES or not header.startswith(_MAGIC):
                raise InvalidTag
            body = self._cipher.decrypt(header[-_NONCE_BYTES:], sealed[_HEADER_BYTES:], header + name.encode())
            if header[len(_MAGIC) : len(_MAGIC) + 1] == _PLAIN:
                return body
            return zstandard.ZstdDecompressor().decompress(body, max_output_size=MAX_OBJECT_BYTES)
        except (InvalidTag, zstandard.ZstdError):
            raise HistoryCorrupt(f"{name} is damaged, or was sealed with another key") from None


def _make(path: Path) -> None:
    """Write a new key. Two at once: the first one wins, as a file appears with its content only."""
    half = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    fd = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(_KEY_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(half, path)
    finally:
        half.unlink()
    sync_directory(path.parent)
