"""The use cases on workspaces. All of them are kept in memory, since every request of a key, and every view of a database, asks.

Concurrency: plain calls on the loop. What the catalog refuses changes nothing in memory.
"""

import heapq
import secrets
from collections.abc import Callable

from torpor.base.clock import Clock
from torpor.catalog.workspaces import WorkspaceRecords
from torpor.model.errors import Conflict, InvalidRequest, WorkspaceInUse, WorkspaceNotFound
from torpor.model.workspace import DEFAULT_WORKSPACE, DEFAULT_WORKSPACE_NAME, Workspace, WorkspaceId, check_workspace_name
from torpor.model.workspace_views import WorkspacePage, WorkspaceView

MAX_WORKSPACES = 100_000
MAX_PAGE = 1000
ID_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"


class Workspaces:
    """All workspaces of the host."""

    def __init__(
        self,
        records: WorkspaceRecords,
        clock: Clock,
        databases: Callable[[WorkspaceId], int],
        keys: Callable[[WorkspaceId], int],
        forget_keys: Callable[[WorkspaceId], None],
    ) -> None:
        """`databases` and `keys` count those of a workspace; `forget_keys` is told of one that is gone."""
        self._records = records
        self._clock = clock
        self._databases = databases
        self._keys = keys
        self._forget_keys = forget_keys
        self._by_name = {workspace.name: workspace for workspace in records.workspaces()}
        self._by_id = {workspace.id: workspace for workspace in self._by_name.values()}

    def __repr__(self) -> str:
        return f"<Workspaces {len(self._by_id)}>"

    def create(self, name: str) -> WorkspaceView:
        """A new workspace. Raises InvalidName, WorkspaceExists."""
        check_workspace_name(name)
        if len(self._by_id) >= MAX_WORKSPACES:
            raise Conflict(f"there are {MAX_WORKSPACES} workspaces already", "remove some")
        id = WorkspaceId("w" + "".join(secrets.choice(ID_ALPHABET) for _ in range(12)))
        workspace = Workspace(id, name, self._clock.time())
        self._records.add_workspace(workspace)
        self._by_name[name] = self._by_id[id] = workspace
        return self.view(workspace)

    def find(self, name: str, within: WorkspaceId | None = None) -> Workspace:
        """The workspace of that name. Raises WorkspaceNotFound, in the same words for one outside of `within`."""
        workspace = self._by_name.get(name)
        if workspace is None or within not in (None, workspace.id):
            raise WorkspaceNotFound(f"workspace {name[:63]!r} does not exist", "`torpor workspace ls` shows those that do")
        return workspace

    def by_id(self, id: WorkspaceId) -> Workspace:
        """The workspace of that id. Raises WorkspaceNotFound."""
        workspace = self._by_id.get(id)
        if workspace is None:
            raise WorkspaceNotFound("the workspace does not exist any more")
        return workspace

    def name(self, id: WorkspaceId | None) -> str:
        """What people call it; an empty name for none (a database of the warm pool)."""
        return self._by_id[id].name if id in self._by_id else ""

    def list(self, after: str | None, limit: int) -> WorkspacePage:
        """A page in the order of names."""
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidRequest(f"limit must be between 1 and {MAX_PAGE}")
        page = heapq.nsmallest(limit + 1, (name for name in self._by_name if after is None or name > after))
        views = tuple(self.view(self._by_name[name]) for name in page[:limit])
        return WorkspacePage(views, page[limit - 1] if len(page) > limit else None)

    def delete(self, name: str) -> None:
        """Remove an empty workspace; its keys end with it. Raises WorkspaceNotFound, WorkspaceInUse, Conflict for the default one."""
        workspace = self.find(name)
        if workspace.id == DEFAULT_WORKSPACE:
            raise Conflict(f"the workspace {DEFAULT_WORKSPACE_NAME} is always there", "remove what is in it, if that is what you want")
        if count := self._databases(workspace.id):
            raise WorkspaceInUse(
                f"workspace {name} owns {count} databases", f"remove them first: `torpor ls --workspace {name}` shows them"
            )
        self._records.remove_workspace(workspace.id)
        del self._by_name[name], self._by_id[workspace.id]
        self._forget_keys(workspace.id)

    def view(self, workspace: Workspace) -> WorkspaceView:
        """One as lists show it."""
        counts = self._databases(workspace.id), self._keys(workspace.id)
        return WorkspaceView(workspace.id, workspace.name, workspace.created_at, *counts)
