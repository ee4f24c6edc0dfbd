"""`POST /sql`: a query, or a batch in one transaction, with Neon's headers. The protocol that @neondatabase/serverless speaks.

Concurrency: the request's task. What is answered goes out as it comes once it is more than `_WHOLE_BYTES`; until then an error can still
be the answer. After that an error can only cut the answer off, which every client takes for one.
"""

import asyncio
from dataclasses import replace

from torpor.gateway.http.backend import Backend
from torpor.gateway.http.cached import IN_TRANSACTION, Status, Words, has_own_words, in_words_of_client, pooled, words_of
from torpor.gateway.http.connection import Reply, Request
from torpor.gateway.http.cors import admit
from torpor.gateway.http.credentials import Target, from_basic, from_connection_string, from_token, token_in
from torpor.gateway.http.execution import Transaction, ask, run, run_recorded
from torpor.gateway.http.failures import Failure, failure
from torpor.gateway.http.kept import Kept
from torpor.gateway.http.places import Places
from torpor.gateway.http.queries import Asked, read
from torpor.gateway.http.receipts import Receipt, Receipts, fingerprint

MAX_BODY_BYTES = 16 << 20
_WHOLE_BYTES = 128 * 1024
_SETTLES_S = 5.0
_LOOK_S = 0.05


class Answer:
    """The sink of a result: whole when it is short, else in pieces as they come."""

    def __init__(self, reply: Reply, media: str = "application/json", cached: Status | None = None) -> None:
        """`cached`: what the cache says goes with the head, as far as it is known then."""
        self._reply = reply
        self._media = media
        self._cached = cached or Status()
        self._parts: list[bytes] = []
        self._size = 0

    async def write(self, data: bytes) -> None:
        """One more piece. Raises ClientGone."""
        if not self._reply.is_begun:
            self._parts.append(data)
            self._size += len(data)
            if self._size <= _WHOLE_BYTES:
                return
            self._reply.headers |= self._cached.headers()
            await self._reply.begin(self._media)
            data, self._parts = b"".join(self._parts), []
        await self._reply.send(data)

    def finish(self) -> None:
        """That was all."""
        self._cached.settle()
        if self._reply.is_begun:
            self._reply.end()
        else:
            self._reply.whole(200, b"".join(self._parts), self._media, self._cached.headers())


class Sql:
    """The handler."""

    def __init__(self, kept: Kept, places: Places, receipts: Receipts) -> None:
        self._kept = kept
        self._places = places
        self._receipts = receipts

    async def handle(self, request: Request, reply: Reply) -> None:
        """Raises Failure."""
        target = target_of(request)
        body = await request.body(MAX_BODY_BYTES)
        asked = read(request.headers, body)
        words, status = words_of(request.headers, target), Status()
        if words is not None:
            target = pooled(target)
        async with self._places.place(request.client[0], f"{target.host}/{target.database}"):
            backend = await self._kept.take(request.client, target)
            try:
                reply.headers |= await admit(backend, request.headers)
                if asked.is_batch or asked.key is not None:
                    if words is not None:
                        status.refuse(IN_TRANSACTION)
                        words = None
                elif words is not None or has_own_words(asked.queries[0].sql, target):
                    status.expect(words)
                    asked = _with(words, asked)
                if asked.key is None:
                    answer = Answer(reply, cached=status)
                    with in_words_of_client(words):
                        await run(backend, asked, answer.write, status)
                    answer.finish()
                else:
                    reply.headers |= status.headers()
                    await self._once(backend, asked, target, fingerprint(body, request.headers), reply)
            finally:
                self._kept.give_back(backend, request.client, target, is_untouched=status.is_served and "origin" not in request.headers)

    async def _once(self, backend: Backend, asked: Asked, target: Target, what: str, reply: Reply) -> None:
        """Run a request with a key, unless that was done."""
        receipts = self._receipts
        async with receipts.running(target, asked.key or "") as name:
            known = await receipts.find(name)
            if known is not None and known.asked != what:
                raise failure(422, "22023", "this idempotency key was used for another request", "use a new key for each request")
            if known is not None and await _was_committed(backend, known.transaction):
                reply.whole(200, known.answer, more={"idempotency-replayed": "true"})
                return

            async def record(transaction: Transaction, answer: bytes) -> None:
                await receipts.keep(name, Receipt(what, transaction, answer))

            try:
                answer = await run_recorded(backend, asked, record)
            except Failure as error:
                if error.sqlstate[:2] not in ("08", "57"):  # PostgreSQL said no, and there is nothing to find out
                    await receipts.drop(name)
                raise
            reply.whole(200, answer)


def _with(words: Words | None, asked: Asked) -> Asked:
    """The request with words in front of its only query."""
    query = asked.queries[0]
    return asked if words is None else replace(asked, queries=(replace(query, sql=words.in_front_of(query.sql)),))


async def _was_committed(backend: Backend, transaction: Transaction) -> bool:
    """What became of a transaction. Raises Failure when that can't be known."""
    if transaction.xid is None:
        return True
    give_up = asyncio.get_running_loop().time() + _SETTLES_S
    while True:
        status, timeline = await ask(
            backend,
            f"SELECT pg_catalog.pg_xact_status('{int(transaction.xid)}'), "
            "pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8)",
        )
        if timeline != transaction.timeline or status is None:
            raise failure(
                409, "55000", "whether the request with this idempotency key was done can't be known: the database was restored since",
                "look into the database, then use a new key",
            )  # fmt: skip
        if status != "in progress":
            return status == "committed"
        if asyncio.get_running_loop().time() > give_up:
            raise failure(409, "55006", "the transaction of a request with this idempotency key is still running", "ask again", 1)
        await asyncio.sleep(_LOOK_S)


def target_of(request: Request) -> Target:
    """Whom the request says it is from. Raises Failure."""
    headers = request.headers
    text, header = headers.get("neon-connection-string", ""), headers.get("authorization", "")
    if text and token_in(header) is not None:  # as Neon's driver says it with `authToken`
        return from_token(header, text)
    if text:
        return from_connection_string(text)
    if header:
        return from_basic(header, request.parameters.get("db", ""), request.host)
    raise failure(
        401, "28000", "the request says not who it is from",
        "give postgresql://USER:PASSWORD@HOST/DATABASE in the header Neon-Connection-String; or basic credentials or a token, and "
        "?db=DATABASE",
    )  # fmt: skip
