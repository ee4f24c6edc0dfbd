"""What a server says: built by `replies`, read by `answers`."""

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.model.errors import ProtocolViolation
from torpor.pgwire import replies
from torpor.pgwire.answers import (
    Authentication,
    BackendKeyData,
    BackendMessage,
    CommandComplete,
    DataRow,
    Notice,
    OtherMessage,
    ParameterStatus,
    ReadyForQuery,
    RowDescription,
    parse_backend_message,
    query,
    terminate,
)
from torpor.pgwire.frames import FrameBuffer


def read(data: bytes) -> BackendMessage:
    ((tag, body),) = FrameBuffer().feed(data)
    return parse_backend_message(tag, body)


def test_an_error_has_all_its_fields() -> None:
    notice = read(replies.error_response("28P01", "wrong", hint="try again", detail="no"))
    assert isinstance(notice, Notice)
    assert notice.is_error
    assert (notice.severity, notice.sqlstate, notice.message, notice.hint) == ("FATAL", "28P01", "wrong", "try again")
    assert notice.fields["D"] == "no"


def test_an_error_says_nothing_where_there_is_nothing_to_say() -> None:
    notice = read(replies.error_response("08P01", "bad"))
    assert isinstance(notice, Notice)
    assert set(notice.fields) == {"S", "V", "C", "M"}
    assert notice.hint == ""


@given(st.text(), st.text(max_size=5000))
def test_any_text_fits_into_an_error(message: str, hint: str) -> None:
    notice = read(replies.error_response("XX000", message, hint))
    assert isinstance(notice, Notice)
    assert notice.sqlstate == "XX000"
    assert len(notice.hint) <= 2_000


def test_lone_surrogates_fit_into_an_error() -> None:
    assert isinstance(read(replies.error_response("XX000", "\udcff")), Notice)


@pytest.mark.parametrize(
    ("data", "code", "rest"),
    [
        (replies.authentication_ok(), 0, b""),
        (replies.authentication_md5(b"salt"), 5, b"salt"),
        (replies.authentication_sasl(["SCRAM-SHA-256"]), 10, b"SCRAM-SHA-256\0\0"),
        (replies.authentication_sasl_continue(b"x"), 11, b"x"),
        (replies.authentication_sasl_final(b"y"), 12, b"y"),
    ],
)
def test_authentication_requests(data: bytes, code: int, rest: bytes) -> None:
    assert read(data) == Authentication(code, rest)


def test_version_negotiation_names_the_whole_version_and_the_unknown_options() -> None:
    assert read(replies.negotiate_protocol_version(2, ["_pq_.a", "_pq_.b"])) == OtherMessage(
        b"v", struct.pack("!ii", 196610, 2) + b"_pq_.a\0_pq_.b\0"
    )


@pytest.mark.parametrize(
    ("tag", "body", "message"),
    [
        (b"K", struct.pack("!I", 7) + b"key1", BackendKeyData(7, b"key1")),
        (b"K", struct.pack("!I", 7) + bytes(32), BackendKeyData(7, bytes(32))),
        (b"S", b"server_version\x0018.1\0", ParameterStatus("server_version", "18.1")),
        (b"T", struct.pack("!h", 1) + b"a\0" + struct.pack("!ihihih", 0, 0, 25, -1, -1, 0), RowDescription(("a",), (25,))),
        (b"T", struct.pack("!h", 0), RowDescription((), ())),
        (b"D", struct.pack("!hi", 3, 1) + b"x" + struct.pack("!ii", -1, 0), DataRow(("x", None, ""))),
        (b"C", b"SELECT 1\0", CommandComplete("SELECT 1")),
        (b"Z", b"I", ReadyForQuery("I")),
        (b"N", b"SNOTICE\0Mhi\0\0", Notice(False, {"S": "NOTICE", "M": "hi"})),
        (b"I", b"", OtherMessage(b"I", b"")),
    ],
)
def test_backend_messages_are_read(tag: bytes, body: bytes, message: BackendMessage) -> None:
    assert parse_backend_message(tag, body) == message


@pytest.mark.parametrize(
    ("tag", "body"),
    [(b"R", b""), (b"K", b"\0"), (b"S", b"x"), (b"T", b"\0\x02a\0"), (b"D", b"\0\x01\0\0\0\x09x"), (b"D", b"\0\x01"), (b"Z", b"")],
)
def test_malformed_backend_messages_are_refused(tag: bytes, body: bytes) -> None:
    with pytest.raises(ProtocolViolation, match="malformed"):
        parse_backend_message(tag, body)


@given(st.sampled_from([b"R", b"K", b"S", b"T", b"D", b"C", b"Z", b"E", b"N", b"?"]), st.binary(max_size=60))
def test_garbage_is_read_or_refused(tag: bytes, body: bytes) -> None:
    with contextlib.suppress(ProtocolViolation):
        parse_backend_message(tag, body)


def test_what_a_simple_client_says() -> None:
    assert query("select 1") == b"Q\0\0\0\x0dselect 1\0"
    assert terminate() == b"X\0\0\0\x04"
