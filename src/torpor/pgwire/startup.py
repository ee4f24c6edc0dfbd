"""The first packet of a connection: a startup message, an encryption request or a cancel request. Pure.

Parameters are text decoded as UTF-8 with surrogateescape, so that bytes of any encoding survive the way through unchanged.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum

from torpor.model.errors import ProtocolViolation
from torpor.pgwire.frames import startup_frame

PROTOCOL_MAJOR = 3
NEWEST_MINOR = 2
EXTENSION_PREFIX = "_pq_."
"""Parameters that begin so are protocol extensions, never settings."""

_SSL_CODE = (1234, 5679)
_GSS_CODE = (1234, 5680)
_CANCEL_CODE = (1234, 5678)
_MIN_KEY_BYTES = 4
_MAX_KEY_BYTES = 256


class EncryptionRequest(Enum):
    """A client asks to encrypt before it says who it is."""

    SSL = _SSL_CODE
    GSS = _GSS_CODE

    def encode(self) -> bytes:
        """The whole packet."""
        return startup_frame(struct.pack("!HH", *self.value))


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """Asks to cancel what session `pid` runs. Only PostgreSQL knows the right key: 4 bytes in protocol 3.0, up to 256 in 3.2."""

    pid: int
    key: bytes

    def encode(self) -> bytes:
        """The whole packet."""
        return startup_frame(struct.pack("!HHI", *_CANCEL_CODE, self.pid) + self.key)

    def __repr__(self) -> str:
        return f"CancelRequest(pid={self.pid})"


@dataclass(frozen=True, slots=True)
class StartupMessage:
    """Who connects to what. `parameters` keep the client's order; of a repeated one the last value counts, as in PostgreSQL."""

    parameters: Mapping[str, str]
    minor: int = 0

    def encode(self) -> bytes:
        """The whole packet."""
        pairs = [part for pair in self.parameters.items() for part in pair]
        body = b"".join(text.encode("utf-8", "surrogateescape") + b"\0" for text in pairs)
        return startup_frame(struct.pack("!HH", PROTOCOL_MAJOR, self.minor) + body + b"\0")


FirstPacket = StartupMessage | CancelRequest | EncryptionRequest


def parse_first_packet(body: bytes) -> FirstPacket:
    """Read what follows the length word of a connection's first packet. Raises ProtocolViolation."""
    if len(body) < struct.calcsize("!HH"):
        raise ProtocolViolation("incomplete startup packet")
    code: tuple[int, int] = struct.unpack_from("!HH", body)
    rest = body[4:]
    if code in (_SSL_CODE, _GSS_CODE):
        if rest:
            raise ProtocolViolation("invalid length of encryption request")
        return EncryptionRequest(code)
    if code == _CANCEL_CODE:
        return _parse_cancel(rest)
    major, minor = code
    if major != PROTOCOL_MAJOR:
        raise ProtocolViolation(
            f"unsupported frontend protocol {major}.{minor}: server supports {PROTOCOL_MAJOR}.0 to {PROTOCOL_MAJOR}.{NEWEST_MINOR}"
        )
    return StartupMessage(_parse_parameters(rest), minor)


def _parse_cancel(rest: bytes) -> CancelRequest:
    key = rest[4:]
    if not _MIN_KEY_BYTES <= len(key) <= _MAX_KEY_BYTES:
        raise ProtocolViolation("invalid length of cancel request packet")
    return CancelRequest(struct.unpack_from("!I", rest)[0], key)


def _parse_parameters(rest: bytes) -> dict[str, str]:
    # A well-formed body is NAME \0 VALUE \0 … \0: cut at the NULs, it ends in two empty parts and has pairs before them.
    parts = rest.split(b"\0")
    names = parts[0:-2:2]
    if len(parts) < 2 or len(parts) % 2 or parts[-1] or parts[-2] or not all(names):
        raise ProtocolViolation("invalid startup packet layout: expected terminator as last byte")
    texts = [part.decode("utf-8", "surrogateescape") for part in parts[:-2]]
    return dict(zip(texts[0::2], texts[1::2], strict=True))


class Stranger(StrEnum):
    """Another protocol, recognised by the first four bytes of a connection."""

    TLS = "TLS"
    HTTP = "HTTP"
    SSH = "SSH"


_HTTP_VERBS = (b"GET ", b"POST", b"PUT ", b"HEAD", b"OPTI", b"DELE", b"PATC", b"CONN", b"TRAC", b"PRI ")


def recognise_stranger(head: bytes) -> Stranger | None:
    """Which other protocol a client speaks, None when `head` can be PostgreSQL's (or is nothing known)."""
    if head.startswith(b"\x16\x03"):
        return Stranger.TLS
    if head in _HTTP_VERBS:
        return Stranger.HTTP
    if head == b"SSH-":
        return Stranger.SSH
    return None
