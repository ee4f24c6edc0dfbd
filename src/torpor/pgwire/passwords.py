"""The client's password messages: SASL's and md5's. Pure."""

import hashlib
import hmac
import re
import struct

from torpor.model.errors import ProtocolViolation

PASSWORD_TAG = b"p"
"""The tag of PasswordMessage, SASLInitialResponse and SASLResponse alike."""

MAX_PASSWORD_BYTES = 2_048
"""Longest body that is read before anyone is known. A SCRAM message has some 200 bytes; a name in it may have several hundred."""

_MD5_VERIFIER = re.compile(r"md5[0-9a-f]{32}")
_MD5_SALT_BYTES = 4


def parse_sasl_initial(body: bytes) -> tuple[str, bytes | None]:
    """The mechanism that the client chose, and its first message (None when it waits to be asked for it). Raises ProtocolViolation."""
    mechanism, nul, rest = body.partition(b"\0")
    if not nul or len(rest) < struct.calcsize("!i"):
        raise ProtocolViolation("malformed SASLInitialResponse message")
    (length,) = struct.unpack_from("!i", rest)
    data = rest[4:]
    if length == -1 and not data:
        return mechanism.decode("ascii", "replace"), None
    if length != len(data):
        raise ProtocolViolation("malformed SASLInitialResponse message")
    return mechanism.decode("ascii", "replace"), data


def is_md5_verifier(text: str) -> bool:
    """Whether pg_authid.rolpassword holds an md5 hash."""
    return _MD5_VERIFIER.fullmatch(text) is not None


def make_md5_verifier(password: str, role: str) -> str:
    """What PostgreSQL stores for `password` under password_encryption = md5."""
    return "md5" + _md5((password + role).encode("utf-8", "surrogateescape"))


def md5_answer(verifier: str, salt: bytes) -> bytes:
    """The body of the only PasswordMessage that is right for this salt."""
    return b"md5" + _md5(verifier.removeprefix("md5").encode() + salt).encode() + b"\0"


def md5_fits(verifier: str, salt: bytes, body: bytes) -> bool:
    """Whether a PasswordMessage answers AuthenticationMD5Password rightly. Raises ProtocolViolation when it isn't one string."""
    if len(salt) != _MD5_SALT_BYTES:
        raise ValueError("an md5 salt has 4 bytes")
    if body.count(b"\0") != 1 or not body.endswith(b"\0"):
        raise ProtocolViolation("invalid password packet size")
    return hmac.compare_digest(body, md5_answer(verifier, salt))


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
