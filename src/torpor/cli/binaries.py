"""Where this machine's PostgreSQL programs are, as the settings of the data directory say."""

import contextlib
import os
import shutil
from pathlib import Path

from torpor.cli.errors import CommandError
from torpor.cli.invocation import Invocation
from torpor.compute import binaries
from torpor.compute.binaries import Postgres
from torpor.daemon import configuration
from torpor.model.errors import BadSettings, BinariesMissing


def places(invocation: Invocation) -> tuple[Path, str]:
    """postgres_home and pg_bindir. Settings that can't be read count as unset: a client needn't be able to read them."""
    flags = {"data_dir": str(invocation.data_dir)}
    try:
        settings = configuration.load(flags, os.environ)
    except BadSettings:
        return configuration.default_data_dir(os.environ) / "postgres", ""
    home = Path(settings.postgres_home)
    if home == configuration.default_data_dir(os.environ) / "postgres" and not home.is_dir():
        # A user of the machine's Torpor finds its programs, which every user can read.
        shared = configuration.SYSTEM_DATA_DIR / "postgres"
        home = shared if shared.is_dir() else home
    return home, settings.pg_bindir


def program(invocation: Invocation, name: str, major: int) -> str:
    """The path of a client program: of the database's own major, else the newest, else the system's. Raises CommandError."""
    found: dict[int, Postgres] = {}
    with contextlib.suppress(BinariesMissing):  # a broken installation doesn't keep the system's own program from working
        found = binaries.find(*places(invocation))
    for candidate in sorted(found.values(), key=lambda one: (one.major == major, one.major), reverse=True):
        path = candidate.bindir / name
        if os.access(path, os.X_OK):
            return str(path)
    system = shutil.which(name)
    if system is None:
        hint = f"`torpor postgres install {major}` brings it, or install your system's postgresql-client"
        raise CommandError(f"there is no {name} on this machine", hint, kind="binaries_missing")
    return system
