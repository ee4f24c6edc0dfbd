"""The PROXY protocol, versions 1 and 2: how a load balancer tells whose connection it passes on. Pure.

The header says how long it is, so that exactly the header is read and nothing of what follows it. Version 1 is a line, of which
nobody knows the length before its end has come.
"""

import hmac
import ipaddress
import struct
from collections.abc import Iterator
from functools import cache

from torpor.model.errors import ProtocolViolation

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V2_HEADER_BYTES = 16
MAX_V2_BYTES = 4096
"""Addresses take 216 bytes at most, vendors' additions some hundred."""

V1_BEGINNING = b"PROXY "
MAX_V1_BYTES = 107
"""The longest line that version 1 allows, with its end."""

_VERSION = 2
_LOCAL, _PROXY = 0, 1
_UNSPEC, _INET, _INET6, _UNIX = 0, 1, 2, 3
_STREAM = 1
_ADDRESS_BYTES = {_INET: 12, _INET6: 36, _UNIX: 216}
_TLV_HEADER_BYTES = 3
_AUTHORITY = 0x02
_CRC32C = 0x03
_GATEWAY_SECRET = 0xE0  # of the numbers that are everybody's own
_GATEWAY_TOKEN = 0xE1
_CRC32C_BYTES = 4
_CRC32C_POLYNOMIAL = 0x82F63B78
_MAX_PORT = 65535
_HINT = "see that the load balancer sends PROXY protocol version 1 or 2, and nothing before it"

Client = tuple[str, int]


def begins_proxy_header(head: bytes) -> bool:
    """Whether the first (at least four) bytes of a connection begin a PROXY header: no startup packet has this length."""
    return len(head) >= 4 and (SIGNATURE.startswith(head[: len(SIGNATURE)]) or V1_BEGINNING.startswith(head[: len(V1_BEGINNING)]))


def v2_rest_bytes(header: bytes) -> int:
    """How many bytes follow the first 16. Raises ProtocolViolation."""
    if not header.startswith(SIGNATURE):
        raise _wrong("it doesn't begin with the signature")
    (length,) = struct.unpack_from("!H", header, 14)
    if length > MAX_V2_BYTES - V2_HEADER_BYTES:
        raise _wrong(f"it is longer than {MAX_V2_BYTES} bytes")
    return int(length)


def parse_v2(header: bytes, rest: bytes) -> Client | None:
    """The client that a header of version 2 names; None where the connection is the load balancer's own, or from no IP address.

    Raises ProtocolViolation.
    """
    version, command = header[12] >> 4, header[12] & 0xF
    family, transport = header[13] >> 4, header[13] & 0xF
    if version != _VERSION or command not in (_LOCAL, _PROXY):
        raise _wrong(f"its version {version} or command {command} is unknown")
    if command == _LOCAL or family == _UNSPEC:
        return None  # nothing of the rest is to be read
    if family not in _ADDRESS_BYTES or transport != _STREAM:
        raise _wrong(f"it is for family {family} and transport {transport}, not for TCP")
    taken = _ADDRESS_BYTES[family]
    if len(rest) < taken:
        raise _wrong("it ends within the addresses")
    _check_additions(header, rest, taken)
    if family == _UNIX:
        return None
    if family == _INET:
        source, port = rest[:4], struct.unpack_from("!H", rest, 8)[0]
    else:
        source, port = rest[:16], struct.unpack_from("!H", rest, 32)[0]
    return _host(ipaddress.ip_address(source)), int(port)


def parse_v1(line: bytes) -> Client | None:
    """The client that a line of version 1 (with its end) names; None for UNKNOWN. Raises ProtocolViolation."""
    try:
        words = line.decode("ascii").removesuffix("\r\n").split(" ")
    except UnicodeDecodeError:
        raise _wrong("it isn't ASCII") from None
    if not line.endswith(b"\r\n") or words[0] != "PROXY" or len(words) < 2:
        raise _wrong("it isn't a line of version 1")
    if words[1] == "UNKNOWN":
        return None
    try:
        kind, (source, destination), (source_port, destination_port) = words[1], words[2:4], words[4:]
        kinds: dict[str, type[ipaddress.IPv4Address] | type[ipaddress.IPv6Address]]
        kinds = {"TCP4": ipaddress.IPv4Address, "TCP6": ipaddress.IPv6Address}
        wanted = kinds[kind]
        wanted(destination)
        client = _host(wanted(source)), _port(source_port)
        _port(destination_port)
    except (ValueError, KeyError):
        raise _wrong("its addresses can't be read") from None
    return client


def server_name_for(secret: bytes, header: bytes, rest: bytes) -> str | None:
    """The server name in a header of version 2 of Torpor's own gateway, "" for none; None when it doesn't prove to be one by `secret`.

    The gateway makes it in gateway/http/proxyheader.py. What is malformed is refused by `parse_v2`.
    """
    is_proven, name = False, ""
    for kind, value in _additions(header, rest):
        if kind == _GATEWAY_SECRET:
            is_proven = bool(secret) and hmac.compare_digest(value, secret)
        elif kind == _AUTHORITY:
            name = value.decode("ascii", "replace")
    return name if is_proven else None


def brings_token(header: bytes, rest: bytes) -> bool:
    """Whether the gateway, which has proven to be that, brings a client with a token instead of a password."""
    return any(kind == _GATEWAY_TOKEN for kind, _ in _additions(header, rest))


def _additions(header: bytes, rest: bytes) -> Iterator[tuple[int, bytes]]:
    start = _ADDRESS_BYTES.get(header[13] >> 4, 0)
    while start + _TLV_HEADER_BYTES <= len(rest):
        kind, length = struct.unpack_from("!BH", rest, start)
        yield kind, rest[start + _TLV_HEADER_BYTES : start + _TLV_HEADER_BYTES + length]
        start += _TLV_HEADER_BYTES + length


def crc32c(data: bytes) -> int:
    """The Castagnoli checksum that version 2 may carry. Some 0.1 µs a byte."""
    table = _crc32c_table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


@cache
def _crc32c_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (_CRC32C_POLYNOMIAL if byte & 1 else 0)  # noqa: PLW2901  # shifting it is the algorithm
        table.append(byte)
    return tuple(table)


def _check_additions(header: bytes, rest: bytes, start: int) -> None:
    """What follows the addresses must be whole; of it only the checksum concerns us."""
    while start < len(rest):
        if start + _TLV_HEADER_BYTES > len(rest):
            raise _wrong("it ends within an addition")
        kind, length = struct.unpack_from("!BH", rest, start)
        value = start + _TLV_HEADER_BYTES
        if value + length > len(rest):
            raise _wrong("it ends within an addition")
        if kind == _CRC32C:
            if length != _CRC32C_BYTES:
                raise _wrong("its checksum has a wrong length")
            (given,) = struct.unpack_from("!I", rest, value)
            if crc32c(header + rest[:value] + bytes(_CRC32C_BYTES) + rest[value + _CRC32C_BYTES :]) != given:
                raise _wrong("its checksum doesn't fit")
        start = value + length


def _host(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            raise ValueError("a zone means nothing to another host")
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
    return str(address)


def _port(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 5 or int(text) > _MAX_PORT:
        raise ValueError("no port")
    return int(text)


def _wrong(what: str) -> ProtocolViolation:
    return ProtocolViolation(f"the PROXY header is wrong: {what}", _HINT)
