"""`torpor export`, `torpor import` and `torpor diff`, with PostgreSQL's own programs and real databases."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.faults import eventually, run_program, stop_database
from tests.support.server import MadeDatabase, Server
from torpor.cli.root import run as in_process

ODD = 'ta"ble; DROP -- \n\\! x'
QUOTED = '"' + ODD.replace('"', '""') + '"'
FILL = r"""
CREATE SCHEMA "odd ""one";
CREATE TABLE "odd ""one"."go""ods" (id int);
CREATE TABLE orders (id int PRIMARY KEY, note text, at timestamptz DEFAULT now());
INSERT INTO orders SELECT n, 'note ' || n || E'\t\\.\r\n\r\\restrict x' || chr(13) || 'estrict' FROM generate_series(1, 1000) AS n;
CREATE TABLE ODD (wide text);
INSERT INTO ODD VALUES (repeat('€x', 2000000));
CREATE INDEX orders_note ON orders (left(note, 20));
CREATE FUNCTION twice(n int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN /* ; $_$ */ RETURN 2 * n; END $$;
CREATE SEQUENCE counter START 41; SELECT nextval('counter');
CREATE VIEW many AS SELECT count(*) FROM orders;
SELECT lo_from_bytea(7001, 'large');
""".replace("ODD", QUOTED)


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    code: int
    out: bytes
    err: str

    @property
    def error(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.err.splitlines()[-1])["error"]
        return value


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from torpor.cli import main; main()", *arguments]


def environment(server: Server, **more: str) -> dict[str, str]:
    return server.environment() | {"TORPOR_DATA_DIR": str(server.data_dir)} | more


Run = Callable[..., Said]


@pytest.fixture
def run(torpor: Server, monkeypatch: pytest.MonkeyPatch, capfdbinary: Any, tmp_path: Path) -> Run:
    """Run one command line in this process."""
    for name in [name for name in os.environ if name.startswith(("TORPOR_API", "PG"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TORPOR_DATA_DIR", str(torpor.data_dir))
    monkeypatch.setenv("PGPASSFILE", "/nonexistent")

    def run(*arguments: str, stdin: bytes = b"") -> Said:
        given = tmp_path / ".stdin"
        given.write_bytes(stdin)
        capfdbinary.readouterr()
        with given.open() as file, monkeypatch.context() as patch:
            patch.setattr("sys.stdin", file)
            code = in_process(arguments)
        out, err = capfdbinary.readouterr()
        given.unlink()
        return Said(code, out, err.decode())

    return run


def execute(database: MadeDatabase, text: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(database.url, autocommit=True, connect_timeout=40) as connection:
        cursor = connection.execute(text.encode())
        return cursor.fetchall() if cursor.description else []


def content(database: MadeDatabase) -> object:
    """Everything that FILL made."""
    return (
        execute(database, "SELECT id, note FROM orders ORDER BY id"),
        execute(database, f"SELECT md5(wide) FROM {QUOTED}"),
        execute(database, "SELECT twice(21), nextval('counter'), (SELECT * FROM many), lo_get(7001)"),
    )


def is_empty(database: MadeDatabase) -> bool:
    return execute(database, "SELECT 1 FROM pg_class WHERE relnamespace = 'public'::regnamespace") == []


@pytest.fixture(scope="module")
def filled(torpor: Server) -> Iterator[MadeDatabase]:
    database = torpor.create()
    execute(database, FILL)
    yield database
    torpor.call("DELETE", f"/v1/databases/{database.name}?force=true")


@pytest.fixture(scope="module")
def blank(torpor: Server) -> Iterator[MadeDatabase]:
    """Empty before and after each test."""
    database = torpor.create()
    yield database
    torpor.call("DELETE", f"/v1/databases/{database.name}?force=true")


@pytest.fixture
def empty(torpor: Server) -> Iterator[MadeDatabase]:
    database = torpor.create()
    yield database
    torpor.call("DELETE", f"/v1/databases/{database.name}?force=true")


@pytest.mark.parametrize("kind", ["plain", "custom"])
def test_what_goes_out_comes_in_again(run: Run, torpor: Server, filled: MadeDatabase, empty: MadeDatabase, kind: str) -> None:
    stop_database(torpor, filled)  # it is woken
    out = run("export", filled.name, "--format", kind)
    assert out.code == 0, out.err
    assert out.out.startswith(b"PGDMP" if kind == "custom" else b"--\n-- PostgreSQL database dump\n")
    put = run("import", empty.name, stdin=out.out)
    assert put.code == 0, put.err
    assert b"are imported" in put.out
    before = content(filled)
    execute(filled, "SELECT setval('counter', 41)")
    assert content(empty)[:2] == before[:2]  # type: ignore[index]
    assert run("diff", filled.name, empty.name).code == 0
    again = run("import", empty.name, "--json", stdin=out.out)
    assert (again.code, again.error["kind"]) == (1, "import_failed")
    assert "already exists" in again.error["message"]


def test_a_file_appears_when_it_is_whole(run: Run, filled: MadeDatabase, empty: MadeDatabase, tmp_path: Path) -> None:
    path = tmp_path / 'shop\'s "dump".sql'
    made = run("export", filled.name, "--output", str(path), "--json")
    assert json.loads(made.out)["bytes"] == path.stat().st_size
    assert path.stat().st_mode & 0o777 == 0o600
    assert run("import", empty.name, str(path)).code == 0
    assert run("export", "nobody", "--output", str(tmp_path / "none.sql")).code == 1
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    assert run("export", filled.name, "--output", str(tmp_path / "no" / "such.sql")).code == 1


def test_schema_or_rows_alone(run: Run, filled: MadeDatabase, empty: MadeDatabase) -> None:
    schema, rows = (run("export", filled.name, option) for option in ("--schema-only", "--data-only"))
    assert b"note 7" not in schema.out and b"CREATE TABLE" not in rows.out
    assert run("import", empty.name, stdin=schema.out).code == 0
    assert execute(empty, "SELECT count(*) FROM orders") == [(0,)]
    assert run("import", empty.name, stdin=rows.out).code == 0
    assert execute(empty, "SELECT count(*) FROM orders") == [(1000,)]
    assert run("export", filled.name, "--schema-only", "--data-only").code == 2


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (b"INSERT INTO a VALUES (1);\nSELECT * FROM nowhere;\n", 'line 3: relation "nowhere" does not exist'),
        (b"COPY a FROM stdin;\n1\nx\n\\.\n", 'in COPY a, line 2, column i: "x": invalid input syntax for type integer'),
        (b"\\! touch /tmp/torpor-was-here\n", "line 2: a backslash command"),
        (b"INSERT INTO a VALUES (1);\nSELECT 1", "in the middle of a statement"),
        (b"INSERT INTO a VALUES (1);\nDELETE FROM a", "in the middle of a statement"),
        (b"INSERT INTO a VALUES (1);\nSELECT CASE WHEN true THEN 'cut off", "unterminated quoted string"),
        (b"COPY a FROM stdin;\n1\n2", "invalid input syntax"),
        (b"SELECT '" + b"x" * (3 << 20) + b"' FROM nowhere;\n", 'relation "nowhere" does not exist'),
    ],
)
def test_a_failed_import_leaves_nothing_and_says_where(run: Run, blank: MadeDatabase, script: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "dump.sql"
    path.write_bytes(b"CREATE TABLE a (i int);\n" + script)
    failed = run("import", blank.name, str(path), "--json")
    error = failed.error
    assert failed.code == 1 and says in error["message"] and len(error["message"]) < 1000
    assert error["hint"]
    assert is_empty(blank)
    assert not Path("/tmp/torpor-was-here").exists()


def test_an_archive_that_is_cut_off(run: Run, filled: MadeDatabase, empty: MadeDatabase) -> None:
    whole = run("export", filled.name, "--format", "custom").out
    for length in (400, len(whole) // 2, len(whole) - 10):
        failed = run("import", empty.name, stdin=whole[:length])
        assert failed.code == 1, length
        assert is_empty(empty)
    cut = run("export", filled.name).out[:-60]
    assert run("import", empty.name, "--json", stdin=cut).error["kind"] == "truncated_dump"
    assert is_empty(empty)


def test_what_is_no_dump(run: Run, empty: MadeDatabase, tmp_path: Path) -> None:
    assert run("import", empty.name, "--json").error["kind"] == "empty_dump"
    assert "zcat" in run("import", empty.name, "--json", stdin=b"\x1f\x8b" + bytes(20)).error["hint"]
    for source in (str(tmp_path / "none"), str(tmp_path), "http://example.org/dump.sql", "postgresql://[", "nobody"):
        assert run("import", empty.name, source).code in (1, 2)
    assert run("import", "nobody", "--json", stdin=b"SELECT 1;").error["kind"] == "database_not_found"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_an_import_that_dies_leaves_nothing(torpor: Server, empty: MadeDatabase, number: signal.Signals) -> None:
    importing = subprocess.Popen(command("import", empty.name), env=environment(torpor), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert importing.stdin is not None
    importing.stdin.write(b"CREATE TABLE a (t text);\nSELECT 'begun';\n" + b"-- filling\n" * 20_000)
    importing.stdin.flush()
    eventually(lambda: execute(empty, "SELECT 1 FROM pg_stat_activity WHERE application_name = 'psql' AND xact_start IS NOT NULL"))
    importing.send_signal(number)
    assert importing.wait(60) != 0
    importing.stdin.close()
    eventually(lambda: not execute(empty, "SELECT 1 FROM pg_stat_activity WHERE application_name = 'psql'"))
    assert is_empty(empty)


def test_from_the_url_of_another_server(run: Run, filled: MadeDatabase, empty: MadeDatabase) -> None:
    put = run("import", empty.name, filled.url)
    assert put.code == 0, put.err
    assert "the source is PostgreSQL 18" in put.err
    assert execute(empty, "SELECT count(*) FROM orders") == [(1000,)]
    assert run("diff", filled.name, empty.name).code == 0


def test_urls_that_lead_nowhere(run: Run, filled: MadeDatabase, empty: MadeDatabase) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"postgresql://a:geheim@127.0.0.1:{closed.getsockname()[1]}/b"
        for url, says in (
            (nobody, "Connection refused"),
            (filled.url.replace(filled.password, "geheim"), "password authentication failed"),
            (filled.url.replace(f":{filled.password}", ""), "no password supplied"),
            (filled.url.rpartition("/")[0] + "/nobody", ""),
        ):
            failed = run("import", empty.name, url, "--json")
            assert (failed.code, failed.error["kind"]) == (1, "source_failed"), failed
            assert says in failed.error["message"]
            assert "geheim" not in failed.err + failed.out.decode()
    assert is_empty(empty)


def test_a_source_that_says_nothing(run: Run, empty: MadeDatabase) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        taken: list[socket.socket] = []

        def accept() -> None:
            sock, _ = silent.accept()
            taken.append(sock)
            sock.recv(1000)
            sock.close()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        failed = run("import", empty.name, f"postgresql://a:b@127.0.0.1:{silent.getsockname()[1]}/c", "--json")
        thread.join(30)
    assert failed.error["kind"] == "source_failed"


def test_an_import_from_an_older_major(run: Run, torpor: Server, empty: MadeDatabase) -> None:
    older = torpor.create(major=17)
    try:
        execute(older, FILL)
        assert run("import", empty.name, older.url).code == 0
        assert run("diff", older.name, empty.name).code == 0
        assert execute(empty, "SELECT count(*) FROM orders") == [(1000,)]
    finally:
        torpor.call("DELETE", f"/v1/databases/{older.name}?force=true")


def test_passwords_are_in_no_command_line(torpor: Server, filled: MadeDatabase) -> None:
    exporting = subprocess.Popen(command("export", filled.name), env=environment(torpor), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert exporting.stdout is not None
    exporting.stdout.read(1000)  # it runs, and waits for its reader
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if _is_child(path.parent, exporting.pid)]
    assert any(b"pg_dump" in line for line in lines)
    assert not any(b"password=" in line.lower() or b":" in line.partition(b"dbname=")[2].rpartition(b"@")[0][13:] for line in lines)
    exporting.stdout.close()
    assert exporting.wait(60) is not None


def _is_child(path: Path, parent: int) -> bool:
    try:
        return int((path / "stat").read_text().rpartition(")")[2].split()[1]) == parent
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_diff(run: Run, filled: MadeDatabase, empty: MadeDatabase) -> None:
    run("import", empty.name, stdin=run("export", filled.name, "--schema-only").out)
    execute(empty, "ALTER TABLE orders ADD COLUMN price numeric; DROP VIEW many; CREATE TABLE extra (i int)")
    execute(empty, "GRANT SELECT ON orders TO PUBLIC")
    execute(empty, 'CREATE TABLE "\x1b[2J\n-- Name: evil; Type: TABLE; Schema: public; Owner: -\n--\n" (i int)')
    shown = run("diff", filled.name, empty.name)
    assert shown.code == 1
    text = shown.out.decode()
    assert "+    price numeric" in text and "\x1b" not in text
    assert f"--- {filled.name}: VIEW public.many\n+++ {empty.name}: nothing" in text
    assert "GRANT SELECT ON TABLE public.orders TO PUBLIC" in text
    listed = json.loads(run("diff", filled.name, empty.name, "--json").out)
    changes = {(one["type"], one["name"]): one["change"] for one in listed["objects"]}
    assert changes[("TABLE", "orders")] == "changed" and changes[("TABLE", "extra")] == "added" and changes[("VIEW", "many")] == "removed"
    assert not listed["same"]
    back = json.loads(run("diff", empty.name, filled.name, "--json").out)
    assert {one["change"] for one in back["objects"] if one["name"] == "extra"} == {"removed"}
    assert b"~ TABLE public.orders\n" in run("diff", filled.name, empty.name, "--summary").out
    assert run("diff", filled.name, filled.name, "--json").out == b'{"same": true, "objects": []}\n'
    for wrong in (("nobody", filled.name), (filled.name, "NO/body"), (filled.name,)):
        assert run("diff", *wrong).code == 2


def test_full_and_read_only_databases_are_exported(run: Run, filled: MadeDatabase) -> None:
    execute(filled, f'ALTER DATABASE "{filled.name}" SET default_transaction_read_only = on')
    try:
        assert run("export", filled.name).out.rstrip().splitlines()[-1].startswith((b"\\unrestrict", b"--"))
    finally:
        execute(filled, f'SET transaction_read_only = off; ALTER DATABASE "{filled.name}" RESET default_transaction_read_only')


def test_what_pg_dump_may_not_read_torpor_exports_itself(run: Run, empty: MadeDatabase) -> None:
    execute(
        empty,
        "CREATE ROLE app; GRANT CREATE ON SCHEMA public TO app; CREATE TABLE apart AS SELECT 'told' AS secret; GRANT app TO CURRENT_USER;"
        "ALTER TABLE apart OWNER TO app; REVOKE app FROM CURRENT_USER",
    )
    out = run("export", empty.name)
    assert out.code == 0 and b"told" in out.out
    assert "permission denied for table apart), but by Torpor itself" in out.err


def test_pg_dump_of_ones_own_goes_in_too(run: Run, filled: MadeDatabase, empty: MadeDatabase, tmp_path: Path) -> None:
    tar = tmp_path / "shop.tar"
    assert run_program("pg_dump", "--format=tar", "--no-owner", f"--file={tar}", filled.url).returncode == 0
    assert run("import", empty.name, str(tar)).code == 0
    assert execute(empty, "SELECT count(*) FROM orders") == [(1000,)]
