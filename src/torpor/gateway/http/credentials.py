"""Who asks for which database: connection strings and basic credentials, read into a `Target`. Pure.

Nothing is checked here but the form: the door says whether the database exists and the password is right.
"""

import base64
import binascii
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

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

    def startup(self) -> dict[str, str]:
        """The parameters of the startup message."""
        found = {"user": self.user, "database": self.database, "client_encoding": "UTF8"}
        if self.application_name:
            found["application_name"] = self.application_name
        if self.options:
            found["options"] = self.options
        return found


def from_connection_string(text: str) -> Target:
    """Read a connection string. Raises Failure, which never shows the password."""
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
    return _target(user, password, database, host, query)


def from_basic(header: str, database: str, host: str, in_percents: bool = False) -> Target:
    """Read `Basic …` of an Authorization header. Raises Failure.

    `in_percents` is for clients that take credentials out of a URL as they are there (@prisma/ppg).
    """
    kind, _, value = header.strip().partition(" ")
    if kind.lower() != "basic":
        raise failure(401, "28000", "this way of authorization isn't known here", "use basic credentials: the role's name and its password")
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


def _target(user: str, password: str, database: str, host: str, query: dict[str, str]) -> Target:
    if not user:
        raise _wrong("names no user", 401)
    if not password:
        raise _wrong("has no password", 401)
    given = {name: query.get(name, "") for name in _PASSED_ON}
    if any("\0" in text for text in (user, password, database, host, *given.values())):
        raise _wrong("holds a NUL")
    return Target(user, password, database or user, host.lower(), given["options"], given["application_name"])


def _wrong(what: str, status: int = 400) -> Failure:
    return failure(status, "28000", f"the connection string {what}", _HINT)
