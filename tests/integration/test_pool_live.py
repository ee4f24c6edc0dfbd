"""The pool of connections before a real PostgreSQL: nothing of one client reaches another, and what happens when things end."""

import contextlib
import os
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psycopg
import pytest
from psycopg.rows import tuple_row

from tests.support.faults import eventually
from tests.support.poolworkers import rss, workers
from tests.support.server import MadeDatabase, Server
from torpor.base.processes import start_ticks
from torpor.compute import binaries
from torpor.daemon.configuration import load

pytestmark = pytest.mark.integration

# Everything that a session has beside its transaction.
_STATE = """
SELECT current_user, session_user, current_setting('work_mem'), coalesce(current_setting('app.secret', true), ''),
       current_setting('search_path'),
       current_setting('TimeZone'), current_setting('default_transaction_isolation'), current_setting('statement_timeout'),
       (SELECT count(*) FROM pg_cursors), (SELECT count(*) FROM pg_prepared_statements WHERE from_sql),
       (SELECT count(*) FROM pg_listening_channels()), (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'),
       (SELECT count(*) FROM pg_class WHERE relpersistence = 't')
"""

_LEAVES = {
    "a setting": "SET work_mem = '3MB'",
    "a setting of the application": "SET app.secret = 'ann'",
    "a setting by set_config": "SELECT set_config('app.secret', 'ann', false)",
    "a setting after one that ends": "SELECT set_config('app.other', 'x', true), set_config('app.secret', 'ann', false)",
    "a setting by an update": "UPDATE pg_settings SET setting = '6144' WHERE name = 'work_mem'",
    "a setting by a trigger": "INSERT INTO watched VALUES (1)",
    "a setting by a function": "SELECT leave_setting()",
    "a setting in a transaction": "BEGIN; SET work_mem = '5MB'; COMMIT",
    "a setting beside a local one": "SET LOCAL work_mem = '5MB'; SET app.secret = 'ann'",
    "a default of transactions": "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "the time zone": "SET TimeZone = 'Asia/Tokyo'",
    "the path": "SET search_path = pg_catalog",
    "a role": "SET ROLE bob",
    "a role in a block": "DO $$ BEGIN EXECUTE 'SET ROLE bob'; END $$",
    "a temporary table": "CREATE TEMP TABLE book (title text)",
    "a temporary table by a block": "DO $$ BEGIN EXECUTE 'CREATE TEMPORARY TABLE book (title text)'; END $$",
    "a temporary table by SELECT INTO": "SELECT 1 AS one INTO TEMP book",
    "a temporary view": "CREATE TEMP VIEW books AS SELECT 1",
    "a cursor": "BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; COMMIT",
    "a statement": "PREPARE p AS SELECT 1",
    "a statement in a block": "DO $$ BEGIN EXECUTE 'PREPARE p AS SELECT 1'; END $$",
    "an advisory lock": "SELECT pg_advisory_lock(7)",
    "a shared advisory lock": "SELECT pg_try_advisory_lock_shared(7, 8)",
    "an advisory lock in a function": "SELECT leave_lock()",
    "a channel": "LISTEN news",
    "a channel in a block": "DO $$ BEGIN EXECUTE 'LISTEN news'; END $$",
}

_MAKE = """
CREATE ROLE bob LOGIN PASSWORD 'bob';
GRANT bob TO CURRENT_USER;
CREATE TABLE watched (a integer);
CREATE TABLE numbered (a integer GENERATED ALWAYS AS IDENTITY, b text);
CREATE FUNCTION leave_setting() RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM set_config('app.secret', 'ann', false); END $$;
CREATE FUNCTION leave_lock() RETURNS void LANGUAGE sql AS $$ SELECT pg_advisory_lock(9) $$;
CREATE FUNCTION leave() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM leave_setting(); RETURN NEW; END $$;
CREATE TRIGGER leave AFTER INSERT ON watched FOR EACH ROW EXECUTE FUNCTION leave();
"""

_SHOWN = "SELECT current_setting('TimeZone'), current_setting('application_name')"

OLDER = sorted(binaries.find(Path(load({}, os.environ).postgres_home), "").keys() & {16, 17})
"""Supported majors before the newest, of which this host has the programs."""

Connection = psycopg.Connection[tuple[object, ...]]


