"""By whose tokens (JSON Web Tokens) one can log in to a database, and as which of its roles. Pure.

A role comes from the token alone: from the claim that is named, if it is among the roles that are admitted, or it is the one role that
is. The keys are given, or are fetched from a URL.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from torpor.model.errors import InvalidRequest
from torpor.model.names import SERVICE_ROLE

MAX_JWKS_BYTES = 64 * 1024
_MAX_TEXT = 400
_MAX_ROLES = 32
_MAX_ROLE_BYTES = 63
_VERSION_CHARACTERS = 16


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What a token must be and say. Either `jwks_url` or `jwks` says by which keys it must be signed."""

    issuer: str
    audience: str | None
    """Whom it must be for; None: for whomever."""
    role_claim: str | None
    """Which claim names the role; None: there is one role."""
    roles: tuple[str, ...]
    jwks_url: str | None = None
    jwks: str | None = field(default=None, repr=False)
    version: str = ""
    """Tells these rules from others."""


@dataclass(frozen=True, slots=True)
class Admission:
    """Somebody who has shown a token that is right. `claims` is JSON in ASCII; `until` is in seconds since the epoch."""

    role: str
    claims: bytes = field(repr=False)
    until: float
    version: str


@dataclass(frozen=True, slots=True)
class TokenRulesView:
    """The rules as the API shows them. `keys` is how many keys there are now."""

    issuer: str
    audience: str | None
    role_claim: str | None
    roles: tuple[str, ...]
    jwks_url: str | None
    keys: int
    version: str


@dataclass(frozen=True, slots=True)
class TokenView:
    """Whether a database takes tokens, and which; `closed` is how many live sessions the change ended."""

    rules: TokenRulesView | None
    closed: int = 0


def token_rules(
    issuer: str, audience: str | None, role_claim: str | None, roles: Iterable[str], jwks_url: str | None, jwks: str | None
) -> TokenRules:
    """Rules of what somebody asked for. Raises InvalidRequest. Keys and URL are looked at elsewhere."""
    admitted = tuple(dict.fromkeys(roles))
    for name, text in (("issuer", issuer), ("audience", audience), ("role_claim", role_claim)):
        if text is not None and not (0 < len(text) <= _MAX_TEXT and text.isprintable()):
            raise InvalidRequest(f"{name} must be 1 to {_MAX_TEXT} visible characters", "give it as it stands in the tokens")
    if not 0 < len(admitted) <= _MAX_ROLES:
        raise InvalidRequest(f"1 to {_MAX_ROLES} roles can be admitted", "name those of the database that tokens may log in as")
    for role in admitted:
        if not 0 < len(role.encode()) <= _MAX_ROLE_BYTES or not role.isprintable():
            raise InvalidRequest(f"a role's name has 1 to {_MAX_ROLE_BYTES} bytes", "give it as PostgreSQL knows it")
        if role == SERVICE_ROLE or role.startswith("pg_"):
            raise InvalidRequest(f'role "{role}" can\'t log in', "name roles of the database's own")
    if role_claim is None and len(admitted) > 1:
        raise InvalidRequest("of several roles a claim has to say which", "name it (role_claim), or admit one role")
    if (jwks_url is None) is (jwks is None):
        raise InvalidRequest("the keys are missing, or given twice", "give either the URL of a key set (jwks_url) or the set itself (jwks)")
    if jwks is not None and len(jwks.encode("utf-8", "surrogatepass")) > MAX_JWKS_BYTES:
        raise InvalidRequest(f"the key set is larger than {MAX_JWKS_BYTES} bytes", "leave out the keys that aren't used")
    rules = TokenRules(issuer, audience, role_claim, admitted, jwks_url, jwks)
    version = hashlib.sha256(json.dumps(asdict(rules)).encode()).hexdigest()[:_VERSION_CHARACTERS]
    return TokenRules(issuer, audience, role_claim, admitted, jwks_url, jwks, version)
