"""Dumps as they stream by, what programs complain of, and what differs between schemas. All of it pure."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torpor.cli.dumps import Kind, Script, Truncated, complaint, kind_of
from torpor.cli.errors import CommandError
from torpor.cli.pgtools import Complaints, split_password
from torpor.cli.schemas import Change, compare, objects

KEY = "kabc"
PREFIX = b"BEGIN;\n\\restrict kabc\n"
LAST = b"\nCOMMIT;\nSELECT $kabc$kabc$kabc$ WHERE pg_catalog.pg_current_xact_id_if_assigned() IS NULL;\n"
HEAD = b"--\n-- PostgreSQL database dump\n--\n\n\\restrict Qx9\n\n-- Dumped from\n\n"
TAIL = b"--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict Qx9\n\n"


def played(dump: bytes, size: int = 1 << 20) -> bytes:
    script = Script(KEY)
    sent = b"".join(script.feed(dump[at : at + size]) for at in range(0, len(dump), size))
    whole = sent + script.end()
    assert whole.startswith(PREFIX) and whole.endswith(LAST)
    return whole[len(PREFIX) : -len(LAST)]


@pytest.mark.parametrize("size", [1, 7, 1000, 1 << 20])
def test_restrictions_of_pg_dumps_own_are_left_out(size: int) -> None:
    body = b"CREATE TABLE a (i int);\n"
    assert played(HEAD + body + TAIL, size) == HEAD.replace(b"\\restrict Qx9", b"") + body + TAIL.partition(b"\\unrestrict")[0]


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.integers(1, 100))
def test_anything_else_goes_through_unchanged(dump: bytes, size: int) -> None:
    if not dump.startswith(b"\xef\xbb\xbf"):
        assert played(b"SELECT 1;" + dump, size) == b"SELECT 1;" + dump


def test_large_dumps_pass_in_pieces() -> None:
    body = b"x" * 9_999_999 + b"\n\\unrestrict Qx9\n" + b"y" * 100_000 + b"\n"
    script, most = Script(KEY), 0
    sent = b""
    for at in range(0, len(body), 100_000):
        part = script.feed((HEAD if at == 0 else b"") + body[at : at + 100_000])
        sent, most = sent + part, max(most, len(part))
    assert body in sent + script.feed(TAIL) + script.end()
    assert most < 300_000


@pytest.mark.parametrize("cut", range(1, len(TAIL) - 2, 5))
def test_a_dump_without_its_last_lines_is_cut_off(cut: int) -> None:
    with pytest.raises(Truncated):
        played(HEAD + b"CREATE TABLE a (i int);\n" + TAIL[:cut])


@pytest.mark.parametrize(
    "dump",
    [
        b"SELECT 1;\n\\restrict a\n\\! id\n",  # not at its beginning
        b"\\restrict a b\n",
        b"/* */ \\restrict a\n",
        b"\\restrict \xff\n",
    ],
)
def test_what_only_looks_like_a_restriction_stays_and_is_refused_by_psql(dump: bytes) -> None:
    assert played(dump) == dump


def test_a_restriction_that_is_not_lifted_is_a_cut() -> None:
    with pytest.raises(Truncated):
        played(b"\\restrict a\nSELECT 1;\n\\unrestrict b\n")
    with pytest.raises(Truncated):
        played(b"\\restrict a\nSELECT 1;\n\\unrestrict a\n\\! id\n")


def test_windows_line_ends_and_byte_order_marks() -> None:
    dump = (HEAD + b"SELECT 1;\n" + TAIL).replace(b"\n", b"\r\n")
    assert b"restrict" not in played(dump)
    assert played(b"\xef\xbb\xbfSELECT 1;") == b"SELECT 1;"


def test_only_psqls_own_last_word_counts() -> None:
    script = Script(KEY)
    assert script.is_acknowledged(b"1\nkabc\n")
    assert not script.is_acknowledged(b"kabc\n1\n") and not script.is_acknowledged(b"")


def test_kinds() -> None:
    assert kind_of(b"") is Kind.EMPTY
    assert kind_of(b"PGDMP\x01\x0e") is Kind.ARCHIVE
    assert kind_of(b"toc.dat\0".ljust(257, b"0") + b"ustar\0") is Kind.ARCHIVE
    assert kind_of(b"\x1f\x8b\x08") is Kind.GZIP
    assert kind_of(b"PGDUMP") is kind_of(b"\xff\x00") is kind_of(b"--") is Kind.PLAIN


def test_a_complaint_of_psql() -> None:
    said = (
        "psql:<stdin>:3: NOTICE:  00000: fine\n"
        'psql:<stdin>:9: ERROR:  42P01: relation "no\x1b[2J" does not exist\nLINE 1: SELECT * FROM no;\nHINT:  make it\n'
        "LOCATION:  parserOpenTable, parse_relation.c:1449\npsql:<stdin>:9: STATEMENT:  SELECT\nSTATEMENT:  SELECT * FROM no;"
    )
    found = complaint(said, 2)
    assert (found.line, found.sqlstate, found.hint) == (7, "42P01", "make it")
    assert str(found) == 'line 7, in SELECT * FROM no;: relation "no [2J" does not exist'


def test_other_complaints() -> None:
    restore = (
        "pg_restore: while PROCESSING TOC:\npg_restore: from TOC entry 5; 1 TABLE a x\n"
        'pg_restore: error: could not execute query: ERROR:  relation "a" already exists\n'
        "Command was: CREATE TABLE public.a (\n    i int\n);\n"
    )
    assert str(complaint(restore)) == 'in CREATE TABLE public.a (: relation "a" already exists'
    refused = 'pg_dump: error: connection to server at "127.0.0.1", port 1 failed: Connection refused\n\tIs the server running?'
    assert str(complaint(refused)) == 'connection to server at "127.0.0.1", port 1 failed: Connection refused'
    assert str(complaint("what\nelse")) == "else"
    assert str(complaint("")) == "it said nothing"
    assert len(str(complaint("psql: error: " + "x" * 100_000))) < 500


def test_complaints_are_bounded_and_keep_the_first_error() -> None:
    kept = Complaints()
    for number in range(1000):
        kept.add(b"psql:<stdin>:%d: WARNING:  %s\n" % (number, b"w" * 100_000))
    kept.add(b"psql:<stdin>:7: ERROR:  first\nSTATEMENT:  ")
    for _ in range(1000):
        kept.add(b"x" * 100_000 + b"\n")
    assert len(str(kept)) < 1_000_000
    assert str(complaint(str(kept))).startswith("line 7, in xxx") or complaint(str(kept)).message == "first"


def test_passwords_leave_urls() -> None:
    assert split_password("postgresql://a:p%40%2F@h:1/d?x=y") == ("postgresql://a@h:1/d?x=y", "p@/")
    assert split_password("postgres://h/d") == ("postgres://h/d", None)
    assert split_password("postgresql://a:@h") == ("postgresql://a@h", "")
    for wrong in ("http://h", "postgresql://[", "", "postgresql://a\0b"):
        with pytest.raises(CommandError):
            split_password(wrong)


def entry(type: str, name: str, text: str, schema: str = "public") -> str:
    return f"--\n-- Name: {name}; Type: {type}; Schema: {schema}; Owner: x\n--\n\n{text}\n\n\n"


def test_the_owner_of_the_database_makes_no_difference() -> None:
    texts = {
        owner: entry("TABLE", "a", f"CREATE TABLE a ();\n\n\nALTER TABLE public.a OWNER TO {owner};")
        + entry("ACL", "TABLE a", f"GRANT ALL ON TABLE public.a TO {owner} WITH GRANT OPTION;\nGRANT SELECT ON TABLE public.a TO app;")
        + entry("DEFAULT ACL", "x", f"ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA public REVOKE ALL ON TABLES FROM {owner};")
        for owner in ("shop", '"shop-try"')
    }
    assert compare(objects(texts["shop"], "shop"), objects(texts['"shop-try"'], "shop-try")) == []
    assert compare(objects(texts["shop"], "shop"), objects(texts["shop"].replace("TO app", "TO shop_app"), "shop")) != []


def test_what_differs_object_by_object() -> None:
    first = entry("TABLE", "a", "CREATE TABLE a (\n    i int\n);") + entry("VIEW", "v", "CREATE VIEW v;") + entry("X", "f", "1") * 2
    second = (
        entry("TABLE", "a", "CREATE TABLE a (\n    i int,\n    j int\n);") + entry("INDEX", "z", "CREATE INDEX z;") + entry("X", "f", "1")
    )
    found = compare(objects("SET x = 1;\n" + first, "o"), objects("SET x = 2;\n" + second, "o"))
    assert [(str(one.key), one.change) for one in found] == [
        ("INDEX public.z", Change.ADDED),
        ("TABLE public.a", Change.CHANGED),
        ("VIEW public.v", Change.REMOVED),
        ("X public.f", Change.REMOVED),
    ]
    assert found[1].lines == ("@@ -1,3 +1,4 @@", " CREATE TABLE a (", "-    i int", "+    i int,", "+    j int", " );")
