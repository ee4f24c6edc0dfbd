"""The ASGI application: lets in who may ask, finds the operation, checks scope, query and body, and gives every error the same shape.

What changes something is recorded in the audit log before it is done and when it is known what became of it; what a key's scope
doesn't allow is recorded too. What can't be recorded isn't done.

Concurrency: one task a request. An unexpected fault is logged and answered with 500; it ends nothing but its request.
"""

import asyncio
import collections
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from torpor.api import docs
from torpor.api.asgi import (
    Answer,
    Receive,
    Scope,
    Send,
    Stream,
    json_answer,
    query_pairs,
    read_whole,
    send_answer,
    send_stream,
)
from torpor.api.bodies import read_body, read_query
from torpor.api.calls import READING_METHODS, Call, Context, Operation, Services
from torpor.api.faults import RequestTooLarge, TooManyRequests, UnknownPath, WrongMethod, error_answer, unexpected_answer
from torpor.api.gate import CHALLENGE, PAGE_CHALLENGE, ApiLimits, Gate
from torpor.api.openapi import document
from torpor.api.operations import OPERATIONS, drain
from torpor.api.trail import Trail
from torpor.base.logs import get_logger
from torpor.base.telemetry import Counter
from torpor.model.errors import Forbidden, ShuttingDown, TorporError, Unauthorized
from torpor.model.workspace import AccessScope, Caller, KeyId, WorkspaceId

log = get_logger(__name__)

REQUESTS = ("torpor_api_requests_total", "Requests to the API by operation and status.", ("operation", "status"))
MAX_REQUESTS_AT_ONCE = 50
_PAGES = docs.PAGES | {"/openapi.json"}
_STRANGER = Caller(AccessScope.METRICS, WorkspaceId(""))  # sees no database, and gets no further than health


