"""`torpor version`."""

import platform

import click

from torpor import __version__
from torpor.cli.invocation import Invocation, with_invocation


@click.command()
@with_invocation
def version(invocation: Invocation) -> None:
    """Print the version."""
    value = {"torpor": __version__, "python": platform.python_version(), "kernel": platform.release()}
    invocation.emit(value, f"torpor {__version__}")