@pytest.fixture(scope="module")
def torpor() -> Iterator[Server]:
    with Server(
        freeze_after_s=1, page_after_s="never", stop_after_s="never", pool_size=2, pool_queue=3, pool_wait_s=30, pool_workers=1
    ) as server:
        yield server
        assert "Traceback" not in server.log, server.log[-6000:]


@pytest.fixture(scope="module")
def database(torpor: Server) -> MadeDatabase:
    made = torpor.create()
    with psycopg.connect(made.url, autocommit=True) as connection:
        connection.execute(_MAKE)
    return made


def pooled(database: MadeDatabase, mode: str = "on", **options: object) -> Connection:
    """A pooled connection; each call another."""
    return psycopg.connect(database.url, autocommit=True, options=f"pool={mode}", row_factory=tuple_row, **options)  # type: ignore[arg-type]


@contextlib.contextmanager
def only_one_backend(database: MadeDatabase) -> Iterator[None]:
    """Of the two that the pool may have, one is taken: all others share one."""
    with pooled(database) as holder, holder.transaction():
        holder.execute("SELECT 1")
        yield


def state(connection: Connection) -> tuple[object, ...]:
    row = connection.execute(_STATE).fetchone()
    assert row is not None
    return row


def backend(connection: Connection) -> object:
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    return row[0]


@pytest.mark.parametrize("what", _LEAVES)
def test_nothing_of_one_client_reaches_another(database: MadeDatabase, what: str) -> None:
    with only_one_backend(database), pooled(database) as one, pooled(database) as two:
        clean, before = state(two), backend(two)
        one.execute(_LEAVES[what])
        assert state(two) == clean
        assert backend(two) == before, "it was cleaned, not replaced"
        if what != "the time zone" and not (what == "the path" and two.info.server_version >= 180000):
            assert state(one) == clean


@pytest.mark.parametrize("what", _LEAVES)
def test_in_auto_mode_everything_stays_with_its_client(database: MadeDatabase, what: str) -> None:
    with pooled(database, "auto") as one, pooled(database, "auto") as two:
        clean = state(two)
        one.execute(_LEAVES[what])
        left = state(one)
        assert left != clean
        assert state(two)[:11] == clean[:11]
        assert state(one) == left
    with pooled(database) as three:
        assert state(three) == clean


@pytest.mark.parametrize("major", OLDER)
def test_the_same_with_older_majors(torpor: Server, major: int) -> None:
    # What is prepared would see its own portal as a cursor.
    made = torpor.create(major=major)
    with psycopg.connect(made.url, autocommit=True) as connection:
        connection.execute(_MAKE)
    with only_one_backend(made), pooled(made, prepare_threshold=None) as one, pooled(made, prepare_threshold=None) as two:
        clean, before = state(two), backend(two)
        for what, statement in _LEAVES.items():
            one.execute(statement)
            assert (state(two), backend(two)) == (clean, before), what
            if what != "the time zone":
                one.execute("SET TimeZone = 'UTC'")
                assert state(one) == clean, what
    with pooled(made, "auto", prepare_threshold=None) as two:
        for what, statement in _LEAVES.items():
            with pooled(made, "auto", prepare_threshold=None) as one:
                one.execute(statement)
                left = state(one)
                assert left != clean, what
                assert state(two)[:11] == clean[:11], what
                assert state(one) == left, what
        assert state(two) == clean


def test_what_ends_with_its_transaction_costs_nothing(database: MadeDatabase) -> None:
    notices: list[str] = []
    with pooled(database) as one, pooled(database, "auto") as two:
        for connection in (one, two):
            connection.add_notice_handler(lambda notice: notices.append(str(notice.message_primary)))
            with connection.transaction():
                connection.execute("SET LOCAL work_mem = '7MB'")
                connection.execute("SELECT set_config('app.tenant', %s, true)", ("ann",))
                connection.execute("SELECT pg_advisory_xact_lock(3)")
                connection.execute("DECLARE c CURSOR FOR SELECT 1")
                assert connection.execute("SHOW work_mem").fetchone() == ("7MB",)
        other = backend(two)
        with two.transaction():
            assert backend(one) != other, "it is pinned to nothing"
    assert not notices


def test_a_client_is_told_what_does_not_last(database: MadeDatabase) -> None:
    notices: list[tuple[object, object, object]] = []
    with pooled(database) as one:
        one.add_notice_handler(lambda notice: notices.append((notice.sqlstate, notice.message_primary, notice.message_hint)))
        one.execute("SET work_mem = '3MB'")
        one.execute("SET work_mem = '3MB'")
    ((code, message, hint),) = notices
    assert code == "01000"
    assert "SET does not last" in str(message) and "pool=auto" in str(hint)


