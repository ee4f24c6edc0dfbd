"""Whether and with which certificates the door speaks TLS: files of the user's, or the development authority.

Concurrency: belongs to one event loop. Files are looked at every two seconds; when one has changed, or on SIGHUP, they are read in a
thread, and workers get the new ones for the handshakes to come. What can't be used is logged, and all goes on with what was there.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torpor.base.clock import Clock, SystemClock
from torpor.base.logs import get_logger
from torpor.door.authority import DevelopmentAuthority
from torpor.door.relays import Relays
from torpor.door.relaywire import configuration, new_ticket_key
from torpor.model.encryption import TlsMode, must_encrypt
from torpor.model.errors import BadSettings, BinariesMissing, EncryptionRequired, Unavailable

log = get_logger(__name__)

_LOOK_EVERY_S = 2.0
_NEW_TICKET_KEY_S = 6 * 3600.0
_DAY_S = 86_400.0

Pair = tuple[bytes, bytes]


class CertificateSource(Protocol):
    """Where certificates come from. Blocking."""

    def load(self) -> list[Pair]:
        """Chain and key of each, in PEM; the first is for names that fit none. Raises BadSettings."""
        ...

    @property
    def trusted(self) -> str:
        """What clients must trust: a file, or "system" for the public authorities."""
        ...

    def stamp(self) -> object:
        """Changes when `load` may have something new to say. Microseconds."""
        ...


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """The files that the settings name."""

    pairs: tuple[tuple[Path, Path], ...]

    @classmethod
    def from_settings(cls, tls_cert: str, tls_key: str) -> "CertificateFiles":
        """Both may name several files, separated by commas; without keys they are in the certificates' files. Raises BadSettings."""
        chains = [Path(part.strip()) for part in tls_cert.split(",") if part.strip()]
        keys = [Path(part.strip()) for part in tls_key.split(",") if part.strip()] or chains
        if len(keys) != len(chains):
            raise BadSettings(
                f"tls_key names {len(keys)} files, tls_cert {len(chains)}", "give one key for each certificate, in the same order"
            )
        return cls(tuple(zip(chains, keys, strict=True)))

    def load(self) -> list[Pair]:
        return [(_read(chain, "tls_cert"), _read(key, "tls_key")) for chain, key in self.pairs]

    @property
    def trusted(self) -> str:
        return "system"

    def stamp(self) -> object:
        return [_stamp(path) for pair in self.pairs for path in pair]


@dataclass(frozen=True, slots=True)
class OwnCertificates:
    """Those of the development authority, made when need be."""

    authority: DevelopmentAuthority
    names: tuple[str, ...]
    clock: Clock

    def load(self) -> list[Pair]:
        try:
            if self.authority.ensure(self.names, self.clock.time()):
                log.info("certificate made by the development authority", names=", ".join(self.names), ca=str(self.authority.certificate))
        except OSError as error:
            raise BadSettings(
                f"the development authority can't keep its files: {error.strerror}", "set tls=off, or tls_cert and tls_key"
            ) from error
        chain, key = self.authority.server
        return [(_read(chain, "the certificate"), _read(key, "the key"))]

    @property
    def trusted(self) -> str:
        return str(self.authority.certificate)

    def stamp(self) -> object:
        return int(self.clock.time() / _DAY_S), [_stamp(path) for path in self.authority.server]


