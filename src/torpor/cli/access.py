"""`torpor access`: from where clients may connect. Lists are read, changed and sent back with their version; whoever was faster wins, and
this one tries again."""

from collections.abc import Callable
from typing import Any

import click

from torpor.cli.client import Client, database_path, workspace_path
from torpor.cli.errors import CommandError, Exit
from torpor.cli.invocation import Invocation, with_invocation
from torpor.cli.root import LazyGroup
from torpor.model.access import check_network
from torpor.model.access_views import AccessView

_ATTEMPTS = 5

access = LazyGroup(
    "access",
    {
        "show": ("access:show", "Which addresses may connect, and which may not."),
        "allow": ("access:allow", "Admit these addresses or networks; once there is one, only those that are allowed may connect."),
        "deny": ("access:deny", "Keep these addresses or networks out, whatever is allowed; their sessions end."),
        "remove": ("access:remove", "Take these addresses or networks off the lists."),
    },
    "From where clients may connect: to all databases, to those of a workspace, to one.",
)

_workspace = click.option("--workspace", help="The lists of this workspace.")
_database = click.option("--database", help="The lists of this database.")


def _changing(command: Callable[..., None]) -> click.Command:
    """A command that changes lists: of what scope, and with which networks."""
    return click.command()(click.argument("networks", nargs=-1, required=True)(_workspace(_database(with_invocation(command)))))


@click.command()
@_workspace
@_database
@with_invocation
def show(invocation: Invocation, workspace: str | None, database: str | None) -> None:
    """Which addresses may connect, and which may not. A client must pass the global lists, its workspace's and its database's."""
    client = invocation.connect()
    answer = client.get(_path(workspace, database))
    invocation.emit(answer, lambda: _words(client.decode(AccessView, answer), _scope(workspace, database)))


@_changing
def allow(invocation: Invocation, networks: tuple[str, ...], workspace: str | None, database: str | None) -> None:
    """Admit these addresses (203.0.113.7) or networks (203.0.113.0/24). As soon as the list has an entry, all others are kept out."""
    wanted = [check_network(network) for network in networks]

    def change(view: AccessView) -> tuple[list[str], list[str]]:
        return [*view.allow, *wanted], list(view.deny)

    _change(invocation, workspace, database, change)


@_changing
def deny(invocation: Invocation, networks: tuple[str, ...], workspace: str | None, database: str | None) -> None:
    """Keep these addresses or networks out, whatever is allowed. Their sessions end within a second."""
    wanted = [check_network(network) for network in networks]

    def change(view: AccessView) -> tuple[list[str], list[str]]:
        return list(view.allow), [*view.deny, *wanted]

    _change(invocation, workspace, database, change)


@_changing
def remove(invocation: Invocation, networks: tuple[str, ...], workspace: str | None, database: str | None) -> None:
    """Take these entries off both lists, as they are written there. An allow list that is empty then admits everybody."""
    unwanted = {check_network(network) for network in networks}

    def change(view: AccessView) -> tuple[list[str], list[str]]:
        missing = unwanted - {*view.allow, *view.deny}
        if missing:
            message = f"{', '.join(sorted(missing))} is on no list {_scope(workspace, database)}"
            raise CommandError(message, "`torpor access show` shows what is", kind="access_entry_not_found")
        return [entry for entry in view.allow if entry not in unwanted], [entry for entry in view.deny if entry not in unwanted]

    _change(invocation, workspace, database, change)


def _change(
    invocation: Invocation,
    workspace: str | None,
    database: str | None,
    change: Callable[[AccessView], tuple[list[str], list[str]]],
) -> None:
    client = invocation.connect()
    path = _path(workspace, database)
    answer = _replace(client, path, change)
    view = client.decode(AccessView, answer)
    invocation.emit(answer, _words(view, _scope(workspace, database)))
    if view.closed:
        invocation.hint(f"{view.closed} open sessions are forbidden now, and end")


def _replace(client: Client, path: str, change: Callable[[AccessView], tuple[list[str], list[str]]]) -> Any:
    for attempt in range(_ATTEMPTS):
        view = client.fetch(AccessView, path)
        allowed, denied = change(view)
        try:
            return client.put(path, {"allow": allowed, "deny": denied, "version": view.version})
        except CommandError as error:
            if error.shown_kind != "conflict" or attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("the last attempt returns or raises")


def _path(workspace: str | None, database: str | None) -> str:
    if workspace is not None and database is not None:
        message = "give --workspace or --database, not both"
        raise CommandError(message, "a database's own lists hold beside its workspace's", kind="usage", code=Exit.USAGE)
    if workspace is not None:
        return workspace_path(workspace, "access")
    return "/v1/access" if database is None else database_path(database, "access")


def _scope(workspace: str | None, database: str | None) -> str:
    if workspace is not None:
        return f"of workspace {workspace}"
    return f"of database {database}" if database is not None else "for all databases"


def _words(view: AccessView, scope: str) -> str:
    lines = [f"allow  {entry}" for entry in view.allow] + [f"deny   {entry}" for entry in view.deny]
    if not lines:
        return f"no access lists {scope}: every address may connect"
    meaning = "only these addresses may connect" if view.allow else "all addresses may connect but these"
    return "\n".join([f"access lists {scope}: {meaning}", *lines])
