"""What the parts of the pool share: limits, what a connection writes to, prepared statements, and which settings travel with a client.

Pure values.
"""

import re
from dataclasses import dataclass

from torpor.gateway.cache.comments import leading_words
from torpor.model.errors import ProtocolViolation

CARRIED = frozenset(
    (b"application_name", b"client_encoding", b"DateStyle", b"IntervalStyle", b"TimeZone", b"standard_conforming_strings", b"search_path")
)
"""Settings of the session that PostgreSQL reports (search_path from 18 on) and any role may change: they stay with their client."""

_CARRIED_NAMES = rb"(?:application_name|client_encoding|datestyle|intervalstyle|timezone|standard_conforming_strings)"
_VALUE = rb"(?:'[^'\\;]*'|[A-Za-z0-9_.+-]+)"
_ONLY_CARRIED = re.compile(
    rb"\s*(?:SET\s+(?:SESSION\s+)?(?:TIME\s+ZONE\s+%(v)b|(?:NAMES|%(n)b\s*(?:=|\s+TO\s))\s*%(v)b(?:\s*,\s*%(v)b)*)"
    rb"|SELECT\s+(?:pg_catalog\.)?set_config\s*\(\s*'%(n)b'\s*,\s*(?:'[^'\\;]*'|\$1)\s*,\s*(?:false|\$2)\s*\))\s*;?\s*"
    % {b"n": _CARRIED_NAMES, b"v": _VALUE},
    re.IGNORECASE,
)
_LONGEST_CARRIED_TEXT = 200


def sets_only_carried(text: bytes) -> bool:
    """Whether a statement does nothing but set one of the settings that stay with their client. Where it isn't sure, it says no."""
    return len(text) <= _LONGEST_CARRIED_TEXT and _ONLY_CARRIED.fullmatch(text) is not None


def may_set(data: bytes, at: int, end: int) -> bool:
    """Whether `sets_only_carried` may say yes to what stands from `at` to `end`, by the first letters: most statements end here."""
    while at < end and data[at] in b" \t\r\n":
        at += 1
    if end - at < 8 or data[at] | 32 != 0x73 or data[at + 1] | 32 != 0x65:  # se
        return False
    if data[at + 2] | 32 == 0x74:  # SET
        return True
    at += 6  # behind SELECT
    while at < end and data[at] in b" \t\r\n":
        at += 1
    return at < end and data[at] | 32 in b"sp"  # set_config, pg_catalog


class Link:
    """What a connection of the engine writes to. This one leads nowhere; a class of its own because compiled code calls it directly."""

    __slots__ = ()

    def send(self, data: bytes) -> None:
        """Write this, after all before."""

    def close(self) -> None:
        """Close it when all that was sent is written. Nothing comes from it any more. Idempotent."""

    def feed(self, other: "Link | None") -> None:
        """What it is sent from now on comes from `other`, which must not be read from while this one doesn't keep up."""

    def listen(self, on: bool) -> None:
        """Whether what it sends is wanted now."""


NOWHERE = Link()
"""The link of the pool's own clients."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one database's pool may have and do."""

    size: int = 20  # backends that serve its clients at once; those of pinned clients not counted
    role_size: int = 0  # of them for one role; 0: as many
    queue: int = 1000  # clients that wait for one
    wait_s: float = 30.0  # how long each may wait
    idle_s: float = 3.0  # how long a backend is kept that nobody needs


READS, WATCHED = b"torpor.reads", b"torpor.watched"
"""What the library in the backend says of what it watched."""

MOST_HELD_BYTES = 256 << 20
"""What the statements of one database's clients may take in a worker."""

PREFIX = b"torpor_"
"""What the names of prepared statements in backends begin with."""


class Statement:
    """A prepared statement: its text and types, and what it is called in backends. Made once for all clients that prepare the same."""

    __slots__ = ("__weakref__", "body", "name", "only_carried", "speaks")

    def __init__(self, body: bytes, name: bytes) -> None:
        self.body = body
        self.name = name
        end = body.find(0)
        if end < 0:
            raise ProtocolViolation("malformed Parse message")
        self.only_carried = may_set(body, 0, end) and sets_only_carried(body[:end])
        self.speaks = body[0] in b"/ \t\r\n" and leading_words(body) is not None  # to the cache, by a comment

    def __repr__(self) -> str:
        return f"<Statement {self.name!r} {self.body[:40]!r}>"

    @property
    def text(self) -> bytes:
        """The statement itself."""
        return self.body[: self.body.index(0)]


# What is outstanding. The pool's own statement comes first, then those that end with a ReadyForQuery, then those that don't.
OWN, QUERY, QUERY_CARRIED, CALL, SYNC, BIND, DESCRIBE, EXECUTE, EXECUTE_CARRIED, CLOSE, CLOSE_OWN = range(11)
PARSE, PARSE_OWN, PARSE_KNOWN, CLOSE_KNOWN = range(11, 15)
Parsing = tuple[int, Statement | None, bytes, Statement | None, int]
"""A kind from PARSE on, with the statement, what the client calls it, what that name meant before, and the segment."""

STALE = "a stale statement"
"""Left in a backend: a plan that no longer fits its tables."""


class Room:
    """How many bytes clients of one database have in this process that only they know an end of: what they have prepared, and long
    messages that aren't whole. Bounded, since the clients of all others are here, too."""

    __slots__ = ("taken",)

    def __init__(self) -> None:
        self.taken = 0

    def take(self, size: int) -> None:
        """Raises ProtocolViolation when there is no room."""
        if self.taken + size > MOST_HELD_BYTES:
            raise ProtocolViolation(
                f"the statements of this database's pooled clients take more than {MOST_HELD_BYTES} bytes",
                "close prepared statements that aren't needed, send long values as parameters, or connect without the pool",
            )
        self.taken += size

    def give_back(self, size: int) -> None:
        """What was taken is gone."""
        self.taken -= size


class HeldStatement(Statement):
    """One that takes room as long as anybody knows it."""

    __slots__ = ("_room", "_size")

    def __init__(self, body: bytes, name: bytes, room: Room) -> None:
        self._size = 0
        self._room = room
        super().__init__(body, name)
        room.take(len(body))
        self._size = len(body)

    def __del__(self) -> None:
        self._room.give_back(self._size)


@dataclass(frozen=True, slots=True)
class Key:
    """Which backends can serve a client: those that began the same way."""

    role: str
    inner_database: str
    parameters: tuple[tuple[str, str], ...] = ()  # of the startup message, without those that stay with the client


Settings = dict[bytes, bytes]
"""Settings as reported. Shared between clients and backends that agree, so never changed in place."""


def apply_settings(wanted: Settings, now: Settings) -> bytes:
    """SQL that gives a backend the settings of its next client. set_config, as SET would read a list as one name."""
    calls = [
        b"pg_catalog.set_config('%b',E'%b',false)" % (name, value.replace(b"\\", b"\\\\").replace(b"'", b"''"))
        for name, value in wanted.items()
        if now.get(name) != value
    ]
    return b"SELECT " + b",".join(calls) if calls else b""
