"""Runs what a request asks for on a logged-in connection, and gives the JSON of the answer piece by piece.

All of a request is sent at once (a batch with its BEGIN and COMMIT), so that it costs one round trip. An answer is whole when PostgreSQL
is ready again after the last of it: a deferred constraint can still fail then.

With an idempotency key the COMMIT is held back until the answer, and the id of the transaction, are recorded (`receipts`): whatever is
killed when, a later request with that key finds out from PostgreSQL whether the transaction was committed.

Concurrency: one task a request. Memory: what `Wire` keeps, and one batch of rows as JSON; with a key `MAX_RECORDED_BYTES`.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from torpor.gateway.http.backend import Backend
from torpor.gateway.http.cached import Status
from torpor.gateway.http.failures import Failure, error_fields, failure
from torpor.gateway.http.queries import Asked, Query
from torpor.gateway.http.results import Result, read_row
from torpor.pgwire.answers import query
from torpor.pgwire.requests import SYNC, statement

MAX_RECORDED_BYTES = 1 << 20
"""How long the answer to a request with an idempotency key may be."""

_ROW, _COLUMNS, _COMPLETE, _EMPTY, _ERROR, _READY, _NOTICE, _COPY_IN, _COPY_OUT, _COPY_BOTH = map(ord, "DTCIEZNGHW")
_WHICH_TRANSACTION = (
    "SELECT pg_catalog.pg_current_xact_id_if_assigned()::pg_catalog.text, "
    "pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8)"
)

Write = Callable[[bytes], Awaitable[None]]
"""Takes a piece of the answer; returns when there is room for more."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """Which transaction of which timeline a request was. `xid` is None when it changed nothing."""

    xid: str | None
    timeline: str


async def run(backend: Backend, asked: Asked, write: Write, status: Status | None = None) -> None:
    """Run a request without a key. Raises Failure; then some of the answer may have been written. `status` hears what the cache says."""
    before = _before(asked)
    if asked.is_batch:
        before.append(query(asked.begin))
        after = [query("COMMIT")]
    else:
        after = []
    await _Run(backend, asked, write, status).exchange(before, after)


async def run_recorded(backend: Backend, asked: Asked, record: Callable[[Transaction, bytes], Awaitable[None]]) -> bytes:
    """Run a request with a key in a transaction, have it recorded, and commit. The answer. Raises Failure."""
    parts: list[bytes] = []
    size = 0

    async def collect(data: bytes) -> None:
        nonlocal size
        size += len(data)
        if size > MAX_RECORDED_BYTES:
            raise failure(
                400, "54000", f"the answer to a request with an idempotency key may have {MAX_RECORDED_BYTES} bytes", "ask for less"
            )
        parts.append(data)

    await _Run(backend, asked, collect).exchange([*_before(asked), query(asked.begin)], [])
    if backend.status != "T":
        raise failure(400, "25000", "a request with an idempotency key can't end its own transaction", "leave COMMIT and ROLLBACK out")
    answer = b"".join(parts)
    xid, timeline = await ask(backend, _WHICH_TRANSACTION)
    await record(Transaction(xid, timeline or ""), answer)
    await command(backend, "COMMIT")
    return answer


async def command(backend: Backend, sql: str) -> None:
    """A statement without an answer. Raises Failure."""
    backend.wire.send(query(sql))
    await _until_ready(backend)


async def ask(backend: Backend, sql: str) -> list[str | None]:
    """The first row of a query of our own. Raises Failure."""
    found = await rows(backend, sql)
    if not found:
        raise failure(500, "XX000", "PostgreSQL gave no row")
    return found[0]


async def rows(backend: Backend, sql: str) -> list[list[str | None]]:
    """The rows of a query of our own. Raises Failure."""
    backend.wire.send(query(sql))
    return await _until_ready(backend)


async def _until_ready(backend: Backend) -> list[list[str | None]]:
    found: list[list[str | None]] = []
    refusal: Failure | None = None
    backend.is_busy = True
    async for data, tag, start, end in backend.answers():
        if tag == _ROW:
            found.append(read_row(data, start))
        elif tag == _ERROR:
            refusal = Failure(error_fields(data[start:end]))
    if refusal is not None:
        raise refusal
    return found


def _before(asked: Asked) -> list[bytes]:
    return [] if asked.timeout_ms is None else [query(f"SET statement_timeout = {asked.timeout_ms}")]


class _Run:
    """One exchange: what goes before, the queries, what goes after; each part ends with PostgreSQL being ready."""

    def __init__(self, backend: Backend, asked: Asked, write: Write, status: Status | None = None) -> None:
        self._backend = backend
        self._asked = asked
        self._write = write
        self._status = status
        self._current = 0
        self._result: Result | None = None
        self._refusal: Failure | None = None

    async def exchange(self, before: Sequence[bytes], after: Sequence[bytes]) -> None:
        """Raises Failure."""
        asked, wire = self._asked, self._backend.wire
        queries = [statement(one.sql, one.values) for one in asked.queries]
        self._backend.is_busy = True
        wire.send(b"".join((*before, *queries, SYNC, *after)))
        shown, left = len(before), len(before) + 1 + len(after)
        done = 0
        if asked.is_batch:
            await self._write(b'{"results":[')
        while done < left:
            data, messages = await wire.messages()
            out: list[bytes] = []
            for tag, start, end in messages:
                if tag == _ROW and done == shown:
                    self._open().row(data, start)
                elif tag == _READY:
                    done += 1
                    self._backend.status = chr(data[start])
                elif tag == _ERROR:
                    self._refusal = self._refusal or Failure(error_fields(data[start:end]))
                    if self._refusal.is_last:
                        raise self._refusal
                elif tag in (_COPY_IN, _COPY_OUT, _COPY_BOTH):
                    raise failure(400, "0A000", "COPY from and to the client doesn't go over HTTP", "use a connection, or a WebSocket")
                elif tag == _NOTICE:
                    if self._status is not None:
                        self._status.hear(error_fields(data[start:end]))
                elif done == shown:
                    self._other(tag, data, start, end, out)
            if self._refusal is None:
                if self._result is not None:
                    out.append(self._result.take())
                if out:
                    await self._write(b"".join(out))
        self._backend.is_busy = False
        if self._refusal is not None:
            raise self._refusal
        if asked.is_batch:
            await self._write(b"]}")

    def _open(self) -> Result:
        if self._result is None:
            self._result = Result(
                self._query.array_mode if self._query.array_mode is not None else self._asked.array_mode, self._asked.raw_text
            )
        return self._result

    @property
    def _query(self) -> Query:
        return self._asked.queries[min(self._current, len(self._asked.queries) - 1)]

    def _other(self, tag: int, data: bytes, start: int, end: int, out: list[bytes]) -> None:
        if tag == _COLUMNS:
            self._open().describe(data[start:end])
        elif tag in (_COMPLETE, _EMPTY):
            out.append(self._open().end("" if tag == _EMPTY else data[start : end - 1].decode("utf-8", "replace")))
            self._result = None
            self._current += 1
            if self._current < len(self._asked.queries):
                out.append(b",")
