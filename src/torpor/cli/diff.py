"""`torpor diff`: what differs between the schemas of two databases.

Both are dumped at once by the same pg_dump, so that its version makes no difference. Bounded: a schema of more than 256 MB is refused.
"""

import sys
import threading

import click

from torpor.cli import text
from torpor.cli.dumps import complaint
from torpor.cli.errors import CommandError
from torpor.cli.invocation import Invocation, with_invocation
from torpor.cli.pgtools import Running, Target, chunks, target
from torpor.cli.schemas import Change, Difference, compare, objects
from torpor.model.errors import TorporError

_SAME, _DIFFERENT, _TROUBLE = 0, 1, 2
_MAX_BYTES = 256 << 20
_SIGNS = {Change.ADDED: "+", Change.REMOVED: "-", Change.CHANGED: "~"}


@click.command()
@click.argument("first")
@click.argument("second")
@click.option("--summary", is_flag=True, help="Only which objects differ.")
@with_invocation
def diff(invocation: Invocation, first: str, second: str, summary: bool) -> None:
    """What differs between the schemas of two databases: torpor diff shop shop-try

    Shows what leads from FIRST to SECOND, object by object. The exit code is as diff has it: 0 for no difference, 1 for some, 2 or more
    when it could not be found out.
    """
    try:
        found = _differences(invocation, first, second)
    except CommandError as error:
        error.code = max(error.code, _TROUBLE)
        raise
    except TorporError as error:
        raise CommandError(error.message, error.hint, kind=error.kind, code=_TROUBLE, sqlstate=error.sqlstate) from error
    listed = [
        {"type": one.key.type, "schema": one.key.schema, "name": one.key.name, "change": str(one.change), "diff": "\n".join(one.lines)}
        for one in found
    ]
    invocation.emit({"same": not found, "objects": listed}, lambda: _summary(found) if summary else _shown(found, first, second))
    click.get_current_context().exit(_DIFFERENT if found else _SAME)


def _differences(invocation: Invocation, first: str, second: str) -> list[Difference]:
    client = invocation.connect()
    wheres = [target(invocation, client, name) for name in (first, second)]
    client.close()
    major = max(where.major for where in wheres)
    dumps: dict[int, str] = {}
    failures: list[TorporError] = []

    def dump(number: int, name: str, where: Target) -> None:
        try:
            dumps[number] = _schema(invocation, name, where, major)
        except TorporError as error:
            failures.append(error)

    with invocation.waiting(f"reading the schemas of {first} and {second}"):
        threads = [
            threading.Thread(target=dump, args=(number, name, where), daemon=True)
            for number, (name, where) in enumerate(zip((first, second), wheres, strict=True))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    return compare(objects(dumps[0], first), objects(dumps[1], second))


def _schema(invocation: Invocation, name: str, where: Target, major: int) -> str:
    line = ["--schema-only", "--no-password", f"--dbname={where.url}"]
    held = bytearray()
    with Running(invocation, "pg_dump", major, line, where) as dump:
        for piece in chunks(dump.stdout):
            held += piece
            if len(held) > _MAX_BYTES:
                raise CommandError(f"the schema of {name} is larger than {text.size(_MAX_BYTES)}", kind="too_large")
        if dump.wait() != 0:
            found = complaint(dump.said)
            raise CommandError(f"the schema of {name} can't be read: {found}", found.hint, kind="export_failed", sqlstate=found.sqlstate)
    return held.decode("utf-8", "replace")


def _summary(found: list[Difference]) -> str:
    return "\n".join(f"{_SIGNS[one.change]} {text.clean(str(one.key))}" for one in found)


def _shown(found: list[Difference], first: str, second: str) -> str:
    coloured = sys.stdout.isatty()
    lines = []
    for one in found:
        key = text.clean(str(one.key))
        lines.append(f"--- {first}: {key if one.change is not Change.ADDED else 'nothing'}")
        lines.append(f"+++ {second}: {key if one.change is not Change.REMOVED else 'nothing'}")
        lines += [_coloured(text.clean(line.expandtabs(4))) if coloured else text.clean(line.expandtabs(4)) for line in one.lines]
    return "\n".join(lines)


def _coloured(line: str) -> str:
    colour = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])
    return click.style(line, fg=colour) if colour else line
