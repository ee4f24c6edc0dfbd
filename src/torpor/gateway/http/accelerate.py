"""What Prisma Accelerate served, for clients that are as they were: `prisma+postgres://HOST/?api_key=…` with @prisma/extension-accelerate.

`/connection-info`, `/query`, `/transaction/…` are what Prisma 7's client asks of an `accelerateUrl`; the plans that it sends are run in
`prisma/`. The extension's `cacheStrategy` comes as headers, and each query of the plan goes out with those words to the cache of the pool:
so tags, tables, rules and writes drop what a plan was made of, by whatever way it was cached. The plan's status is the worst of its
queries'. `/invalidate` purges by tags.

Concurrency: the request's task. Answers are whole: a plan has all its rows in memory anyway (`prisma.session.MAX_RESULT_BYTES`).
"""

import hashlib
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Any

import msgspec

from torpor.base.tasks import TaskOwner
from torpor.gateway.http.apikey import read as read_key
from torpor.gateway.http.backend import Backend
from torpor.gateway.http.cached import Status, is_tag, pooled, words_of
from torpor.gateway.http.connection import Reply, Request
from torpor.gateway.http.credentials import Target
from torpor.gateway.http.failures import Failure
from torpor.gateway.http.kept import Kept
from torpor.gateway.http.places import Places
from torpor.gateway.http.prisma.errors import PlanError, database_error, malformed
from torpor.gateway.http.prisma.interpreter import NOTHING, interpret
from torpor.gateway.http.prisma.rendering import comment_of
from torpor.gateway.http.prisma.session import Logged, Session
from torpor.gateway.http.prisma.transactions import Transactions
from torpor.gateway.http.sql import MAX_BODY_BYTES

_SMALL_BODY_BYTES = 64 * 1024
_MAX_TAGS = 1_000
_JSON = msgspec.json.Encoder()
_TRANSACTION = re.compile(r"/transaction/([0-9a-fA-F-]{36})/(query|commit|rollback)")
_INFO = {"provider": "postgres", "connectionInfo": {"supportsRelationJoins": True}}
_STATUS = {"hit": "ttl", "stale": "swr", "miss": "miss", "bypass": "none", "": "none"}
_REGION = "torpor"

Purge = Callable[[Target, list[str] | None], Awaitable[int]]
"""Drops what has one of the tags, or all, from the cache of a database that somebody has proved to have; how many entries. Raises
PlanError."""


class Accelerate:
    """The handlers."""

    def __init__(self, kept: Kept, places: Places, tasks: TaskOwner, purge: Purge) -> None:
        self._kept = kept
        self._places = places
        self._purge = purge
        self._transactions = Transactions(kept, places, tasks)

    def __repr__(self) -> str:
        return f"<Accelerate {self._transactions!r}>"

    @staticmethod
    def takes(method: str, path: str) -> bool:
        """Whether a request is one of Accelerate's."""
        if method == "GET":
            return path == "/connection-info"
        return method == "POST" and (path in ("/query", "/transaction/start", "/invalidate") or _TRANSACTION.fullmatch(path) is not None)

    async def handle(self, request: Request, reply: Reply) -> None:
        """Answer. What is refused is told in Prisma's form."""
        reply.headers |= {"cf-ray": f"{secrets.token_hex(8)}-{_REGION}"}  # where the extension looks for the request's id and the region
        try:
            answer = await self._answer(request, reply)
            body = _encode(answer)
        except PlanError as error:
            reply.whole(error.status, _JSON.encode(error.as_json()))
        except Failure as refusal:
            known = database_error(refusal)
            is_stranger = refusal.sqlstate in ("28000", "28P01")
            told = {"code": "P6002" if is_stranger else known.code, "error": f"{refusal.message}{_hint(refusal)}", "meta": known.meta}
            more = {"retry-after": str(refusal.retry_after_s)} if refusal.retry_after_s is not None else {}
            reply.whole(401 if is_stranger else refusal.status, _JSON.encode(told), more=more)
        else:
            reply.whole(200, body)

    def close(self) -> None:
        """End all transactions. Idempotent."""
        self._transactions.close()

    async def _answer(self, request: Request, reply: Reply) -> Any:
        target = pooled(read_key(request.headers.get("authorization", "")))
        match request.path:
            case "/connection-info":
                return _INFO
            case "/query":
                return await self._query(request, reply, target)
            case "/invalidate":
                return await self._invalidate(request, target)
            case "/transaction/start":
                options = await _content(request, _SMALL_BODY_BYTES)
                name = await self._transactions.start(request.client, target, options)
                reply.headers["prisma-transaction-id"] = name
                return {"id": name}
        found = _TRANSACTION.fullmatch(request.path)
        assert found is not None
        name, verb = found.groups()
        if verb != "query":
            await self._transactions.finish(name, target, commits=verb == "commit")
            return {}
        asked = await _content(request, MAX_BODY_BYTES)
        async with self._transactions.use(name, target, "query") as transaction:
            log = _log_of(request)
            session = Session(transaction.backend, request.client[0], in_transaction=True, log=log)
            return await _run(asked, session, reply, log)

    async def _query(self, request: Request, reply: Reply, target: Target) -> Any:
        asked = await _content(request, MAX_BODY_BYTES)
        words = words_of(request.headers, target, tags="accelerate-cache-tags")
        async with self._places.place(request.client[0], f"{target.host}/{target.database}"):
            backend = await self._kept.take(request.client, target)
            log = _log_of(request)
            session = Session(backend, request.client[0], words, log=log)
            try:
                return await _run(asked, session, reply, log)
            finally:
                self._kept.give_back(backend, request.client, target, is_untouched=session.status.is_served)

    async def _invalidate(self, request: Request, target: Target) -> Any:
        tags = (await _content(request, _SMALL_BODY_BYTES)).get("tags")
        if tags != "all" and not (isinstance(tags, list) and 0 < len(tags) <= _MAX_TAGS and all(is_tag(tag) for tag in tags)):
            raise PlanError(
                "P6001", f'"tags" must be a list of 1 to {_MAX_TAGS} tags, or "all"; a tag has up to 64 of A-Z a-z 0-9 _ . : @ / -'
            )
        async with self._places.place(request.client[0], f"{target.host}/{target.database}"):
            backend: Backend = await self._kept.take(request.client, target)  # who gets it has the right password
            self._kept.give_back(backend, request.client, target, is_untouched=True)
        return {"purged": await self._purge(target, None if tags == "all" else tags)}


