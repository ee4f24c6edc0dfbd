"""The statements and migrations that live beside this module as .sql files, and bringing a file to the newest schema.

Concurrency: synchronous; used while a catalog is opened, before anybody else has it.
"""

import re
from functools import cache
from importlib.resources import files

import apsw

from torpor.model.errors import CatalogUnusable

APPLICATION_ID = 0x54525052
"""Marks a SQLite file as Torpor's catalog ("TRPR")."""

_NAMED = re.compile(r"^-- name: (\w+)\n(.*?)(?=^-- name: |\Z)", re.MULTILINE | re.DOTALL)
_MIGRATION = re.compile(r"(\d{4})_\w+\.sql")


@cache
def statements() -> dict[str, str]:
    """Every named statement of sql/*.sql."""
    found: dict[str, str] = {}
    for entry in (files(__package__) / "sql").iterdir():
        for name, text in _NAMED.findall(entry.read_text("utf-8")):
            if name in found:
                raise ValueError(f"two statements are named {name}")
            found[name] = text.strip()
    return found


@cache
def migrations() -> tuple[str, ...]:
    """The migrations in order; the first one is number 1."""
    numbered = {}
    for entry in (files(__package__) / "migrations").iterdir():
        if match := _MIGRATION.fullmatch(entry.name):
            numbered[int(match[1])] = entry.read_text("utf-8")
    if sorted(numbered) != list(range(1, len(numbered) + 1)):
        raise ValueError("the migrations aren't numbered 1, 2, 3 …")
    return tuple(numbered[n] for n in sorted(numbered))


def migrate(connection: apsw.Connection) -> None:
    """Bring the schema up to date, each migration in a transaction of its own. Raises CatalogUnusable for a newer or foreign file."""
    path, known = connection.filename, len(migrations())
    version, application = connection.pragma("user_version"), connection.pragma("application_id")
    if application != APPLICATION_ID and (version or connection.execute("SELECT 1 FROM sqlite_schema").fetchone()):
        raise CatalogUnusable(f"{path} is a SQLite file, but not a catalog of Torpor", "move it away, or name another data_dir")
    if version > known:
        raise CatalogUnusable(f"{path} was written by a newer Torpor (schema {version}, this one knows {known})", "start that Torpor again")
    for number in range(version + 1, known + 1):
        with connection:
            connection.execute(migrations()[number - 1])
            connection.pragma("application_id", APPLICATION_ID)
            connection.pragma("user_version", number)
