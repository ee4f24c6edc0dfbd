"""Tokens before real PostgreSQL: over HTTP and as passwords, with claims that row-level security can rely on; revoked, expired, forged."""

import contextlib
import json
import struct
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import quote

import httpx
import psycopg
import pytest
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from tests.support.attacks.kit import make_superuser
from tests.support.faults import eventually
from tests.support.overhttp import http_url, post
from tests.support.server import MadeDatabase, Server
from tests.support.tokens import ISSUER, KeyServer, Signer, key_set, serving
from torpor.gateway.http.ppgframes import SUBPROTOCOL
from torpor.pgwire.frames import frame
from torpor.pgwire.startup import StartupMessage

ONE, OTHER = Signer("k1", "ES256"), Signer("k2", "EdDSA")

SCHEMA = """
CREATE ROLE web LOGIN; CREATE ROLE staff LOGIN PASSWORD 'x'; CREATE ROLE boss LOGIN CREATEROLE; CREATE ROLE other LOGIN;
CREATE TABLE notes (owner text, body text);
INSERT INTO notes VALUES ('u1', 'mine'), ('u2', 'of another');
ALTER TABLE notes ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON notes TO web, staff USING (owner = nullif(current_setting('torpor.jwt_claims'), '')::jsonb ->> 'sub');
GRANT SELECT ON notes TO web, staff;
CREATE TABLE usual (owner text);
INSERT INTO usual SELECT 'u1' FROM generate_series(1, 20000);
ALTER TABLE usual ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON usual TO web USING (owner = nullif(current_setting('request.jwt.claims', true), '')::json ->> 'sub');
GRANT SELECT ON usual TO web;
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(
        http=True, http_port=0, freeze_after_s=2, page_after_s="never", stop_after_s="never", tls="allow", jwks_networks="127.0.0.1"
    ) as server:
        yield server
        assert "Traceback" not in server.log, server.log[-6000:]


@pytest.fixture(scope="module")
def keys() -> Iterator[KeyServer]:
    with serving(key_set(ONE)) as served:
        yield served


def rules(**changed: Any) -> dict[str, Any]:
    return {"issuer": ISSUER, "audience": "shop", "role_claim": "role", "roles": ["web", "staff"], "jwks": key_set(ONE)} | changed


def register(server: Server, database: MadeDatabase, **changed: Any) -> dict[str, Any]:
    said = {name: value for name, value in rules(**changed).items() if value is not None}
    found: dict[str, Any] = server.call("PUT", f"/v1/databases/{database.name}/tokens", said)
    return found


def unregistered(server: Server, database: MadeDatabase, **changed: Any) -> str:
    """Why these rules are refused."""
    said = {name: value for name, value in rules(**changed).items() if value is not None}
    url = f"{server.api_url}/v1/databases/{database.name}/tokens"
    answer = httpx.put(url, json=said, headers={"Authorization": f"Bearer {server.token}"}, timeout=60, trust_env=False)
    assert answer.status_code == 400, answer.text
    return answer.text


@pytest.fixture(scope="module")
def database(server: Server) -> MadeDatabase:
    made = server.create()
    with psycopg.connect(made.url, autocommit=True) as connection:
        connection.execute(SCHEMA)
    register(server, made)
    return made


def asked(server: Server, database: MadeDatabase, token: str, sql: str, url: str = "", **headers: str) -> httpx.Response:
    """As Neon's driver asks with `authToken`: a URL without a password."""
    url = url or database.url_as("web", "").replace(":@", "@")
    return post(server, database, {"query": sql, "params": []}, {"Authorization": f"Bearer {token}"} | headers, url=url)


def rows(server: Server, database: MadeDatabase, token: str, sql: str) -> Any:
    answer = asked(server, database, token, sql)
    assert answer.status_code == 200, answer.text
    return answer.json()["rows"]


