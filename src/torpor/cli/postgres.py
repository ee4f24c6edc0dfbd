"""`torpor postgres`: the installed PostgreSQL majors."""

import click

from torpor.cli import text
from torpor.cli.binaries import places
from torpor.cli.invocation import Invocation, with_invocation
from torpor.cli.root import LazyGroup
from torpor.compute import binaries

postgres = LazyGroup(
    "postgres",
    {
        "install": ("postgres:install", "Download a PostgreSQL major and install it for Torpor."),
        "ls": ("postgres:ls", "List the installed majors."),
    },
    "The installed PostgreSQL majors.",
)


@click.command()
@click.argument("major", type=int)
@with_invocation
def install(invocation: Invocation, major: int) -> None:
    """Download a PostgreSQL major and install it for Torpor, beside others that are there."""
    home, _ = places(invocation)
    with invocation.waiting(f"installing PostgreSQL {major}"):
        done = binaries.install(major, home)
    value = {"major": done.major, "version": done.version, "bindir": str(done.bindir)}
    invocation.emit(value, f"PostgreSQL {done.version} is installed in {done.bindir}")


@click.command()
@with_invocation
def ls(invocation: Invocation) -> None:
    """List the installed majors, and those that can be installed."""
    found = binaries.find(*places(invocation))
    missing = [major for major in binaries.installable() if major not in found]
    rows = [{"major": one.major, "version": one.version, "bindir": str(one.bindir)} for _, one in sorted(found.items())]
    if not invocation.json and missing:
        invocation.hint("to be had with `torpor postgres install MAJOR`: " + ", ".join(map(str, missing)))
    shown = [[str(row["major"]), str(row["version"]), str(row["bindir"])] for row in rows]
    value = {"installed": rows, "installable": list(binaries.installable())}
    invocation.emit(value, lambda: text.table(["MAJOR", "VERSION", "PROGRAMS"], shown) if shown else "none is installed")
