"""`torpor recover`: what the store holds of databases that aren't here, and bringing them back."""

import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import click

from torpor.cli import text
from torpor.cli.client import Client
from torpor.cli.errors import CommandError, Exit
from torpor.cli.history import moment
from torpor.cli.invocation import Invocation, confirm, with_invocation
from torpor.cli.moments import moment_body, with_moment
from torpor.model.recovery_views import RecoverableList, RecoverableView, Recovering
from torpor.model.views import DatabaseDetail

_PATH = "/v1/recovery"
_PAGE = 200
_AHEAD = 4  # of --all are begun at a time


@click.command()
@click.argument("name", required=False)
@click.option("--all", "every", is_flag=True, help="All that aren't back under their names yet, a few at a time.")
@click.option("--as", "new_name", metavar="NAME", help="Call it something else than it was called.")
@with_moment
@click.option("--forget", is_flag=True, help="Remove all that the store holds of NAME, for good.")
@click.option("--force", is_flag=True, help="With --forget: don't ask, and also when another Torpor may still run it.")
@click.option("--no-wait", is_flag=True, help="Don't wait for its end.")
@with_invocation
def recover(
    invocation: Invocation,
    name: str | None,
    every: bool,
    new_name: str | None,
    at: float | None,
    lsn: str | None,
    before_transaction: int | None,
    forget: bool,
    force: bool,
    no_wait: bool,
) -> None:
    """Bring back databases of a machine that was lost, from the store of the history and a copy of its master key.

    Without NAME it lists what the store holds and isn't here. NAME is the name that it had, or its id. It comes back with its roles and
    their passwords, its settings and its access lists; API keys, and the access lists of hosts and workspaces, are to be made again. What
    the store holds of the lost machine stays there until it is forgotten.
    """
    wanted = {"name": new_name} | moment_body(at, lsn, before_transaction)
    _check(name, every, wanted, forget, force, no_wait)
    client = invocation.connect()
    if name is None and not every:
        _list(invocation, client)
    elif forget:
        assert name is not None
        if not force:
            confirm(invocation, f"Remove all that the store holds of {name}, for good?")
        client.post(f"{_PATH}/forget", {"database": name, "force": force})
        invocation.emit({"forgotten": name}, f"{name} is forgotten: its keys are removed, and the rest goes within minutes")
    elif every:
        _recover_all(invocation, client, wanted)
    else:
        answer = client.post(_PATH, {"database": name} | {key: value for key, value in wanted.items() if value is not None})
        if no_wait:
            invocation.emit(answer, f"job {answer['job']['id']} recovers {name}")
        else:
            _finish(invocation, client, answer)


def _check(name: str | None, every: bool, wanted: dict[str, Any], forget: bool, force: bool, no_wait: bool) -> None:
    given = any(value is not None for value in wanted.values())
    wrong = ""
    if every and (name is not None or forget or no_wait or any(wanted.get(key) for key in ("name", "lsn", "before_transaction"))):
        wrong = "--all brings back all, called as they were, as they are or as they were at a time, and waits for them"
    elif name is None and not every and (given or forget or no_wait):
        wrong = "it isn't said which database"
    elif forget and (given or no_wait):
        wrong = "what is forgotten isn't brought back"
    elif force and not forget:
        wrong = "--force goes with --forget"
    if wrong:
        raise CommandError(wrong, "see `torpor recover --help`", kind="usage", code=Exit.USAGE)


def _list(invocation: Invocation, client: Client) -> None:
    with invocation.waiting("reading what the store holds"):
        pages = list(_pages(client))
    last = client.decode(RecoverableList, pages[-1])
    found = [view for page in pages for view in client.decode(RecoverableList, page).databases]
    now = time.time()
    invocation.emit(
        pages[-1] | {"databases": [view for page in pages for view in page["databases"]], "next": None},
        lambda: (
            text.table(["NAME", "WORKSPACE", "ID", "SIZE", "FROM", "TO", "AGE", ""], [_row(view, now) for view in found], frozenset({3}))
            if found
            else ""
        ),
    )
    for line in hints(last, found):
        invocation.hint(line)


