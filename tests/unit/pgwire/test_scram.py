"""SCRAM-SHA-256 against other people's clients, and against clients that lie. The oracles are scramp and libpq."""

import base64
import functools
import hashlib
import hmac
import random
import stringprep
import unicodedata
from collections.abc import Callable

import psycopg.pq
import pytest
import scramp
from hypothesis import given, settings
from hypothesis import strategies as st

from torpor.model.errors import ProtocolViolation
from torpor.pgwire.saslprep import saslprep
from torpor.pgwire.scram import ScramExchange, Verifier, make_verifier, mock_salt, parse_verifier

SALT = b"0123456789abcdef"
ITERATIONS = 4096  # scramp takes no fewer


@functools.cache
def verifier(password: str, salt: bytes = SALT) -> Verifier:
    parsed = parse_verifier(make_verifier(password, salt, ITERATIONS))
    assert parsed is not None
    return parsed


def exchange(*candidates: Verifier) -> ScramExchange:
    return ScramExchange(SALT, ITERATIONS, candidates)


def client_of(password: str) -> scramp.ScramClient:
    return scramp.ScramClient(["SCRAM-SHA-256"], "app", password)


def talk(client: scramp.ScramClient, server: ScramExchange) -> bool:
    client.set_server_first(server.first(client.get_client_first().encode()).decode())
    final = server.final(client.get_client_final().encode())
    if final is None:
        return False
    client.set_server_final(final.decode())  # raises when the server's signature is wrong
    return True


@settings(max_examples=20, deadline=None)
@given(st.text(min_size=1, max_size=20).filter(str.isascii).filter(str.isprintable))
def test_a_right_password_is_right_and_the_client_believes_the_server(password: str) -> None:
    assert talk(client_of(password), exchange(verifier(password)))


@settings(max_examples=20, deadline=None)
@given(st.text("abc", min_size=1, max_size=4), st.text("abc", min_size=1, max_size=4))
def test_only_the_right_password_is_right(password: str, tried: str) -> None:
    assert talk(client_of(tried), exchange(verifier(password))) is (password == tried)


@pytest.mark.parametrize(("tried", "is_right"), [("own", True), ("ticket-1", True), ("ticket-2", True), ("ticket-3", False)])
def test_any_of_several_candidates_will_do(tried: str, is_right: bool) -> None:
    assert talk(client_of(tried), exchange(verifier("own"), verifier("ticket-1"), verifier("ticket-2"))) is is_right


def test_without_candidates_every_password_is_wrong_after_a_whole_exchange() -> None:
    assert not talk(client_of("x"), exchange())


def test_mock_salts_are_steady_and_differ_by_name_and_secret() -> None:
    assert mock_salt("a", b"s") == mock_salt("a", b"s")
    assert len({mock_salt("a", b"s"), mock_salt("b", b"s"), mock_salt("a", b"t")}) == 3
    assert len(mock_salt("\udcff", b"s")) == len(SALT)


