"""`torpor postgres`: the installed PostgreSQL majors."""

import click

from torpor.cli import text
from torpor.cli.binaries import places
from torpor.cli.image import open_images
from torpor.cli.invocation import Invocation, with_invocation
from torpor.cli.root import LazyGroup
from torpor.compute import binaries
from torpor.model.errors import HostError

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
    images = open_images(invocation)
    built = ""
    try:
        with invocation.waiting(f"building the root image of PostgreSQL {major}"):
            found = images.ensure(major, mounted=False)
        built = str(images.home / found.file_name)
    except HostError as error:  # `torpor serve` builds it when it needs it, and says so again
        invocation.hint(f"its root image isn't built yet: {error}")
    value = {"major": done.major, "version": done.version, "bindir": str(done.bindir), "image": built}
    shown = f"PostgreSQL {done.version} is installed in {done.bindir}"
    invocation.emit(value, f"{shown}, its root image is {built}" if built else shown)


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
