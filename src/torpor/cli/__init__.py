"""The command line: commands, tables, live views. It speaks to a running Torpor over its HTTP API, except `serve`, `doctor`, `host`
and `postgres`, which work on this machine.

Belongs here: parsing arguments, showing answers, exit codes. Does not belong: any decision that the API's other callers need too.
Everything is synchronous and starts fast: commands are imported when they are called, and asyncio, rich and psycopg only by those
that need them.
"""

import sys


def main() -> None:
    """The `torpor` program."""
    from torpor.cli.root import run

    sys.exit(run(sys.argv[1:]))