def sign(password: str, bare: bytes, server_first: bytes, unproven: bytes, salt: bytes = SALT) -> bytes:
    """A client-final with the right proof, made with nothing but hashlib."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, ITERATIONS)
    key = hmac.digest(salted, b"Client Key", "sha256")
    signature = hmac.digest(hashlib.sha256(key).digest(), bare + b"," + server_first + b"," + unproven, "sha256")
    return unproven + b",p=" + base64.b64encode(bytes(a ^ b for a, b in zip(key, signature, strict=True)))


@pytest.mark.parametrize("header", [b"n,,", b"y,,"])
@pytest.mark.parametrize("extension", [b"", b",x=1", b",x=1,y=2"])
def test_both_channel_binding_flags_and_optional_extensions_are_taken(header: bytes, extension: bytes) -> None:
    server = exchange(verifier("pw"))
    bare = b"n=,r=clientnonce" + extension
    first = server.first(header + bare)
    nonce = first.split(b",")[0]
    assert server.final(sign("pw", bare, first, b"c=" + base64.b64encode(header) + b"," + nonce + extension)) is not None


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"n",
        b"n,",
        b"n,,",
        b"x,,n=,r=abc",
        b"p=tls-server-end-point,,n=,r=abc",
        b"p=,,n=,r=abc",
        b"n,a=other,n=,r=abc",
        b"n,,m=ext,n=,r=abc",
        b"n,,n=,r=",
        b"n,,n=,r=a b",
        b"n,,n=,r=a\0b",
        b"n,,n=,r=\xff",
        b"n,,r=abc,n=",
        b"n,,n=app",
        b"n,,n=,r=abc,",
        b"n,,n=,r=abc\n",
    ],
)
def test_bad_first_messages_are_refused(message: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        exchange(verifier("pw")).first(message)


def final_with(**changes: bytes) -> tuple[ScramExchange, bytes]:
    server = exchange(verifier("pw"))
    bare = b"n=,r=clientnonce"
    first = server.first(b"n,," + bare)
    binding = changes.get("binding", b"biws")
    nonce = changes.get("nonce", first.split(b",")[0][2:])
    message = sign("pw", bare, first, b"c=" + binding + b",r=" + nonce)
    if "proof" in changes:
        message = message[: message.rindex(b",p=")] + b",p=" + changes["proof"]
    return server, message + changes.get("tail", b"")


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": b"clientnonce"},  # the server's half is missing
        {"nonce": b"another"},
        {"nonce": b""},
        {"binding": b"eSws"},  # 'y' now, 'n' before: a downgrade
        {"binding": b""},
        {"binding": base64.b64encode(b"p=tls-server-end-point,,data")},
        {"proof": b""},
        {"proof": b"AAAA"},
        {"proof": b"*" * 44},
        {"proof": base64.b64encode(bytes(33))},
        {"proof": b"A" * 43},
        {"tail": b",x=1"},
        {"tail": b"\0"},
    ],
)
def test_bad_final_messages_are_refused(changes: dict[str, bytes]) -> None:
    server, message = final_with(**changes)
    with pytest.raises(ProtocolViolation):
        server.final(message)


def test_a_well_formed_wrong_proof_is_wrong() -> None:
    server, message = final_with(proof=base64.b64encode(bytes(32)))
    assert server.final(message) is None


def test_an_untouched_final_message_is_right() -> None:
    server, message = final_with()
    assert server.final(message) is not None


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_garbage_is_refused_at_either_step(first: bytes, final: bytes) -> None:
    server = exchange(verifier("pw"))
    with pytest.raises(ProtocolViolation):
        server.first(first)
    server.first(b"n,,n=,r=abc")
    with pytest.raises(ProtocolViolation):
        server.final(final)


def test_server_nonces_differ() -> None:
    assert exchange().first(b"n,,n=,r=abc") != exchange().first(b"n,,n=,r=abc")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "secret",
        "md5" + "0" * 32,
        "SCRAM-SHA-256$4096:c2FsdA==$c2FsdA==:c2FsdA==",  # short keys
        make_verifier("x", SALT, 1).replace("$1:", "$0:"),
        make_verifier("x", SALT, 1).replace("$1:", "$9999999999:"),
        make_verifier("x", SALT, 1).replace("SHA-256", "SHA-1"),
        make_verifier("x", SALT, 1) + "=",
        make_verifier("x", SALT, 1) + "\n",
    ],
)
def test_what_is_no_scram_verifier_is_not_taken_for_one(text: str) -> None:
    assert parse_verifier(text) is None


def test_a_verifier_survives_a_round_trip_and_its_repr_shows_no_key() -> None:
    text = make_verifier("secret")
    parsed = parse_verifier(text)
    assert parsed is not None
    assert parsed.encode() == text
    assert parsed.iterations == 4096
    assert repr(parsed) == "Verifier(iterations=4096)"
    assert make_verifier("secret") != text  # a fresh salt each time


# --- SASLprep, with libpq as the oracle -----------------------------------------------------------------------------------------


def libpq_verifier(password: bytes) -> str:
    connection = psycopg.pq.PGconn.connect_start(b"host=/nonexistent")
    try:
        return connection.encrypt_password(password, b"app", b"scram-sha-256").decode()
    finally:
        connection.finish()


def assert_same_as_libpq(password: str) -> None:
    theirs = libpq_verifier(password.encode("utf-8", "surrogateescape"))
    parsed = parse_verifier(theirs)
    assert parsed is not None
    assert make_verifier(password, parsed.salt, parsed.iterations) == theirs, ascii(password)


@pytest.mark.parametrize(
    "password",
    [
        "plain",
        "with\x07control",
        "ﬁ",  # becomes fi
        "ª",
        "a\u00adb",  # a soft hyphen, dropped
        "\u00ad",  # nothing would be left
        "a\u00a0b",  # a wide space
        "a\u200bb",  # in both the table of spaces and the one of nothings
        "é",
        "e\u0301",
        "\u0627a",  # right-to-left with left-to-right
        "\u0627\u0628",
        "\u06271",
        "\ufb01\u0007",  # prohibited: used raw
        "\ue000ﬁ",
        "🂡ﬁ",  # unassigned in Unicode 3.2
        "\udcff\udcfe",  # bytes that aren't UTF-8
        "ﬁ\udcff",
    ],
)
def test_passwords_are_prepared_as_libpq_does(password: str) -> None:
    assert_same_as_libpq(password)


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=6))
def test_any_password_is_prepared_as_libpq_does(password: str) -> None:
    assert_same_as_libpq(password)


def test_one_character_of_each_table_is_prepared_as_libpq_does() -> None:
    chance = random.Random(7)
    everything = [chr(c) for c in range(0x80, 0x110000) if not 0xD800 <= c <= 0xDFFF]
    sp = stringprep
    tables: list[Callable[[str], bool]] = [sp.in_table_a1, sp.in_table_b1, sp.in_table_c12, sp.in_table_c3, sp.in_table_c6, sp.in_table_c7]
    tables += [sp.in_table_c8, sp.in_table_c9, sp.in_table_d1, sp.in_table_d2, lambda c: unicodedata.normalize("NFKC", c) != c]
    for is_in in tables:
        for c in chance.sample([c for c in everything if is_in(c)], 2):
            assert_same_as_libpq("aª" + c)


def test_what_is_ascii_stays_as_it_is() -> None:
    assert saslprep("a b\x01") == b"a b\x01"


# -- bound to the TLS connection (SCRAM-SHA-256-PLUS)

END_POINT = hashlib.sha256(b"certificate").digest()
PLUS = "SCRAM-SHA-256-PLUS"


def bound(end_point: bytes = END_POINT, is_bound: bool = True) -> ScramExchange:
    return ScramExchange(SALT, ITERATIONS, (verifier("secret"),), end_point=end_point, is_bound=is_bound)


def binding_client(end_point: bytes, kind: str = "tls-server-end-point", mechanism: str = PLUS) -> scramp.ScramClient:
    return scramp.ScramClient([mechanism], "app", "secret", channel_binding=(kind, end_point))


def test_a_client_that_binds_and_its_server_believe_each_other() -> None:
    assert talk(binding_client(END_POINT), bound())
    long = hashlib.sha512(b"certificate").digest()
    assert talk(binding_client(long), bound(long))


def test_somebody_in_between_has_another_certificate() -> None:
    with pytest.raises(ProtocolViolation, match="channel binding check failed"):
        talk(binding_client(hashlib.sha256(b"another").digest()), bound())


def test_other_bindings_are_refused() -> None:
    with pytest.raises(ProtocolViolation, match="unsupported SCRAM channel-binding type"):
        talk(binding_client(END_POINT, "tls-unique"), bound())


def test_a_client_that_was_lied_to_about_the_offer_is_refused() -> None:
    """It can bind and says that the server can't (y); but the server offered to. Without an offer the same is fine."""
    first = b"y,,n=app,r=abc"
    with pytest.raises(ProtocolViolation, match="channel binding negotiation error"):
        bound(is_bound=False).first(first)
    assert bound(end_point=b"", is_bound=False).first(first)


@pytest.mark.parametrize(("is_bound", "flag"), [(True, b"n"), (True, b"y"), (False, b"p=tls-server-end-point")])
def test_what_the_client_says_must_fit_its_mechanism(is_bound: bool, flag: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        bound(is_bound=is_bound).first(flag + b",,n=app,r=abc")


def test_who_does_not_bind_is_still_let_in() -> None:
    assert talk(client_of("secret"), bound(is_bound=False))


def test_a_binding_can_not_be_left_out_of_the_last_message() -> None:
    server, client = bound(), binding_client(END_POINT)
    client.set_server_first(server.first(client.get_client_first().encode()).decode())
    final = client.get_client_final()
    header = base64.b64encode(b"p=tls-server-end-point,,").decode()
    with pytest.raises(ProtocolViolation, match="channel binding check failed"):
        server.final(f"c={header}{final[final.index(',') :]}".encode())
