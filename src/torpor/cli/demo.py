"""`torpor demo`: the tour for a person (or, with --json, for a script), and its cleaning up, whatever ends it."""

import contextlib
import secrets
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from torpor.cli import text
from torpor.cli.client import Client, database_path
from torpor.cli.errors import CommandError
from torpor.cli.invocation import Invocation, with_invocation
from torpor.cli.passwords import Password

if TYPE_CHECKING:
    from torpor.cli.tour import Tour


@click.command()
@click.option("--keep", is_flag=True, help="Leave the database there at the end.")
@click.option("-y", "--yes", is_flag=True, help="Don't wait for a key between the parts (also when there is no terminal).")
@with_invocation
def demo(invocation: Invocation, keep: bool, yes: bool) -> None:
    """A tour on real data: make, fill, query, fall asleep, wake; with the time of each."""
    from torpor.cli.tour import Timed, Tour

    client = invocation.connect()
    pauses = not (yes or invocation.json) and sys.stdin.isatty() and sys.stdout.isatty()

    def before(words: str) -> None:
        if invocation.json:
            return
        click.echo(f"\n{words}")
        if pauses:
            click.echo("  (any key goes on)", nl=False)
            click.getchar()  # not click.pause(), which takes Ctrl-C for a key
            click.echo("\r                   \r", nl=False)

    def after(step: Timed) -> None:
        if not invocation.json:
            click.echo(f"  {text.milliseconds(step.elapsed_ms).rjust(8)}  {step.name}{f'  ({step.note})' if step.note else ''}")

    tour = Tour(client, f"demo-{secrets.token_hex(3)}", before, after)
    with _removed_at_the_end(client, tour.name, keep), _sigterm_as_interrupt():
        tour.run()
        if keep:
            _remember(invocation, client, tour)
    rows = [[step.name, text.milliseconds(step.elapsed_ms), step.note] for step in tour.timed]
    value = {"database": tour.name, "kept": keep, "steps": [asdict(step) for step in tour.timed]}
    invocation.emit(value, lambda: "\n" + text.table(["STEP", "TIME", ""], rows, frozenset({1})))
    invocation.hint(f"\n{tour.name} is yours: torpor psql {tour.name}" if keep else "\nnext: torpor create shop")


@contextlib.contextmanager
def _removed_at_the_end(client: Client, name: str, keep: bool) -> Iterator[None]:
    finished = False
    try:
        yield
        finished = True
    finally:
        if not (keep and finished):
            # The connection may be in the middle of an answer when Ctrl-C came.
            client.close()
            _remove(client, name)


def _remove(client: Client, name: str) -> None:
    try:
        client.delete(database_path(name), force="true")
    except CommandError as error:
        if error.shown_kind != "database_not_found":
            click.echo(f"torpor: {name} couldn't be removed: {error.message}; remove it with `torpor rm {name} --force`", err=True)


def _remember(invocation: Invocation, client: Client, tour: "Tour") -> None:
    created = tour.created
    if created is not None:
        entry = Password(created.credentials.role, created.credentials.password)
        invocation.passwords(client).put(created.database.id, entry)


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    saved = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, saved)
