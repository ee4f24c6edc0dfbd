"""The first packet: what is well formed survives a round trip, everything else is a ProtocolViolation."""

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.model.errors import ProtocolViolation
from torpor.pgwire.startup import (
    CancelRequest,
    EncryptionRequest,
    StartupMessage,
    Stranger,
    parse_first_packet,
    recognise_stranger,
)

text = st.binary(max_size=30).map(lambda raw: raw.replace(b"\0", b"").decode("utf-8", "surrogateescape"))
names = text.filter(bool)


@given(st.dictionaries(names, text, max_size=6), st.integers(0, 65535))
def test_startup_messages_survive_a_round_trip(parameters: dict[str, str], minor: int) -> None:
    message = StartupMessage(parameters, minor)
    again = parse_first_packet(message.encode()[4:])
    assert again == message
    assert isinstance(again, StartupMessage)
    assert list(again.parameters) == list(parameters)


@given(st.integers(0, 2**32 - 1), st.binary(min_size=4, max_size=256))
def test_cancel_requests_survive_a_round_trip_with_keys_of_both_protocols(pid: int, key: bytes) -> None:
    request = CancelRequest(pid, key)
    assert parse_first_packet(request.encode()[4:]) == request
    assert key.hex() not in repr(request)


@pytest.mark.parametrize("request_", EncryptionRequest)
def test_encryption_requests_survive_a_round_trip(request_: EncryptionRequest) -> None:
    assert request_.encode()[:4] == b"\0\0\0\x08"
    assert parse_first_packet(request_.encode()[4:]) is request_


def test_a_known_packet_of_libpq_is_read() -> None:
    body = b"\x00\x03\x00\x02user\0app\0database\0shop\0\0"
    assert parse_first_packet(body) == StartupMessage({"user": "app", "database": "shop"}, 2)


def test_of_a_repeated_parameter_the_last_value_counts() -> None:
    assert parse_first_packet(b"\x00\x03\x00\x00user\0a\0user\0b\0\0") == StartupMessage({"user": "b"})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00\x03\x00",
        b"\x00\x03\x00\x00",  # no terminator
        b"\x00\x03\x00\x00user",  # no NUL at all
        b"\x00\x03\x00\x00user\0",
        b"\x00\x03\x00\x00user\0app\0",  # no terminator
        b"\x00\x03\x00\x00user\0\0",  # a name without a value
        b"\x00\x03\x00\x00\0\0",  # terminator twice
        b"\x00\x03\x00\x00user\0app\0\0x",  # bytes after the terminator
        b"\x00\x03\x00\x00user\0app\0\0x\0y\0\0",  # parameters after the terminator
        b"\x00\x02\x00\x00user\0app\0\0",  # protocol 2
        b"\x00\x04\x00\x00user\0app\0\0",
        struct.pack("!HHI", 1234, 5678, 1),  # cancel without a key
        struct.pack("!HH", 1234, 5678),
        struct.pack("!HHI", 1234, 5678, 1) + bytes(3),
        struct.pack("!HHI", 1234, 5678, 1) + bytes(257),
        struct.pack("!HH", 1234, 5679) + b"\0",  # SSLRequest with a tail
        struct.pack("!HH", 1234, 5681),
    ],
)
def test_malformed_packets_are_refused(body: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        parse_first_packet(body)


def test_an_empty_parameter_list_is_well_formed() -> None:
    assert parse_first_packet(b"\x00\x03\x00\x00\0") == StartupMessage({})


@given(st.binary(max_size=200))
def test_garbage_is_read_or_refused_but_never_breaks_the_parser(body: bytes) -> None:
    with contextlib.suppress(ProtocolViolation):
        parse_first_packet(body)


@given(st.binary(max_size=120))
def test_garbage_parameters_are_read_exactly_or_refused(rest: bytes) -> None:
    body = b"\x00\x03\x00\x00" + rest
    try:
        message = parse_first_packet(body)
    except ProtocolViolation:
        return
    assert isinstance(message, StartupMessage)
    if len(message.parameters) * 2 == rest.count(b"\0") - 1:  # nothing was repeated
        assert message.encode()[4:] == body


@pytest.mark.parametrize(
    ("head", "stranger"),
    [
        (b"\x16\x03\x01\x02", Stranger.TLS),
        (b"GET ", Stranger.HTTP),
        (b"POST", Stranger.HTTP),
        (b"SSH-", Stranger.SSH),
        (b"\0\0\0\x08", None),
        (b"\0\0\x03\x16", None),
        (b"abcd", None),
    ],
)
def test_other_protocols_are_recognised(head: bytes, stranger: Stranger | None) -> None:
    assert recognise_stranger(head) is stranger