def test_sequences_tell_nobody_else(database: MadeDatabase) -> None:
    with only_one_backend(database), pooled(database) as one, pooled(database) as two:
        one.execute("INSERT INTO numbered (b) VALUES ('x')")
        assert one.execute("SELECT lastval() > 0").fetchone() == (True,)
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            two.execute("SELECT lastval()")
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            one.execute("SELECT lastval()")


def test_settings_of_the_session_stay_with_their_client(database: MadeDatabase) -> None:
    with pooled(database, application_name="one") as one, pooled(database, application_name="two") as two:
        one.execute("SET TimeZone = 'Asia/Tokyo'")
        two.execute("SET client_encoding = 'LATIN1'")
        for _ in range(2):
            assert one.execute("SELECT current_setting('TimeZone'), current_setting('application_name')").fetchone() == (
                "Asia/Tokyo",
                "one",
            )
            assert two.execute(_SHOWN).fetchone() == ("UTC", "two")
        assert one.info.parameter_status("TimeZone") == "Asia/Tokyo"
        assert two.info.parameter_status("client_encoding") == "LATIN1"
        assert two.execute("SELECT 'ä'").fetchone() == ("ä",)
        assert one.execute("SELECT 'ä'").fetchone() == ("ä",)


@pytest.mark.parametrize("major", [*OLDER, 18])
def test_the_path_stays_with_its_client_where_postgresql_reports_it(torpor: Server, database: MadeDatabase, major: int) -> None:
    made = database if major == 18 else torpor.create(major=major)
    notices: list[str] = []
    with pooled(made) as one, pooled(made) as two, pooled(made, "auto") as three:
        one.add_notice_handler(lambda notice: notices.append(str(notice.message_primary)))
        for connection in (one, three):
            connection.execute('SET search_path = pg_catalog, "$user"')
        seen = [connection.execute("SHOW search_path").fetchone() for connection in (one, two, three)]
        usual, own = ('"$user", public',), ('pg_catalog, "$user"',)
        assert seen == ([own, usual, own] if major >= 18 else [usual, usual, own])
        assert one.info.parameter_status("search_path") == (own[0] if major >= 18 else None)
        assert len(notices) == (0 if major >= 18 else 1)
        pinned = (
            eventually(lambda: _pool_of(torpor, made))["pinned"] if major >= 18 else eventually(lambda: _pool_of(torpor, made)["pinned"])
        )
        assert pinned == (0 if major >= 18 else 1)
        three.execute("SET search_path TO DEFAULT; SET work_mem = '3MB'")
        eventually(lambda: _pool_of(torpor, made)["pinned"] == 1)


def test_prepared_statements_are_their_clients_own(database: MadeDatabase) -> None:
    connections = [pooled(database) for _ in range(4)]
    with contextlib.ExitStack() as stack:
        for connection in connections:
            stack.enter_context(connection)
        for turn in range(3):
            for number, connection in enumerate(connections):
                row = connection.execute(f"SELECT {number} + %s::integer", (turn,), prepare=True).fetchone()
                assert row == (number + turn,)
        connections[0].execute("ALTER TABLE numbered ADD COLUMN c integer")
        for connection in connections:
            connection.execute("SELECT * FROM numbered", prepare=True)
        connections[0].execute("ALTER TABLE numbered DROP COLUMN c")
        for connection in connections:
            with contextlib.suppress(psycopg.errors.FeatureNotSupported):  # as with PostgreSQL: the plan no longer fits
                connection.execute("SELECT * FROM numbered", prepare=True)
            connection.execute("SELECT * FROM numbered")


def test_pipelines_and_errors_in_them(database: MadeDatabase) -> None:
    with pooled(database) as one:
        with one.pipeline():
            cursors = [one.execute("SELECT %s::integer", (number,), prepare=True) for number in range(50)]
        assert [cursor.fetchone() for cursor in cursors] == [(number,) for number in range(50)]
        with pytest.raises(psycopg.errors.DivisionByZero), one.pipeline():
            one.execute("SELECT 1")
            one.execute("SELECT 1 / %s::integer", (0,), prepare=True)
            one.execute("SELECT 2")
        assert one.execute("SELECT 3").fetchone() == (3,)


