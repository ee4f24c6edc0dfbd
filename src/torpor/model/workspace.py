"""Workspaces, API keys and the scopes of both, as the catalog keeps them and the API checks them. Pure values.

A workspace is who pays: it owns databases and API keys. Everything that a key sees and touches belongs to its workspace. The host's
admin, who has the token of the data directory, stands above all workspaces.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

from torpor.model.errors import InvalidName

WorkspaceId = NewType("WorkspaceId", str)
"""Identifies a workspace for ever: `w` and twelve characters of a-z2-7. Another one of the same name later has another id."""

KeyId = NewType("KeyId", str)
"""Identifies an API key for ever: `k` and eleven characters of a-z2-7. Not secret: it is part of the key's text and of audit records."""

DEFAULT_WORKSPACE = WorkspaceId("wdefaultaaaaa")
"""The workspace that always exists, named `default`. Databases whose makers name no other belong to it."""

DEFAULT_WORKSPACE_NAME = "default"

SELF = "self"
"""In paths and queries: the workspace of the key that asks, or the default one for the host's admin. Not a name."""

KEY_PREFIX = "torpor_k1_"
"""How every API key begins, so that people, and programs that look for leaked secrets, recognise one. `1` is the format."""

_NAME = re.compile(r"[a-z][a-z0-9-]{0,61}[a-z0-9]|[a-z]")
_MAX_KEY_NAME = 80


class AccessScope(StrEnum):
    """What a caller may do. Each operation of the API names the one that it needs."""

    READ = "read"  # see the databases of the workspace and their state, never what is in them
    WRITE = "write"  # also make, change and remove databases, and get at what is in them: passwords, tickets, PostgreSQL's log
    ADMIN = "admin"  # also rule over the workspace: its keys and its audit log
    METRICS = "metrics"  # read the host's metrics, and nothing else: for Prometheus. Given by the host's admin only
    HOST = "host"  # everything, in all workspaces: the token of the data directory. No key has it

    def allows(self, needed: "AccessScope") -> bool:
        """Whether a caller with this scope may do what needs `needed`."""
        return needed in _ALLOWED[self]


_ALLOWED: dict[AccessScope, frozenset[AccessScope]] = {
    AccessScope.READ: frozenset({AccessScope.READ}),
    AccessScope.WRITE: frozenset({AccessScope.READ, AccessScope.WRITE}),
    AccessScope.ADMIN: frozenset({AccessScope.READ, AccessScope.WRITE, AccessScope.ADMIN}),
    AccessScope.METRICS: frozenset({AccessScope.METRICS}),
    AccessScope.HOST: frozenset(AccessScope),
}


@dataclass(frozen=True, slots=True)
class Workspace:
    """One workspace."""

    id: WorkspaceId
    name: str
    created_at: float


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One API key without its secret, of which only the SHA-256 is kept. `last_used_at` is coarse; `created_by` names a caller."""

    id: KeyId
    workspace: WorkspaceId
    name: str
    scope: AccessScope
    digest: bytes
    created_at: float
    created_by: str
    expires_at: float | None = None
    last_used_at: float | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the host's admin, or a key. `workspace` confines what is seen and touched; None is all of it."""

    scope: AccessScope
    workspace: WorkspaceId | None
    key: KeyId | None = None
    name: str = ""
    address: str = ""

    @property
    def actor(self) -> str:
        """What audit records call it: `host`, or the id of the key."""
        return self.key or "host"


def check_workspace_name(text: str) -> str:
    """Return `text` when it can name a workspace, else raise InvalidName saying what is wrong with it."""
    if text == SELF:
        raise InvalidName(f"{text!r} is reserved", "choose another name")
    if _NAME.fullmatch(text) is None:
        raise InvalidName(
            f"{text[:80]!r} can't name a workspace", "use 1 to 63 of a-z, 0-9 and '-', beginning with a letter and not ending in '-'"
        )
    return text


def check_key_name(text: str) -> str:
    """Return `text` when it can name a key (names needn't be unique), else raise InvalidName."""
    if not 1 <= len(text) <= _MAX_KEY_NAME or not text.isprintable() or text != text.strip():
        raise InvalidName(f"{text[:80]!r} can't name a key", f"use 1 to {_MAX_KEY_NAME} visible characters that tell what it is for")
    return text
