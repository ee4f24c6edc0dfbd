"""`torpor workspace`: who owns databases and API keys. Each command is one request, and its answer in words."""

import time
from typing import Any

import click

from torpor.cli import text
from torpor.cli.client import workspace_path
from torpor.cli.invocation import Invocation, confirm, with_invocation
from torpor.cli.root import LazyGroup
from torpor.model.workspace_views import WorkspaceView

workspace = LazyGroup(
    "workspace",
    {
        "create": ("workspaces:create", "Make a workspace."),
        "ls": ("workspaces:ls", "List workspaces."),
        "show": ("workspaces:show", "A workspace, and how much it owns."),
        "rm": ("workspaces:rm", "Remove a workspace that owns no databases, with its API keys."),
    },
    "Workspaces: who owns databases and API keys.",
)

_PAGE_SIZE = 500


@click.command()
@click.argument("name")
@with_invocation
def create(invocation: Invocation, name: str) -> None:
    """Make a workspace."""
    answer = invocation.connect().post("/v1/workspaces", {"name": name})
    invocation.emit(answer, f"{name} is made")
    invocation.hint(f"next: torpor key create --workspace {name} --name ci, torpor create --workspace {name}")


@click.command()
@with_invocation
def ls(invocation: Invocation) -> None:
    """List workspaces."""
    client = invocation.connect()
    found: list[dict[str, Any]] = []
    after: str | None = None
    while True:
        answer = client.get("/v1/workspaces", after=after, limit=_PAGE_SIZE)
        found += answer["workspaces"]
        after = answer["next"]
        if after is None:
            break
    views = [client.decode(WorkspaceView, one) for one in found]
    now = time.time()
    rows = [[view.name, str(view.databases), str(view.keys), text.age(view.created_at, now)] for view in views]
    table = text.table(["NAME", "DATABASES", "KEYS", "AGE"], rows, frozenset({1, 2, 3}))
    invocation.emit({"workspaces": found, "next": None}, table)


@click.command()
@click.argument("name")
@with_invocation
def show(invocation: Invocation, name: str) -> None:
    """A workspace, and how much it owns. With an API key, "self" is its own workspace."""
    client = invocation.connect()
    answer = client.get(workspace_path(name))
    view = client.decode(WorkspaceView, answer)
    age = text.duration(time.time() - view.created_at)
    invocation.emit(answer, f"{view.name}  made {age} ago, id {view.id}\n{view.databases} databases, {view.keys} API keys")


@click.command()
@click.argument("name")
@with_invocation
def rm(invocation: Invocation, name: str) -> None:
    """Remove a workspace that owns no databases. Its API keys end at once."""
    client = invocation.connect()
    view = client.decode(WorkspaceView, client.get(workspace_path(name)))
    if view.keys:
        confirm(invocation, f"End the {view.keys} API keys of {name}?")
    client.delete(workspace_path(name))
    invocation.emit({"removed": view.name, "id": view.id}, f"{name} is removed")
