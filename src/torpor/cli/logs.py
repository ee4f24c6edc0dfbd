"""`torpor logs`: PostgreSQL's own log of one database."""

import codecs
import json
import sys
import unicodedata
from collections.abc import Iterable, Iterator

import click

from torpor.cli.client import database_path
from torpor.cli.invocation import Invocation, with_invocation


@click.command()
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="Go on printing what is added, until Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(0, 10_000), default=200, show_default=True, help="Begin with the last so many lines.")
@with_invocation
def logs(invocation: Invocation, name: str, follow: bool, lines: int) -> None:
    """Print a database's PostgreSQL log. With --json each line is a JSON object."""
    client = invocation.connect()
    pieces = client.stream(database_path(name, "logs"), lines=lines, follow="true" if follow else None)
    terminal = sys.stdout.isatty()
    try:
        for line in split(pieces):
            shown = json.dumps({"line": line}) if invocation.json else printable(line) if terminal else line
            sys.stdout.write(shown + "\n")
            sys.stdout.flush()
    except KeyboardInterrupt:
        if not follow:  # the way to end -f
            raise


def split(pieces: Iterable[bytes]) -> Iterator[str]:
    """Whole lines out of pieces that end anywhere, also inside a character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    rest = ""
    for piece in pieces:
        *whole, rest = (rest + decoder.decode(piece)).split("\n")
        yield from whole
    rest += decoder.decode(b"", final=True)
    if rest:
        yield rest


def printable(line: str) -> str:
    """Without control characters: a tenant writes into this log, and it is the operator's terminal."""
    return "".join(char for char in line if char == "\t" or unicodedata.category(char) not in ("Cc", "Cf"))
