"""Framing: where a message begins and ends. Pure; every length is checked before anything is allocated for it."""

import struct

from torpor.model.errors import ProtocolViolation

MAX_STARTUP_BYTES = 10_000
"""PostgreSQL's own limit for a startup packet (MAX_STARTUP_PACKET_LENGTH), the length word not counted."""

STARTUP_HEADER_BYTES = 4
MESSAGE_HEADER_BYTES = 5
_LENGTH_BYTES = 4
_CODE_BYTES = 4


def startup_body_length(header: bytes) -> int:
    """How many bytes follow the length word of a startup packet. Raises ProtocolViolation."""
    (length,) = struct.unpack("!i", header)
    body: int = length - _LENGTH_BYTES
    if not _CODE_BYTES <= body <= MAX_STARTUP_BYTES:
        raise ProtocolViolation(
            f"invalid length of startup packet: {length}", f"a startup packet holds {_CODE_BYTES} to {MAX_STARTUP_BYTES} bytes"
        )
    return body


def message_body_length(header: bytes, limit_bytes: int) -> tuple[bytes, int]:
    """The tag of a message and how many bytes follow its header. Raises ProtocolViolation above `limit_bytes`."""
    tag, length = struct.unpack("!ci", header)
    body: int = length - _LENGTH_BYTES
    if not 0 <= body <= limit_bytes:
        raise ProtocolViolation(f"invalid message length: {length}", f"at most {limit_bytes} bytes are accepted here")
    return tag, body


def frame(tag: bytes, body: bytes = b"") -> bytes:
    """A message with its header."""
    return tag + struct.pack("!i", len(body) + _LENGTH_BYTES) + body


def startup_frame(body: bytes) -> bytes:
    """A startup packet (or one of its relatives) with its length word."""
    return struct.pack("!i", len(body) + _LENGTH_BYTES) + body


class FrameBuffer:
    """Cuts a stream into messages. Holds at most one unfinished message of `limit_bytes`."""

    def __init__(self, limit_bytes: int = 1 << 20) -> None:
        self._limit_bytes = limit_bytes
        self._pending = bytearray()

    def __repr__(self) -> str:
        return f"<FrameBuffer {len(self._pending)} bytes pending>"

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """Take more of the stream; return the (tag, body) of each message that is now whole. Raises ProtocolViolation."""
        self._pending += data
        messages: list[tuple[bytes, bytes]] = []
        start = 0
        while len(self._pending) - start >= MESSAGE_HEADER_BYTES:
            tag, length = message_body_length(bytes(self._pending[start : start + MESSAGE_HEADER_BYTES]), self._limit_bytes)
            end = start + MESSAGE_HEADER_BYTES + length
            if len(self._pending) < end:
                break
            messages.append((tag, bytes(self._pending[start + MESSAGE_HEADER_BYTES : end])))
            start = end
        del self._pending[:start]
        return messages
