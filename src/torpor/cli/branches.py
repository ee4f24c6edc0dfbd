"""The commands of branches: each one request, and its answer in words."""

import time
from typing import Any

import click

from torpor.cli import text
from torpor.cli.client import Client, database_path
from torpor.cli.databases import IdleTime, keep
from torpor.cli.invocation import Invocation, confirm, with_invocation
from torpor.cli.keys import Lifetime
from torpor.cli.moments import moment_body, with_moment
from torpor.cli.passwords import Password, with_login
from torpor.cli.sizes import size_body, with_size
from torpor.model.branches import Branched, BranchList, PastBranch
from torpor.model.views import DatabaseDetail, DatabaseView


@click.command()
@click.argument("name")
@click.argument("branch", required=False)
@click.option("--ttl", type=Lifetime(), help="How long it lives, such as 12h or 2d; then it is removed (default: until you remove it).")
@click.option(
    "--keep-passwords", is_flag=True, help="All roles keep their passwords (default: the owner gets a new one, no other has any)."
)
@with_moment
@click.option("--freeze-after", type=IdleTime(), help="Idle seconds before it is frozen, or never.")
@click.option("--page-after", type=IdleTime(), help="Seconds frozen before its memory is reclaimed, or never.")
@click.option("--stop-after", type=IdleTime(), help="Seconds frozen before it is stopped, or never.")
@with_size
@with_invocation
def branch(
    invocation: Invocation,
    name: str,
    branch: str | None,
    ttl: float | None,
    keep_passwords: bool,
    freeze_after: float | str | None,
    page_after: float | str | None,
    stop_after: float | str | None,
    cpu: Any,
    memory: Any,
    connections: Any,
    disk: Any,
    at: float | None,
    lsn: str | None,
    before_transaction: int | None,
) -> None:
    """Make BRANCH, a full copy of NAME as it is now (or was), and print its URL on stdout.

    It shares every byte that neither changes, whatever its size. NAME goes on undisturbed. Without BRANCH a name is chosen.
    """
    client = invocation.connect()
    wanted = {
        "name": branch,
        "ttl_s": ttl,
        "keep_passwords": keep_passwords or None,
        "freeze_after_s": freeze_after,
        "page_after_s": page_after,
        "stop_after_s": stop_after,
        "size": size_body(cpu, memory, connections, disk) or None,
    }
    if moment := moment_body(at, lsn, before_transaction):
        _branch_past(invocation, client, name, wanted | moment)
        return
    with invocation.waiting(f"branching {name}"):
        answer = client.post(database_path(name, "branches"), {key: value for key, value in wanted.items() if value is not None})
    made = client.decode(Branched, answer)
    if made.credentials is not None:
        # The URL first: whatever else goes wrong, it isn't lost.
        invocation.emit(answer, made.credentials.url)
        keep(invocation, client, made.database.id, made.credentials)
    else:
        invocation.emit(answer, _with_password_of_parent(invocation, client, name, made.database))
    invocation.hint(f"{made.database.name} is a branch of {name}, made in {text.milliseconds(made.elapsed_ms)}{_until(made.database)}")
    invocation.hint(f"next: torpor psql {made.database.name}; back to what {name} is then: torpor reset {made.database.name}")


def _branch_past(invocation: Invocation, client: Client, name: str, wanted: dict[str, Any]) -> None:
    """A branch of the past takes its time: the URL is printed when it is there."""
    from torpor.cli import progress

    answer = client.post(database_path(name, "branches/past"), {key: value for key, value in wanted.items() if value is not None})
    begun = client.decode(PastBranch, answer)
    done = progress.finish(invocation, client, answer["job"])
    made = client.fetch(DatabaseDetail, database_path(begun.name)).database
    answer["job"] = client.get(f"/v1/jobs/{done.id}")
    if begun.credentials is not None:
        invocation.emit(answer, begun.credentials.url)
        keep(invocation, client, made.id, begun.credentials)
    else:
        invocation.emit(answer, made.url)
    invocation.hint(f"{begun.name} is a branch of {name} as it was{_until(made)}")


@click.command()
@click.argument("name")
@with_invocation
def branches(invocation: Invocation, name: str) -> None:
    """List the branches of a database, oldest first."""
    client = invocation.connect()
    answer = client.get(database_path(name, "branches"))
    found = client.decode(BranchList, answer).branches
    now = time.time()
    head = ["NAME", "TIER", "AS-OF", "EXPIRES", "CONNS"]
    invocation.emit(answer, lambda: text.table(head, [_row(one, now) for one in found], frozenset({4})) if found else "")
    if not found:
        invocation.hint(f"{name} has no branches; make one with `torpor branch {name}`")


@click.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Also when connections are open; and don't ask.")
@with_invocation
def reset(invocation: Invocation, name: str, force: bool) -> None:
    """Bring a branch back to what its parent is now. What was changed in it is lost; its URL stays."""
    client = invocation.connect()
    parent = client.fetch(DatabaseDetail, database_path(name)).database.parent
    if not force and parent is not None:
        confirm(invocation, f"Throw away what was changed in {name}, and make it what {parent} is now?")
    with invocation.waiting(f"resetting {name}"):
        answer = client.post(database_path(name, "reset"), {"force": force})
    invocation.emit(answer, lambda: f"{name} is what {client.decode(DatabaseView, answer).parent} is now")


def _with_password_of_parent(invocation: Invocation, client: Client, parent: str, view: DatabaseView) -> str:
    """The branch's URL: with the password that the parent's owner has, when this machine knows it."""
    passwords = invocation.passwords(client)
    known = passwords.get(client.fetch(DatabaseDetail, database_path(parent)).database.id)
    if known is None:
        return view.url
    passwords.put(view.id, Password(view.name, known.password))
    return with_login(view.url, view.name, known.password)


def _until(view: DatabaseView) -> str:
    return "" if view.expires_at is None else f"; it is removed in {text.duration(view.expires_at - time.time())}"


def _row(view: DatabaseView, now: float) -> list[str]:
    as_of = "-" if view.branched_at is None else f"{text.age(view.branched_at, now)} ago"
    expires = "never" if view.expires_at is None else f"in {text.duration(view.expires_at - now)}"
    return [view.name, str(view.tier), as_of, expires, str(view.connections)]
