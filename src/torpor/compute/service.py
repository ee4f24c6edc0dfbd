"""Torpor's own session inside a compute: asks what runs and who may log in, and names databases.

It is handed over like any client's, as Torpor's own role, over one end of a socket pair. Who answers may be hostile: a tenant who is a
superuser can replace every view and function that is asked here, and run its own code in this very session. So an answer is never
believed further than that tenant's own database goes, and costs no more than was asked for: messages, bytes and time are counted, and
every value is checked.

Concurrency: one query at a time (a lock); a query that is cancelled ends the session, since its answer would meet the next question.
"""

import asyncio
import contextlib
import importlib.resources
import math
import os
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

from torpor.compute.handover import LifeLine, hand_over
from torpor.compute.idleness import Activity
from torpor.model.database import Role
from torpor.model.errors import ComputeLost, ProtocolViolation, TorporError
from torpor.model.names import SERVICE_DATABASE, SERVICE_ROLE
from torpor.pgwire.answers import DataRow, Notice, ReadyForQuery, parse_backend_message, query, terminate
from torpor.pgwire.frames import FrameBuffer
from torpor.pgwire.startup import StartupMessage

Row = tuple[str | None, ...]

_PATIENCE_S = 15.0
# Nothing that a tenant can set for roles or databases may reach these sessions.
_OPTIONS = (
    "-c search_path=pg_catalog -c statement_timeout=10s -c lock_timeout=5s -c idle_session_timeout=0 "
    "-c default_transaction_read_only=off -c synchronous_commit=on -c log_statement=none -c log_min_duration_statement=-1 "
    "-c extra_float_digits=1 -c datestyle=ISO -c client_encoding=UTF8 -c role=none -c client_min_messages=error "
    "-c session_preload_libraries= -c local_preload_libraries="
)
_LOGIN_TRIGGERS_SINCE = 17  # and the setting that spares a superuser from them
_RECEIVE_BYTES = 16_384  # cutting that into the smallest messages takes the loop about 5 ms
_FEW_MESSAGES = 200
_MOST_MESSAGES = 20_000
_BYTES_PER_MESSAGE = 1024  # on average, much more than any answer has
_SLACK_BYTES = 65_536
_SHOWN_CHARACTERS = 200
_LONGEST_VERIFIER = 512  # what PostgreSQL itself keeps
MOST_ROLES = 2000
"""Roles of one database that Torpor keeps while it sleeps. With more than that it keeps none, and each login wakes the database."""
READ_ONLY_MARK = "default_transaction_read_only = 'yes'"
"""How it stands in postgresql.auto.conf when Torpor has set it: people write "on"."""
WARM_DATABASE = "warm"
"""What the database and its owner are called in a cluster that nobody has claimed (template.sql, claim.sql)."""


def startup_packet(database: str, major: int, more: str = "") -> bytes:
    """The beginning of a session of Torpor's own, with further options, which win."""
    options = _OPTIONS + more + (" -c event_triggers=off" if major >= _LOGIN_TRIGGERS_SINCE else "")
    return StartupMessage({"user": SERVICE_ROLE, "database": database, "application_name": "torpor", "options": options}).encode()


def sql(name: str) -> str:
    """The text of `compute/sql/<name>.sql`."""
    return (importlib.resources.files("torpor.compute") / "sql" / f"{name}.sql").read_text()


_ROLE_PLAN = "torpor_role"
_ACTIVITY, _ROLES, _CLAIM = sql("activity"), sql("roles"), sql("claim")
_INNER = "SELECT 1 FROM pg_catalog.pg_database WHERE datname = "
_BRANCH, _FORGET_PASSWORDS = sql("branch"), sql("forget_passwords")
_CLIENTS = (
    "FROM pg_catalog.pg_stat_activity WHERE backend_type IN ('client backend', 'walsender') "
    "AND pid <> pg_catalog.pg_backend_pid() AND usename IS DISTINCT FROM 'torpor'"
)


class QueryFailed(TorporError):
    """PostgreSQL refused a statement of Torpor's own."""

    kind = "query_failed"


