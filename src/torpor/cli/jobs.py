"""`torpor job`: long operations that Torpor does, how far they are, and stopping them."""

import time
from dataclasses import asdict
from urllib.parse import quote

import click

from torpor.cli import text
from torpor.cli.invocation import Invocation, with_invocation
from torpor.cli.progress import describe, finish
from torpor.cli.root import LazyGroup
from torpor.model.jobs import JobList, JobState, JobView

job = LazyGroup(
    "job",
    {
        "ls": ("jobs:ls", "List jobs: those that run, and the last hundreds that have ended."),
        "show": ("jobs:show", "How far a job is, or what became of it."),
        "wait": ("jobs:wait", "Wait for a job, and show how far it is. Ctrl-C leaves it: the job goes on."),
        "cancel": ("jobs:cancel", "Stop a job. It cleans up after itself."),
    },
    "Jobs: long operations, which go on in Torpor whoever waits for them.",
)


@click.command()
@click.option("--state", type=click.Choice([str(state) for state in JobState]), help="Only those in this state.")
@click.option("--database", help="Only those on this database.")
@click.option("--workspace", help="Only those of this workspace.")
@click.option("-n", "--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many at most, the newest.")
@with_invocation
def ls(invocation: Invocation, state: str | None, database: str | None, workspace: str | None, limit: int) -> None:
    """List jobs, the newest first."""
    client = invocation.connect()
    answer = client.get("/v1/jobs", state=state, database=database, workspace=workspace, limit=limit)
    found = client.decode(JobList, answer).jobs
    now = time.time()
    rows = [[one.id, one.kind, one.database, str(one.state), text.age(one.began_at, now), _how_far(one)] for one in found]
    invocation.emit(answer, lambda: text.table(["ID", "KIND", "DATABASE", "STATE", "AGE", ""], rows, frozenset({4})) if rows else "")
    if not rows:
        invocation.hint("no jobs")


@click.command()
@click.argument("id")
@with_invocation
def show(invocation: Invocation, id: str) -> None:
    """How far a job is, or what became of it."""
    client = invocation.connect()
    answer = client.get(_path(id))
    invocation.emit(answer, lambda: describe(client.decode(JobView, answer), time.time()))


@click.command()
@click.argument("id")
@with_invocation
def wait(invocation: Invocation, id: str) -> None:
    """Wait for a job, and show how far it is. Ctrl-C leaves it: the job goes on. Fails when the job did."""
    client = invocation.connect()
    ended = finish(invocation, client, client.get(_path(id)))
    invocation.emit(asdict(ended), lambda: describe(ended, time.time()))


@click.command()
@click.argument("id")
@with_invocation
def cancel(invocation: Invocation, id: str) -> None:
    """Stop a job. What it has made so far is removed; one that has ended stays as it is."""
    client = invocation.connect()
    with invocation.waiting("waiting until it has cleaned up"):
        answer = client.cancel(_path(id))
    invocation.emit(answer, lambda: describe(client.decode(JobView, answer), time.time()))


def _how_far(view: JobView) -> str:
    if view.error is not None:
        return text.clean(view.error.message, 60)
    return f"{view.done * 100 // view.total} %" if view.total and view.state is JobState.RUNNING else view.note


def _path(id: str) -> str:
    return f"/v1/jobs/{quote(id, safe='')}"
