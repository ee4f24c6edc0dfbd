"""The key in `prisma+postgres://HOST/?api_key=KEY`: the database's own URL in base64. Pure.

So it is as good as the role's password, ends when that is changed, and is kept nowhere: `torpor url NAME --accelerate` writes it, and so
does any program that has the URL. The local servers of `prisma dev` have keys of a like form (JSON with a `databaseUrl`): these are
read, too.
"""

import base64
import binascii

import msgspec

from torpor.gateway.http.credentials import Target, from_connection_string
from torpor.gateway.http.failures import Failure, failure

_MAX_BYTES = 12_000
_HINT = "`torpor url NAME --accelerate` prints an URL with a key; it is the database's URL in base64"


def make(url: str) -> str:
    """The key of a database's URL."""
    return base64.urlsafe_b64encode(url.encode()).decode().rstrip("=")


def read(authorization: str) -> Target:
    """Whose key it is, from the header that Prisma's client sends. Raises Failure, which never shows the key."""
    kind, _, key = authorization.strip().partition(" ")
    if kind.lower() != "bearer" or not key:
        raise failure(401, "28000", "the request has no API key", _HINT)
    if len(key) > _MAX_BYTES:
        raise _wrong()
    try:
        plain = key.strip().replace("-", "+").replace("_", "/").rstrip("=")
        text = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True).decode()
        if text.startswith("{"):
            text = str(msgspec.json.decode(text).get("databaseUrl", ""))
        return from_connection_string(text)
    except (binascii.Error, UnicodeDecodeError, msgspec.DecodeError, ValueError):
        raise _wrong() from None
    except Failure as error:
        raise failure(401, "28000", f"the API key can't be used: {error.message}", _HINT) from None


def _wrong() -> Failure:
    return failure(401, "28000", "this is no API key of a database here", _HINT)
