"""Agreeing on the protocol's version in PostgreSQL's place."""

import struct

import pytest

from torpor.door.negotiation import negotiate
from torpor.pgwire.startup import StartupMessage


@pytest.mark.parametrize(
    ("asked", "major", "agreed", "is_told"),
    [
        (0, 17, 0, False),
        (0, 18, 0, False),
        (2, 18, 2, False),
        (1, 18, 1, False),
        (2, 17, 0, True),
        (2, 16, 0, True),
        (9999, 18, 2, True),
        (3, 18, 2, True),
    ],
)
def test_versions(asked: int, major: int, agreed: int, is_told: bool) -> None:
    message, answer = negotiate(StartupMessage({"user": "app"}, asked), major)
    assert message == StartupMessage({"user": "app"}, agreed)
    assert bool(answer) is is_told
    if is_told:
        assert answer == b"v" + struct.pack("!iHHi", 12, 3, agreed, 0)


def test_unknown_protocol_extensions_are_named_and_taken_out() -> None:
    message, answer = negotiate(StartupMessage({"user": "app", "_pq_.x": "1", "_pq_.y": "2"}), 18)
    assert message == StartupMessage({"user": "app"})
    assert answer == b"v" + struct.pack("!iHHi", 26, 3, 0, 2) + b"_pq_.x\0_pq_.y\0"