def _log_of(request: Request) -> list[Logged] | None:
    """Where statements are noted, when the client wants to hear of them (`log: ["query"]`)."""
    wanted = request.headers.get("x-capture-telemetry", "").split(",")
    return [] if "query" in (word.strip() for word in wanted) else None


async def _run(asked: dict[str, Any], session: Session, reply: Reply, log: list[Logged] | None) -> Any:
    """Run a plan; its answer, in JSON already. Raises PlanError."""
    parameters = asked.get("params") or {}
    if not isinstance(parameters, dict):
        raise malformed("its parameters are no object")
    try:
        value = await interpret(asked.get("plan"), parameters, comment_of(asked.get("comments")), session)
        status = session.status
        status.settle()
        reply.headers |= status.headers() | _told(status, asked)
        told: dict[str, Any] = {} if value is NOTHING else {"data": value}
        if log is not None:
            told["extensions"] = {"logs": [_logged(one) for one in log]}
        return msgspec.Raw(_encode(told))
    finally:
        session.close()


def _logged(one: Logged) -> dict[str, Any]:
    """A statement in the form of the client's events."""
    attributes = {"query": one.sql, "params": _JSON.encode(one.values).decode(), "duration_ms": one.took_s * 1000}
    seconds = int(one.began_at)
    return {"level": "query", "timestamp": [seconds, int((one.began_at - seconds) * 1e9)], "target": "torpor", "attributes": attributes}


def _encode(value: Any) -> bytes:
    try:
        return _JSON.encode(value)
    except (TypeError, ValueError, RecursionError):
        raise malformed("its result is no JSON") from None


def _told(status: Status, asked: dict[str, Any]) -> dict[str, str]:
    """The headers that the extension reads."""
    return {
        "accelerate-cache-status": _STATUS[status.verdict],
        "accelerate-signature": hashlib.sha256(_JSON.encode([asked.get("plan"), asked.get("params")])).hexdigest(),
        "last-modified": formatdate(time.time() - status.age_s, usegmt=True),
    }


async def _content(request: Request, limit_bytes: int) -> dict[str, Any]:
    try:
        content = msgspec.json.decode(await request.body(limit_bytes))
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise malformed(f"the body is no JSON: {str(error)[:200]}") from None
    if not isinstance(content, dict):
        raise malformed("the body is no JSON object")
    return content


def _hint(refusal: Failure) -> str:
    hint = refusal.fields.get("H")
    return f" ({hint})" if hint else ""
