"""Workspaces and their API keys in the catalog. Concurrency: as `catalog`."""

from collections.abc import Mapping

import apsw

from torpor.catalog.records import Records
from torpor.model.errors import WorkspaceExists, WorkspaceInUse, WorkspaceNotFound
from torpor.model.workspace import AccessScope, ApiKey, KeyId, Workspace, WorkspaceId


class WorkspaceRecords(Records):
    """Workspaces and keys."""

    def workspaces(self) -> list[Workspace]:
        """All, oldest first. The default one is always there."""
        return [Workspace(*row) for row in self._read("workspaces")]

    def add_workspace(self, workspace: Workspace) -> None:
        """Add one. Raises WorkspaceExists when its name is taken."""
        try:
            self._write("add_workspace", (workspace.id, workspace.name, workspace.created_at))
        except apsw.ConstraintError as error:
            raise WorkspaceExists(f"workspace {workspace.name!r} exists already", "choose another name") from error

    def remove_workspace(self, id: WorkspaceId) -> None:
        """Remove one with its keys. Raises WorkspaceInUse when a database belongs to it, also one that is being made or removed."""
        try:
            self._write("remove_workspace", {"id": id})
        except apsw.ConstraintError as error:
            raise WorkspaceInUse("the workspace still owns databases", "remove them first: `torpor ls --workspace …`") from error

    def all_keys(self) -> list[ApiKey]:
        """All keys of all workspaces, oldest first."""
        return [
            ApiKey(id, workspace, name, AccessScope(scope), digest, created_at, created_by, expires_at, last_used_at)
            for id, workspace, name, scope, digest, created_at, created_by, expires_at, last_used_at in self._read("keys")
        ]

    def add_key(self, key: ApiKey) -> None:
        """Add one. Raises WorkspaceNotFound when its workspace is gone."""
        values = (key.id, key.workspace, key.name, key.scope.value, key.digest, key.created_at, key.created_by, key.expires_at)
        try:
            self._write("add_key", (*values, key.last_used_at))
        except apsw.ConstraintError as error:
            raise WorkspaceNotFound("the workspace does not exist any more", "`torpor workspace ls` shows those that do") from error

    def remove_key(self, id: KeyId) -> None:
        """Forget a key. Nothing happens when it isn't there."""
        self._write("remove_key", {"id": id})

    def use_keys(self, used: Mapping[KeyId, float]) -> None:
        """Remember when keys were used last, in one transaction."""
        if not used:
            return
        with self.transaction():
            for id, at in used.items():
                self._write("use_key", {"id": id, "at": at})
