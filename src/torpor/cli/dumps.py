"""Dumps as they stream by: which kind one is, whether it is whole, and what a program's complaint about it says. Pure.

A plain dump is a script for psql, and psql's scripts may run any program on the machine of whoever reads them. So psql is told to be
restricted before it sees the first byte of one: then it obeys no backslash command at all. pg_dump's own scripts begin by saying the
same (`\\restrict <key>`) and end with `\\unrestrict <key>`; these two lines are left out.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

_HEAD_BYTES = 64 * 1024
_TAIL_BYTES = 8 * 1024
_RESTRICT = re.compile(rb"(?m)^\\restrict ([A-Za-z0-9]{1,200})\r?$")
_BEGIN = b"-- PostgreSQL database dump\n"
_END = b"-- PostgreSQL database dump complete\n"
_COMMENT = re.compile(rb"(?:[ \t\r]*(?:--[^\n]*)?\n)*")
_PSQL = re.compile(r"^psql:<stdin>:(\d+): (?:ERROR|FATAL|error):\s+(?:([0-9A-Z]{5}): )?(.*)$", re.MULTILINE)
_ANY = re.compile(r"^(?:(?:psql|pg_dump|pg_restore): (?:error: )?|(?:ERROR|FATAL):\s+)(.*)$", re.MULTILINE)
_SERVER = re.compile(r"(?:ERROR|FATAL):\s+(?:([0-9A-Z]{5}): )?(.*)$", re.MULTILINE)
_STATEMENT = re.compile(r"^(?:STATEMENT: |Command was: )\s*(.*)$", re.MULTILINE)
_COPY = re.compile(r"^CONTEXT:\s+(COPY .*)$", re.MULTILINE)
_HINT = re.compile(r"^HINT:\s+(.*)$", re.MULTILINE)
_SHOWN = 200


class Kind(StrEnum):
    """What a dump is, by how it begins."""

    PLAIN = "plain"  # a script of SQL
    ARCHIVE = "archive"  # pg_dump --format custom, or tar: for pg_restore
    GZIP = "gzip"  # of whatever
    EMPTY = "empty"  # nothing came


def kind_of(head: bytes) -> Kind:
    """What begins like this; 512 bytes tell."""
    if not head:
        return Kind.EMPTY
    if head.startswith(b"PGDMP") or (head[257:262] == b"ustar" and head.startswith(b"toc.dat\0")):
        return Kind.ARCHIVE
    return Kind.GZIP if head.startswith(b"\x1f\x8b") else Kind.PLAIN


class Truncated(ValueError):
    """A dump ends in the middle."""


class Script:
    """A plain dump on its way to psql. Give it all pieces, then `end`. Holds little, however long lines are."""

    def __init__(self, key: str) -> None:
        """`key` is a letter and some letters and digits, which the dump can't know."""
        self.lines_before = 2
        """By how many lines psql's numbers are ahead of the dump's own."""
        self._prefix = b"BEGIN;\n\\restrict %s\n" % key.encode()
        # What ends inside of a statement may swallow our COMMIT as a part of it: then its transaction is still open, and its number there.
        self._last = b"\nCOMMIT;\nSELECT $%s$%s$%s$ WHERE pg_catalog.pg_current_xact_id_if_assigned() IS NULL;\n" % ((key.encode(),) * 3)
        self._acknowledged = key.encode()
        self._head: bytes | None = b""
        self._tail = b""
        self._key: bytes | None = None
        self._has_trailer = False

    def feed(self, piece: bytes) -> bytes:
        """What to send on."""
        if self._head is not None:
            self._head += piece
            if len(self._head) < _HEAD_BYTES:
                return b""
            piece = self._begin()
        self._tail += piece
        ready, self._tail = self._tail[:-_TAIL_BYTES], self._tail[-_TAIL_BYTES:]
        return ready

    def end(self) -> bytes:
        """The rest. Raises Truncated for a dump of pg_dump's that lacks its last lines."""
        rest = self._tail if self._head is None else self._begin()
        if self._has_trailer and _END not in rest.replace(b"\r\n", b"\n")[-_TAIL_BYTES:]:
            raise Truncated("the dump ends in the middle: its last lines are missing")
        if self._key is not None:
            before, found, after = rest.rpartition(b"\\unrestrict " + self._key)
            if not found or after.strip():
                raise Truncated("the dump ends in the middle: its last line is missing")
            rest = before
        return rest + self._last

    def is_acknowledged(self, output: bytes) -> bool:
        """Whether psql's output tells that the transaction was committed: a dump that ends inside of a statement never comes so far."""
        return output.rstrip().endswith(self._acknowledged)

    def _begin(self) -> bytes:
        """The beginning, without pg_dump's own restriction, which follows nothing but comments."""
        head, self._head = self._head or b"", None
        head = head.removeprefix(b"\xef\xbb\xbf")
        leading = _COMMENT.match(head)
        comments = leading.end() if leading is not None else 0
        self._has_trailer = _BEGIN in head[:comments].replace(b"\r\n", b"\n")
        found = _RESTRICT.match(head, comments)
        if found is not None:
            self._key = found[1]
            head = head[: found.start()] + head[found.end() :]  # the line stays, empty: numbers are those of the dump
        return self._prefix + head


@dataclass(frozen=True, slots=True)
class Complaint:
    """What a program failed at: in whose words, where, with PostgreSQL's code and hint if there are any."""

    message: str
    sqlstate: str = ""
    line: int | None = None
    statement: str = ""
    hint: str = ""

    def __str__(self) -> str:
        where = [f"line {self.line}"] if self.line is not None else []
        where += [f"in {self.statement}"] if self.statement else []
        return f"{', '.join(where)}: {self.message}" if where else self.message


def complaint(said: str, lines_before: int = 0) -> Complaint:
    """The first error among what a program said; what it said last when there is none."""
    statement = _STATEMENT.search(said)
    copied = _COPY.search(said)
    hint = _HINT.search(said)
    shown = _shorten(copied[1] if copied else statement[1] if statement else "")
    told = _shorten(hint[1]) if hint else ""
    if found := _PSQL.search(said):
        return Complaint(_shorten(found[3]), found[2] or "", max(1, int(found[1]) - lines_before), shown, told)
    if found := _SERVER.search(said):
        return Complaint(_shorten(found[2]), found[1] or "", None, shown, told)
    if found := _ANY.search(said):
        return Complaint(_shorten(found[1]), "", None, shown, told)
    last = said.strip().splitlines()
    return Complaint(_shorten(last[-1]) if last else "it said nothing")


def _shorten(text: str) -> str:
    text = "".join(char if char.isprintable() else " " for char in text).strip()
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
