"""Names and ids that users and files see, and the rules they obey. Pure."""

import re
from typing import NewType

from torpor.model.errors import InvalidName

DatabaseId = NewType("DatabaseId", str)
"""Identifies a database for ever, also across renames: `d` and twelve characters of a-z2-7. Safe in paths and cgroup names."""

SERVICE_ROLE = "torpor"
"""Torpor's own superuser in every compute. It can't log in through the door."""

SERVICE_DATABASE = "postgres"
"""Where Torpor's own sessions connect."""

MAX_NAME_LENGTH = 63
"""Both a DNS label and a PostgreSQL identifier hold at most 63 bytes."""

POOLED_SUFFIX = "-pooler"
"""Behind a database's name in a host name it stands for the pool of that database."""

_NAME = re.compile(r"[a-z][a-z0-9-]{0,61}[a-z0-9]|[a-z]")
_ID = re.compile(r"d[a-z2-7]{12}")
_RESERVED = frozenset({"postgres", "template0", "template1", "torpor", "replication", "public", "none"})


def check_database_name(text: str) -> str:
    """Return `text` when it can name a database, else raise InvalidName saying what is wrong with it."""
    if _NAME.fullmatch(text) is None:
        raise InvalidName(
            f"{text[:80]!r} can't name a database",
            f"use 1 to {MAX_NAME_LENGTH} of a-z, 0-9 and '-', beginning with a letter and not ending in '-'",
        )
    if text in _RESERVED or text.startswith("pg-"):
        raise InvalidName(f"{text!r} is reserved", "choose another name")
    return text


def check_new_database_name(text: str) -> str:
    """Return `text` when a database can be given that name, else raise InvalidName. Those that others have already may be odder."""
    if check_database_name(text).endswith(POOLED_SUFFIX):
        hint = "choose a name that doesn't end so"
        raise InvalidName(
            f'{text!r} can\'t name a database: as a host name it stands for the pool of "{text.removesuffix(POOLED_SUFFIX)}"', hint
        )
    return text


def is_database_id(text: str) -> bool:
    """Whether `text` has the form of a DatabaseId."""
    return _ID.fullmatch(text) is not None
