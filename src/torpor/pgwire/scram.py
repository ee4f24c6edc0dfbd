"""SCRAM-SHA-256, the server's side, against the verifiers that PostgreSQL stores. Pure but for the nonce and salt of the caller's choice.

A check takes some 10 µs. Making a verifier runs PBKDF2 (5 ms): not for an event loop.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from torpor.model.errors import ProtocolViolation
from torpor.pgwire.saslprep import saslprep

MECHANISM = "SCRAM-SHA-256"
MECHANISM_PLUS = "SCRAM-SHA-256-PLUS"
"""The same, bound to the TLS connection, so that nobody in between can pass it on."""
_BINDING = b"p=tls-server-end-point"
DEFAULT_ITERATIONS = 4096
_KEY_BYTES = 32
_SALT_BYTES = 16
_NONCE_BYTES = 18
_MAX_ITERATIONS = 2**31 - 1

_VERIFIER = re.compile(r"SCRAM-SHA-256\$([1-9][0-9]{0,9}):([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+):([A-Za-z0-9+/=]+)")
_CLIENT_FIRST = re.compile(rb"(?P<header>(?P<binding>n|y|p=[^,]*),(?P<authzid>a=[^,]*)?,)(?P<bare>.*)", re.DOTALL)
_CLIENT_FIRST_BARE = re.compile(rb"n=[^,]*,r=(?P<nonce>[\x21-\x2b\x2d-\x7e]+)(?:,[A-Za-z]=[^,]*)*", re.DOTALL)
_CLIENT_FINAL = re.compile(
    rb"(?P<unproven>c=(?P<binding>[^,]*),r=(?P<nonce>[^,]*)(?:,[A-Za-oq-z]=[^,]*)*),p=(?P<proof>[A-Za-z0-9+/=]*)", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Verifier:
    """What a server keeps instead of a password. Its repr shows no key."""

    iterations: int
    salt: bytes = field(repr=False)
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)

    def encode(self) -> str:
        """The text that PostgreSQL keeps in pg_authid.rolpassword."""
        salt, stored, server = (base64.b64encode(part).decode() for part in (self.salt, self.stored_key, self.server_key))
        return f"{MECHANISM}${self.iterations}:{salt}${stored}:{server}"


_NOBODY = Verifier(DEFAULT_ITERATIONS, bytes(_SALT_BYTES), secrets.token_bytes(_KEY_BYTES), bytes(_KEY_BYTES))


def parse_verifier(text: str) -> Verifier | None:
    """Read pg_authid.rolpassword; None when it isn't a SCRAM-SHA-256 verifier."""
    match = _VERIFIER.fullmatch(text)
    if match is None:
        return None
    try:
        salt, stored, server = (base64.b64decode(part, validate=True) for part in match.groups()[1:])
    except binascii.Error:
        return None
    iterations = int(match[1])
    if len(stored) != _KEY_BYTES or len(server) != _KEY_BYTES or not salt or iterations > _MAX_ITERATIONS:
        return None
    return Verifier(iterations, salt, stored, server)


def make_verifier(password: str, salt: bytes | None = None, iterations: int = DEFAULT_ITERATIONS) -> str:
    """The verifier of `password`, as PostgreSQL's `ALTER ROLE … PASSWORD` takes it. Runs PBKDF2."""
    salt = secrets.token_bytes(_SALT_BYTES) if salt is None else salt
    salted = hashlib.pbkdf2_hmac("sha256", saslprep(password), salt, iterations)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    return Verifier(iterations, salt, stored_key, server_key).encode()


def mock_salt(name: str, secret: bytes) -> bytes:
    """The salt that a role without a verifier shows: the same each time, so that nobody can tell which roles exist."""
    return hmac.digest(secret, name.encode("utf-8", "surrogateescape"), "sha256")[:_SALT_BYTES]


