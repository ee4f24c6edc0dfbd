"""What the API shows of workspaces, keys and the audit log: frozen values, ready to be encoded as JSON. Pure.

Times are seconds since the epoch.
"""

from dataclasses import dataclass

from torpor.model.audit import Anchor, AuditRecord
from torpor.model.workspace import AccessScope, KeyId, WorkspaceId


@dataclass(frozen=True, slots=True)
class WorkspaceView:
    """A workspace, and how many databases and keys it owns."""

    id: WorkspaceId
    name: str
    created_at: float
    databases: int
    keys: int


@dataclass(frozen=True, slots=True)
class WorkspacePage:
    """Workspaces in the order of their names; `next` is the name to continue after, None at the end."""

    workspaces: tuple[WorkspaceView, ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class KeyView:
    """An API key without its secret. `prefix` is how its text begins; `last_used_at` is told to ten minutes; `created_by` is `host`
    or the id of the key that made it."""

    id: KeyId
    workspace: str
    name: str
    scope: AccessScope
    prefix: str
    created_at: float
    created_by: str
    expires_at: float | None
    expired: bool
    last_used_at: float | None


@dataclass(frozen=True, slots=True)
class KeyList:
    """The keys of a workspace, oldest first."""

    keys: tuple[KeyView, ...]


@dataclass(frozen=True, slots=True)
class CreatedKey:
    """A new key with its text, which is shown this once and kept nowhere."""

    key: KeyView
    secret: str


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Records of the audit log. `next` is the number to go on from, None at the end. `anchor` and `head` are where the chain of the
    records in the catalog begins and ends, for `torpor audit verify`; only the host's admin sees them, and the hashes."""

    records: tuple[AuditRecord, ...]
    next: int | None
    anchor: Anchor | None
    head: Anchor | None
