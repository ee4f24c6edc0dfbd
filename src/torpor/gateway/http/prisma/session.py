"""A connection as a plan's interpreter uses it: statements one after the other, and a transaction around some of them.

Concurrency: one task at a time. Memory: the rows of a plan, at most `MAX_RESULT_BYTES` as PostgreSQL sent them; all plans of this
process together have `_ROOM`, those of one address a quarter of it. Safe to cancel: the connection is busy then, and is thrown away.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torpor.gateway.http.backend import Backend
from torpor.gateway.http.cached import Status, Words
from torpor.gateway.http.connection import Room
from torpor.gateway.http.execution import command
from torpor.gateway.http.failures import Failure, error_fields, failure
from torpor.gateway.http.prisma.errors import PlanError, database_error
from torpor.gateway.http.prisma.rendering import Statement
from torpor.gateway.http.prisma.values import reader, type_name
from torpor.gateway.http.results import Column, read_columns, read_row, split_tag
from torpor.model.access import address_key
from torpor.pgwire.requests import SYNC, statement

MAX_RESULT_BYTES = 16 << 20
"""What a plan may read."""

_MOST_LOGGED = 100
_MOST_SHOWN = 10_000
_ROOM = Room(128 << 20)
_ROW, _COLUMNS, _COMPLETE, _ERROR, _NOTICE, _COPY_IN, _COPY_OUT, _COPY_BOTH = map(ord, "DTCENGHW")


@dataclass(frozen=True, slots=True)
class Logged:
    """A statement that was run, as the client's log shows it."""

    sql: str
    values: list[str | None]
    took_s: float
    began_at: float
    """Seconds since 1970."""


@dataclass(slots=True)
class Rows:
    """What a query gave."""

    columns: list[Column] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)

    def records(self) -> list[dict[str, Any]]:
        """Each row by its columns' names."""
        names = [column.name for column in self.columns]
        return [dict(zip(names, row, strict=False)) for row in self.rows]

    def raw(self) -> dict[str, Any]:
        """The form of an answer to a raw query."""
        return {
            "columns": [column.name for column in self.columns],
            "types": [type_name(column.type_oid) for column in self.columns],
            "rows": self.rows,
        }


class Session:
    """Of one plan, or of the plans of one transaction."""

    def __init__(
        self, backend: Backend, client: str, words: Words | None = None, in_transaction: bool = False, log: list[Logged] | None = None
    ) -> None:
        """`words` go in front of each query: what the cache shall do with it. `log` gets what was run, up to `_MOST_LOGGED`."""
        self.status = Status()
        self._log = log
        self._backend = backend
        self._words = words
        self._in_transaction = in_transaction
        self._key = address_key(client)
        self._held = 0

    def __repr__(self) -> str:
        return f"<Session {self._backend!r}{' in a transaction' if self._in_transaction else ''}>"

    def close(self) -> None:
        """Give back the memory. The rows are no more after it. Idempotent."""
        held, self._held = self._held, 0
        _ROOM.give_back(self._key, held)

    async def query(self, wanted: Statement, is_raw: bool) -> Rows:
        """Run a query. Raises PlanError."""
        found, _ = await self._run(wanted, is_raw, self._words)
        return found

    async def execute(self, wanted: Statement, is_raw: bool) -> int:
        """Run a statement; how many rows it changed. Raises PlanError."""
        _, count = await self._run(wanted, is_raw, None)
        return count

    async def begin(self) -> bool:
        """Begin a transaction, unless there is one: then what follows is in that. Raises PlanError."""
        if self._in_transaction:
            return False
        await self._say("BEGIN")
        self._in_transaction = True
        return True

    async def commit(self) -> None:
        """Raises PlanError."""
        self._in_transaction = False
        await self._say("COMMIT")

    async def roll_back(self) -> None:
        """Raises PlanError."""
        self._in_transaction = False
        await self._say("ROLLBACK")

    async def _say(self, sql: str) -> None:
        try:
            await command(self._backend, sql)
        except Failure as refusal:
            raise database_error(refusal) from refusal

    async def _run(self, wanted: Statement, is_raw: bool, words: Words | None) -> tuple[Rows, int]:
        began = time.time()
        try:
            return await self._exchange(wanted, is_raw, None if self._in_transaction else words)
        except Failure as refusal:
            raise database_error(refusal, is_raw) from refusal
        finally:
            self._note(wanted, began)

    def _note(self, wanted: Statement, began: float) -> None:
        if self._log is not None and len(self._log) < _MOST_LOGGED:
            shown = [None if value is None else value[:_MOST_SHOWN].decode("utf-8", "replace") for value in wanted.values[:_MOST_LOGGED]]
            self._log.append(Logged(wanted.sql[:_MOST_SHOWN], shown, time.time() - began, began))

    async def _exchange(self, wanted: Statement, is_raw: bool, words: Words | None) -> tuple[Rows, int]:
        backend = self._backend
        backend.is_busy = True
        sql = wanted.sql if words is None else words.in_front_of(wanted.sql)
        backend.wire.send(statement(sql, wanted.values) + SYNC)
        found, count = Rows(), 0
        readers: Sequence[Any] = ()
        refusal: Failure | PlanError | None = None
        if words is not None:
            self.status.expect(words)
        async for data, tag, start, end in backend.answers():
            if tag == _ROW and refusal is None:
                self._hold(end - start)
                row = read_row(data, start)
                found.rows.append(
                    [value if value is None or read is None else read(value) for value, read in zip(row, readers, strict=False)]
                )
            elif tag == _COLUMNS:
                found.columns = read_columns(data[start:end])
                try:
                    for column in found.columns:
                        type_name(column.type_oid)
                    readers = [reader(column.type_oid, is_raw) for column in found.columns]
                except PlanError as error:
                    refusal = error
            elif tag == _COMPLETE:
                count = split_tag(data[start : end - 1].decode("utf-8", "replace"))[1] or 0
            elif tag == _NOTICE:
                self.status.hear(error_fields(data[start:end]))
            elif tag == _ERROR:
                refusal = Failure(error_fields(data[start:end]))
                if refusal.is_last:
                    break
            elif tag in (_COPY_IN, _COPY_OUT, _COPY_BOTH):
                raise failure(400, "0A000", "COPY from and to the client doesn't go this way", "use a connection")
        if refusal is not None:
            raise refusal
        return found, count

    def _hold(self, size: int) -> None:
        if self._held + size > MAX_RESULT_BYTES:
            raise PlanError("P6009", f"the rows of this query have more than {MAX_RESULT_BYTES} bytes; ask for less at once", status=413)
        try:
            _ROOM.take(self._key, size)
        except Failure:
            raise PlanError("P6009", "too many large results are under way; ask again in a moment", status=503) from None
        self._held += size