def test_a_token_sees_its_own_rows(server: Server, database: MadeDatabase) -> None:
    assert rows(server, database, ONE.token(), "SELECT body FROM notes") == [["mine"]]
    assert rows(server, database, ONE.token({"sub": "u2"}), "SELECT body FROM notes") == [["of another"]]
    (claims, usual), = rows(
        server, database, ONE.token({"name": "Zoë \U0001f600"}),
        "SELECT current_setting('torpor.jwt_claims'), current_setting('request.jwt.claims')",
    )  # fmt: skip
    assert claims == usual
    assert json.loads(claims)["name"] == "Zoë \U0001f600"
    # Nothing is kept for somebody else, and what is kept for the same one still knows whose it is.
    token = ONE.token({"sub": "u2"})
    for _ in range(3):
        assert rows(server, database, token, "SELECT body FROM notes") == [["of another"]]
        assert rows(server, database, ONE.token(), "SELECT current_user, body FROM notes") == [["web", "mine"]]


def test_parallel_workers_see_the_claims(server: Server, database: MadeDatabase) -> None:
    plan = "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0; SET debug_parallel_query = on"
    with tokened(database, ONE.token()) as connection:
        connection.execute(plan)
        assert connection.execute("SELECT count(*) FROM usual").fetchone() == (20000,)
        assert connection.execute("SELECT count(*) FROM notes").fetchone() == (1,)


@contextlib.contextmanager
def tokened(database: MadeDatabase, token: str, user: str = "web", options: str = "") -> Iterator["psycopg.Connection[Any]"]:
    """A connection whose password is a token."""
    with psycopg.connect(database.url_as(user, quote(token)), sslmode="require", autocommit=True, options=options) as connection:
        yield connection


FORGERIES = (
    'SET torpor.jwt_claims = \'{"sub":"u2"}\'',
    "SET LOCAL torpor.jwt_claims = '{}'",
    "SELECT set_config('torpor.jwt_claims', '{\"sub\":\"u2\"}', false)",
    "SELECT set_config('TORPOR.JWT_CLAIMS', '{\"sub\":\"u2\"}', true)",
    "RESET torpor.jwt_claims",
    'ALTER ROLE CURRENT_USER SET torpor.jwt_claims = \'{"sub":"u2"}\'',
    "UPDATE pg_settings SET setting = '{\"sub\":\"u2\"}' WHERE name = 'torpor.jwt_claims'",
    "DO $$ BEGIN PERFORM set_config('torpor.jwt_claims', '{}', false); END $$",
    "CREATE FUNCTION pg_temp.f() RETURNS int SET torpor.jwt_claims = '{}' LANGUAGE sql AS 'SELECT 1'; SELECT pg_temp.f()",
)


def test_claims_can_not_be_forged(server: Server, database: MadeDatabase) -> None:
    with tokened(database, ONE.token()) as connection:
        for sql in FORGERIES + tuple(sql.replace("torpor.jwt_claims", "request.jwt.claims") for sql in FORGERIES):
            with pytest.raises(psycopg.Error) as refused:
                connection.execute(sql)
            assert refused.value.sqlstate in ("42501", "42602", "42704", "0A000"), (sql, refused.value)
        for name in ("request.jwt.claim.sub", "request.headers"):
            with pytest.raises(psycopg.Error, match=r"reserved|prefix|invalid"):
                connection.execute(f"SELECT set_config('{name}', 'u2', false)")
        connection.execute("DISCARD ALL")
        connection.execute("RESET ALL")
        assert connection.execute("SELECT body FROM notes").fetchall() == [("mine",)]
    # Neither can who logs in by a password, or brings settings along.
    for options in ("-c torpor.jwt_claims={}", "--torpor.jwt-claims={}", "-c request.jwt.claims={}"):
        with pytest.raises(psycopg.OperationalError):
            tokened(database, ONE.token(), options=options).__enter__()
    staff = database.url_as("staff", "x")
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        psycopg.connect(staff, options="-c torpor.jwt_claims={}")
    with psycopg.connect(staff, autocommit=True) as connection:
        for sql in FORGERIES:
            if not sql.startswith("RESET"):
                with pytest.raises(psycopg.Error):
                    connection.execute(sql)
        assert connection.execute("SELECT body FROM notes").fetchall() == []
        assert connection.execute("SELECT current_setting('torpor.jwt_claims')").fetchone() == ("",)
        # This name is anybody's where no token was shown, as ever.
        connection.execute('SET request.jwt.claims = \'{"sub":"u2"}\'')