class App:
    """Serves the operations on `services` to whoever has `token`, or a key that allows them."""

    def __init__(self, services: Services, token: str, token_hint: str, limits: ApiLimits, url: Callable[[], str]) -> None:
        self._services = services
        self._gate = Gate(token, token_hint, services.keys.recognise, limits, time.monotonic)
        self._trail = Trail(services.audit, time.monotonic)
        self._url = url
        self._document: Answer | None = None
        self._running: collections.Counter[KeyId] = collections.Counter()
        self.requests = Counter(*REQUESTS)
        self._routes: list[tuple[re.Pattern[str], dict[str, Operation]]] = []
        for path in dict.fromkeys(operation.path for operation in OPERATIONS):
            pattern = re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(path)), re.DOTALL)
            self._routes.append((pattern, {operation.method: operation for operation in OPERATIONS if operation.path == path}))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        request = _Request(scope)
        started = False
        try:
            answer = await self._serve(request, receive)
            if isinstance(answer, Stream):
                started = True
                self.requests.add(request.label, "200")
                await send_stream(answer, receive, send, request.headers, partial(self._ended, request.caller))
                return
        except asyncio.CancelledError:
            if started:
                raise
            # Torpor stops. The answer is sent by the task that is being cancelled, which may still await.
            answer = json_answer(error_answer(ShuttingDown("Torpor is stopping", "try again when it runs")), 503)
        except TorporError as error:
            if started:
                log.warning("an answer broke off", operation=request.label, cause=error.message)
                raise
            answer = json_answer(error_answer(error), error.http_status, _extra_headers(error, scope["path"] in _PAGES))
        except Exception:
            log.exception("a request failed unexpectedly", operation=request.label)
            if started:
                raise  # the server cuts the connection, so that the client sees an unfinished answer
            answer = json_answer(unexpected_answer(), 500)
        self.requests.add(request.label, str(answer.status))
        await send_answer(answer, send, request.headers)

    async def _serve(self, request: "_Request", receive: Receive) -> Answer | Stream:
        """Strangers are answered about nothing but health: not even about what there is."""
        scope = request.scope
        self._gate.check_host(scope)
        operation, path = self._match(scope)
        if operation is not None:
            request.label = operation.id
        if operation is not None and operation.scope is None:
            self._gate.admit_stranger(self._gate.address(scope))
            return await operation.handle(
                Context(self._services, _STRANGER), Call({}, read_query(query_pairs(scope), operation.query), None)
            )
        is_page = scope["path"] in _PAGES
        caller = request.caller = self._gate.admit(scope, is_page=is_page)
        request.headers = self._gate.count(caller, operation.cost if operation is not None else 1.0)
        if is_page:
            request.label = "docs"
            return await self._page(scope)
        if operation is None:
            raise self._nothing_there(scope)
        with self._one_of_few(caller):
            return await self._perform(operation, path, caller, scope, receive)

    async def _perform(
        self, operation: Operation, path: Mapping[str, str], caller: Caller, scope: Scope, receive: Receive
    ) -> Answer | Stream:
        assert operation.scope is not None
        context = Context(self._services, caller)
        if not caller.scope.allows(operation.scope):
            if operation.action:
                self._trail.refuse(context, operation, path)
            raise Forbidden(
                f"this needs the scope {operation.scope}, and the API key has {caller.scope}",
                "use a key that allows it, or the host's token",
            )
        if operation.action and operation.handle is not drain and self._services.is_draining:
            raise ShuttingDown("Torpor is draining and changes nothing any more", "send it again when the next Torpor serves")
        query = read_query(query_pairs(scope), operation.query)
        body = read_body(await read_whole(scope, receive, operation.max_body_bytes), operation.body) if operation.body is not None else None
        call = Call(path, query, body)
        if not operation.action:
            return await operation.handle(context, call)
        async with self._trail.follow(context, operation, call):
            return await operation.handle(context, call)

    @contextmanager
    def _one_of_few(self, caller: Caller) -> Iterator[None]:
        """Bounds what one key holds of our memory and our time at any moment."""
        if caller.key is None:
            yield
            return
        if self._running[caller.key] >= MAX_REQUESTS_AT_ONCE:
            raise TooManyRequests(f"{MAX_REQUESTS_AT_ONCE} requests of this API key are under way", "wait for one", {"Retry-After": "1"})
        self._running[caller.key] += 1
        try:
            yield
        finally:
            self._running[caller.key] -= 1
            if not self._running[caller.key]:
                del self._running[caller.key]

    def _match(self, scope: Scope) -> tuple[Operation | None, Mapping[str, str]]:
        """The operation, and the names in its path; none for what isn't there, and for the documentation."""
        path, method = scope["path"], scope["method"]
        for pattern, operations in self._routes:
            if match := pattern.fullmatch(path):
                operation = operations.get(method)
                if operation is None and method == "HEAD" and (found := operations.get("GET")) and found.scope is None:
                    operation = found
                return operation, match.groupdict()
        return None, {}

    def _nothing_there(self, scope: Scope) -> TorporError:
        path, method = scope["path"], scope["method"]
        for pattern, operations in self._routes:
            if pattern.fullmatch(path):
                return _wrong_method(path, method, tuple(operations))
        return UnknownPath(f"nothing is at {path[:200]!r}", "/docs shows what there is")

    async def _page(self, scope: Scope) -> Answer:
        path, method = scope["path"], scope["method"]
        if method not in READING_METHODS:
            raise _wrong_method(path, method, ("GET",))
        if path != "/openapi.json":
            return await docs.page(path)
        if self._document is None:
            self._document = json_answer(document(self._url()))
        return self._document

    async def _ended(self, caller: Caller | None) -> None:
        """Waits until a stream has to end, since its key isn't valid any more."""
        if caller is None or caller.key is None:
            await asyncio.Event().wait()  # the host's token is always valid
        else:
            await self._services.keys.ended(caller.key)


class _Request:
    """What is learnt of a request while it is served."""

    __slots__ = ("caller", "headers", "label", "scope")

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.label = "none"
        self.caller: Caller | None = None
        self.headers: Mapping[str, str] = {}


def _wrong_method(path: str, method: str, allowed: tuple[str, ...]) -> WrongMethod:
    return WrongMethod(f"{method[:20]!r} doesn't work on {path[:200]!r}", f"use {' or '.join(allowed)}", allowed)


def _extra_headers(error: TorporError, is_page: bool) -> dict[str, str]:
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": PAGE_CHALLENGE if is_page else CHALLENGE}
    if isinstance(error, WrongMethod):
        return {"Allow": ", ".join(error.allowed)}
    if isinstance(error, RequestTooLarge):
        return {"Connection": "close"}  # the rest of the body isn't worth reading
    if isinstance(error, TooManyRequests):
        return error.headers
    return {}
