"""SCRAM-SHA-256, the client's side. Pure but for the nonce of the caller's choice; `final` runs PBKDF2 (some ms at 4096 iterations)."""

import base64
import binascii
import hashlib
import hmac
import re
import secrets

from torpor.model.errors import ProtocolViolation
from torpor.pgwire.saslprep import saslprep

_NONCE_BYTES = 18
_MAX_ITERATIONS = 1_000_000
_SERVER_FIRST = re.compile(
    rb"r=(?P<nonce>[\x21-\x2b\x2d-\x7e]+),s=(?P<salt>[A-Za-z0-9+/=]+),i=(?P<iterations>[1-9][0-9]{0,6})(?:,.*)?", re.DOTALL
)


class ScramClient:
    """One exchange: `first`, then `final`, then `verify`. Without channel binding. Not to be used twice."""

    def __init__(self, password: str, nonce: bytes | None = None) -> None:
        self._password = password
        self._nonce = base64.b64encode(secrets.token_bytes(_NONCE_BYTES)) if nonce is None else nonce
        self._bare = b"n=*,r=" + self._nonce  # the user's name is the startup message's; the grammar wants one here
        self._signature = b""

    def __repr__(self) -> str:
        return f"<ScramClient {'answered' if self._signature else 'new'}>"

    def first(self) -> bytes:
        """client-first-message."""
        return b"n,," + self._bare

    def final(self, server_first: bytes) -> bytes:
        """client-final-message for what the server said. Raises ProtocolViolation."""
        match = _SERVER_FIRST.fullmatch(server_first)
        if match is None or not match["nonce"].startswith(self._nonce) or len(match["nonce"]) == len(self._nonce):
            raise ProtocolViolation("malformed SCRAM message: bad server-first-message")
        iterations = int(match["iterations"])
        if iterations > _MAX_ITERATIONS:
            raise ProtocolViolation(f"the server asks for {iterations} iterations of SCRAM, which are too many")
        try:
            salt = base64.b64decode(match["salt"], validate=True)
        except binascii.Error:
            raise ProtocolViolation("malformed SCRAM message: bad salt") from None
        salted = hashlib.pbkdf2_hmac("sha256", saslprep(self._password), salt, iterations)
        unproven = b"c=biws,r=" + match["nonce"]
        signed = b",".join((self._bare, server_first, unproven))
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        proof = bytes(a ^ b for a, b in zip(client_key, hmac.digest(hashlib.sha256(client_key).digest(), signed, "sha256"), strict=True))
        self._signature = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), signed, "sha256")
        return unproven + b",p=" + base64.b64encode(proof)

    def verify(self, server_final: bytes) -> bool:
        """Whether the server knows the password, too."""
        return bool(self._signature) and hmac.compare_digest(server_final, b"v=" + base64.b64encode(self._signature))