def refusal(server: Server, database: MadeDatabase, token: str, **more: str) -> tuple[str, str]:
    answer = asked(server, database, token, "SELECT 1", **more)
    assert answer.status_code in (400, 401), answer.text
    return answer.json()["code"], answer.json()["message"]


def test_what_is_no_good_token_is_refused(server: Server, database: MadeDatabase) -> None:
    stranger = Signer("k1")
    for token, why in (
        (stranger.token(), "signature is wrong"),
        (Signer("k9").token(), "isn't registered"),
        (ONE.token(life_s=-60), "expired"),
        (ONE.token({"iss": "https://evil.example"}), "another issuer"),
        (ONE.token({"aud": "other"}), "another audience"),
        (ONE.token({"role": "other"}), "no role that is admitted"),
        (ONE.token({"role": None}), "no role that is admitted"),
        ("a.b.c", "no JSON Web Token"),
    ):
        code, message = refusal(server, database, token)
        assert code == "28P01", message
        assert why in message
    assert refusal(server, database, ONE.token({"role": "staff"}))[0] == "28000"  # the URL says web
    assert asked(server, database, ONE.token(), "SELECT 1", url=database.url_as("staff", "x")).status_code == 400
    # Only over what encrypts, else a password is asked for, of which there is none.
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(database.url_as("web", quote(ONE.token())), sslmode="disable")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        tokened(database, ONE.token(), user="other").__enter__()
    with pytest.raises(psycopg.OperationalError, match="expired"):
        tokened(database, ONE.token(life_s=-60)).__enter__()


def test_no_token_makes_a_superuser(server: Server) -> None:
    made = server.create()
    make_superuser(server, made)
    with psycopg.connect(made.url, autocommit=True) as connection:
        connection.execute("CREATE ROLE web LOGIN; CREATE ROLE rich LOGIN SUPERUSER; CREATE ROLE heir LOGIN; GRANT rich TO heir")
    register(server, made, roles=["web", "rich", "heir", "gone"])
    for role in ("rich", "heir"):
        code, message = refusal(server, made, ONE.token({"role": role}), url=made.url_as(role, ""))
        assert code == "28000"
        assert "superuser" in message
    assert rows(server, made, ONE.token(), "SELECT 1") == [["1"]]
    code, message = refusal(server, made, ONE.token({"role": "gone"}), url=made.url_as("gone", ""))
    assert code == "28000"
    assert "does not exist" in message
    assert "can't log in" in unregistered(server, made, roles=["torpor"])
    server.call("DELETE", f"/v1/databases/{made.name}?force=true")


