"""JSON Web Tokens: are they signed by one of these keys, by whom are they, for whom, and until when? Pure; upon PyJWT and cryptography.

Only asymmetric signatures (RS256, ES256, EdDSA with Ed25519): which of them is told by the key, never by the token alone, so that no token
is taken for one "signed" with a public key as a shared secret, or with none. Limits of size on everything that strangers send.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

MAX_TOKEN_BYTES = 8_192
MAX_KEYS = 32
LEEWAY_S = 30.0
"""How far clocks may differ."""

_RSA_BITS = range(2048, 8193)
_ALGORITHMS = ("RS256", "ES256", "EdDSA")
_PRIVATE = frozenset({"d", "p", "q", "k"})

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey


class BadToken(ValueError):
    """The token isn't good; the text says why, and may be shown to whoever sent it."""


class UnknownKey(BadToken):
    """It is signed by a key that isn't among those known; perhaps they have been changed."""


class BadKeys(ValueError):
    """What should be a JSON Web Key Set is none, or one that nothing can be verified with."""


@dataclass(frozen=True, slots=True)
class Key:
    """A public key. `id` is empty where the set gives it none."""

    id: str
    algorithm: str
    public: PublicKey


@dataclass(frozen=True, slots=True)
class Expected:
    """What a token must say of itself. Without an audience it may be for anybody."""

    issuer: str
    audience: str | None = None


def read_keys(text: bytes) -> tuple[Key, ...]:
    """The keys of a JSON Web Key Set (or one key alone) that signatures can be verified with; others are left out. Raises BadKeys."""
    content = _json(text)
    found = content.get("keys", [content] if "kty" in content else None) if isinstance(content, dict) else None
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise BadKeys("it is no JSON Web Key Set: an object with a list of keys")
    if len(found) > MAX_KEYS:
        raise BadKeys(f"it has {len(found)} keys, {MAX_KEYS} are the limit")
    for item in found:
        if item.get("kty") == "oct" or not _PRIVATE.isdisjoint(item):
            raise BadKeys("it holds a secret: only public keys of asymmetric signatures belong here")
    keys = tuple(key for item in found if (key := _key(item)) is not None)
    if not keys:
        raise BadKeys(f"it has no key for {', '.join(_ALGORITHMS)}")
    return keys


def verify(token: str, keys: Iterable[Key], expected: Expected, now: float) -> dict[str, Any]:
    """The claims of a token. `now` is in seconds since the epoch. Some 0.1 ms. Raises BadToken, UnknownKey."""
    if len(token) > MAX_TOKEN_BYTES:
        raise BadToken(f"the token is longer than {MAX_TOKEN_BYTES} bytes")
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise BadToken("it is no JSON Web Token") from None
    algorithm, id = header.get("alg"), header.get("kid")
    if algorithm not in _ALGORITHMS:
        raise BadToken(f"the token's algorithm isn't one of {', '.join(_ALGORITHMS)}")
    if "crit" in header or "b64" in header:
        raise BadToken("the token demands an extension that isn't known here")
    if id is not None and not isinstance(id, str):
        raise BadToken("the token's key id is no text")
    candidates = [key for key in keys if key.algorithm == algorithm and (id is None or key.id in ("", id))]
    if not candidates:
        raise UnknownKey("the token is signed with a key that isn't registered here")
    for key in candidates:
        try:
            payload = jwt.PyJWS().decode(token, key.public, algorithms=[algorithm])
        except (jwt.PyJWTError, ValueError):
            continue
        return _checked(_claims(payload), expected, now)
    raise BadToken("the token's signature is wrong")


def _checked(claims: dict[str, Any], expected: Expected, now: float) -> dict[str, Any]:
    until = _time(claims, "exp")
    if until is None:
        raise BadToken("the token never expires (it has no exp), and isn't taken for that")
    if now >= until + LEEWAY_S:
        raise BadToken("the token has expired")
    if (begins := _time(claims, "nbf")) is not None and now < begins - LEEWAY_S:
        raise BadToken("the token isn't valid yet (nbf)")
    if (made := _time(claims, "iat")) is not None and now < made - LEEWAY_S:
        raise BadToken("the token is of the future (iat)")
    if claims.get("iss") != expected.issuer:
        raise BadToken("the token is of another issuer")
    if expected.audience is not None:
        audience = claims.get("aud")
        if expected.audience not in (audience if isinstance(audience, list) else [audience]):
            raise BadToken("the token is for another audience")
    return claims


def expires_at(claims: Mapping[str, Any]) -> float:
    """When the token of verified claims expires, leeway included."""
    return float(claims["exp"]) + LEEWAY_S


def _claims(payload: bytes) -> dict[str, Any]:
    try:
        claims = _json(payload)
    except BadKeys:
        claims = None
    if not isinstance(claims, dict):
        raise BadToken("the token's claims are no JSON object")
    return claims


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value < 1e12:
        raise BadToken(f"the token's {name} is no time")
    return float(value)


def _key(item: dict[str, Any]) -> Key | None:
    if item.get("use", "sig") != "sig":
        return None
    try:
        public = jwt.PyJWK(item).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError):
        return None
    algorithm = _algorithm(public)
    if algorithm is None or item.get("alg", algorithm) != algorithm:
        return None
    id = item.get("kid", "")
    return Key(id, algorithm, public) if isinstance(id, str) else None


def _algorithm(public: object) -> str | None:
    if isinstance(public, RSAPublicKey) and public.key_size in _RSA_BITS:
        return "RS256"
    if isinstance(public, EllipticCurvePublicKey) and isinstance(public.curve, SECP256R1):
        return "ES256"
    return "EdDSA" if isinstance(public, Ed25519PublicKey) else None


def _json(text: bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadKeys("it is no JSON") from None
