"""The PROXY header (version 2) with which this process tells the door whose request it brings, and proves that it may. Pure.

The door reads it in `door/guard/voucher.py`: both know the same secret, which is made anew at each start of Torpor.
"""

import ipaddress
import struct

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_PROXY_V2 = 0x21
_TCP4, _TCP6 = 0x11, 0x21
_AUTHORITY = 0x02
_SECRET = 0xE0
_TOKEN = 0xE1
_MAX_HOST_BYTES = 255


def vouch(secret: bytes, client: tuple[str, int], server_name: str, by_token: bool = False) -> bytes:
    """The header for a connection made for `client`, who named the server so. `by_token`: it has a token instead of a password."""
    address = ipaddress.ip_address(client[0].partition("%")[0])
    nowhere = bytes(address.max_prefixlen // 8)
    addresses = address.packed + nowhere + struct.pack("!HH", client[1], 0)
    name = server_name.encode("ascii", "replace")[:_MAX_HOST_BYTES]
    rest = addresses + _addition(_SECRET, secret) + _addition(_AUTHORITY, name) + (_addition(_TOKEN, b"") if by_token else b"")
    return _SIGNATURE + struct.pack("!BBH", _PROXY_V2, _TCP4 if address.version == 4 else _TCP6, len(rest)) + rest


def _addition(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value
