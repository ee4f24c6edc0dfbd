"""Where the cache's shared store is: a Redis or a Valkey. Pure."""

from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from torpor.model.errors import BadSettings

_PORT = 6379


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """Where, and as whom. It never shows its password."""

    host: str
    port: int = _PORT
    user: str = ""
    password: str = field(default="", repr=False)
    database: int = 0

    def __str__(self) -> str:
        return f"{self.host}:{self.port}/{self.database}"


def parse_store(url: str) -> StoreAddress | None:
    """What `redis://[[user]:password@]host[:port][/db]` says; None for nothing. Raises BadSettings, which tells no password."""
    if not url:
        return None
    try:
        parts = urlsplit(url)
        port = parts.port or _PORT
    except ValueError:
        parts, port = urlsplit(""), 0
    database = parts.path.removeprefix("/") or "0"
    if parts.scheme == "rediss":
        raise BadSettings("cache_store can't be reached by TLS", "say redis:// to a proxy on this host that speaks TLS, such as stunnel")
    if parts.scheme != "redis" or not parts.hostname or not database.isascii() or not database.isdigit() or len(database) > 5:
        raise BadSettings("cache_store must be like redis://user:password@host:6379/0")
    if parts.query or parts.fragment:
        raise BadSettings("cache_store has more in it than redis://user:password@host:port/db", "write other characters as %XX")
    return StoreAddress(parts.hostname, port, unquote(parts.username or ""), unquote(parts.password or ""), int(database))
