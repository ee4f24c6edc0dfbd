"""Password messages: SASL's first, and md5's only one. The md5 oracle is libpq."""

import contextlib
import struct

import psycopg.pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.model.errors import ProtocolViolation
from torpor.pgwire.passwords import is_md5_verifier, make_md5_verifier, md5_answer, md5_fits, parse_sasl_initial

SALT = b"\x01\x02\x03\x04"


@given(st.text("ABC-123", max_size=20), st.binary(max_size=50))
def test_sasl_initial_responses_are_read(mechanism: str, data: bytes) -> None:
    body = mechanism.encode() + b"\0" + struct.pack("!i", len(data)) + data
    assert parse_sasl_initial(body) == (mechanism, data)


def test_a_sasl_initial_response_may_come_without_data() -> None:
    assert parse_sasl_initial(b"SCRAM-SHA-256\0\xff\xff\xff\xff") == ("SCRAM-SHA-256", None)


@pytest.mark.parametrize(
    "body", [b"", b"SCRAM", b"SCRAM\0", b"SCRAM\0\0\0", b"S\0\0\0\0\x05abc", b"S\0\0\0\0\x01abc", b"S\0\xff\xff\xff\xffa", b"S\0\x80\0\0\0"]
)
def test_malformed_sasl_initial_responses_are_refused(body: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        parse_sasl_initial(body)


@given(st.binary(max_size=60))
def test_garbage_is_read_or_refused(body: bytes) -> None:
    with contextlib.suppress(ProtocolViolation):
        parse_sasl_initial(body)


def test_md5_verifiers_are_those_of_libpq() -> None:
    connection = psycopg.pq.PGconn.connect_start(b"host=/nonexistent")
    theirs = connection.encrypt_password("pässword".encode(), b"app", b"md5").decode()
    connection.finish()
    assert make_md5_verifier("pässword", "app") == theirs
    assert is_md5_verifier(theirs)
    assert not is_md5_verifier("md5" + "g" * 32)
    assert not is_md5_verifier("SCRAM-SHA-256$1:a$b:c")


def test_only_the_right_answer_fits() -> None:
    right = make_md5_verifier("pw", "app")
    assert md5_fits(right, SALT, md5_answer(right, SALT))
    assert not md5_fits(right, SALT, md5_answer(make_md5_verifier("other", "app"), SALT))
    assert not md5_fits(right, b"\0\0\0\0", md5_answer(right, SALT))
    assert not md5_fits(right, SALT, right.encode() + b"\0")  # the stored hash itself is no answer


@pytest.mark.parametrize("body", [b"", b"md5", b"a\0b\0", b"\0x"])
def test_what_is_not_one_string_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        md5_fits(make_md5_verifier("pw", "app"), SALT, body)


def test_a_salt_of_another_length_is_a_fault_of_ours() -> None:
    with pytest.raises(ValueError, match="4 bytes"):
        md5_fits(make_md5_verifier("pw", "app"), b"", b"x\0")
