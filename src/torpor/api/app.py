"""The ASGI application: finds the operation, checks token, query and body, and gives every error the same shape.

Concurrency: one task a request. An unexpected fault is logged and answered with 500; it ends nothing but its request.
"""

import asyncio
import hmac
import re
from collections.abc import Callable

from torpor.api import docs
from torpor.api.asgi import (
    Answer,
    Receive,
    Scope,
    Send,
    Stream,
    json_answer,
    query_pairs,
    read_header,
    read_whole,
    send_answer,
    send_stream,
)
from torpor.api.bodies import read_body, read_query
from torpor.api.faults import RequestTooLarge, UnknownPath, WrongMethod, error_answer, unexpected_answer
from torpor.api.openapi import document
from torpor.api.operations import OPERATIONS, Call, Context, Operation
from torpor.base.logs import get_logger
from torpor.base.telemetry import Counter
from torpor.model.errors import ShuttingDown, TorporError, Unauthorized

log = get_logger(__name__)

REQUESTS = ("torpor_api_requests_total", "Requests to the API by operation and status.", ("operation", "status"))


class App:
    """Serves the operations on `context` to whoever has `token`."""

    def __init__(self, context: Context, token: str, token_hint: str, url: Callable[[], str]) -> None:
        self._context = context
        self._token = token.encode()
        self._token_hint = token_hint
        self._url = url
        self._document: Answer | None = None
        self.requests = Counter(*REQUESTS)
        self._routes: list[tuple[re.Pattern[str], dict[str, Operation]]] = []
        for path in dict.fromkeys(operation.path for operation in OPERATIONS):
            pattern = re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(path)), re.DOTALL)
            self._routes.append((pattern, {operation.method: operation for operation in OPERATIONS if operation.path == path}))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        label, started = "none", False
        try:
            operation, name = self._find(scope)
            if operation is None:
                label = "docs"
                answer: Answer | Stream = await self._open_page(scope["path"])
            else:
                label = operation.id
                answer = await self._perform(operation, name, scope, receive)
            if isinstance(answer, Stream):
                started = True
                self.requests.add(label, "200")
                await send_stream(answer, receive, send)
                return
        except asyncio.CancelledError:
            if started:
                raise
            # Torpor stops. The answer is sent by the task that is being cancelled, which may still await.
            answer = json_answer(error_answer(ShuttingDown("Torpor is stopping", "try again when it runs")), 503)
        except TorporError as error:
            answer = json_answer(error_answer(error), error.http_status, _extra_headers(error))
        except Exception:
            log.exception("a request failed unexpectedly", operation=label)
            if started:
                raise  # the server cuts the connection, so that the client sees an unfinished answer
            answer = json_answer(unexpected_answer(), 500)
        self.requests.add(label, str(answer.status))
        await send_answer(answer, send)

    def _find(self, scope: Scope) -> tuple[Operation | None, str]:
        """The operation and the name in its path; no operation for the documentation."""
        path, method = scope["path"], scope["method"]
        reading = method in ("GET", "HEAD")
        if path == "/openapi.json" or path in docs.PAGES:
            if not reading:
                raise _wrong_method(path, method, ("GET",))
            return None, ""
        for pattern, operations in self._routes:
            if match := pattern.fullmatch(path):
                operation = operations.get(method)
                if operation is None and reading and (found := operations.get("GET")) and found.open:
                    operation = found
                if operation is None:
                    raise _wrong_method(path, method, tuple(operations))
                return operation, match.groupdict().get("name", "")
        raise UnknownPath(f"nothing is at {path[:200]!r}", "/docs shows what there is")

    async def _open_page(self, path: str) -> Answer:
        if path != "/openapi.json":
            return await docs.page(path)
        if self._document is None:
            self._document = json_answer(document(self._url()))
        return self._document

    async def _perform(self, operation: Operation, name: str, scope: Scope, receive: Receive) -> Answer | Stream:
        if not operation.open:
            self._authorize(scope)
        query = read_query(query_pairs(scope), operation.query)
        body = None
        if operation.body is not None:
            body = read_body(await read_whole(scope, receive), operation.body)
        return await operation.handle(self._context, Call(name, query, body))

    def _authorize(self, scope: Scope) -> None:
        header = read_header(scope, b"authorization") or b""
        scheme, _, token = header.partition(b" ")
        right = hmac.compare_digest(token.strip(), self._token)
        if scheme.lower() != b"bearer" or not right:
            what = "the bearer token is wrong" if header else "a bearer token is needed"
            raise Unauthorized(what, f"send 'Authorization: Bearer <token>' with {self._token_hint}")


def _wrong_method(path: str, method: str, allowed: tuple[str, ...]) -> WrongMethod:
    return WrongMethod(f"{method[:20]!r} doesn't work on {path[:200]!r}", f"use {' or '.join(allowed)}", allowed)


def _extra_headers(error: TorporError) -> dict[str, str]:
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": 'Bearer realm="torpor"'}
    if isinstance(error, WrongMethod):
        return {"Allow": ", ".join(error.allowed)}
    if isinstance(error, RequestTooLarge):
        return {"Connection": "close"}  # the rest of the body isn't worth reading
    return {}
