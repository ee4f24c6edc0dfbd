"""What differs between two schemas, object by object, out of two `pg_dump --schema-only`. Pure.

pg_dump writes objects in an order that depends on nothing but them, each below a comment with its name, type and schema. What a hostile
name could do to these comments moves text from one object to another in what is shown, never out of it.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

_HEADER = re.compile(r"^--\n-- (?:Data for )?Name: (.*); Type: ([A-Z ]+); Schema: (.*); Owner:.*\n--\n", re.MULTILINE)
_NOISE = re.compile(
    r"^(?:\\(?:un)?restrict .*|SET default_(?:tablespace|table_access_method) = .*;|-- PostgreSQL database dump complete|--)$"
)
_OWNER = "<owner>"
_CONTEXT_LINES = 3


class Change(StrEnum):
    """What became of an object from the first to the second."""

    ADDED = "added"  # only the second has it
    REMOVED = "removed"  # only the first has it
    CHANGED = "changed"  # both have it, not alike


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """An object. `number` tells apart those that share type, schema and name."""

    type: str
    schema: str
    name: str
    number: int = 0

    def __str__(self) -> str:
        return f"{self.type} {self.name if self.schema == '-' else f'{self.schema}.{self.name}'}"


@dataclass(frozen=True, slots=True)
class Difference:
    """One object that differs, and how: lines of a unified diff without its head."""

    key: Key
    change: Change
    lines: tuple[str, ...]


def objects(dump: str, owner: str) -> dict[Key, str]:
    """The statements of each object of a dump, as they compare: whoever owns the database is called <owner>."""
    found: dict[Key, str] = {}
    heads = list(_HEADER.finditer(dump))
    owned = _owned(owner)
    for position, head in enumerate(heads):
        end = heads[position + 1].start() if position + 1 < len(heads) else len(dump)
        key = Key(head[2], head[3], head[1])
        while key in found:
            key = Key(key.type, key.schema, key.name, key.number + 1)
        lines = [owned.sub(rf"\1{_OWNER}", line) for line in dump[head.end() : end].splitlines() if not _NOISE.match(line)]
        if statements := "\n".join(lines).strip():
            found[key] = statements
    return found


def compare(first: Mapping[Key, str], second: Mapping[Key, str]) -> list[Difference]:
    """What differs, in the order of types and names."""
    return [
        Difference(key, _change(key, first, second), tuple(_unified(first.get(key, ""), second.get(key, ""))))
        for key in sorted(first.keys() | second.keys())
        if first.get(key) != second.get(key)
    ]


def _change(key: Key, first: Mapping[Key, str], second: Mapping[Key, str]) -> Change:
    return Change.ADDED if key not in first else Change.REMOVED if key not in second else Change.CHANGED


def _unified(before: str, after: str) -> Iterator[str]:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=_CONTEXT_LINES)
    return (line for number, line in enumerate(lines) if number > 1)


def _owned(owner: str) -> re.Pattern[str]:
    """Where pg_dump names a role, and it is the owner."""
    bare = rf"|{re.escape(owner)}" if re.fullmatch(r"[a-z_][a-z0-9_]*", owner) else ""
    quoted = re.escape('"' + owner.replace('"', '""') + '"')
    return re.compile(rf"( (?:OWNER TO|TO|FROM|FOR ROLE) )(?:{quoted}{bare})(?=;| WITH | IN | GRANT | REVOKE )")
