"""What a server says before a session begins: errors, negotiation, authentication requests. Pure builders of bytes."""

import struct
from collections.abc import Sequence

from torpor.pgwire.frames import frame
from torpor.pgwire.startup import PROTOCOL_MAJOR

ENCRYPTION_ACCEPTED = b"S"
"""The answer to an EncryptionRequest for TLS: begin with it now."""

ENCRYPTION_REFUSED = b"N"
"""The answer to an EncryptionRequest: go on in the clear, or leave."""

TLS_ALERT_HANDSHAKE_FAILURE = bytes.fromhex("15030300020228")
"""What a TLS client understands when it starts TLS where there is none."""

_MAX_FIELD_CHARACTERS = 2_000


def error_response(sqlstate: str, message: str, hint: str = "", detail: str = "", severity: str = "FATAL") -> bytes:
    """An ErrorResponse. Texts are bounded and freed of NULs, which would end them early."""
    fields = (("S", severity), ("V", severity), ("C", sqlstate), ("M", message), ("D", detail), ("H", hint))
    body = b"".join(f"{code}{_clean(text)}".encode("utf-8", "replace") + b"\0" for code, text in fields if text)
    return frame(b"E", body + b"\0")


def _clean(text: str) -> str:
    return text[:_MAX_FIELD_CHARACTERS].replace("\0", "?")


def negotiate_protocol_version(minor: int, unknown_options: Sequence[str]) -> bytes:
    """A NegotiateProtocolVersion: the newest minor that is spoken here, and the extensions that are not."""
    options = b"".join(name.encode("utf-8", "surrogateescape") + b"\0" for name in unknown_options)
    # The documentation calls the first field the minor; PostgreSQL and libpq put the whole version into it.
    return frame(b"v", struct.pack("!HHi", PROTOCOL_MAJOR, minor, len(unknown_options)) + options)


def authentication_ok() -> bytes:
    """AuthenticationOk."""
    return _authentication(0)


def authentication_cleartext() -> bytes:
    """AuthenticationCleartextPassword."""
    return _authentication(3, b"")


def authentication_md5(salt: bytes) -> bytes:
    """AuthenticationMD5Password with its four bytes of salt."""
    return _authentication(5, salt)


def authentication_sasl(mechanisms: Sequence[str]) -> bytes:
    """AuthenticationSASL with the mechanisms to choose from."""
    return _authentication(10, b"".join(name.encode() + b"\0" for name in mechanisms) + b"\0")


def authentication_sasl_continue(data: bytes) -> bytes:
    """AuthenticationSASLContinue."""
    return _authentication(11, data)


def authentication_sasl_final(data: bytes) -> bytes:
    """AuthenticationSASLFinal."""
    return _authentication(12, data)


def _authentication(code: int, data: bytes = b"") -> bytes:
    return frame(b"R", struct.pack("!i", code) + data)