class ServiceSession:
    """One session. Open it with `open`, end it with `close`."""

    def __init__(self, sock: socket.socket, line: LifeLine) -> None:
        self._sock = sock
        self._line = line
        self._frames = FrameBuffer(1 << 20)
        self._lock = asyncio.Lock()
        self._exchanging = False
        self.broken = False
        self._plans_roles, self._has_role_plan = True, False

    def __repr__(self) -> str:
        return f"<ServiceSession pid={self._line.pid}{' broken' if self.broken else ''}>"

    @classmethod
    async def open(cls, listener: Path, database: str = SERVICE_DATABASE, major: int = 0) -> "ServiceSession":
        """Log in. Raises ComputeLost."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                line = LifeLine(await hand_over(listener, theirs, None, startup_packet(database, major)))
            ours.setblocking(False)
            session = cls(ours, line)
        except BaseException:
            ours.close()
            raise
        try:
            await session._exchange(b"", _FEW_MESSAGES)
        except BaseException:
            session.abandon()
            raise
        return session

    async def activity(self) -> list[Activity]:
        """What the other processes of the compute do."""
        return [_activity(row) for row in await self.query(_ACTIVITY, _MOST_MESSAGES)]

    async def roles(self) -> list[Role] | None:
        """Every role, as the door needs it; None when there are too many to keep."""
        rows = await self.query(f"{_ROLES} LIMIT {MOST_ROLES + 1}", _MOST_MESSAGES)
        return [_role(row) for row in rows] if len(rows) <= MOST_ROLES else None

    async def role(self, name: str) -> Role | None:
        """One role, None if there is none of that name."""
        async with self._lock:
            # Every login asks, and to plan it takes three times as long as to answer it.
            asked = f"EXECUTE {_ROLE_PLAN}({literal(name)})"
            if self._plans_roles and not self._has_role_plan:
                asked = f"PREPARE {_ROLE_PLAN}(name) AS {_ROLES} AND rolname = $1; {asked}"
            try:
                rows = await self._ask(asked if self._plans_roles else f"{_ROLES} AND rolname = {literal(name)}")
            except QueryFailed:
                self._plans_roles = False  # nobody knows what is left of the plan
                raise
            self._has_role_plan = True
        return _role(rows[0]) if rows else None

    async def claim(self, name: str, verifier: str, superuser: bool = False) -> None:
        """Name a warm cluster's database and owner, and set the owner's password and power."""
        power = "SUPERUSER" if superuser else "NOSUPERUSER"
        await self.query(_CLAIM.format(name=identifier(name), verifier=literal(verifier), power=power))

    async def name_branch(self, parent: str, name: str, verifier: str | None) -> None:
        """Turn the inner database and the owner of `parent` into those of its branch `name`. All or nothing.

        With a `verifier` that is the owner's password, and no other role has one; else all keep theirs. Raises QueryFailed.
        """
        statements = [f"ALTER ROLE {identifier(parent)} RENAME TO {identifier(name)}"] if name != parent else []
        if name != parent and await self.query(_INNER + literal(parent)):
            statements.append(f"ALTER DATABASE {identifier(parent)} RENAME TO {identifier(name)}")
        if verifier is not None:
            statements.append(f"ALTER ROLE {identifier(name)} PASSWORD {literal(verifier)}")
            statements.append(_FORGET_PASSWORDS.format(owner=literal(name), service=literal(SERVICE_ROLE)))
        await self.query(";".join([*statements, _BRANCH]))
        await self.query("SELECT pg_catalog.pg_reload_conf()")

    async def set_password(self, role: str, verifier: str) -> None:
        """Give a role a password, by its verifier."""
        await self.query(f"ALTER ROLE {identifier(role)} PASSWORD {literal(verifier)}")

    async def set_read_only(self, on: bool) -> None:
        """Make new transactions read-only unless they say otherwise, also those of open sessions; or go back to what was."""
        # One by one: ALTER SYSTEM refuses to be part of a transaction.
        await self.query(f"ALTER SYSTEM SET {READ_ONLY_MARK}" if on else "ALTER SYSTEM RESET default_transaction_read_only")
        await self.query("SELECT pg_catalog.pg_reload_conf()")

    async def end_clients(self) -> None:
        """End all sessions but Torpor's own. All are told before any is waited for: none goes on because another one's locks are gone."""
        tell, wait = "SELECT pg_catalog.pg_terminate_backend(pid)", "SELECT pg_catalog.pg_terminate_backend(pid, 5000)"
        await self.query(f"{tell} {_CLIENTS}; {wait} {_CLIENTS}")

    async def end_backends(self, pids: Iterable[int]) -> None:
        """Tell these to end, without waiting for it."""
        await self.query(";".join(f"SELECT pg_catalog.pg_terminate_backend({pid:d})" for pid in pids))

    async def query(self, text: str, most_messages: int = _FEW_MESSAGES, patience_s: float = _PATIENCE_S) -> list[Row]:
        """The rows of a simple query, of all its statements. Raises QueryFailed, or ComputeLost when the session broke."""
        async with self._lock:
            return await self._ask(text, most_messages, patience_s)

    async def _ask(self, text: str, most_messages: int = _FEW_MESSAGES, patience_s: float = _PATIENCE_S) -> list[Row]:
        if self.broken:
            raise ComputeLost("Torpor's own session with PostgreSQL broke")
        try:
            return await self._exchange(query(text), most_messages, patience_s)
        except QueryFailed:
            raise
        except BaseException:
            self.abandon()
            raise

    async def close(self) -> None:
        """Log out and wait until the backend has ended (at most a second), so that a freeze doesn't catch it dying."""
        try:
            async with self._lock:  # whoever is asking gets the answer first
                if not self.broken:
                    with contextlib.suppress(OSError, TimeoutError):
                        await asyncio.get_running_loop().sock_sendall(self._sock, terminate())
                        await asyncio.wait_for(self._line.wait_ended(), 1.0)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Drop the session at once; whoever waits for an answer gets ComputeLost. Idempotent."""
        self.broken = True
        if self._exchanging:
            # The loop still watches the socket: it is woken here, and closed by the exchange that it wakes.
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        else:
            self._sock.close()
            self._line.close()

    async def _exchange(self, request: bytes, most_messages: int, patience_s: float = _PATIENCE_S) -> list[Row]:
        self._exchanging = True
        try:
            return await self._converse(request, most_messages, patience_s)
        finally:
            self._exchanging = False
            if self.broken:
                self.abandon()

    async def _converse(self, request: bytes, most_messages: int, patience_s: float) -> list[Row]:
        loop = asyncio.get_running_loop()
        rows: list[Row] = []
        failure: Notice | None = None
        messages_left, bytes_left = most_messages, most_messages * _BYTES_PER_MESSAGE + _SLACK_BYTES
        try:
            async with asyncio.timeout(patience_s):
                if request:
                    await loop.sock_sendall(self._sock, request)
                while True:
                    data = await loop.sock_recv(self._sock, _RECEIVE_BYTES)
                    if not data:
                        raise ComputeLost(_shown(failure.message) if failure else "PostgreSQL ended Torpor's own session")
                    messages = self._frames.feed(data)
                    messages_left -= len(messages)
                    bytes_left -= len(data)
                    if messages_left < 0 or bytes_left < 0:
                        raise ComputeLost("PostgreSQL answered Torpor with more than was asked for")
                    for tag, body in messages:
                        match parse_backend_message(tag, body):
                            case DataRow(values):
                                rows.append(values)
                            case Notice(is_error=True) as notice:
                                failure = failure or notice
                            case ReadyForQuery():
                                if failure is not None:
                                    raise QueryFailed(f"PostgreSQL refused a statement of Torpor's own: {_shown(failure.message)}")
                                return rows
                            case _:
                                pass
        except ProtocolViolation as error:
            raise ComputeLost(f"Torpor's own session with PostgreSQL broke: {error.message}") from error
        except OSError as error:
            reason = f"did not answer within {patience_s:.0f} seconds" if isinstance(error, TimeoutError) else os.strerror(error.errno or 0)
            raise ComputeLost(f"Torpor's own session with PostgreSQL broke: {reason}") from error


def identifier(name: str) -> str:
    """Quoted for SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Quoted for SQL (standard_conforming_strings or not: a backslash is escaped by the E form)."""
    return "E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def _activity(row: Row) -> Activity:
    try:
        pid, kind, state, wait_type, wait, user, client, application, running_s, text, backup = (_shown(value or "") for value in row)
        return Activity(int(pid), kind, state, wait_type, wait, user, client, application, float(running_s), text, backup == "t")
    except ValueError as error:
        raise _nonsense() from error


def _role(row: Row) -> Role:
    try:
        name, verifier, can_login, valid_until, rules = row
        until = float(valid_until) if valid_until is not None else None
    except ValueError as error:
        raise _nonsense() from error
    if name is None or (until is not None and not math.isfinite(until)):
        raise _nonsense()
    if verifier is not None and len(verifier) > _LONGEST_VERIFIER:
        verifier = ""  # no password fits it
    return Role(_text(name), _text(verifier) if verifier is not None else None, can_login == "t", until, rules=rules == "t")


def _nonsense() -> ComputeLost:
    return ComputeLost("PostgreSQL answered Torpor with what can't be: its catalog was changed")


def _text(value: str) -> str:
    """A value as Unicode that can be written anywhere, whatever bytes were sent."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace").replace("\0", "\ufffd")


def _shown(value: str) -> str:
    """The beginning of a value, for people: on one line, and nothing in it that moves cursors or turns text around."""
    text = _text(value[:_SHOWN_CHARACTERS])
    return text if text.isprintable() else "".join(char if char.isprintable() else " " for char in text)


__all__: Sequence[str] = ("QueryFailed", "ServiceSession", "identifier", "literal", "sql")
