"""Records of the audit log, and the chain of hashes that ties them together. Pure.

Each record carries a SHA-256 over its own content and the hash of the record before it. Whoever changes, removes or inserts a record
must remake all hashes after it; then the newest hash is no longer the one that was noted elsewhere.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from enum import StrEnum

from torpor.model.workspace import WorkspaceId

GENESIS = "0" * 64
"""What stands for the hash before the first record."""

MAX_TARGET = 120
MAX_DETAIL = 1000


class AuditResult(StrEnum):
    """What became of what was asked."""

    BEGUN = "begun"  # it is about to be done; a later record, whose `begun` is this one's number, tells what became of it
    DONE = "done"  # it was done
    REFUSED = "refused"  # it was not done, for a reason that the caller can mend
    FAILED = "failed"  # something went wrong on our side; the detail names the kind of error
    INTERRUPTED = "interrupted"  # Torpor ended before it was known what became of it


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """Who did what to what, from where, with which key, and what became of it. Holds no secrets and no control characters.

    `actor` is `host` (the token of the data directory), the id of a key, or `torpor` (Torpor by itself); `actor_name` is the name of
    the key. `workspace` is that of the target, None for what concerns the whole host. `begun` is the number of the record that said
    that it was about to be done. `hash` covers all of it, and `previous`.
    """

    number: int
    at: float
    actor: str
    actor_name: str
    address: str
    action: str
    target: str
    workspace: WorkspaceId | None
    result: AuditResult
    detail: str
    begun: int | None
    previous: str
    hash: str


@dataclass(frozen=True, slots=True)
class Anchor:
    """Where a chain begins or ends: a record's number and its hash. Number 0 with GENESIS is the very beginning."""

    number: int
    hash: str


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which records. None means any. `action` also names a group (`key` for `key.create`), `actor` an id or a name; `outcomes` leaves
    out those that only say that something was begun."""

    workspace: WorkspaceId | None = None
    action: str | None = None
    target: str | None = None
    actor: str | None = None
    since: float | None = None
    until: float | None = None
    outcomes: bool = False


def seal(
    previous: Anchor,
    *,
    at: float,
    actor: str,
    actor_name: str,
    address: str,
    action: str,
    target: str,
    workspace: WorkspaceId | None,
    result: AuditResult,
    detail: str,
    begun: int | None,
) -> AuditRecord:
    """The record that follows `previous`, with its hash."""
    number = previous.number + 1
    values = (number, at, actor, actor_name, address, action, target, workspace, result.value, detail, begun, previous.hash)
    return AuditRecord(
        number, at, actor, actor_name, address, action, target, workspace, result, detail, begun, previous.hash, _digest(values)
    )


def verify(records: Iterable[AuditRecord], anchor: Anchor) -> Anchor:
    """The end of the chain that begins after `anchor`. Raises ChainBroken at the first record that doesn't fit."""
    for record in records:
        if record.number != anchor.number + 1:
            raise ChainBroken(f"record {anchor.number + 1} is missing: after {anchor.number} comes {record.number}")
        if record.previous != anchor.hash:
            raise ChainBroken(f"record {record.number} doesn't follow the one before it, which was changed or replaced")
        *content, found = astuple(record)
        if _digest(tuple(content)) != found:
            raise ChainBroken(f"record {record.number} was changed")
        anchor = Anchor(record.number, record.hash)
    return anchor


class ChainBroken(ValueError):
    """The log is not what was written."""


def clean(text: str, limit: int) -> str:
    """At most `limit` characters of `text`, all visible: strangers choose names, and people read them on terminals."""
    shown = "".join(char if char.isprintable() else "?" for char in text[:limit])
    return shown if len(text) <= limit else f"{shown[: limit - 1]}…"


def _digest(values: tuple[object, ...]) -> str:
    return hashlib.sha256(json.dumps(values, ensure_ascii=True, separators=(",", ":")).encode()).hexdigest()
