"""Which database a client wants, and which PostgreSQL database inside it. Pure.

Four forms of address: the server name of a TLS connection, `shop.db.example.com`; `endpoint=NAME` or `--cluster=NAME` among the
`options`; the database name, `shop` or `shop.other`; and, when none of these is given, the user's name, as PostgreSQL does. Forms that
name different databases are refused, never guessed at.

Who wants to be pooled says so in one of three: the server name `shop-pooler.db.example.com`, the database name `shop@pool` (or
`shop@auto`), or `pool=on` (or `auto`, or `off`) among the options. Or comes to the port where all are pooled. No database can be made
whose name ends in `-pooler`: as a server name it always stands for the pool of another.
"""

import re
from dataclasses import dataclass

from torpor.door.text import printable
from torpor.model.errors import DatabaseNotFound, InvalidName, LoginForbidden, RoutingConflict
from torpor.model.names import POOLED_SUFFIX, check_database_name
from torpor.model.pool import PoolMode
from torpor.pgwire.startup import StartupMessage

# PostgreSQL splits options at white space that no backslash precedes (pg_split_opts).
_OPTION = re.compile(r"(?:\\.|[^\s\\])+\\?|\\", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_TARGETS = ("endpoint=", "--cluster=")
_POOL = "pool="
_BY_DATABASE_NAME = (("@pool", PoolMode.ON), ("@auto", PoolMode.AUTO))
_PHYSICAL_REPLICATION_DATABASE = "replication"
_TRUE = frozenset({"true", "on", "yes", "1", "t", "y", "tr", "tru", "ye"})


@dataclass(frozen=True, slots=True)
class Route:
    """Where a client goes: the database's name, and the startup message as its PostgreSQL shall read it."""

    target: str
    startup: StartupMessage
    pool: PoolMode | None = None  # what the client says of it; nothing: as the database is set

    @property
    def user(self) -> str:
        """The role that wants in."""
        return self.startup.parameters["user"]

    @property
    def inner_database(self) -> str:
        """The database inside PostgreSQL."""
        return self.startup.parameters["database"]


class ServerNames:
    """The server names that stand for databases: NAME.BASE, where BASE is the door's own name or localhost."""

    def __init__(self, public_host: str) -> None:
        self._suffixes = tuple(f".{base}" for base in dict.fromkeys((public_host.lower().rstrip("."), "localhost")) if base)

    def __repr__(self) -> str:
        return f"<ServerNames {' '.join('*' + suffix for suffix in self._suffixes)}>"

    def database_in(self, server_name: str) -> str | None:
        """The database that a client names by the host that it connects to; None when that is the door itself, or anything else."""
        name = server_name.lower().rstrip(".")
        for suffix in self._suffixes:
            label = name.removesuffix(suffix)
            if label != name and label and "." not in label:
                return label
        return None


def route(startup: StartupMessage, by_host: str | None = None, at_pool_port: bool = False, nameless: bool = False) -> Route:
    """Find the way; `by_host` is the database that the server name gives. Raises RoutingConflict, DatabaseNotFound, or LoginForbidden
    when no user is named (unless it may be `nameless`, as something else will say who it is)."""
    parameters = dict(startup.parameters)
    user = parameters.setdefault("user", "")
    if not user and not nameless:
        raise LoginForbidden("no PostgreSQL user name specified in startup packet", "give one: user=NAME")
    given = parameters.get("database", "")
    by_options, pool, options = _take_target(parameters.pop("options", ""))
    if by_host is not None and by_host.endswith(POOLED_SUFFIX):
        by_host, pool = by_host.removesuffix(POOLED_SUFFIX), _pooled(pool)
    for suffix, mode in _BY_DATABASE_NAME:
        if given.endswith(suffix):
            given, pool = given.removesuffix(suffix), _pooled(pool, mode)
    if at_pool_port:
        pool = _pooled(pool)
    if options:
        parameters["options"] = options
    if by_host is not None and by_options is not None and by_host != by_options:
        raise RoutingConflict(
            f'the host name names database "{printable(by_host)}", the options name "{printable(by_options)}"',
            "give one of the two forms, or the same name in both",
        )
    wanted = by_host if by_host is not None else by_options
    if wanted is not None:
        target, inner = wanted, _inner_of(wanted, given, "the options name" if by_host is None else "the host name names")
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
    return Route(target, StartupMessage(parameters, startup.minor), pool)


def database_not_found(name: str) -> DatabaseNotFound:
    """The refusal for a name that no database has."""
    return DatabaseNotFound(f'database "{printable(name)}" does not exist', "`torpor ls` lists the databases, `torpor create` makes one")


def _inner_of(wanted: str, given: str, form: str) -> str:
    """The inner database when another form of address names `wanted` and the database parameter says `given`."""
    if not given:
        return wanted
    first, dot, rest = given.partition(".")
    if not dot:
        return given
    if first != wanted:
        raise RoutingConflict(
            f'{form} database "{printable(wanted)}", the database name "{printable(given)}" names another',
            "give one of the two forms, or the same name in both",
        )
    return rest


def _pooled(said: PoolMode | None, asked: PoolMode | None = None) -> PoolMode:
    """What holds when the address asks for the pool (perhaps for one mode of it) and what came before says `said`."""
    if said is PoolMode.OFF or (said is not None and asked is not None and said is not asked):
        raise RoutingConflict(f"the address asks for pool={asked or PoolMode.ON}, and pool={said} is said, too", "leave one of the two out")
    return said or asked or PoolMode.ON


def _take_target(options: str) -> tuple[str | None, PoolMode | None, str]:
    """The database that the options name, if any, what they say of the pool, and the options without that."""
    kept: list[str] = []
    wanted: str | None = None
    pool: PoolMode | None = None
    for option in _OPTION.findall(options):
        # What follows a lone -c belongs to it: `-c endpoint=x` is a setting.
        prefix = None if kept[-1:] == ["-c"] else next((p for p in _TARGETS if option.startswith(p)), None)
        if prefix is None and option.startswith(_POOL) and kept[-1:] != ["-c"]:
            value = option.removeprefix(_POOL)
            if value not in list(PoolMode):
                raise RoutingConflict(f'the options say pool="{printable(value)}"', f"it is one of {', '.join(PoolMode)}")
            pool = PoolMode(value)
            continue
        if prefix is None:
            kept.append(option)
            continue
        name = _ESCAPE.sub(r"\1", option[len(prefix) :])
        if wanted is not None and wanted != name:
            raise RoutingConflict(
                f'the options name two databases, "{printable(wanted)}" and "{printable(name)}"', "name one database in the options"
            )
        wanted = name
    return wanted, pool, " ".join(kept)
