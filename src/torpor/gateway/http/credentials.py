"""Who asks for which database: connection strings and basic credentials, read into a `Target`. Pure.

Nothing is checked here but the form: the door says whether the database exists and the password is right.
"""

import base64
import binascii
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from torpor.gateway.http.failures import Failure, failure

_HINT = "give postgresql://USER:PASSWORD@HOST/DATABASE in the header Neon-Connection-String"
_MAX_BYTES = 8_000
_PASSED_ON = ("application_name", "options")


@dataclass(frozen=True, slots=True)
class Target:
    """A database as a role of it sees it. Two are equal when one logged-in connection can serve both."""

    user: str
    password: str = field(repr=False)
    database: str
    host: str
    """The host's name in the connection string: it may say which database is meant."""
    options: str = ""
    application_name: str = ""
    by_token: bool = False
    """Whether `password` is a token. Then it says who this is, and `user` may be empty."""

    @property
    def bearer(self) -> tuple[str, ...]:
        """Whom the token is of, once the door has admitted it: the same with the next token of the same person. Empty without a token."""
        if not self.by_token:
            return ()
        payload = self.password.split(".")[1] if self.password.count(".") == 2 else ""
        try:
            claims = msgspec.json.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
            return str(claims["iss"]), str(claims["sub"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return (self.password,)

    def startup(self) -> dict[str, str]:
        """The parameters of the startup message."""
        found = {"user": self.user, "database": self.database, "client_encoding": "UTF8"}
        if self.application_name:
            found["application_name"] = self.application_name
        if self.options:
            found["options"] = self.options
        return found


def token_in(header: str) -> str | None:
    """The token in an Authorization header, if there is one."""
    kind, _, value = header.strip().partition(" ")
    return value.strip() if kind.lower() == "bearer" else None


def from_token(header: str, connection_string: str = "", database: str = "", host: str = "") -> Target:
    """Read `Bearer …` of an Authorization header, and what a connection string says beside it. Raises Failure."""
    token = token_in(header) or ""
    if not token or len(token) > _MAX_BYTES or not token.isascii() or not token.isprintable() or " " in token:
        raise failure(401, "28000", "the bearer token can't be read", "send it as Authorization: Bearer TOKEN")
    if connection_string:
        return replace(from_connection_string(connection_string, token), by_token=True)
    if "\0" in database:
        raise _wrong("holds a NUL")
    return Target("", token, database, host.lower(), by_token=True)


def from_connection_string(text: str, token: str = "") -> Target:
    """Read a connection string; a `token` takes its password's place. Raises Failure, which never shows the password."""
    if len(text) > _MAX_BYTES:
        raise _wrong("is too long")
    try:
        parts = urlsplit(text)
        host, user = parts.hostname or "", unquote(parts.username or "")
        password, database = unquote(parts.password or ""), unquote(parts.path.removeprefix("/"))
        query = dict(parse_qsl(parts.query, keep_blank_values=True, max_num_fields=50))
    except ValueError:
        raise _wrong("can't be read") from None
    if parts.scheme not in ("postgresql", "postgres"):
        raise _wrong("is none of PostgreSQL's")
    return _target(user, token or password, database, host, query, bool(token))


def from_basic(header: str, database: str, host: str, in_percents: bool = False) -> Target:
    """Read `Basic …` or `Bearer …` of an Authorization header. Raises Failure.

    `in_percents` is for clients that take credentials out of a URL as they are there (@prisma/ppg).
    """
    kind, _, value = header.strip().partition(" ")
    if kind.lower() == "bearer":
        return from_token(header, database=database, host=host)
    if kind.lower() != "basic":
        raise failure(
            401, "28000", "this way of authorization isn't known here",
            "use basic credentials: the role's name and its password; or a bearer token, where the database takes them",
        )  # fmt: skip
    try:
        user, colon, password = base64.b64decode(value.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        raise failure(401, "28000", "the basic credentials can't be read", "encode USER:PASSWORD in base64") from None
    if not colon:
        raise failure(401, "28000", "the basic credentials have no password", "encode USER:PASSWORD in base64")
    if in_percents:
        return from_login(user, password, database, host)
    return _target(user, password, database, host, {})


def from_login(user: str, password: str, database: str, host: str) -> Target:
    """Credentials as @prisma/ppg says them, in percent form. Raises Failure."""
    return _target(unquote(user), unquote(password), database, host, {})


def _target(user: str, password: str, database: str, host: str, query: dict[str, str], nameless: bool = False) -> Target:
    if not user and not nameless:
        raise _wrong("names no user", 401)
    if not password:
        raise _wrong("has no password", 401)
    given = {name: query.get(name, "") for name in _PASSED_ON}
    if any("\0" in text for text in (user, password, database, host, *given.values())):
        raise _wrong("holds a NUL")
    return Target(user, password, database or user, host.lower(), given["options"], given["application_name"])


def _wrong(what: str, status: int = 400) -> Failure:
    return failure(status, "28000", f"the connection string {what}", _HINT)
