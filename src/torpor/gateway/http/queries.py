"""What a client of `POST /sql` asks for: one query or a batch, and how it wants the answer. Pure.

The forms are those of Neon's serverless driver; what is Torpor's own has names that begin with Torpor-.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from torpor.gateway.http.failures import bad_request
from torpor.gateway.http.values import Number, to_text

MAX_QUERIES = 1_000
MAX_PARAMETERS = 65_535
_ISOLATION = {
    "readuncommitted": "READ UNCOMMITTED",
    "readcommitted": "READ COMMITTED",
    "repeatableread": "REPEATABLE READ",
    "serializable": "SERIALIZABLE",
}
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)\s*(ms|s|min)?")
_UNIT_MS = {"ms": 1, "s": 1_000, "min": 60_000, None: 1_000}
_MAX_TIMEOUT_MS = 86_400_000
_DECODER = msgspec.json.Decoder(float_hook=Number)


@dataclass(frozen=True, slots=True)
class Query:
    """One statement with its parameters in PostgreSQL's text. `array_mode` is None where the request's says."""

    sql: str
    values: tuple[bytes | None, ...] = ()
    array_mode: bool | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A whole request."""

    queries: tuple[Query, ...]
    is_batch: bool = False
    begin: str = "BEGIN"
    """How the transaction of a batch begins."""
    array_mode: bool = False
    raw_text: bool = False
    timeout_ms: int | None = None
    key: str | None = None
    """The idempotency key."""


def read(headers: Mapping[str, str], body: bytes) -> Asked:
    """Read a request; the headers' names are in lower case. Raises Failure."""
    content = _object(body)
    is_batch = "queries" in content
    if is_batch:
        listed = content["queries"]
        if not isinstance(listed, list) or not listed:
            raise bad_request("queries must be a list of queries", 'send {"queries": [{"query": "SELECT $1", "params": ["1"]}]}')
        if len(listed) > MAX_QUERIES:
            raise bad_request(f"a batch holds at most {MAX_QUERIES} queries, this one {len(listed)}")
        queries = tuple(_query(one) for one in listed)
    else:
        queries = (_query(content),)
    return Asked(
        queries,
        is_batch,
        _begin(headers) if is_batch else "BEGIN",
        _flag(headers, "neon-array-mode"),
        _flag(headers, "neon-raw-text-output"),
        _timeout_ms(headers.get("torpor-statement-timeout")),
        _key(headers.get("idempotency-key")),
    )


def _object(body: bytes) -> dict[str, object]:
    try:
        content = _DECODER.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, ValueError) as error:
        raise bad_request(f"the body is no JSON: {str(error)[:200]}") from None
    if not isinstance(content, dict):
        raise bad_request("the body must be a JSON object", 'send {"query": "SELECT $1", "params": ["1"]}')
    return content


def _query(content: object) -> Query:
    if not isinstance(content, dict):
        raise bad_request("a query must be an object", 'send {"query": "SELECT $1", "params": ["1"]}')
    sql, params, array_mode = content.get("query"), content.get("params", []), content.get("arrayMode")
    if not isinstance(sql, str):
        raise bad_request("query must be text", 'send {"query": "SELECT $1", "params": ["1"]}')
    if "\0" in sql:
        raise bad_request("the query holds a NUL")
    if params is None:
        params = []
    if not isinstance(params, list):
        raise bad_request("params must be a list")
    if len(params) > MAX_PARAMETERS:
        raise bad_request(f"a query has at most {MAX_PARAMETERS} parameters")
    return Query(sql, tuple(to_text(one) for one in params), array_mode if isinstance(array_mode, bool) else None)


def _flag(headers: Mapping[str, str], name: str) -> bool:
    return headers.get(name, "").strip().lower() == "true"


def _begin(headers: Mapping[str, str]) -> str:
    words = ["BEGIN"]
    if level := headers.get("neon-batch-isolation-level"):
        named = _ISOLATION.get(level.replace(" ", "").replace("_", "").lower())
        if named is None:
            raise bad_request("the isolation level isn't known", f"one of {', '.join(_ISOLATION.values())}")
        words.append(f"ISOLATION LEVEL {named}")
    if (read_only := headers.get("neon-batch-read-only")) is not None:
        words.append("READ ONLY" if read_only.strip().lower() == "true" else "READ WRITE")
    if (deferrable := headers.get("neon-batch-deferrable")) is not None:
        words.append("DEFERRABLE" if deferrable.strip().lower() == "true" else "NOT DEFERRABLE")
    return " ".join(words)


def _timeout_ms(text: str | None) -> int | None:
    if text is None:
        return None
    match = _DURATION.fullmatch(text.strip())
    number = float(match[1]) * _UNIT_MS[match[2]] if match is not None else math.nan
    if not 1 <= number <= _MAX_TIMEOUT_MS:
        raise bad_request("Torpor-Statement-Timeout must be a time of 1 ms to a day", "such as 500ms, 5s or 2min")
    return int(number)


def _key(text: str | None) -> str | None:
    if text is None:
        return None
    if _KEY.fullmatch(text) is None:
        raise bad_request("Idempotency-Key must be 1 to 255 printable characters without blanks", "a UUID, for instance")
    return text
