"""What a client says once it is connected: passwords, and the extended query protocol. Pure builders of bytes."""

import struct
from collections.abc import Sequence

from torpor.pgwire.frames import frame

SYNC = frame(b"S")
EXECUTE_ALL = frame(b"E", b"\0" + struct.pack("!i", 0))
"""Execute of the unnamed portal, all rows."""
DESCRIBE_PORTAL = frame(b"D", b"P\0")
_NULL = struct.pack("!i", -1)


def password(text: str) -> bytes:
    """A PasswordMessage in the clear."""
    return frame(b"p", text.encode("utf-8", "surrogateescape") + b"\0")


def sasl_initial(mechanism: str, data: bytes) -> bytes:
    """A SASLInitialResponse."""
    return frame(b"p", mechanism.encode() + b"\0" + struct.pack("!i", len(data)) + data)


def sasl_response(data: bytes) -> bytes:
    """A SASLResponse."""
    return frame(b"p", data)


def parse(sql: str) -> bytes:
    """Parse into the unnamed statement; the types of the parameters are PostgreSQL's to find out. `sql` has no NUL."""
    return frame(b"P", b"\0" + sql.encode("utf-8", "replace") + b"\0\0\0")


def bind(values: Sequence[bytes | None], binary: Sequence[bool] = ()) -> bytes:
    """Bind the unnamed statement to the unnamed portal, results in text. `binary` says which values are in binary form; none by default."""
    parts = [b"\0\0", struct.pack("!h", len(binary)), *(b"\0\1" if one else b"\0\0" for one in binary), struct.pack("!H", len(values))]
    for value in values:
        if value is None:
            parts.append(_NULL)
        else:
            parts += (struct.pack("!i", len(value)), value)
    parts.append(b"\0\0")
    return frame(b"B", b"".join(parts))


def statement(sql: str, values: Sequence[bytes | None] = (), binary: Sequence[bool] = ()) -> bytes:
    """One statement in the extended protocol, without the Sync."""
    return parse(sql) + bind(values, binary) + DESCRIBE_PORTAL + EXECUTE_ALL