def _pages(client: Client) -> Iterator[Any]:
    after = None
    while True:
        page = client.get(_PATH, after=after, limit=_PAGE)
        yield page
        if (after := page["next"]) is None:
            return


def _row(view: RecoverableView, now: float) -> list[str]:
    state = view.trouble or (f"recovered as {view.recovered_as}" if view.recovered_as else "")
    if not state and view.archived:
        state = "archived"
    if not state and view.branch_of:
        state = f"branch of {view.branch_of}"
    return [
        text.clean(view.name) or "?",
        text.clean(view.workspace),
        view.id,
        text.size(view.size_bytes) if view.size_bytes is not None else "",
        moment(view.from_at) if view.from_at is not None else "",
        moment(view.to_at) if view.to_at is not None else "",
        text.age(view.to_at, now) if view.to_at is not None else "",
        text.clean(state, 80),
    ]


def hints(view: RecoverableList, found: list[RecoverableView]) -> list[str]:
    """What else is to be said of a list. Pure."""
    said = []
    if not found:
        said.append(f"{text.clean(view.store)} holds no database that isn't here")
    if view.here:
        said.append(f"{view.here} more are this Torpor's own")
    if view.foreign:
        said.append(
            f"{view.foreign} more can't be read: they were sealed with another master key than {view.master_key}. Is it another machine's "
            "store, too? Else put back the key file that was used before (the setting key_file), and start Torpor again"
        )
    if view.behind:
        said.append(f"of {view.behind} databases here the store doesn't have the newest card yet")
    if any(not one.recovered_as and not one.trouble for one in found):
        said.append("to bring one back: torpor recover NAME; all of them: torpor recover --all")
    return said


def _recover_all(invocation: Invocation, client: Client, wanted: dict[str, Any]) -> None:
    """A few are begun ahead of the one that is waited for. What fails is told, and the others go on."""
    with invocation.waiting("reading what the store holds"):
        listed = [view for page in _pages(client) for view in client.decode(RecoverableList, page).databases]
        found = [view for view in listed if not view.recovered_as or view.recovered_as != view.name]
    waiting, begun, results, failures = deque(found), deque[tuple[str, Any]](), list[Any](), list[dict[str, str]]()
    body = {key: value for key, value in wanted.items() if value is not None}

    def failed(name: str, error: CommandError) -> None:
        failures.append({"database": name, "kind": error.shown_kind, "message": error.message})
        invocation.hint(f"{name}: {error}")

    while waiting or begun:
        while waiting and len(begun) < _AHEAD:
            view = waiting.popleft()
            name = view.name or view.id
            try:
                begun.append((name, client.post(_PATH, {"database": view.id} | body)))
            except CommandError as error:
                failed(name, error)
        if begun:
            name, answer = begun.popleft()
            try:
                results.append(_finish(invocation, client, answer, quietly=True))
            except CommandError as error:
                failed(name, error)
    invocation.emit(
        {"recovered": results, "failed": failures},
        f"{len(results)} databases are back" + (f", {len(failures)} are not" if failures else ""),
    )
    if failures:
        raise CommandError(f"{len(failures)} of {len(found)} databases could not be brought back", "once the cause is mended, do it again")


def _finish(invocation: Invocation, client: Client, answer: Any, quietly: bool = False) -> Any:
    """Wait for one; the database as it is then."""
    from torpor.cli import progress

    begun = client.decode(Recovering, answer)
    done = progress.finish(invocation, client, answer["job"])
    answer["job"] = client.get(f"/v1/jobs/{done.id}")
    made = client.fetch(DatabaseDetail, f"/v1/databases/{begun.name}").database
    lacks = text.clean(done.result.get("lacks", ""), 200)
    if quietly:
        invocation.hint(f"{made.name} is back{f', but lacks {lacks}' if lacks else ''}")
        return answer
    invocation.emit(answer, made.url)
    if lacks:
        invocation.hint(f"it lacks {lacks}")
    invocation.hint(f"{made.name} is back, with its roles and their passwords as they were; the URL is without the password")
    invocation.hint(f"the store keeps what it was: once all is well, torpor recover --forget {done.result.get('from', made.name)}")
    return answer
