"""`torpor upgrade`: a database goes on as one of a newer PostgreSQL major, and back again."""

import click

from torpor.cli import text
from torpor.cli.client import database_path
from torpor.cli.errors import CommandError, Exit
from torpor.cli.invocation import Invocation, confirm, with_invocation
from torpor.model.jobs import JobView


@click.command()
@click.argument("name")
@click.option("--to", type=int, metavar="MAJOR", help="The PostgreSQL major, such as 18.")
@click.option("--check", is_flag=True, help="Only see on a copy whether it can be upgraded; nothing is changed.")
@click.option("--undo", is_flag=True, help="Take the last upgrade back. Once more, and it is done again.")
@click.option("--force", is_flag=True, help="Also when connections are open; and don't ask.")
@click.option("--no-wait", is_flag=True, help="Don't wait for its end.")
@with_invocation
def upgrade(invocation: Invocation, name: str, to: int | None, check: bool, undo: bool, force: bool, no_wait: bool) -> None:
    """Upgrade NAME to a newer PostgreSQL major: URL, roles and passwords stay.

    It is rehearsed on a copy first, then the database is stopped for some seconds. What it was is kept as a branch of it, and --undo
    exchanges the two.
    """
    from torpor.cli import progress

    if (to is None) != undo or (undo and check):
        message = "it isn't said which major it is to have" if not undo else "an undo goes back to what the database was, and nowhere else"
        raise CommandError(message, "give --to 18, say, or --undo", kind="usage", code=Exit.USAGE)
    client = invocation.connect()
    if not force and not check:
        confirm(invocation, f"Take back the last upgrade of {name}?" if undo else f"Upgrade {name} to PostgreSQL {to}?")
    body: dict[str, object] = {"force": force} if undo else {"to": to, "check": check, "force": force}
    answer = client.post(database_path(name, "upgrade/undo" if undo else "upgrade"), body)
    if no_wait:
        invocation.emit(answer, f"job {answer['id']} {'checks' if check else 'upgrades'} {name}")
        return
    done = progress.finish(invocation, client, answer)
    invocation.emit(client.get(f"/v1/jobs/{done.id}"), words(name, done, check, undo))
    if not check:
        kept = text.clean(done.result.get("before", "?"))
        invocation.hint(f"to {'do it again' if undo else 'undo it'}: torpor upgrade {name} --undo; once you are sure: torpor rm {kept}")


def words(name: str, done: JobView, check: bool, undo: bool) -> str:
    """What became of it, in some lines. Pure."""
    found = {key: text.clean(value, 500) for key, value in done.result.items()}
    if undo:
        return f"{name} is what it was before the upgrade; what it was until now is in {found.get('before', '?')}"
    majors = f"from PostgreSQL {found.get('from', '?')} to {found.get('to', '?')}"
    if check:
        lines = [f"{name} can be upgraded {majors}: its copy was, in {text.duration((done.ended_at or done.began_at) - done.began_at)}"]
    else:
        away = f"it was away for {found.get('unavailable_s', '?')} s"
        lines = [f"{name} was upgraded {majors}; {away}, and what it was is in {found.get('before', '?')}"]
    notes = {
        "settings_left_out": "settings that the new major doesn't have",
        "extensions": "extensions that stay at their version",
        "slots_left_out": "replication slots that aren't taken over",
        "statistics": "statistics for the planner",
    }
    return "\n".join([*lines, *(f"  {label}: {found[key]}" for key, label in notes.items() if key in found)])
