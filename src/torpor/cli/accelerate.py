"""`torpor url NAME --accelerate`: the URL that Prisma's clients take for Accelerate's, with a key that holds the database's own."""

import json
import os
from pathlib import Path
from urllib.parse import urlsplit

from torpor.cli.client import find_api
from torpor.cli.errors import CommandError
from torpor.cli.invocation import Invocation

_ANYWHERE = ("0.0.0.0", "::")  # what a server listens on, not where it is


def with_key(invocation: Invocation, url: str) -> str:
    """The database's URL as an accelerateUrl. Raises CommandError where SQL over HTTP isn't served, or can't be known here."""
    from torpor.gateway.http.apikey import make

    source = Path(find_api(invocation.given_data_dir, os.environ).source)
    try:
        facts = json.loads(source.read_text())
    except (OSError, ValueError):
        raise CommandError(
            "only the machine on which Torpor runs knows where it serves SQL over HTTP", "run this there, and put the host's name instead"
        ) from None
    address = str(facts.get("http", "")) if isinstance(facts, dict) else ""
    if not address:
        raise CommandError("this Torpor doesn't serve SQL over HTTP", "the setting is `http`", kind="no_http")
    found = urlsplit(address)
    host = urlsplit(url).hostname if found.hostname in _ANYWHERE else found.hostname
    return f"prisma+postgres://{f'[{host}]' if host and ':' in host else host}:{found.port}/?api_key={make(url)}"