def test_every_way_over_http_takes_tokens(server: Server, database: MadeDatabase) -> None:
    address = http_url(server)
    bearer = {"Authorization": f"Bearer {ONE.token()}"}
    # /sql without a connection string
    with httpx.Client(timeout=60, trust_env=False) as client:
        answer = client.post(f"{address}/sql?db={database.name}", headers=bearer, json={"query": "SELECT body FROM notes"})
        assert answer.json()["rows"] == [{"body": "mine"}], answer.text
    # /v2, as Neon's driver opens it: the password is whatever it is
    socket = address.replace("http", "ws", 1)
    with connect(f"{socket}/v2", additional_headers=bearer, proxy=None) as way:
        way.send(StartupMessage({"user": "web", "database": database.name}).encode())
        way.send(frame(b"p", b"none\0") + frame(b"Q", b"SELECT body FROM notes\0"))
        heard = b""
        while b"mine" not in heard:
            part = way.recv(timeout=30)
            assert isinstance(part, bytes)
            assert b"FATAL" not in part, part
            heard += part
    # a token as the password of a WebSocket, too: web has no other
    with connect(f"{socket}/v2", proxy=None) as way:
        way.send(StartupMessage({"user": "web", "database": database.name}).encode())
        way.send(frame(b"p", ONE.token().encode() + b"\0"))
        heard = b""
        while b"Z" + struct.pack("!I", 5) not in heard:
            part = way.recv(timeout=30)
            assert isinstance(part, bytes)
            heard += part
        assert b"FATAL" not in heard
    # Prisma's
    with connect(f"{socket}/v0/session?db={database.name}", subprotocols=[Subprotocol(SUBPROTOCOL)], additional_headers=bearer, proxy=None):
        pass


def test_a_session_ends_with_its_token(server: Server, database: MadeDatabase) -> None:
    for left_s in (2, 10, 60):  # as slow as this machine is: logging in has to be faster
        try:
            with tokened(database, ONE.token(life_s=left_s - 30)) as connection:  # clocks may differ by 30 s
                eventually(partial(_is_over, connection))
                return
        except psycopg.OperationalError as error:
            assert "expired" in str(error)
    pytest.fail("no login within a minute")


def _is_over(connection: "psycopg.Connection[Any]") -> bool:
    try:
        connection.execute("SELECT 1")
    except psycopg.OperationalError:
        return True
    return False


def test_other_rules_end_the_sessions_of_before(server: Server) -> None:
    made = server.create()
    with psycopg.connect(made.url, autocommit=True) as owner:
        owner.execute("CREATE ROLE web LOGIN")
        assert register(server, made)["closed"] == 0
        for again in (True, False):
            with tokened(made, ONE.token()) as connection:
                connection.execute("BEGIN")
                removing = f"/v1/databases/{made.name}/tokens"
                told = register(server, made, audience=None) if again else server.call("DELETE", removing)
                assert told["closed"] == 1
                eventually(partial(_is_over, connection))
            assert owner.execute("SELECT 1").fetchone() == (1,), "who came by a password stays"
        assert refusal(server, made, ONE.token()) == ("28P01", f'database "{made.name}" takes no tokens')
    server.call("DELETE", f"/v1/databases/{made.name}?force=true")


def test_keys_are_fetched_and_rotated(server: Server, keys: KeyServer) -> None:
    made = server.create()
    with psycopg.connect(made.url, autocommit=True) as owner:
        owner.execute("CREATE ROLE web LOGIN")
    shown = register(server, made, jwks=None, jwks_url=keys.url)
    assert shown["rules"]["keys"] == 1
    for _ in range(3):
        assert rows(server, made, ONE.token(), "SELECT 1") == [["1"]]
    assert keys.asked == 1
    keys.text = key_set(OTHER)
    register(server, made, jwks=None, jwks_url=keys.url)
    assert rows(server, made, OTHER.token(), "SELECT 1") == [["1"]]
    for status, text in ((302, "{}"), (200, "no json"), (200, " " * 70_000)):
        keys.status, keys.text = status, text
        assert "key" in unregistered(server, made, jwks=None, jwks_url=keys.url)
    assert rows(server, made, OTHER.token(), "SELECT 1") == [["1"]], "what can't be used changes nothing"
    for url in ("http://169.254.169.254/latest", "http://[::1]:1/", "https://10.0.0.1/", "ftp://x/", "https://u:p@example.com/"):
        assert "public" in unregistered(server, made, jwks=None, jwks_url=url) or "https" in unregistered(
            server, made, jwks=None, jwks_url=url
        )
    server.call("DELETE", f"/v1/databases/{made.name}?force=true")