def test_copy_both_ways_and_a_client_that_vanishes(database: MadeDatabase) -> None:
    with pooled(database) as one:
        one.execute("CREATE TABLE copied (a integer)")
        with one.cursor().copy("COPY copied FROM STDIN") as copy:
            for number in range(10_000):
                copy.write_row((number,))
        with one.cursor().copy("COPY copied TO STDOUT") as copy:
            assert sum(1 for _ in copy.rows()) == 10_000
        with pytest.raises(psycopg.errors.InvalidTextRepresentation), one.cursor().copy("COPY copied FROM STDIN") as copy:
            for _ in range(2_000):
                copy.write("no number\n" * 100)
        assert one.execute("SELECT count(*) FROM copied").fetchone() == (10_000,)
        leaver = pooled(database)
        copying = leaver.cursor().copy("COPY copied FROM STDIN")
        copying.__enter__().write("1\n" * 1000)
        with socket.socket(fileno=os.dup(leaver.fileno())) as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raw.shutdown(socket.SHUT_RDWR)
        eventually(lambda: one.execute("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY%'").fetchone() == (0,))
        assert one.execute("SELECT count(*) FROM copied").fetchone() == (10_000,)
        leaver.close()


def test_cancel_reaches_only_whom_it_is_meant_for(database: MadeDatabase) -> None:
    with pooled(database) as one, pooled(database) as two:
        two.execute("SELECT 1")
        timer = threading.Timer(0.3, one.cancel_safe)
        timer.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            one.execute("SELECT pg_sleep(60)")
        timer.join()
        one.cancel_safe()
        assert two.execute("SELECT 2").fetchone() == (2,)
        assert one.execute("SELECT 1").fetchone() == (1,)


def test_the_queue_says_which_limit(database: MadeDatabase) -> None:
    with contextlib.ExitStack() as stack:
        holders = [stack.enter_context(pooled(database)) for _ in range(2)]
        for holder in holders:
            holder.execute("BEGIN")
        waiting = [stack.enter_context(pooled(database)) for _ in range(4)]
        answers: list[object] = []

        def ask(connection: Connection) -> None:
            try:
                answers.append(connection.execute("SELECT 'served'").fetchone())
            except psycopg.OperationalError as error:
                answers.append(str(error))

        threads = [threading.Thread(target=ask, args=(connection,)) for connection in waiting]
        for thread in threads:
            thread.start()
        eventually(lambda: len(answers) == 1)
        assert "pool_queue" in str(answers[0]) and "pool_size" in str(answers[0])
        holders[0].execute("COMMIT")
        for thread in threads:
            thread.join()
        assert answers[1:] == [("served",)] * 3


def test_a_backend_that_is_killed_takes_its_transaction_along(database: MadeDatabase) -> None:
    with pooled(database) as one, pooled(database) as two:
        one.execute("BEGIN")
        one.execute("INSERT INTO numbered (b) VALUES ('lost')")
        two.execute("SELECT pg_terminate_backend(%s)", (backend(one),))
        with pytest.raises(psycopg.OperationalError):
            one.execute("COMMIT")
        assert two.execute("SELECT count(*) FROM numbered WHERE b = 'lost'").fetchone() == (0,)


def test_clients_outlive_postgresql_and_sleep(torpor: Server) -> None:
    made = torpor.create()
    with pooled(made) as one, pooled(made, "auto") as two:
        one.execute("CREATE TABLE kept (a integer)")
        os.kill(torpor.postmaster(made), signal.SIGKILL)
        eventually(lambda: torpor.tier(made.name) == "stopped")
        assert one.execute("SELECT count(*) FROM kept").fetchone() == (0,)
        assert two.execute("SELECT 1").fetchone() == (1,)
        torpor.wait_tier(made.name, "frozen")
        eventually(lambda: _goes_down(torpor, made))
        assert one.execute("SELECT count(*) FROM kept").fetchone() == (0,)
        torpor.wait_tier(made.name, "frozen")
        two.execute("SELECT 2")


def _goes_down(torpor: Server, made: MadeDatabase) -> bool:
    """Idle clients of the pool don't keep a database from being stopped."""
    torpor.sleep(made.name, "stopped")
    return torpor.tier(made.name) == "stopped"


