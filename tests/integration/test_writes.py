"""What backends say about reads, and what they count of writes, in each major that this host has: PostgreSQL itself, without Torpor."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.bare import Bare, Watcher, oids
from tests.support.faults import eventually
from torpor.compute import binaries
from torpor.compute.binaries import Postgres
from torpor.daemon.configuration import load

pytestmark = pytest.mark.integration

Session = psycopg.Connection[tuple[Any, ...]]

_MAKE = """
CREATE TABLE plain (a integer PRIMARY KEY, b text);
CREATE TABLE child (a integer REFERENCES plain ON DELETE CASCADE ON UPDATE CASCADE);
CREATE TABLE logged (a integer);
CREATE TABLE other (a integer);
CREATE TABLE parent (a integer);
CREATE TABLE heir () INHERITS (parent);
CREATE TABLE parted (a integer, b text) PARTITION BY RANGE (a);
CREATE TABLE low PARTITION OF parted FOR VALUES FROM (0) TO (100);
CREATE TABLE high PARTITION OF parted FOR VALUES FROM (100) TO (200);
CREATE TABLE ruled (a integer);
CREATE RULE instead AS ON INSERT TO ruled DO INSTEAD INSERT INTO other VALUES (new.a);
CREATE VIEW simple AS SELECT a FROM plain;
CREATE VIEW nested AS SELECT simple.a FROM simple JOIN other USING (a);
CREATE MATERIALIZED VIEW kept AS SELECT count(*) AS n FROM plain;
CREATE UNIQUE INDEX ON kept (n);
CREATE SEQUENCE numbers;
CREATE TABLE counted (a integer GENERATED ALWAYS AS IDENTITY);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO logged VALUES (new.a); RETURN new; END $$;
CREATE TRIGGER note AFTER INSERT ON other FOR EACH ROW EXECUTE FUNCTION note();
CREATE FUNCTION reads_other() RETURNS bigint LANGUAGE plpgsql STABLE AS $$ BEGIN RETURN (SELECT count(*) FROM other); END $$;
CREATE FUNCTION reads_deep() RETURNS bigint LANGUAGE plpgsql STABLE AS $$ BEGIN RETURN reads_other() + (SELECT count(*) FROM child); END $$;
CREATE FUNCTION inlined(integer) RETURNS integer LANGUAGE sql STABLE AS $$ SELECT $1 + 1 $$;
CREATE FUNCTION is_volatile() RETURNS integer LANGUAGE plpgsql AS $$ BEGIN RETURN 1; END $$;
CREATE FUNCTION hides() RETURNS integer LANGUAGE plpgsql STABLE AS $$ BEGIN RETURN is_volatile(); END $$;
CREATE FUNCTION fails() RETURNS integer LANGUAGE plpgsql STABLE AS $$ BEGIN RETURN (SELECT a / 0 FROM plain LIMIT 1); END $$;
CREATE FUNCTION writes() RETURNS void LANGUAGE plpgsql AS $$ BEGIN INSERT INTO plain VALUES (900); DELETE FROM plain WHERE a = 900; END $$;
CREATE FUNCTION catches() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO plain VALUES (2, 'twice'); EXCEPTION WHEN unique_violation THEN INSERT INTO logged VALUES (0); END $$;
CREATE PROCEDURE commits() LANGUAGE plpgsql AS $$ BEGIN INSERT INTO logged VALUES (1); COMMIT; INSERT INTO parent VALUES (1); END $$;
CREATE TABLE secret (a integer, owner text);
ALTER TABLE secret ENABLE ROW LEVEL SECURITY;
CREATE TABLE allowed (who text);
CREATE POLICY own ON secret USING (owner IN (SELECT who FROM allowed));
CREATE POLICY all_of_it ON parent USING (true);
CREATE ROLE reader;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader;
INSERT INTO plain SELECT n, 'x' FROM generate_series(1, 20) AS n;
INSERT INTO child VALUES (1);
CREATE TABLE many (a integer) PARTITION BY LIST (a);
DO $$ BEGIN FOR n IN 1..110 LOOP EXECUTE format('CREATE TABLE many_%s PARTITION OF many FOR VALUES IN (%s)', n, n); END LOOP; END $$;
CREATE SCHEMA "a b";
CREATE TABLE "a b"."c.d" (a integer);
ANALYZE;
"""


def _majors() -> list[Postgres]:
    settings = load({}, os.environ)
    found = binaries.find(Path(settings.postgres_home), settings.pg_bindir)
    return [found[major] for major in sorted(found) if major >= 16]


@pytest.fixture(scope="module", params=_majors(), ids=lambda postgres: str(postgres.major))
def bare(request: pytest.FixtureRequest) -> Iterator[Bare]:
    with Bare(request.param) as running:
        with running.connect() as session:
            session.execute(_MAKE)
        yield running


@pytest.fixture(scope="module")
def watcher(bare: Bare) -> Iterator[Watcher]:
    with Watcher(bare) as one:
        yield one


@pytest.fixture(scope="module")
def session(bare: Bare) -> Iterator[Session]:
    with bare.connect() as one:
        yield one


# -- reads

_READS: dict[str, tuple[str, str]] = {
    "SELECT 1": ("ok", ""),
    "SELECT now(), current_user, 'x' || 1": ("ok", ""),
    "SELECT * FROM plain": ("ok", "plain"),
    "SELECT * FROM nested": ("ok", "nested simple plain other"),
    "SELECT * FROM kept": ("ok", "kept"),
    "WITH x AS MATERIALIZED (SELECT a FROM plain) SELECT * FROM x UNION ALL SELECT a FROM other": ("ok", "plain other"),
    "SELECT (SELECT count(*) FROM child WHERE child.a = plain.a) FROM plain WHERE EXISTS (SELECT FROM other)": ("ok", "plain child other"),
    "SELECT a FROM plain WHERE false": ("ok", "plain"),
    "SELECT * FROM parent": ("ok", "parent heir"),
    "SELECT * FROM ONLY parent": ("ok", "parent"),
    "SELECT * FROM parted": ("ok", "parted low high"),
    "SELECT * FROM parted WHERE a = 7": ("ok", "parted low"),
    "SELECT inlined(a) FROM plain": ("ok", "plain"),
    "SELECT reads_other() FROM plain": ("ok", "plain other"),
    "SELECT reads_deep()": ("ok", "other child"),
    "SELECT * FROM generate_series(1, reads_other())": ("ok", "other"),
    "SELECT a FROM plain ORDER BY reads_other() LIMIT 1": ("ok", "plain other"),
    'SELECT * FROM "a b"."c.d"': ("ok", "a b.c.d"),
    "TABLE plain": ("ok", "plain"),
    "VALUES (1), (2)": ("ok", ""),
    "SELECT 'plain'::regclass": ("ok", "plain"),
    "SELECT random()": ("volatile random", ""),
    "SELECT is_volatile()": ("volatile is_volatile", ""),
    "SELECT hides()": ("volatile is_volatile", ""),
    "SELECT a FROM plain ORDER BY random()": ("volatile random", "plain"),
    "SELECT nextval('numbers')": ("volatile numbers", "numbers"),
    "SELECT last_value FROM numbers": ("volatile numbers", "numbers"),
    "SELECT pg_sleep(0), reads_other()": ("volatile pg_sleep", "other"),
    "SELECT * FROM many": ("too many tables", ""),
    "SELECT a FROM plain FOR UPDATE": ("locks rows", "plain"),
    "SELECT a FROM plain FOR KEY SHARE": ("locks rows", "plain"),
    "INSERT INTO other VALUES (1)": ("writes", "other logged"),
    "WITH x AS (DELETE FROM plain WHERE a = -1 RETURNING a) SELECT * FROM x": ("writes", "plain child"),
    "SELECT writes()": ("writes", "plain child"),
    "SELECT lo_create(0)": ("writes", ""),
    "SHOW work_mem": ("utility", ""),
    "EXPLAIN SELECT * FROM plain": ("utility", "plain"),
    "DO $$ BEGIN PERFORM 1 FROM plain; END $$": ("utility", "plain"),
    "SELECT 1 / 0": ("!22012", ""),
    "SELECT fails()": ("!22012", ""),
    "SELECT nothing": ("!42703", ""),
}  # fmt: skip


def _named(text: str) -> set[str]:
    if " " in text and text.startswith("a b"):
        return {text}
    return {f"public.{name}" for name in text.split()}


def test_what_a_statement_read_and_whether_it_may_be_kept(watcher: Watcher, session: Session) -> None:
    session.execute("INSERT INTO plain VALUES (20) ON CONFLICT DO NOTHING")
    for statement, (verdict, names) in _READS.items():
        for ask in (watcher.simple, watcher.prepared):
            said, reads = ask(statement)
            assert said == verdict, (statement, ask)
            if verdict == "too many tables":
                assert len(reads) == 100
            elif verdict == "writes":
                assert reads >= _named(names) - {"public.child"}, statement  # whether a cascade looks is the planner's business
            else:
                assert reads == _named(names), (statement, ask)
    assert watcher.simple("SELECT 1", flushes=1) == ("", set())
    assert watcher.simple("SELECT 1", flushes=0) == ("", set())


def test_only_what_was_asked_for_is_watched(watcher: Watcher) -> None:
    assert watcher.simple("SELECT * FROM plain") == ("ok", {"public.plain"})
    assert watcher.simple("SELECT random() FROM other", flushes=0) == ("", set())
    assert watcher.simple("SELECT a FROM other", flushes=3) == ("ok", {"public.other"})
    assert watcher.skipping("SELECT random() FROM plain", "SELECT a FROM other") == ("ok", {"public.other"})
    assert watcher.simple("BEGIN", flushes=0) == ("", set())
    assert watcher.simple("SELECT a FROM plain", flushes=2) == ("", set())  # inside of a transaction nothing is
    assert watcher.simple("COMMIT", flushes=0) == ("", set())


def test_a_plan_that_is_kept_is_watched_each_time(watcher: Watcher) -> None:
    statement = "SELECT reads_other(), (SELECT count(*) FROM plain WHERE a = $1)"
    assert watcher.prepared(statement, "1", name="kept")[0] == "ok"
    for _ in range(8):  # from the sixth on the plan is a generic one
        assert watcher.prepared("", "2", name="kept") == ("ok", {"public.plain", "public.other"})


def test_policies_read_too(bare: Bare, session: Session) -> None:
    session.execute("ALTER ROLE reader LOGIN")
    with Watcher(bare, "reader") as one:
        assert one.simple("SELECT a FROM secret") == ("ok", {"public.secret", "public.allowed"})


def test_what_parallel_workers_would_do_is_done_where_it_is_seen(bare: Bare, session: Session) -> None:
    session.execute("CREATE TABLE wide AS SELECT n AS a FROM generate_series(1, 1000) AS n; ANALYZE wide")
    session.execute("ALTER FUNCTION reads_other() PARALLEL SAFE")
    forced = "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0; "
    forced += "SET parallel_leader_participation = off"
    try:
        with Watcher(bare) as one:
            one.simple(forced, flushes=0)
            statement = "SELECT count(*) FROM wide WHERE a > reads_other()"
            assert one.simple(statement) == ("ok", {"public.wide", "public.other"})
            assert one.simple("SELECT count(*) FROM wide") == ("ok", {"public.wide"})
    finally:
        session.execute("ALTER FUNCTION reads_other() PARALLEL UNSAFE; DROP TABLE wide")


# -- writes


def _counted(bare: Bare, session: Session, write: Callable[[], object], *names: str) -> tuple[bool, list[str]]:
    """Whether the epoch was counted up, and which of the tables were."""
    found = oids(session, *names)
    before = bare.words(*found)
    write()
    after = bare.words(*found)  # at once: whoever wrote has just been told
    return after[0] != before[0], [name for name, old, new in zip(names, before[1:], after[1:], strict=True) if new != old]


_WRITES: dict[str, str] = {
    "INSERT INTO plain VALUES (30)": "plain",
    "UPDATE plain SET b = 'y' WHERE a = 2": "plain",
    "UPDATE plain SET a = 31 WHERE a = 30": "plain",
    "DELETE FROM plain WHERE a = 31": "plain",
    "DELETE FROM plain WHERE a = 1": "plain child",
    "MERGE INTO plain USING (VALUES (3)) AS v(a) ON plain.a = v.a WHEN MATCHED THEN UPDATE SET b = 'm' WHEN NOT MATCHED THEN DO NOTHING":
        "plain",
    "INSERT INTO plain VALUES (2) ON CONFLICT (a) DO UPDATE SET b = 'z'": "plain",
    "WITH gone AS (DELETE FROM plain WHERE a = 4 RETURNING a) INSERT INTO logged SELECT a FROM gone": "plain logged",
    "WITH x AS (INSERT INTO logged VALUES (1) RETURNING a) SELECT * FROM x": "logged",
    "INSERT INTO other VALUES (5)": "other logged",
    "INSERT INTO ruled VALUES (6)": "other logged",
    "INSERT INTO parted VALUES (7), (107)": "low high parted",
    "UPDATE parted SET a = 108 WHERE a = 7": "low high parted",
    "INSERT INTO low VALUES (8)": "low",
    "UPDATE parent SET a = a + 1": "parent heir",
    "INSERT INTO heir VALUES (1)": "heir",
    "INSERT INTO simple VALUES (40)": "plain",
    "INSERT INTO counted DEFAULT VALUES": "counted",
    "SELECT writes()": "plain",
    "DO $$ BEGIN FOR n IN 1..50 LOOP INSERT INTO logged VALUES (n); END LOOP; END $$": "logged",
    "DO $$ BEGIN EXECUTE 'UPDATE logged SET a = 0'; END $$": "logged",
    "CALL commits()": "logged parent",
    "SELECT catches()": "logged",
    "BEGIN; INSERT INTO logged VALUES (1); SAVEPOINT s; INSERT INTO high VALUES (150); RELEASE s; COMMIT": "logged high",
    "BEGIN; SAVEPOINT s; INSERT INTO low VALUES (9); ROLLBACK TO s; INSERT INTO high VALUES (151); COMMIT": "high",
    "BEGIN; DECLARE c CURSOR FOR SELECT a FROM logged FOR UPDATE; FETCH c; UPDATE logged SET a = 2 WHERE CURRENT OF c; COMMIT": "logged",
    "PREPARE w AS INSERT INTO logged VALUES ($1); EXECUTE w(3)": "logged",
    "EXPLAIN ANALYZE INSERT INTO logged VALUES (4)": "logged",
    "SELECT lo_put(lo_create(0), 0, 'x')": "pg_largeobject",
    "TRUNCATE logged": "* logged",
    "TRUNCATE plain CASCADE": "* plain child",
    "REFRESH MATERIALIZED VIEW kept": "* kept",
    "REFRESH MATERIALIZED VIEW CONCURRENTLY kept": "*",
    "CREATE TABLE fresh AS SELECT 1 AS a": "*",
    "ALTER TABLE logged ADD COLUMN extra integer DEFAULT 1": "*",
    "CREATE INDEX ON logged (a)": "*",
    "DROP TABLE fresh": "*",
    "CREATE OR REPLACE VIEW simple AS SELECT a FROM plain WHERE a > 0": "*",
    "ALTER TABLE parted DETACH PARTITION high": "*",
    "ALTER TABLE parted ATTACH PARTITION high FOR VALUES FROM (100) TO (200)": "*",
    "GRANT SELECT ON logged TO reader": "*",
    "ALTER POLICY all_of_it ON parent USING (a > 0)": "*",
    "CREATE OR REPLACE FUNCTION inlined(integer) RETURNS integer LANGUAGE sql STABLE AS $$ SELECT $1 + 2 $$": "*",
    "BEGIN; CREATE TEMP TABLE mine (a integer) ON COMMIT DROP; INSERT INTO mine VALUES (1); COMMIT": "*",
    "COMMENT ON TABLE logged IS 'x'": "*",
    "BEGIN; INSERT INTO logged VALUES (1); PREPARE TRANSACTION 'p'": "",
    "COMMIT PREPARED 'p'": "*",
    "SELECT pg_current_xact_id()": "*",
    "SELECT set_config('track_counts', 'off', false)": "",
    "INSERT INTO child SELECT a FROM plain LIMIT 0; SELECT pg_current_xact_id()": "* child",
    "SET track_counts = off; INSERT INTO logged VALUES (1); RESET track_counts": "* logged",
}  # fmt: skip
_ALL = ("plain", "child", "logged", "other", "parted", "low", "high", "parent", "heir", "ruled", "counted", "kept", "pg_largeobject")


def test_every_way_to_write_is_counted_before_its_client_hears(bare: Bare, session: Session) -> None:
    session.execute("INSERT INTO parted VALUES (7); INSERT INTO heir VALUES (5); INSERT INTO parent VALUES (5)")
    for statement, wanted in _WRITES.items():
        epoch, tables = _counted(bare, session, lambda text=statement: session.execute(text), *_ALL)  # type: ignore[misc]
        missing = set(wanted.split()) - {"*"} - set(tables)
        assert not missing, (statement, missing)
        assert epoch or "*" not in wanted, statement
        if "*" not in wanted:
            assert not epoch, statement
            # A target of a statement that was rolled back, and what cascades look at, may count as well; nothing else may.
            spare = {"ruled", "low"} if "ruled" in statement or "ROLLBACK" in statement else {"child", "plain"} if wanted else set()
            assert set(tables) - set(wanted.split()) <= spare, (statement, tables)
    session.execute("RESET ALL")


def test_reading_counts_nothing(bare: Bare, session: Session) -> None:
    def read() -> None:
        for statement in ("SELECT * FROM nested", "SHOW work_mem", "BEGIN", "SELECT a FROM plain", "COMMIT", "SELECT reads_deep()"):
            session.execute(statement)
        session.execute("BEGIN; INSERT INTO logged VALUES (1); ROLLBACK")
        with contextlib.suppress(psycopg.errors.UniqueViolation):
            session.execute("INSERT INTO counted OVERRIDING SYSTEM VALUE SELECT 1 / 1 FROM generate_series(1, 1) WHERE false")
        session.execute("BEGIN; SELECT a FROM plain FOR UPDATE; COMMIT")
        session.execute("LISTEN news; UNLISTEN news")

    epoch, tables = _counted(bare, session, read, *_ALL)
    assert not epoch
    assert set(tables) <= {"counted"}


def test_copy_is_counted(bare: Bare, session: Session) -> None:
    def copy() -> None:
        with session.cursor() as cursor, cursor.copy("COPY parted (a) FROM STDIN") as rows:
            for n in (11, 12, 111):
                rows.write_row((n,))

    epoch, tables = _counted(bare, session, copy, *_ALL)
    assert not epoch and {"low", "high"} <= set(tables)


def test_many_tables_in_one_transaction(bare: Bare, session: Session) -> None:
    names = [f"many_{n}" for n in range(1, 111)]
    epoch, tables = _counted(bare, session, lambda: session.execute("INSERT INTO many SELECT generate_series(1, 110)"), *names)
    assert epoch or set(tables) == set(names)
    each = "; ".join(f"INSERT INTO {name} VALUES ({n})" for n, name in enumerate(names, 1))
    epoch, tables = _counted(bare, session, lambda: session.execute(f"BEGIN; {each}; COMMIT"), *names)
    assert epoch and set(tables) == set(names)


def test_foreign_tables_are_counted_by_their_statements(bare: Bare, session: Session) -> None:
    address = bare.address()
    with contextlib.suppress(psycopg.errors.FeatureNotSupported, psycopg.errors.UndefinedFile):
        session.execute("CREATE EXTENSION IF NOT EXISTS postgres_fdw")
    session.execute(f"CREATE SERVER self FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '{address['host']}', port '{address['port']}', "
                    "dbname 'postgres', sslmode 'disable', gssencmode 'disable')")  # fmt: skip
    session.execute("CREATE USER MAPPING FOR postgres SERVER self OPTIONS (user 'postgres', password_required 'false')")
    session.execute("CREATE FOREIGN TABLE far (a integer) SERVER self OPTIONS (table_name 'parent')")
    _, tables = _counted(bare, session, lambda: session.execute("INSERT INTO far VALUES (1)"), "far", "parent")
    assert tables == ["far", "parent"]
    session.execute("DROP SERVER self CASCADE")


def test_logical_replication_is_counted(bare: Bare, session: Session) -> None:
    """Within one cluster, from one inner database to another: what applies is a process without any statement."""
    session.execute("DROP DATABASE IF EXISTS target")
    session.execute("CREATE DATABASE target")
    session.execute("CREATE TABLE sent (a integer PRIMARY KEY); CREATE PUBLICATION p FOR TABLE sent")
    session.execute("SELECT pg_create_logical_replication_slot('sub', 'pgoutput', false, true)")
    address = bare.address()
    source = f"host={address['host']} port={address['port']} user=postgres dbname=postgres sslmode=disable gssencmode=disable"
    with bare.connect(dbname="target") as target:
        target.execute("CREATE TABLE pad (); CREATE TABLE sent (a integer PRIMARY KEY)")
        options = "create_slot = false, slot_name = sub, copy_data = false, two_phase = true"
        target.execute(f"CREATE SUBSCRIPTION s CONNECTION '{source}' PUBLICATION p WITH ({options})")
        oid = oids(target, "sent")[0]
        before = bare.words(oid)[1]
        session.execute("INSERT INTO sent VALUES (1)")
        eventually(lambda: target.execute("SELECT 1 FROM sent WHERE a = 1").fetchone())
        # Seen by others, then counted, then confirmed to whom it came from.
        eventually(lambda: bare.words(oid)[1] > before)
        epoch = bare.words()[0]
        session.execute("BEGIN; INSERT INTO sent VALUES (2); PREPARE TRANSACTION 'far'")
        session.execute("COMMIT PREPARED 'far'")
        eventually(lambda: target.execute("SELECT 1 FROM sent WHERE a = 2").fetchone())
        eventually(lambda: bare.words()[0] > epoch + 1)  # one of them by the session, one by the worker
        target.execute("ALTER SUBSCRIPTION s DISABLE; ALTER SUBSCRIPTION s SET (slot_name = NONE); DROP SUBSCRIPTION s")
    eventually(lambda: session.execute("SELECT 1 FROM pg_replication_slots WHERE slot_name = 'sub' AND NOT active").fetchone())
    session.execute("SELECT pg_drop_replication_slot('sub'); DROP PUBLICATION p; DROP TABLE sent")
    session.execute("DROP DATABASE target WITH (FORCE)")


def test_never_visible_before_it_is_counted_to_its_own_client(bare: Bare, session: Session) -> None:
    """Who writes, is told, and looks, always finds it counted, while others write as well."""
    oid = oids(session, "other")[0]
    stop = threading.Event()
    ends: list[int] = []

    def write() -> None:
        with bare.connect() as one:
            n = 0
            while not stop.is_set():
                one.execute("INSERT INTO other VALUES (1)")
                n += 1
        ends.append(n)

    before = bare.words(oid)[1]
    others = [threading.Thread(target=write) for _ in range(2)]
    for other in others:
        other.start()
    try:
        for _ in range(200):
            last = bare.words(oid)[1]
            session.execute("INSERT INTO other VALUES (2)")
            assert bare.words(oid)[1] > last
    finally:
        stop.set()
        for other in others:
            other.join()
    assert bare.words(oid)[1] >= before + 200 + sum(ends)


def test_crashes_and_restarts_count_for_everything() -> None:
    """A backend that is killed may have committed and not counted: PostgreSQL recovers, and everything counts as changed. Then what ends
    counting: a file that is cut off, and none at all."""
    with Bare(_majors()[-1]) as bare:
        with bare.connect() as doomed:
            doomed.execute("CREATE TABLE logged (a integer)")
            found = oids(doomed, "logged")[0]
            epoch = bare.words()[0]
            os.kill(doomed.info.backend_pid, signal.SIGKILL)
            eventually(lambda: bare.words()[0] > epoch)

        def insert() -> bool:
            with contextlib.suppress(psycopg.OperationalError), bare.connect() as one:
                one.execute("INSERT INTO logged VALUES (2)")
                return True
            return False

        word = bare.words(found)[1]
        eventually(insert)  # the hooks are in the children of the recovered postmaster, too
        assert bare.words(found)[1] > word
        epoch = bare.words()[0]
        bare.stop(signal.SIGINT)
        bare.start()
        assert bare.words()[0] > epoch

        # Who runs without sandboxes can cut the file off, and ends his own database by that; no more.
        with bare.connect() as one:
            os.truncate(bare.counters, 0)
            with pytest.raises(psycopg.OperationalError):
                one.execute("INSERT INTO logged VALUES (3)")
        bare.stop()
        bare.counters.write_bytes(bytes(8 * 4096))
        bare.start()
        assert insert() and bare.words(found)[1] == 2

        bare.stop()
        bare.with_counters = False
        before = bare.counters.read_bytes()
        bare.start()
        with Watcher(bare) as watcher:
            assert watcher.said["torpor.signs"] == "1"
            assert watcher.simple("SELECT 1") == ("", set())  # without counters nothing is said
        assert insert() and bare.counters.read_bytes() == before
