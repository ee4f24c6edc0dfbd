"""Packets that tests of the guard send."""

import ipaddress
import struct

from torpor.door.guard.proxy import SIGNATURE


def proxy_v2(source: str | None, port: int, version_command: int = 0x21, additions: bytes = b"") -> bytes:
    """A PROXY header of version 2; without a source that of a health check."""
    if source is None:
        return SIGNATURE + struct.pack("!BBH", 0x20, 0, 0)
    address = ipaddress.ip_address(source)
    rest = address.packed + address.packed + struct.pack("!HH", port, 7432) + additions
    return SIGNATURE + struct.pack("!BBH", version_command, 0x11 if address.version == 4 else 0x21, len(rest)) + rest