class Encryption:
    """The door's TLS. `source` is None when none is spoken."""

    def __init__(self, mode: TlsMode, relays: Relays, source: CertificateSource | None, clock: Clock) -> None:
        self.mode = mode
        self.relays = relays
        self._source = source
        self._clock = clock
        self.pairs: Sequence[Pair] = ()
        """The certificates in use."""
        self.on_pairs: Callable[[Sequence[Pair]], None] = lambda _: None
        """Told of each change of them."""
        self._stamp: object = None
        self._ticket_key = new_ticket_key()
        self._ticket_key_at = clock.monotonic()

    def __repr__(self) -> str:
        return f"<Encryption {self.mode} {'with' if self._source else 'without'} certificates>"

    @property
    def authority(self) -> str:
        """What clients must trust, as libpq's sslrootcert: a file, or "system"; nothing without TLS."""
        return self._source.trusted if self._source is not None else ""

    def url_query(self, public_host: str) -> str:
        """What the URLs that are handed out say about TLS.

        Many clients take TLS wherever they can get it. On the way to this very machine it protects nothing and halves the throughput, as
        only a socket in the clear can be handed over: there the URL says so. To anywhere else the clients' own defaults are right.
        """
        is_local = public_host == "localhost" or not must_encrypt(TlsMode.REMOTE, public_host)
        return "sslmode=disable" if is_local and self._source is not None and self.mode is not TlsMode.REQUIRE else ""

    @property
    def is_offered(self) -> bool:
        """Whether a client that asks for TLS now gets it."""
        return self._source is not None and self.relays.is_running

    def check_clear(self, host: str) -> None:
        """Raise EncryptionRequired when a client from `host` may not go on without TLS."""
        if must_encrypt(self.mode, host):
            who = "clients" if self.mode is TlsMode.REQUIRE else "clients on other machines"
            if self._source is None:
                hint = "set tls=off or tls=allow to do without, or give Torpor what TLS needs (`torpor doctor`)"
            else:
                hint = "connect with TLS: sslmode=require or verify-full"
            raise EncryptionRequired(f"this server takes {who} over TLS only", hint)

    async def start(self) -> None:
        """Start the workers. Raises BadSettings for certificates that can't be used."""
        pairs: list[Pair] = []
        if self._source is not None:
            pairs = await asyncio.to_thread(self._source.load)
            self._stamp = self._source.stamp()
        try:
            await self.relays.start(configuration(self._ticket_key, pairs))
        except BadSettings as error:
            raise _explained(error, pairs) from None
        except Unavailable as error:
            raise BinariesMissing("the relay, which TLS needs, doesn't start", "what it said is above; run `make setup` again") from error
        self.pairs = pairs

    async def reload(self) -> None:
        """Read the files again. Open sessions keep what they have. Never raises for files that can't be used: it is logged."""
        if self._source is None:
            return
        self._stamp = self._source.stamp()
        now = self._clock.monotonic()
        if now - self._ticket_key_at > _NEW_TICKET_KEY_S:
            self._ticket_key, self._ticket_key_at = new_ticket_key(), now
        pairs: list[Pair] = []
        try:
            pairs = await asyncio.to_thread(self._source.load)
            await self.relays.reconfigure(configuration(self._ticket_key, pairs))
        except BadSettings as error:
            cause = _explained(error, pairs).message if pairs else error.message
            log.error("certificates can't be used, the old ones stay in use", cause=cause)
        else:
            self.pairs = pairs
            self.on_pairs(pairs)
            log.info("certificates loaded", count=len(pairs))

    async def watch(self) -> None:
        """For ever: reload when files have changed, or when it is time for another ticket key. Safe to cancel."""
        while True:
            await self._clock.sleep(_LOOK_EVERY_S)
            is_key_old = self._clock.monotonic() - self._ticket_key_at > _NEW_TICKET_KEY_S
            if self._source is not None and (is_key_old or self._source.stamp() != self._stamp):
                await self.reload()


def no_encryption() -> Encryption:
    """A door without TLS and without relay workers."""
    return Encryption(TlsMode.OFF, Relays(Path("/nonexistent"), Path("/nonexistent"), 0, 0), None, SystemClock())


def _stamp(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadSettings(f"{what} {path} can't be read: {error.strerror}", "mend the setting, or the file's owner and mode") from error


def _explained(error: BadSettings, pairs: Sequence[Pair]) -> BadSettings:
    number, _, words = error.message.partition(": ")
    which = f" number {number}" if len(pairs) > 1 else ""
    return BadSettings(f"tls_cert{which} and its key can't be used: {words}", "give PEM files that belong together")
