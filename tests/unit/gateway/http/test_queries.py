"""What requests of `POST /sql` say, and who they say they are from."""

import base64
import json

import pytest

from torpor.gateway.http.cors import is_admitted
from torpor.gateway.http.credentials import from_basic, from_connection_string, from_login, from_token
from torpor.gateway.http.failures import Failure, error_fields
from torpor.gateway.http.queries import read


def test_a_query() -> None:
    asked = read({"neon-array-mode": "true", "neon-raw-text-output": "TRUE", "idempotency-key": "k"}, b'{"query": "SELECT 1"}')
    assert [one.sql for one in asked.queries] == ["SELECT 1"]
    assert (asked.is_batch, asked.array_mode, asked.raw_text, asked.key, asked.timeout_ms) == (False, True, True, "k", None)


def test_a_batch_says_how_its_transaction_is() -> None:
    body = b'{"queries": [{"query": "SELECT 1", "arrayMode": true}, {"query": "SELECT 2", "params": null}]}'
    headers = {"neon-batch-isolation-level": "RepeatableRead", "neon-batch-read-only": "true", "neon-batch-deferrable": "false"}
    asked = read(headers, body)
    assert asked.begin == "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY NOT DEFERRABLE"
    assert [one.array_mode for one in asked.queries] == [True, None]
    assert read({}, body).begin == "BEGIN"


@pytest.mark.parametrize(("text", "ms"), [("5", 5000), ("5s", 5000), ("1.5 s", 1500), ("20ms", 20), ("2min", 120_000)])
def test_timeouts(text: str, ms: int) -> None:
    assert read({"torpor-statement-timeout": text}, b'{"query": ""}').timeout_ms == ms


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, b""),
        ({}, b"\xff"),
        ({}, b"null"),
        ({}, b'"x"'),
        ({}, b"{}"),
        ({}, b'{"query": 1}'),
        ({}, b'{"query": "SELECT \\u0000"}'),
        ({}, b'{"query": "", "params": {}}'),
        ({}, b'{"queries": {}}'),
        ({}, b'{"queries": [1]}'),
        ({}, b'{"queries": [' + b'{"query": ""},' * 1000 + b'{"query": ""}]}'),
        ({}, b"[" * 1_000_000),
        ({}, b'{"query": "", "params": [' + b"1," * 65_535 + b"1]}"),
        ({"torpor-statement-timeout": "0"}, b'{"query": ""}'),
        ({"torpor-statement-timeout": "2000min"}, b'{"query": ""}'),
        ({"torpor-statement-timeout": "1;DROP"}, b'{"query": ""}'),
        ({"neon-batch-isolation-level": "x"}, b'{"queries": [{"query": ""}]}'),
        ({"idempotency-key": "a b"}, b'{"query": ""}'),
        ({"idempotency-key": "x" * 300}, b'{"query": ""}'),
    ],
)
def test_what_is_refused(headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(Failure) as refused:
        read(headers, body)
    assert refused.value.status == 400
    assert refused.value.as_json()["code"] == "22023"


def test_connection_strings() -> None:
    text = "postgresql://us%40er:p%2Fw@Shop.db.example.com:7432/shop?options=-c%20x%3D1&application_name=app&sslmode=require"
    target = from_connection_string(text)
    assert (target.user, target.password, target.database, target.host) == ("us@er", "p/w", "shop", "shop.db.example.com")
    assert target.startup() == {
        "user": "us@er", "database": "shop", "client_encoding": "UTF8", "application_name": "app", "options": "-c x=1",
    }  # fmt: skip
    assert "p/w" not in repr(target)
    assert from_connection_string("postgres://u:p@h").database == "u"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "mysql://u:p@h/d",
        "postgres://h/d",
        "postgres://u@h/d",
        "postgres://u:p@[/d",
        "postgres://u:p%00@h/d",
        "postgres://u:p@h/" + "x" * 9000,
    ],
)
def test_connection_strings_that_are_refused(text: str) -> None:
    with pytest.raises(Failure) as refused:
        from_connection_string(text)
    assert refused.value.sqlstate == "28000"


def test_basic_credentials() -> None:
    def header(text: str) -> str:
        return "Basic " + base64.b64encode(text.encode()).decode()

    plain = from_basic(header("u:p:%41"), "shop", "H")
    assert (plain.user, plain.password, plain.database, plain.host) == ("u", "p:%41", "shop", "h")
    assert from_basic(header("u:p%41"), "", "h", in_percents=True).password == "pA"
    assert from_login("u%20", "p", "", "h").user == "u "
    for wrong in (
        "Digest x",
        "Bearer ",
        "Bearer a b",
        "Basic !",
        "Basic " + base64.b64encode(b"\xff:x").decode(),
        header("u"),
        header(":p"),
        header("u:"),
    ):
        with pytest.raises(Failure) as refused:
            from_basic(wrong, "shop", "h")
        assert refused.value.status == 401


def test_tokens() -> None:
    plain = from_basic("Bearer a.b.c", "shop", "H")
    assert (plain.user, plain.password, plain.database, plain.host, plain.by_token) == ("", "a.b.c", "shop", "h", True)
    assert "a.b.c" not in repr(plain)
    neon = from_token("bearer a.b.c", "postgresql://web:ignored@shop.db.test/shop?options=-c%20geqo%3Doff")
    assert (neon.user, neon.password, neon.host, neon.by_token, neon.options) == ("web", "a.b.c", "shop.db.test", True, "-c geqo=off")
    assert from_token("Bearer a.b.c", "postgresql://shop.db.test/shop").user == ""
    for wrong in ("Bearer", "Bearer a b", "Bearer é.b.c", "Bearer " + "x" * 8_001):
        with pytest.raises(Failure) as refused:
            from_token(wrong)
        assert refused.value.status == 401

    def of(claims: object) -> tuple[str, ...]:
        payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
        return from_token(f"Bearer h.{payload}.s").bearer

    # A retry may come with the next token of the same person, and never with another's.
    assert of({"iss": "i", "sub": "u1", "exp": 1}) == of({"iss": "i", "sub": "u1", "exp": 2}) == ("i", "u1")
    assert of({"iss": "i", "sub": "u2"}) != of({"iss": "i", "sub": "u1"})
    odd: object
    for odd in ({"sub": "u1"}, [], 7):
        assert len(of(odd)) == 1
    assert from_basic("Basic " + base64.b64encode(b"u:p").decode(), "", "h").bearer == ()


def test_origins() -> None:
    assert is_admitted("https://App.example", "https://a.example, https://app.example")
    assert is_admitted("null", "*")
    for setting in ("", "https://app.example.evil", "app.example", "http://app.example"):
        assert not is_admitted("https://app.example", setting)


def test_an_error_has_all_fields() -> None:
    told = Failure(error_fields(b"SFEHLER\0VERROR\0C23505\0Mtaken\0DKey\0tbook\0nbook_pkey\0\0")).as_json()
    expected = {"message": "taken", "severity": "ERROR", "code": "23505", "detail": "Key", "table": "book", "constraint": "book_pkey"}
    assert {name: value for name, value in told.items() if value is not None} == {**expected, "retryable": False}