def test_a_database_that_is_removed_takes_its_clients_along(torpor: Server) -> None:
    made = torpor.create()
    with pooled(made) as one:
        one.execute("SELECT 1")
        torpor.call("DELETE", f"/v1/databases/{made.name}?force=true")

        def is_told() -> bool:
            try:
                one.execute("SELECT 1")
            except psycopg.Error:
                return True
            return False

        eventually(is_told)


def test_a_reader_that_is_slow_costs_no_memory(torpor: Server, database: MadeDatabase) -> None:
    with pooled(database) as one, pooled(database) as two:
        two.execute("SELECT 1")
        (worker,) = workers(torpor)
        before = rss(worker)
        with one.cursor() as cursor:
            rows = cursor.stream("SELECT repeat('x', 10000) FROM generate_series(1, 10000)")
            next(rows)
            assert two.execute("SELECT 2").fetchone() == (2,)
            assert rss(worker) - before < 20_000_000
            assert sum(1 for _ in rows) == 9_999
        assert rss(worker) - before < 20_000_000


def test_when_a_worker_is_killed_clients_see_their_connection_end(torpor: Server, database: MadeDatabase) -> None:
    one = pooled(database)
    try:
        one.execute("BEGIN")
        one.execute("INSERT INTO numbered (b) VALUES ('lost')")
        (worker,) = workers(torpor)
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(psycopg.OperationalError):
            one.execute("COMMIT")
    finally:
        one.close()
    eventually(lambda: start_ticks(worker) is None)
    with pooled(database) as two:
        assert two.execute("SELECT count(*) FROM numbered WHERE b = 'lost'").fetchone() == (0,)


def test_wrong_ways_in(database: MadeDatabase) -> None:
    with pytest.raises(psycopg.OperationalError, match="off, on, auto"):
        psycopg.connect(database.url, options="pool=maybe")
    with pytest.raises(psycopg.OperationalError, match="pool=off"):
        psycopg.connect(database.url + "@pool", options="pool=off")
    with pytest.raises(psycopg.OperationalError, match="can't be pooled"):
        psycopg.connect(database.url + "@pool", options="", replication="database")
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(database.url + ".nothing@pool")
    with psycopg.connect(database.url + "@pool") as connection:
        assert connection.execute("SELECT current_setting('torpor.pool')").fetchone() == ("on",)


def test_all_can_be_pooled_until_they_need_a_session() -> None:
    with Server(pool="auto", tls="allow") as torpor:
        made = torpor.create()
        _by_host_and_encrypted(torpor, made)
        with psycopg.connect(made.url, autocommit=True) as one, psycopg.connect(made.url, autocommit=True, options="pool=off") as two:
            one.execute("SELECT 1")
            eventually(lambda: _pool_of(torpor, made)["clients"] == 1)
            one.execute("CREATE TEMPORARY TABLE mine (a integer)")
            eventually(lambda: _pool_of(torpor, made)["pinned"] == 1)
            (pinned,) = _pool_of(torpor, made)["pinned_clients"]
            assert (pinned["role"], pinned["because"]) == (made.name, "CREATE TEMPORARY")
            assert two.execute("SELECT current_setting('torpor.pool', true)").fetchone() == (None,)
            with urlopen(Request(torpor.api_url + "/metrics", headers={"Authorization": f"Bearer {torpor.token}"}), timeout=60) as answer:
                metrics = answer.read().decode()
            assert f'torpor_pooled_pinned{{database="{made.name}"}} 1' in metrics


def _by_host_and_encrypted(torpor: Server, made: MadeDatabase) -> None:
    """The server name of a TLS connection asks for the pool, and the relay's end goes there."""
    where = {"host": f"{made.name}-pooler.localhost", "hostaddr": "127.0.0.1", "port": torpor.door_port, "sslmode": "require"}
    who = {"user": made.name, "password": made.password, "dbname": made.name}
    with psycopg.connect(**where, **who, autocommit=True) as one:  # type: ignore[arg-type]
        assert one.execute("SELECT current_setting('torpor.pool')").fetchone() == ("on",)
        assert one.execute("SELECT length(repeat('x', 1000000))").fetchone() == (1_000_000,)
        assert len(one.execute("SELECT repeat('x', 1000000)").fetchall()[0][0]) == 1_000_000
    eventually(lambda: _pool_of(torpor, made)["clients"] == 0)


def _pool_of(torpor: Server, made: MadeDatabase) -> dict[str, Any]:
    view: dict[str, Any] = torpor.view(made.name)["database"]["pool"] or {"clients": 0, "pinned": 0}
    return view
