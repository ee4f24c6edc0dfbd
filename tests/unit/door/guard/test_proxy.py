"""PROXY headers, byte by byte."""

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.door.guard.proxy import (
    MAX_V2_BYTES,
    SIGNATURE,
    V2_HEADER_BYTES,
    begins_proxy_header,
    crc32c,
    parse_v1,
    parse_v2,
    v2_rest_bytes,
)
from torpor.model.errors import ProtocolViolation


def v2(rest: bytes, version_command: int = 0x21, family: int = 0x11) -> bytes:
    return SIGNATURE + struct.pack("!BBH", version_command, family, len(rest)) + rest


def tcp4(source: str = "203.0.113.7", port: int = 40_000) -> bytes:
    return ipaddress.IPv4Address(source).packed + ipaddress.IPv4Address("192.0.2.1").packed + struct.pack("!HH", port, 7432)


def tcp6(source: str = "2001:db8::7", port: int = 40_000) -> bytes:
    return ipaddress.IPv6Address(source).packed + ipaddress.IPv6Address("2001:db8::1").packed + struct.pack("!HH", port, 7432)


def addition(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def with_crc(packet: bytes) -> bytes:
    """The packet with a checksum as its last addition."""
    rest = packet[V2_HEADER_BYTES:] + addition(0x03, bytes(4))
    whole = packet[: V2_HEADER_BYTES - 2] + struct.pack("!H", len(rest)) + rest
    return whole[:-4] + struct.pack("!I", crc32c(whole))


def parse(packet: bytes) -> tuple[str, int] | None:
    header, rest = packet[:V2_HEADER_BYTES], packet[V2_HEADER_BYTES:]
    assert v2_rest_bytes(header) == len(rest)
    return parse_v2(header, rest)


@pytest.mark.parametrize(
    ("packet", "client"),
    [
        (v2(tcp4()), ("203.0.113.7", 40_000)),
        (v2(tcp6(), family=0x21), ("2001:db8::7", 40_000)),
        (v2(tcp6("::ffff:203.0.113.7"), family=0x21), ("203.0.113.7", 40_000)),
        (v2(tcp4() + addition(0x04, b"padding") + addition(0xEA, bytes(300))), ("203.0.113.7", 40_000)),
        (with_crc(v2(tcp4())), ("203.0.113.7", 40_000)),
        (with_crc(v2(tcp6() + addition(0x01, b"h2"), family=0x21)), ("2001:db8::7", 40_000)),
        (v2(bytes(216), family=0x31), None),  # from a Unix socket
        (v2(b"", 0x20, 0x00), None),  # LOCAL: a health check
        (v2(tcp4(), 0x20), None),
        (v2(b"whatever", 0x20, 0xFF), None),  # of LOCAL nothing is to be read
        (v2(b"", family=0x00), None),  # UNSPEC
        (v2(b"whatever", family=0x00), None),
    ],
)
def test_version_2(packet: bytes, client: tuple[str, int] | None) -> None:
    assert begins_proxy_header(packet[:4])
    assert parse(packet) == client


@pytest.mark.parametrize(
    ("packet", "words"),
    [
        (v2(tcp4()[:-1]), "within the addresses"),
        (v2(tcp6()[:-1], family=0x21), "within the addresses"),
        (v2(bytes(215), family=0x31), "within the addresses"),
        (v2(tcp4(), 0x11), "version 1"),
        (v2(tcp4(), 0x22), "command 2"),
        (v2(tcp4(), family=0x12), "transport 2"),  # UDP
        (v2(tcp4(), family=0x10), "transport 0"),
        (v2(tcp4(), family=0x41), "family 4"),
        (v2(tcp4() + b"\x04"), "within an addition"),
        (v2(tcp4() + b"\x04\x00\x09short"), "within an addition"),
        (v2(tcp4() + addition(0x03, b"\0\0\0\1")), "checksum doesn't fit"),
        (v2(tcp4() + addition(0x03, b"\0\0")), "checksum has a wrong length"),
    ],
)
def test_what_is_wrong_with_version_2_is_told(packet: bytes, words: str) -> None:
    with pytest.raises(ProtocolViolation, match=words) as refusal:
        parse(packet)
    assert refusal.value.hint


def test_a_checksum_covers_every_byte() -> None:
    good = with_crc(v2(tcp4() + addition(0x04, b"abc")))
    assert parse(good) is not None
    for position in range(V2_HEADER_BYTES, len(good)):
        if position in range(len(good) - 7, len(good) - 4):  # its own kind and length: then it is none
            continue
        changed = good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :]
        with pytest.raises(ProtocolViolation):
            parse(changed)


