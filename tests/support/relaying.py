"""Relay workers and certificates for tests: real processes, and a development authority made once for all of them."""

import atexit
import ssl
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

from torpor.base.clock import SystemClock
from torpor.door.authority import DevelopmentAuthority
from torpor.door.encryption import Encryption, OwnCertificates
from torpor.door.relays import Relays
from torpor.model.encryption import TlsMode
from torpor.native import RELAY

NAMES = ("localhost", "127.0.0.1", "db.test", "*.db.test")


@cache
def authority() -> DevelopmentAuthority:
    """One for all tests of this process."""
    directory = tempfile.TemporaryDirectory(prefix="torpor-tls-", dir="/var/tmp")
    atexit.register(directory.cleanup)
    made = DevelopmentAuthority(Path(directory.name) / "tls")
    made.ensure(NAMES, time.time())
    return made


def client_context(alpn: bool = True) -> ssl.SSLContext:
    """What a client needs to trust the authority."""
    context = ssl.create_default_context(cafile=str(authority().certificate))
    if alpn:
        context.set_alpn_protocols(["postgresql"])
    return context


@asynccontextmanager
async def encryption(mode: TlsMode = TlsMode.ALLOW, workers: int = 1) -> AsyncIterator[Encryption]:
    """TLS with workers of its own; nothing of them is left at the end."""
    with tempfile.TemporaryDirectory(prefix="torpor-relay-", dir="/var/tmp") as directory:
        source = OwnCertificates(authority(), NAMES, SystemClock()) if mode is not TlsMode.OFF else None
        made = Encryption(mode, Relays(RELAY, Path(directory), 0, workers), source, SystemClock())
        await made.start()
        try:
            yield made
        finally:
            await made.relays.stop(leave=False)
            assert list(Path(directory).iterdir()) == []
