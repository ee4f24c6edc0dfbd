"""What Torpor and its relay workers (native/relay/) say to each other, packet by packet, and how a relayed session is named. Pure."""

import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

_COMMAND = struct.Struct("=cBHIQ")
_REPORT = struct.Struct("=c3xIQ")
_LENGTH = struct.Struct("=I")
_WITH_TLS = 1
MAX_PREFIX_BYTES = 64
"""Bytes of a client that may have been read before the relay gets it."""
MAX_REPORT_BYTES = 2048
TICKET_KEY_BYTES = 80
COUNTERS = struct.Struct("=QQQQ")
"""What the shared memory holds for each slot: bytes of the client taken and delivered, bytes of the server sent, nothing."""

_NAME_PREFIX = "torpor-relay"


class ReportKind(Enum):
    """What a worker reports."""

    HANDSHAKE = b"H"  # a session's handshake is done
    FAILED = b"F"  # or has failed
    ENDED = b"E"  # a session is over; its slot is free
    READY = b"R"  # the configuration is in use
    BAD_CONFIGURATION = b"X"  # or can't be, and the one before stays
    COUNTERS = b"M"  # first after a take-over: the counters, the pid in place of a session, and the build
    SESSION = b"S"  # one of the sessions that are there
    COMPLETE = b"D"  # those were all
    TAKEN = b"T"  # another Torpor took the worker over


@dataclass(frozen=True, slots=True)
class Report:
    """One packet of a worker."""

    kind: ReportKind
    slot: int
    session: int
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Handshake:
    """What came of a TLS handshake. `end_point` is what SCRAM-SHA-256-PLUS binds to, empty where the certificate defines none."""

    version: str
    cipher: str
    server_name: str
    protocol: str
    end_point: bytes


def new_session(slot: int, session: int, prefix: bytes, tls: bool) -> bytes:
    """The command that comes with the client's socket and one end of a pair."""
    if len(prefix) > MAX_PREFIX_BYTES:
        raise ValueError("too much was read of the client")
    return _COMMAND.pack(b"N", _WITH_TLS if tls else 0, len(prefix), slot, session) + prefix


def configure() -> bytes:
    """The command that comes with a file of `configuration`."""
    return _COMMAND.pack(b"C", 0, 0, 0, 0)


def finish() -> bytes:
    """The command to end with the last session."""
    return _COMMAND.pack(b"Q", 0, 0, 0, 0)


def configuration(ticket_key: bytes, certificates: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The content of a configuration file: what tickets are made from, then chain and key of each certificate, in PEM."""
    if len(ticket_key) != TICKET_KEY_BYTES:
        raise ValueError("a ticket key has 80 bytes")
    parts = [ticket_key, *(part for pair in certificates for part in pair)]
    return b"".join(_LENGTH.pack(len(part)) + part for part in parts)


def new_ticket_key() -> bytes:
    """A key for session tickets, the same for all workers, so that any can resume what another began."""
    return secrets.token_bytes(TICKET_KEY_BYTES)


def parse_report(packet: bytes) -> Report:
    """Read a worker's packet. Raises ValueError."""
    if len(packet) < _REPORT.size:
        raise ValueError(f"a report of {len(packet)} bytes")
    kind, slot, session = _REPORT.unpack_from(packet)
    return Report(ReportKind(kind), slot, session, packet[_REPORT.size :])


def parse_handshake(body: bytes) -> Handshake:
    """Read what follows the header of a HANDSHAKE. Raises ValueError."""
    version, cipher, server_name, protocol, end_point = body.split(b"\0", 4)
    texts = [part.decode("ascii", "replace") for part in (version, cipher, server_name, protocol)]
    return Handshake(texts[0], texts[1], texts[2].lower(), texts[3], end_point)


def session_name(address: tuple[str, int]) -> bytes:
    """A new name for the worker's end of a pair, an abstract Unix address.

    Whoever holds the other end reads it by getpeername: so the next Torpor knows an adopted session and its client's true address.
    """
    return f"\0{_NAME_PREFIX}/{secrets.token_hex(8)}/{address[1]}/{address[0]}".encode()


def address_in(name: bytes) -> tuple[str, int]:
    """The client's address in a session's name. Raises ValueError."""
    parts = name.decode("ascii").split("/", 3)
    if len(parts) != 4 or parts[0] != f"\0{_NAME_PREFIX}":
        raise ValueError("not the name of a relayed session")
    return parts[3], int(parts[2])
