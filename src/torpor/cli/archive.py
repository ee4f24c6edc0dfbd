"""`torpor archive`: a database's volume goes to the store of the history, and comes back with its next connection."""

import click

from torpor.cli import text
from torpor.cli.client import database_path
from torpor.cli.invocation import Invocation, with_invocation


@click.command()
@click.argument("name")
@click.option("--no-wait", is_flag=True, help="Don't wait for its end.")
@with_invocation
def archive(invocation: Invocation, name: str, no_wait: bool) -> None:
    """Send a database to the store of the history, compressed. It comes back by itself with its next connection, or by `torpor wake`."""
    from torpor.cli import progress

    client = invocation.connect()
    answer = client.post(database_path(name, "archive"))
    if no_wait:
        invocation.emit(answer, f"job {answer['id']} archives {name}")
        return
    done = progress.finish(invocation, client, answer)
    size, stored = (text.size(int(done.result.get(key, 0))) for key in ("size_bytes", "stored_bytes"))
    invocation.emit(client.get(f"/v1/jobs/{done.id}"), f"{name} is archived: {size}, which take {stored} in the store")
