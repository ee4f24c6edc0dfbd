"""Which web pages may ask: the origins that a database admits, as its owner has set them in the database itself.

    ALTER DATABASE shop SET torpor.http_origins = 'https://app.example.com, https://admin.example.com'

So they need no other permission than the owner's, hold from the next request on, and go with branches and restores. The setting of the
database counts, not one that a connection brings along. A preflight carries no credentials, so that nobody can know which database
it is about: it is answered with yes, and the request itself is refused, unrun, where its origin isn't admitted. `*` admits all. WebSockets
carry their credentials in the first message, never a browser's own: pages may open them. Pure, but for `admit`, which asks the database.
"""

from collections.abc import Mapping

from torpor.gateway.http.backend import Backend
from torpor.gateway.http.execution import rows
from torpor.gateway.http.failures import failure

SETTING = "torpor.http_origins"

_ALLOWED_HEADERS = (
    "authorization, cache-control, cache-tags, content-type, idempotency-key, neon-array-mode, neon-batch-deferrable, "
    "neon-batch-isolation-level, neon-batch-read-only, neon-connection-string, neon-raw-text-output, torpor-statement-timeout"
)
_PREFLIGHT_KEPT_S = 600
_QUERY = f"""
SELECT pg_catalog.substr(setting, {len(SETTING) + 2})
FROM pg_catalog.pg_db_role_setting AS s, pg_catalog.unnest(s.setconfig) AS setting, pg_catalog.pg_database AS d
WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database() AND s.setdatabase OPERATOR(pg_catalog.=) d.oid
AND s.setrole OPERATOR(pg_catalog.=) 0 AND pg_catalog.starts_with(setting, '{SETTING}=')
"""  # noqa: S608  # of constants


def preflight(origin: str) -> dict[str, str]:
    """The headers that answer a preflight."""
    return _allow(origin) | {
        "access-control-allow-methods": "POST",
        "access-control-allow-headers": _ALLOWED_HEADERS,
        "access-control-max-age": str(_PREFLIGHT_KEPT_S),
    }


def is_admitted(origin: str, setting: str) -> bool:
    """Whether a setting admits an origin."""
    admitted = setting.replace(",", " ").lower().split()
    return "*" in admitted or origin.lower() in admitted


async def admit(backend: Backend, headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of an answer to a web page; none when it is no web page that asks. Raises Failure when its origin isn't admitted."""
    origin = headers.get("origin")
    if origin is None or origin.rpartition("://")[2] == headers.get("host"):
        return {}
    found = await rows(backend, _QUERY)
    if not is_admitted(origin, str(found[0][0]) if found else ""):
        raise failure(
            403, "42501", "this database doesn't admit requests of web pages of that origin",
            f"its owner can: ALTER DATABASE … SET {SETTING} = 'https://app.example.com'",
        )  # fmt: skip
    return _allow(origin)


def _allow(origin: str) -> dict[str, str]:
    return {
        "access-control-allow-origin": origin,
        "access-control-expose-headers": "age, cache-status, idempotency-replayed, retry-after, torpor-cache",
        "vary": "origin",
    }
