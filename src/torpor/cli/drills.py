"""`torpor drill` and `torpor drills`: whether what the history holds can be restored, found out by doing it."""

import time

import click

from torpor.cli import text
from torpor.cli.client import database_path
from torpor.cli.errors import CommandError, Exit
from torpor.cli.invocation import Invocation, with_invocation
from torpor.model.drills import DrillList, DrillResult, DrillView

_MARKS = {DrillResult.PASSED: "passed", DrillResult.FAILED: "FAILED", DrillResult.NOT_POSSIBLE: "not possible"}


@click.command()
@click.argument("name")
@click.option("--no-wait", is_flag=True, help="Don't wait for its end.")
@with_invocation
def drill(invocation: Invocation, name: str, no_wait: bool) -> None:
    """Verify now that NAME can be restored: to a moment chosen by chance, beside it, looked through and thrown away.

    Nothing of NAME is touched. It takes a tenth of a processor at most, and so its time. Fails when the drill did.
    """
    from torpor.cli import progress

    client = invocation.connect()
    answer = client.post(database_path(name, "drills"))
    if no_wait:
        invocation.emit(answer, f"job {answer['id']} verifies {name}")
        return
    done = progress.finish(invocation, client, answer)
    words = f"{name} was restored to {text.clean(done.result.get('moment', '?'))}, and all is right"
    found = f"{done.result.get('rows', '?')} rows in {done.result.get('tables', '?')} tables ({done.result.get('checked', '')})"
    invocation.emit(client.get(f"/v1/jobs/{done.id}"), f"{words}: {text.clean(found)}")


@click.command()
@click.argument("name", required=False)
@click.option("--result", type=click.Choice([str(result) for result in DrillResult]), help="Only those with this result.")
@click.option("--workspace", help="Only those of this workspace.")
@click.option("-n", "--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="How many at most, the newest.")
@with_invocation
def drills(invocation: Invocation, name: str | None, result: str | None, workspace: str | None, limit: int) -> None:
    """What restore drills found: the last one on each database, or the last ones on NAME."""
    if name is not None and (result is not None or workspace is not None):
        raise CommandError("the drills on one database are all shown", "leave --result and --workspace out", kind="usage", code=Exit.USAGE)
    client = invocation.connect()
    if name is not None:
        answer = client.get(database_path(name, "drills"))
    else:
        answer = client.get("/v1/drills", result=result, workspace=workspace, limit=limit)
    view = client.decode(DrillList, answer)
    now = time.time()
    invocation.emit(answer, lambda: "\n".join(lines(view, now)))


def lines(view: DrillList, now: float) -> list[str]:
    """The whole page. Pure."""
    every = "none is begun by itself" if view.every_s is None else f"one is begun every {text.duration(view.every_s)}"
    failing = f"{view.failing} FAILING, " if view.failing else ""
    summary = f"{failing}{view.verified} verified, {view.unverified} not yet; {every}"
    if not view.drills:
        return [summary]
    rows = [[each.database, _MARKS[each.result], text.age(each.ended_at, now), each.moment or "-", _found(each)] for each in view.drills]
    shown = text.table(["DATABASE", "RESULT", "AGE", "RESTORED TO", "FOUND"], rows, frozenset({2})).splitlines()
    failed = [each for each in view.drills if each.result is DrillResult.FAILED]
    return [*shown, "", summary, *[f"{text.clean(each.database)}: {text.clean(each.hint, 300)}" for each in failed[:1] if each.hint]]


def last(view: DrillView | None, now: float) -> list[tuple[str, str]]:
    """What the last drill said of a database, in labelled lines. Pure."""
    if view is None:
        return [("verified", "not yet")]
    if view.result is DrillResult.PASSED:
        return [("verified", f"{text.duration(max(0.0, now - view.ended_at))} ago, restored to {text.clean(view.moment)}")]
    failed = f"the drill of {text.duration(max(0.0, now - view.ended_at))} ago FAILED: {text.clean(view.detail, 300)}"
    return [("verified", failed), *([("", text.clean(view.hint, 300))] if view.hint else [])]


def _found(view: DrillView) -> str:
    if view.result is DrillResult.PASSED:
        return f"{view.rows} rows in {view.tables} tables, {text.size(view.size_bytes)} and {text.size(view.log_bytes)} of log"
    return text.clean(view.detail, 200)
