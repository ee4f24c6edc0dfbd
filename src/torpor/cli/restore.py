"""`torpor restore`: a database as it was, in place, and back again."""

import click

from torpor.cli import text
from torpor.cli.client import database_path
from torpor.cli.errors import CommandError, Exit
from torpor.cli.invocation import Invocation, confirm, with_invocation
from torpor.cli.moments import moment_body, with_moment


@click.command()
@click.argument("name")
@with_moment
@click.option("--undo", is_flag=True, help="Take the last restore back. Once more, and it is done again.")
@click.option("--force", is_flag=True, help="Also when connections are open; and don't ask.")
@click.option("--no-wait", is_flag=True, help="Don't wait for its end.")
@with_invocation
def restore(
    invocation: Invocation,
    name: str,
    at: float | None,
    lsn: str | None,
    before_transaction: int | None,
    undo: bool,
    force: bool,
    no_wait: bool,
) -> None:
    """Bring NAME back to what it was, in place: URL and password stay.

    What it is now is kept as a branch of it, and --undo exchanges the two.
    """
    from torpor.cli import progress

    moment = moment_body(at, lsn, before_transaction)
    if bool(moment) == undo:
        message = (
            "it isn't said where to go back to" if not moment else "an undo goes back to where the database was before, and nowhere else"
        )
        raise CommandError(message, "give --at, --lsn, --before-transaction, or --undo", kind="usage", code=Exit.USAGE)
    client = invocation.connect()
    if not force:
        confirm(invocation, f"Take back the last restore of {name}?" if undo else f"Make {name} what it was then?")
    answer = client.post(database_path(name, "restore/undo" if undo else "restore"), {"force": force} | moment)
    if no_wait:
        invocation.emit(answer, f"job {answer['id']} restores {name}")
        return
    done = progress.finish(invocation, client, answer)
    kept = text.clean(done.result.get("before", "?"))
    invocation.emit(client.get(f"/v1/jobs/{done.id}"), f"{name} is what it was; what it was until now is in {kept}")
    invocation.hint(f"to undo it: torpor restore {name} --undo; once you are sure: torpor rm {kept}")
