"""Which database a client wants, and which PostgreSQL database inside it. Pure.

Three forms of address: `endpoint=NAME` or `--cluster=NAME` among the `options`; the database name, `shop` or `shop.other`; and,
when neither is given, the user's name, as PostgreSQL does. Forms that name different databases are refused, never guessed at.
"""

import re
from dataclasses import dataclass

from torpor.door.text import printable
from torpor.model.errors import DatabaseNotFound, InvalidName, LoginForbidden, RoutingConflict
from torpor.model.names import check_database_name
from torpor.pgwire.startup import StartupMessage

# PostgreSQL splits options at white space that no backslash precedes (pg_split_opts).
_OPTION = re.compile(r"(?:\\.|[^\s\\])+\\?|\\", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_TARGETS = ("endpoint=", "--cluster=")
_PHYSICAL_REPLICATION_DATABASE = "replication"
_TRUE = frozenset({"true", "on", "yes", "1", "t", "y", "tr", "tru", "ye"})


@dataclass(frozen=True, slots=True)
class Route:
    """Where a client goes: the database's name, and the startup message as its PostgreSQL shall read it."""

    target: str
    startup: StartupMessage

    @property
    def user(self) -> str:
        """The role that wants in."""
        return self.startup.parameters["user"]

    @property
    def inner_database(self) -> str:
        """The database inside PostgreSQL."""
        return self.startup.parameters["database"]


def route(startup: StartupMessage) -> Route:
    """Find the way. Raises RoutingConflict, DatabaseNotFound, or LoginForbidden when no user is named."""
    parameters = dict(startup.parameters)
    user = parameters.get("user", "")
    if not user:
        raise LoginForbidden("no PostgreSQL user name specified in startup packet")
    given = parameters.get("database", "")
    wanted, options = _take_target(parameters.pop("options", ""))
    if options:
        parameters["options"] = options
    if wanted is not None:
        target, inner = wanted, _inner_of(wanted, given)
    elif given == _PHYSICAL_REPLICATION_DATABASE and parameters.get("replication", "").lower() in _TRUE:
        raise RoutingConflict(
            "a physical replication connection doesn't say which database it is for",
            "name it in the options: options=endpoint=NAME",
        )
    else:
        target, dot, rest = (given or user).partition(".")
        inner = rest if dot else target
    try:
        check_database_name(target)
    except InvalidName:
        raise database_not_found(target) from None
    if not inner:
        raise database_not_found(given)
    parameters["database"] = inner
    return Route(target, StartupMessage(parameters, startup.minor))


def database_not_found(name: str) -> DatabaseNotFound:
    """The refusal for a name that no database has."""
    return DatabaseNotFound(f'database "{printable(name)}" does not exist', "`torpor ls` lists the databases, `torpor create` makes one")


def _inner_of(wanted: str, given: str) -> str:
    """The inner database when the options name `wanted` and the database parameter says `given`."""
    if not given:
        return wanted
    first, dot, rest = given.partition(".")
    if not dot:
        return given
    if first != wanted:
        raise RoutingConflict(
            f'the options name database "{printable(wanted)}", the database name "{printable(given)}" names another',
            "give one of the two forms, or the same name in both",
        )
    return rest


def _take_target(options: str) -> tuple[str | None, str]:
    """The database that the options name, if any, and the options without that."""
    kept: list[str] = []
    wanted: str | None = None
    for option in _OPTION.findall(options):
        # What follows a lone -c belongs to it: `-c endpoint=x` is a setting.
        prefix = None if kept[-1:] == ["-c"] else next((p for p in _TARGETS if option.startswith(p)), None)
        if prefix is None:
            kept.append(option)
            continue
        name = _ESCAPE.sub(r"\1", option[len(prefix) :])
        if wanted is not None and wanted != name:
            raise RoutingConflict(
                f'the options name two databases, "{printable(wanted)}" and "{printable(name)}"', "name one database in the options"
            )
        wanted = name
    return wanted, " ".join(kept)
