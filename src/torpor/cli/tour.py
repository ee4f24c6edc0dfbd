"""The steps of `torpor demo`, each timed as a client sees it.

One thread, blocking. Whoever runs the tour removes its database; nothing here cleans up.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psycopg

from torpor.cli import text
from torpor.cli.client import Client, database_path
from torpor.cli.errors import CommandError
from torpor.model.sleep import Tier
from torpor.model.views import Created, DatabasePage

T = TypeVar("T")
FREEZE_AFTER_S = 1.0
PAGE_AFTER_S = 2.0
# A host without swap, or a busy one, takes its time; then the tour says so and goes on.
_FALL_ASLEEP_PATIENCE_S = 30.0
_POLL_S = 0.1
_CONNECT_TIMEOUT_S = 60
_SQL = Path(__file__).parent / "sql"


@dataclass(frozen=True, slots=True)
class Timed:
    """One step: what was done, how long the client waited, and what there is to say of it."""

    name: str
    elapsed_ms: float
    note: str = ""


class Tour:
    """The steps in their order. `before` is told what comes next (and may wait for a key), `after` each step that was timed."""

    def __init__(self, client: Client, name: str, before: Callable[[str], None], after: Callable[[Timed], None]) -> None:
        self.client = client
        self.name = name
        self.timed: list[Timed] = []
        self._before = before
        self._after = after
        self.created: Created | None = None
        self._url = ""

    def run(self) -> None:
        """The whole tour. Raises CommandError when something isn't as promised."""
        try:
            self._run()
        except psycopg.Error as error:
            reason = text.clean(str(error), 300)
            raise CommandError(
                f"the demo's connection failed: {reason}", f"`torpor logs {self.name}` may say why", kind="demo_failed"
            ) from error

    def _run(self) -> None:
        self._before(f"Making the database {self.name}, a PostgreSQL of its own.")
        created = self._time("create the database", self._create, lambda made: f"PostgreSQL {made.database.major}")
        self.created, self._url = created, created.credentials.url
        with self._time("connect, to the first row", self._connect) as connection:
            self._fill_and_query(connection)
            self._sleep_inside_a_transaction(connection)
        self._wake_from_stopped()

    def _fill_and_query(self, connection: psycopg.Connection[Any]) -> None:
        self._before("Filling it with a shop: 10,000 customers, 500 products, 100,000 orders.")
        self._time("load 110,500 rows and index them", lambda: connection.execute(_read("demo_fill.sql")))
        best = self._time("revenue by country, over all orders", lambda: _rows(connection, _read("demo_query.sql")))
        table = text.table(["COUNTRY", "ORDERS", "REVENUE"], [[str(cell) for cell in line] for line in best], frozenset({1, 2}))
        self._before(f"It is PostgreSQL as you know it:\n{table}")

    def _sleep_inside_a_transaction(self, connection: psycopg.Connection[Any]) -> None:
        self._before("Opening a transaction with a temporary table in it, and then doing nothing. Watch it fall asleep.")
        connection.execute("begin")
        connection.execute("create temporary table basket as select id, price_cents from products where id <= 3")
        before = _identity(connection)
        awake = self._time("a query while awake", lambda: _rows(connection, "select sum(price_cents) from basket"))
        for tier, after_s in ((Tier.FROZEN, FREEZE_AFTER_S), (Tier.PAGED, PAGE_AFTER_S)):
            if not self._fell_asleep(tier, after_s):
                continue
            rows = self._time(f"the same query, {tier} before", lambda: _rows(connection, "select sum(price_cents) from basket"))
            if rows != awake or _identity(connection) != before:
                raise CommandError(f"the open transaction didn't survive being {tier}", "please report this", kind="demo_failed")
            self._before("Same connection, same server process, same transaction, and the temporary table is still there.")
        connection.execute("commit")

    def _wake_from_stopped(self) -> None:
        self._before("Stopping it altogether: only its files remain. Then connecting, as if nothing had happened.")
        self._time(
            "put it to sleep: stopped", lambda: self.client.post(database_path(self.name, "sleep"), {"tier": "stopped", "force": True})
        )
        with self._time("connect when stopped, to the first row", self._connect) as connection:
            rows = self._time("count the orders", lambda: _rows(connection, "select count(*) from orders"))
        if rows != [(100_000,)]:
            raise CommandError(f"rows are missing after the stop: {rows}", "please report this", kind="demo_failed")
        with self._time("connect when awake, to compare", self._connect):
            pass

    def _create(self) -> Created:
        body = {"name": self.name, "freeze_after_s": FREEZE_AFTER_S, "page_after_s": PAGE_AFTER_S}
        return self.client.decode(Created, self.client.post("/v1/databases", body))

    def _connect(self) -> psycopg.Connection[Any]:
        connection = psycopg.connect(self._url, autocommit=True, connect_timeout=_CONNECT_TIMEOUT_S, application_name="torpor demo")
        connection.execute("select 1")
        return connection

    def _fell_asleep(self, tier: Tier, after_s: float) -> bool:
        """Wait until it sleeps of its own accord. False, with a step that says why, when it doesn't."""
        begun = time.monotonic()
        while time.monotonic() - begun < _FALL_ASLEEP_PATIENCE_S:
            # The list, since it is answered from memory: looking must not be what keeps it awake.
            view = next(
                one for one in self.client.fetch(DatabasePage, "/v1/databases", search=self.name).databases if one.name == self.name
            )
            if view.tier is tier:
                waited_ms = (time.monotonic() - begun) * 1000
                note = f"by itself, {text.duration(after_s)} without work; {text.size(view.memory_bytes)} of memory"
                self._record(Timed(f"fall asleep: {tier}", waited_ms, note))
                return True
            time.sleep(_POLL_S)
        causes = ", ".join(cause.reason for cause in view.awake_because) or "see `torpor doctor`"
        self._record(Timed(f"fall asleep: {tier}", (time.monotonic() - begun) * 1000, f"not reached, it stays {view.tier}: {causes}"))
        return False

    def _time(self, name: str, act: Callable[[], T], note: Callable[[T], str] = lambda _: "") -> T:
        begun = time.perf_counter()
        result = act()
        self._record(Timed(name, (time.perf_counter() - begun) * 1000, note(result)))
        return result

    def _record(self, step: Timed) -> None:
        self.timed.append(step)
        self._after(step)


def _rows(connection: psycopg.Connection[Any], sql: str) -> list[Any]:
    return connection.execute(sql.encode()).fetchall()


def _identity(connection: psycopg.Connection[Any]) -> list[Any]:
    """Server process and transaction: both stay the same only if nothing was lost."""
    return _rows(connection, "select pg_backend_pid(), pg_current_xact_id()::text")


def _read(name: str) -> str:
    return (_SQL / name).read_text()