def test_crc32c_is_castagnolis() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of the algorithm
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4


def test_too_long_and_foreign_headers_are_refused_before_anything_more_is_read() -> None:
    assert v2_rest_bytes(SIGNATURE + struct.pack("!BBH", 0x21, 0x11, MAX_V2_BYTES - V2_HEADER_BYTES)) == MAX_V2_BYTES - V2_HEADER_BYTES
    with pytest.raises(ProtocolViolation, match="longer than"):
        v2_rest_bytes(SIGNATURE + struct.pack("!BBH", 0x21, 0x11, MAX_V2_BYTES - V2_HEADER_BYTES + 1))
    with pytest.raises(ProtocolViolation, match="signature"):
        v2_rest_bytes(bytes(16))


@pytest.mark.parametrize(
    ("line", "client"),
    [
        (b"PROXY TCP4 203.0.113.7 192.0.2.1 40000 7432\r\n", ("203.0.113.7", 40_000)),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 40000 7432\r\n", ("2001:db8::7", 40_000)),
        (b"PROXY TCP6 ::ffff:203.0.113.7 ::1 40000 7432\r\n", ("203.0.113.7", 40_000)),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", None),
    ],
)
def test_version_1(line: bytes, client: tuple[str, int] | None) -> None:
    assert begins_proxy_header(line[:4])
    assert parse_v1(line) == client


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY\r\n",
        b"PROXY \r\n",
        b"PROXY TCP4\r\n",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 40000\r\n",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 40000 7432 \r\n",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 40000 7432\n",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 40000 7432",
        b"PROXY TCP4 2001:db8::7 192.0.2.1 40000 7432\r\n",
        b"PROXY TCP6 203.0.113.7 192.0.2.1 40000 7432\r\n",
        b"PROXY TCP6 fe80::1%eth0 ::1 40000 7432\r\n",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 65536 7432\r\n",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 -1 7432\r\n",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 4_0 7432\r\n",
        b"PROXY TCP4 0x7f.1 192.0.2.1 40000 7432\r\n",
        b"PROXY UDP4 203.0.113.7 192.0.2.1 40000 7432\r\n",
        b"PROXY TCP4 \xff 192.0.2.1 40000 7432\r\n",
        b"proxy TCP4 203.0.113.7 192.0.2.1 40000 7432\r\n",
    ],
)
def test_wrong_lines_of_version_1_are_refused(line: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        parse_v1(line)


@given(st.binary(max_size=600), st.integers(0, 255), st.integers(0, 255))
def test_any_bytes_are_read_or_refused(rest: bytes, version_command: int, family: int) -> None:
    try:
        client = parse(v2(rest, version_command, family))
    except ProtocolViolation:
        return
    if client is not None:
        ipaddress.ip_address(client[0])
        assert 0 <= client[1] <= 65535


@given(
    st.ip_addresses(), st.integers(0, 65535), st.lists(st.tuples(st.integers(4, 255), st.binary(max_size=40)), max_size=5), st.booleans()
)
def test_whatever_a_balancer_writes_is_read_back(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int, additions: list[tuple[int, bytes]], is_checked: bool
) -> None:
    rest = address.packed + address.packed + struct.pack("!HH", port, 1) + b"".join(addition(*one) for one in additions)
    packet = v2(rest, family=0x11 if address.version == 4 else 0x21)
    client = parse(with_crc(packet) if is_checked else packet)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    assert client == (str(mapped or address), port)


@pytest.mark.parametrize("head", [b"\0\0\0\x08", b"\x16\x03\x01\x02", b"GET ", b"", b"\r\n", b"\r\n\r\0", b"PROK"])
def test_other_beginnings_are_no_proxy_headers(head: bytes) -> None:
    assert not begins_proxy_header(head)
