"""Framing: lengths are checked, streams are cut where messages end."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.model.errors import ProtocolViolation
from torpor.pgwire.frames import FrameBuffer, frame, message_body_length, startup_body_length, startup_frame


@pytest.mark.parametrize("length", [-(2**31), -1, 0, 3, 4, 7, 10_005, 2**31 - 1])
def test_startup_lengths_out_of_range_are_refused(length: int) -> None:
    with pytest.raises(ProtocolViolation, match="invalid length of startup packet"):
        startup_body_length(struct.pack("!i", length))


@pytest.mark.parametrize("body", [4, 9, 10_000])
def test_startup_lengths_in_range_are_taken(body: int) -> None:
    assert startup_body_length(startup_frame(bytes(body))[:4]) == body


@pytest.mark.parametrize("length", [-(2**31), -1, 0, 3, 105, 2**31 - 1])
def test_message_lengths_out_of_range_are_refused(length: int) -> None:
    with pytest.raises(ProtocolViolation, match="invalid message length"):
        message_body_length(struct.pack("!ci", b"p", length), 100)


def test_message_lengths_up_to_the_limit_are_taken() -> None:
    assert message_body_length(frame(b"p", bytes(100))[:5], 100) == (b"p", 100)
    assert message_body_length(frame(b"X")[:5], 100) == (b"X", 0)


@given(st.lists(st.tuples(st.sampled_from([b"R", b"D", b"Z"]), st.binary(max_size=40)), max_size=8), st.integers(1, 17))
def test_a_stream_cut_anywhere_gives_the_same_messages(messages: list[tuple[bytes, bytes]], piece: int) -> None:
    stream = b"".join(frame(tag, body) for tag, body in messages)
    buffer = FrameBuffer()
    found = [message for at in range(0, len(stream), piece) for message in buffer.feed(stream[at : at + piece])]
    assert found == messages
    assert repr(buffer) == "<FrameBuffer 0 bytes pending>"


def test_a_stream_with_too_long_a_message_is_refused_before_it_is_read() -> None:
    with pytest.raises(ProtocolViolation):
        FrameBuffer(limit_bytes=10).feed(struct.pack("!ci", b"D", 2**31 - 1))
