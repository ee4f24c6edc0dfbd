"""Tokens: which are good, and every way in which they aren't. PyJWT makes them, or a hostile hand does."""

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.tokens import ISSUER, Signer, b64, key_set
from torpor.base.jwt import BadKeys, BadToken, Expected, UnknownKey, expires_at, read_keys, verify

NOW = 1_800_000_000.0
EXPECTED = Expected(ISSUER, "shop")
SIGNERS = {name: Signer(name, name) for name in ("RS256", "ES256", "EdDSA")}
KEYS = read_keys(key_set(*SIGNERS.values()).encode())
TIMES = {"iat": NOW, "exp": NOW + 60}


def token(kind: str = "ES256", claims: dict[str, Any] | None = None, header: dict[str, Any] | None = None) -> str:
    return SIGNERS[kind].token(TIMES | (claims or {}), header)


@pytest.mark.parametrize("kind", SIGNERS)
def test_good_ones(kind: str) -> None:
    claims = verify(token(kind), KEYS, EXPECTED, NOW)
    assert (claims["sub"], expires_at(claims)) == ("u1", NOW + 90)
    assert verify(token(kind, {"aud": ["x", "shop"]}), KEYS, EXPECTED, NOW)
    assert verify(token(kind, {"aud": None}), KEYS, Expected(ISSUER), NOW)
    # Without a key id whichever key of that kind fits.
    assert verify(SIGNERS[kind].token(TIMES, {"kid": None}), [*KEYS, *read_keys(key_set(Signer("x", kind)).encode())], EXPECTED, NOW)


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"exp": NOW - 30}, "expired"),
        ({"exp": None}, "never expires"),
        ({"exp": True}, "no time"),
        ({"exp": "soon"}, "no time"),
        ({"exp": 1e300}, "no time"),
        ({"nbf": NOW + 31}, "isn't valid yet"),
        ({"iat": NOW + 31}, "of the future"),
        ({"iss": "https://auth.example.com.evil"}, "another issuer"),
        ({"iss": None}, "another issuer"),
        ({"aud": "shop2"}, "another audience"),
        ({"aud": None}, "another audience"),
        ({"aud": ["a", "b"]}, "another audience"),
    ],
)
def test_claims_that_do_not_fit(claims: dict[str, Any], why: str) -> None:
    with pytest.raises(BadToken, match=why):
        verify(token(claims=claims), KEYS, EXPECTED, NOW)


def test_clocks_may_differ_a_little() -> None:
    assert verify(token(claims={"exp": NOW - 29, "nbf": NOW + 29, "iat": NOW + 29}), KEYS, EXPECTED, NOW)


def forged(header: dict[str, Any], payload: bytes, signature: bytes = b"") -> str:
    return ".".join((b64(json.dumps(header).encode()), b64(payload), b64(signature)))


PAYLOAD = json.dumps({"iss": ISSUER, "aud": "shop", **TIMES}).encode()


def test_forgeries() -> None:
    # The classic ones: none; a public key as the secret of an HMAC, in each form that it may be had in.
    rsa_key = SIGNERS["RS256"].key.public_key()
    secrets = [rsa_key.public_bytes(form, PublicFormat.SubjectPublicKeyInfo) for form in (Encoding.PEM, Encoding.DER)]
    algorithm: Any
    for algorithm in ("none", "None", "NONE", "", None, "HS256", "HS384", "RS1", "PS256", ["ES256"], {}):
        for secret in secrets:
            text = f"{b64(json.dumps({'alg': algorithm, 'kid': 'RS256'}).encode())}.{b64(PAYLOAD)}"
            for signature in (b"", hmac.digest(secret, text.encode(), hashlib.sha256)):
                with pytest.raises(BadToken):
                    verify(f"{text}.{b64(signature)}", KEYS, EXPECTED, NOW)
    # Another's signature, one of zeros (ES256 once took it), a key in the header.
    for kind in SIGNERS:
        other = Signer(kind, kind)
        with pytest.raises(BadToken, match="signature is wrong"):
            verify(other.token(TIMES), KEYS, EXPECTED, NOW)
        with pytest.raises(BadToken, match="signature is wrong"):
            verify(
                other.token(TIMES, {"jwk": other.jwk, "jku": "https://evil.example", "x5u": "https://evil.example"}), KEYS, EXPECTED, NOW
            )
        with pytest.raises(BadToken, match="signature is wrong"):
            verify(forged({"alg": kind, "kid": kind}, PAYLOAD, bytes(64)), KEYS, EXPECTED, NOW)
        # A key serves for its own algorithm only.
        for algorithm in SIGNERS.keys() - {kind}:
            with pytest.raises(BadToken):
                verify(forged({"alg": algorithm, "kid": kind}, PAYLOAD, bytes(64)), KEYS, EXPECTED, NOW)
        good = token(kind)
        head, body, signed = good.split(".")
        changed = json.loads(base64.urlsafe_b64decode(body + "==")) | {"sub": "u2"}
        with pytest.raises(BadToken, match="signature is wrong"):
            verify(f"{head}.{b64(json.dumps(changed).encode())}.{signed}", KEYS, EXPECTED, NOW)


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "a.b.c", "a" * 8193, "é.é.é", "\ud800", token() + ".x", token()[:-9], b64(b"[]") + ".e30.", b64(b"[" * 5000) + ".e30."],
)
def test_nonsense(text: str) -> None:
    with pytest.raises(BadToken):
        verify(text, KEYS, EXPECTED, NOW)


def test_demands_that_are_not_known() -> None:
    header: dict[str, Any]
    for header in ({"crit": ["b64"], "b64": False}, {"crit": []}, {"b64": True}, {"kid": 7}):
        with pytest.raises(BadToken, match=r"extension|no JSON Web Token|no text"):
            verify(forged({"alg": "ES256", **header}, PAYLOAD, bytes(64)), KEYS, EXPECTED, NOW)
    with pytest.raises(UnknownKey):
        verify(token(header={"kid": "rotated"}), KEYS, EXPECTED, NOW)


def test_key_sets() -> None:
    good = SIGNERS["ES256"].jwk
    assert [key.id for key in read_keys(json.dumps(good).encode())] == ["ES256"]
    left_out: list[dict[str, Any]] = [
        good | {"use": "enc"},
        good | {"alg": "ES384"},
        {"kty": "new"},
        good | {"x": "AA"},
        good | {"kid": 7},
        json.loads(jwk_of(rsa.generate_private_key(65537, 1024), "RS256")),
        json.loads(jwk_of(ec.generate_private_key(ec.SECP384R1()), "ES384")),
    ]
    assert [key.id for key in read_keys(json.dumps({"keys": [*left_out, good]}).encode())] == ["ES256"]
    for text, why in (
        (b"", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "no JSON Web Key Set"),
        (b'{"keys": {}}', "no JSON Web Key Set"),
        (b'{"keys": [1]}', "no JSON Web Key Set"),
        (b'{"keys": []}', "no key for"),
        (json.dumps({"keys": left_out}).encode(), "no key for"),
        (json.dumps({"keys": [good] * 33}).encode(), "33 keys"),
        (b'{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}', "a secret"),
        (json.dumps({"keys": [good | {"d": "AA"}]}).encode(), "a secret"),
    ):
        with pytest.raises(BadKeys, match=why):
            read_keys(text)


def jwk_of(key: Any, algorithm: str) -> str:
    signer = Signer("x", "ES256")
    signer.key, signer.algorithm = key, algorithm
    return json.dumps(signer.jwk)
