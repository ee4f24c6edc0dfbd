"""Puts the door's encryption together as the settings say, as far as this host can do it. Concurrency: none, at start only."""

import os
from pathlib import Path

from torpor.base.clock import Clock
from torpor.base.logs import get_logger
from torpor.door.authority import DevelopmentAuthority, development_names
from torpor.door.encryption import CertificateFiles, CertificateSource, Encryption, OwnCertificates
from torpor.door.relays import Relays, default_workers
from torpor.model.encryption import TlsMode
from torpor.model.errors import BinariesMissing
from torpor.model.settings import Settings

log = get_logger(__name__)

AUTHORITY_DIRECTORY = "tls"


def authority_in(data_dir: Path) -> DevelopmentAuthority:
    """The development authority of a data directory, whether it was made yet or not."""
    return DevelopmentAuthority(data_dir / AUTHORITY_DIRECTORY)


def make_encryption(settings: Settings, data_dir: Path, program: Path, clock: Clock) -> Encryption:
    """What the door needs for TLS and for relaying. Raises BinariesMissing where the host can't do what was asked for by name."""
    mode = TlsMode(settings.tls)
    source: CertificateSource | None = None
    if not program.exists():
        if settings.relay or settings.tls_cert or mode is TlsMode.REQUIRE:
            raise BinariesMissing(
                "the relay, which TLS needs, was not built", "install libssl-dev and gcc, then run `make setup` again; or set tls=off"
            )
        if mode is not TlsMode.OFF:
            log.warning("TLS is not spoken: the relay was not built", remedy="install libssl-dev, then run `make setup` again")
    elif mode is not TlsMode.OFF:
        if settings.tls_cert:
            source = CertificateFiles.from_settings(settings.tls_cert, settings.tls_key)
        else:
            source = OwnCertificates(authority_in(data_dir), tuple(development_names(settings.public_host, settings.door_host)), clock)
    wanted = (settings.relay_workers or default_workers()) if source is not None or settings.relay else 0
    # A user of their own: neither root's nor any compute's processes can be reached from there, nor the other way round.
    uid = settings.uid_base - 1 if os.geteuid() == 0 else 0
    return Encryption(mode, Relays(program, data_dir / "run", uid, wanted), source, clock)
