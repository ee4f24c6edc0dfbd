"""`torpor tls`: what clients on this machine must trust to be sure of whom they talk to."""

import json
import os
from pathlib import Path
from urllib.parse import urlencode

import click

from torpor.cli.client import find_api
from torpor.cli.errors import CommandError
from torpor.cli.invocation import Invocation, with_invocation
from torpor.cli.root import LazyGroup

tls = LazyGroup(
    "tls",
    {"ca": ("tls:ca", "Print the file of the authority that clients must trust (sslrootcert).")},
    "Encrypted connections.",
)

SYSTEM = "system"
"""What libpq calls the public authorities that the operating system trusts."""


def authority(invocation: Invocation) -> str:
    """What to give as sslrootcert: the development authority's file, or SYSTEM. Raises CommandError where TLS is not spoken."""
    source = Path(find_api(invocation.given_data_dir, os.environ).source)
    try:
        facts = json.loads(source.read_text())
    except (OSError, ValueError):
        raise CommandError(
            "only the machine on which Torpor runs knows its authority", "run this there, and copy the file of `torpor tls ca`"
        ) from None
    found = str(facts.get("tls_authority", "")) if isinstance(facts, dict) else ""
    if not found:
        raise CommandError("this Torpor doesn't speak TLS", "`torpor doctor` says what is missing; the setting is `tls`", kind="no_tls")
    return found


def with_tls(url: str, authority: str) -> str:
    """The URL with which libpq encrypts and checks that it has the right server."""
    return f"{url.partition('?')[0]}?{urlencode({'sslmode': 'verify-full', 'sslrootcert': authority}, safe='/')}"


@click.command()
@with_invocation
def ca(invocation: Invocation) -> None:
    """Print the file of the authority that clients must trust, for sslrootcert.

    "system" when the certificates are those of a public authority, which clients trust already.
    """
    found = authority(invocation)
    invocation.emit({"sslrootcert": found}, found)
