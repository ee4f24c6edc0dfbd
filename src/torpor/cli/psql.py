"""`torpor psql`: a short-lived password, and psql takes over this process with its terminal."""

import os

import click

from torpor.cli.client import database_path
from torpor.cli.errors import CommandError
from torpor.cli.invocation import Invocation, with_invocation
from torpor.cli.passwords import with_login
from torpor.model.views import Credentials, DatabaseDetail


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("name")
@click.argument("psql_arguments", nargs=-1, type=click.UNPROCESSED)
@with_invocation
def psql(invocation: Invocation, name: str, psql_arguments: tuple[str, ...]) -> None:
    """Open psql on a database as its owner. What follows NAME goes to psql: torpor psql shop -c 'select 1'.

    No password is asked for: Torpor gives out one that is good for a minute. With --json (before NAME) it is printed instead.
    """
    client = invocation.connect()
    answer = client.post(database_path(name, "tickets"))
    ticket = client.decode(Credentials, answer)
    if invocation.json:
        invocation.emit(answer, "")
        return
    from torpor.cli.binaries import program
    from torpor.cli.pgtools import MISLEADING

    major = client.fetch(DatabaseDetail, database_path(name)).database.major
    client.close()
    path = program(invocation, "psql", major)
    if psql_arguments[:1] == ("--",):  # ends Torpor's own options, and would end psql's
        psql_arguments = psql_arguments[1:]
    url = with_login(ticket.url, ticket.role, None)
    # The password travels in the environment: every user of the machine can read the arguments of a process.
    environment = {key: value for key, value in os.environ.items() if key not in MISLEADING} | {"PGPASSWORD": ticket.password}
    try:
        os.execve(path, ["psql", url, *psql_arguments], environment)  # noqa: S606 - that there is no shell is the point
    except OSError as error:
        raise CommandError(f"{path} can't be run: {error.strerror}", f"`torpor postgres install {major}` mends it") from error