class ScramExchange:
    """One exchange: `first`, then `final`. It is right when the client's proof fits any of `candidates`.

    Without candidates it goes all the way like any other, and fails. Not to be used twice.
    """

    def __init__(
        self,
        salt: bytes,
        iterations: int = DEFAULT_ITERATIONS,
        candidates: Sequence[Verifier] = (),
        nonce: bytes | None = None,
        *,
        end_point: bytes = b"",
        is_bound: bool = False,
    ) -> None:
        """`end_point` is the hash of our certificate where SCRAM-SHA-256-PLUS was on offer, `is_bound` says that the client took it."""
        self._salt = salt
        self._iterations = iterations
        self._candidates = tuple(candidates)
        self._server_nonce = base64.b64encode(secrets.token_bytes(_NONCE_BYTES)) if nonce is None else nonce
        self._end_point = end_point
        self._is_bound = is_bound
        self._header = b""
        self._client_first_bare = b""
        self._server_first = b""
        self._nonce = b""

    def __repr__(self) -> str:
        return f"<ScramExchange {'begun' if self._server_first else 'new'}, {len(self._candidates)} candidates>"

    def first(self, message: bytes) -> bytes:
        """Take client-first, return server-first. Raises ProtocolViolation."""
        match = _CLIENT_FIRST.fullmatch(message)
        if match is None:
            raise ProtocolViolation("malformed SCRAM message: bad start of client-first-message")
        self._check_binding(match["binding"])
        if match["authzid"]:
            raise ProtocolViolation("client uses authorization identity, but it is not supported")
        bare = _CLIENT_FIRST_BARE.fullmatch(match["bare"])
        if bare is None:
            if match["bare"].startswith(b"m="):
                raise ProtocolViolation("client requires an unsupported SCRAM extension")
            raise ProtocolViolation("malformed SCRAM message: bad client-first-message")
        self._header = match["header"]
        self._client_first_bare = match["bare"]
        self._nonce = bare["nonce"] + self._server_nonce
        self._server_first = b"r=%s,s=%s,i=%d" % (self._nonce, base64.b64encode(self._salt), self._iterations)
        return self._server_first

    def final(self, message: bytes) -> bytes | None:
        """Take client-final, return server-final when the proof is right, None when it isn't. Raises ProtocolViolation."""
        match = _CLIENT_FINAL.fullmatch(message)
        if match is None:
            raise ProtocolViolation("malformed SCRAM message: bad client-final-message")
        bound = self._header + self._end_point if self._is_bound else self._header
        if not hmac.compare_digest(match["binding"], base64.b64encode(bound)):
            if self._is_bound:
                raise ProtocolViolation(
                    "SCRAM channel binding check failed",
                    "somebody else holds the other end of the client's TLS connection",
                )
            raise ProtocolViolation("unexpected SCRAM channel-binding attribute in client-final-message")
        if not hmac.compare_digest(match["nonce"], self._nonce):
            raise ProtocolViolation("invalid SCRAM response: nonce does not match")
        try:
            proof = base64.b64decode(match["proof"], validate=True)
        except binascii.Error:
            proof = b""
        if len(proof) != _KEY_BYTES:
            raise ProtocolViolation("malformed SCRAM message: malformed proof in client-final-message")
        signed = b",".join((self._client_first_bare, self._server_first, match["unproven"]))
        # Without candidates a proof is checked too, so that the time tells nobody which roles exist.
        for candidate in self._candidates or (_NOBODY,):
            if _proof_fits(candidate, proof, signed) and candidate is not _NOBODY:
                return b"v=" + base64.b64encode(hmac.digest(candidate.server_key, signed, "sha256"))
        return None

    def _check_binding(self, flag: bytes) -> None:
        """What the client says of channel binding must fit the mechanism that it chose, and what it was offered."""
        if self._is_bound:
            if not flag.startswith(b"p"):
                raise ProtocolViolation("malformed SCRAM message: the client selected SCRAM-SHA-256-PLUS without channel binding")
            if flag != _BINDING:
                raise ProtocolViolation("unsupported SCRAM channel-binding type", "the one on offer is tls-server-end-point")
        elif flag.startswith(b"p"):
            raise ProtocolViolation("malformed SCRAM message: the client requires channel binding, which needs SCRAM-SHA-256-PLUS over TLS")
        elif flag == b"y" and self._end_point:
            raise ProtocolViolation(
                "SCRAM channel binding negotiation error",
                "the client supports it and believes that this server doesn't: somebody in between may have changed the offer",
            )


def _proof_fits(verifier: Verifier, proof: bytes, signed: bytes) -> bool:
    signature = hmac.digest(verifier.stored_key, signed, "sha256")
    client_key = (int.from_bytes(proof) ^ int.from_bytes(signature)).to_bytes(_KEY_BYTES)
    return hmac.compare_digest(hashlib.sha256(client_key).digest(), verifier.stored_key)
