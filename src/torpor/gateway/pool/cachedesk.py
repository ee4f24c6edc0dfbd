"""The worker's end of what Torpor says of the cache: what holds for a database, its counters of writes, and purges.

What is said of a database may come before its first client, and so before it has a pool here: it is kept until then. Descriptors belong
to this module from the moment they come.

Concurrency: belongs to the worker's one thread; nothing here waits.
"""

import os
import re
import time
from typing import Any

from torpor.gateway.cache.store import Store
from torpor.gateway.cache.writes import Writes
from torpor.gateway.pool.engine import Pool
from torpor.gateway.pool.messages import ToWorker
from torpor.gateway.pool.sharing import Remote, Sharing

_SETTING = "torpor.cache="
_PIECE = re.compile(r"(?:\\.|[^\s\\])+", re.DOTALL)


class CacheDesk:
    """For all databases of one worker."""

    def __init__(self, limit_bytes: int, remote: Remote | None = None) -> None:
        self.store = Store(limit_bytes)
        self._pools: dict[str, Pool] = {}
        self._policies: dict[str, tuple[dict[str, str], bool]] = {}
        self._writes: dict[str, Writes] = {}
        self._remote = remote
        self._sharing: dict[str, Sharing] = {}

    def __repr__(self) -> str:
        return f"<CacheDesk {self.store!r}>"

    def add(self, database: str, pool: Pool) -> None:
        """This is its pool."""
        self._pools[database] = pool
        if database in self._policies:
            pool.caching.rule(*self._policies[database])
        pool.caching.share(self._sharing.get(database))
        if database in self._writes:
            pool.caching.count_writes(self._writes.pop(database))

    def obey(self, said: dict[str, Any], fd: int) -> int | None:
        """Do what was said of the cache; how many entries were purged, if that was it. Owns the descriptor, -1 for none."""
        database: str = said["database"]
        pool = self._pools.get(database)
        match said["op"]:
            case ToWorker.CACHE:
                rules, on_write = dict(said["rules"]), bool(said["on_write"])
                if rules or on_write:
                    self._policies[database] = (rules, on_write)
                else:
                    self._policies.pop(database, None)
                if not on_write and database in self._writes:
                    self._writes.pop(database).close()
                self._share(database, said.get("secret"))
                if pool is not None:
                    pool.caching.rule(rules, on_write)
                    pool.caching.share(self._sharing.get(database))
            case ToWorker.WRITES if fd >= 0:
                writes = Writes(fd)
                if pool is not None:
                    pool.caching.count_writes(writes)
                else:
                    before = self._writes.pop(database, None)
                    if before is not None:
                        before.close()
                    self._writes[database] = writes
                return None
            case ToWorker.PURGE:
                return pool.caching.purge(said["by"], said["values"]) if pool is not None else 0
            case _:
                pass
        if fd >= 0:
            os.close(fd)
        return None

    def _share(self, database: str, secret: str | None) -> None:
        if secret is None or self._remote is None:
            self._sharing.pop(database, None)
        elif database not in self._sharing or self._sharing[database].secret.hex() != secret:
            self._sharing[database] = Sharing(self._remote, bytes.fromhex(secret), time.time)

    def expire(self, now: float) -> None:
        """Now and then: what may not be served any more makes room. It needn't be soon, as nobody is given it."""
        self.store.expire(now)


def take_option(parameters: list[list[str]]) -> tuple[list[list[str]], str | None]:
    """A startup message's parameters without `-c torpor.cache=…` among the options, and what that says: it is none of PostgreSQL's."""
    said: str | None = None
    kept: list[list[str]] = []
    for name, value in parameters:
        if name == "options" and _SETTING in value:
            rest, said = _without(value)
            if rest:
                kept.append([name, rest])
        else:
            kept.append([name, value])
    return kept, said


def _without(options: str) -> tuple[str, str | None]:
    pieces, kept, said = _PIECE.findall(options), list[str](), None
    at = 0
    while at < len(pieces):
        piece = pieces[at]
        is_alone = piece == "-c" and at + 1 < len(pieces)
        setting = pieces[at + 1] if is_alone else piece[2:] if piece[:2] in ("-c", "--") else ""
        step = 2 if is_alone else 1
        if setting.startswith(_SETTING):
            said = re.sub(r"\\(.)", r"\1", setting[len(_SETTING) :], flags=re.DOTALL)
        else:
            kept += pieces[at : at + step]
        at += step
    return " ".join(kept), said
