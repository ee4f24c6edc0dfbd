"""The gateway's header as the door reads it."""

import pytest

from torpor.door.guard.proxy import SIGNATURE, V2_HEADER_BYTES, brings_token, parse_v2, server_name_for, v2_rest_bytes
from torpor.gateway.http.proxyheader import vouch

SECRET = b"0123456789abcdef"


@pytest.mark.parametrize("client", [("203.0.113.7", 4711), ("2001:db8::7", 1), ("127.0.0.1", 65535)])
@pytest.mark.parametrize("name", ["", "shop.db.example.com"])
def test_the_door_believes_it(client: tuple[str, int], name: str) -> None:
    made = vouch(SECRET, client, name)
    header, rest = made[:V2_HEADER_BYTES], made[V2_HEADER_BYTES:]
    assert header.startswith(SIGNATURE)
    assert v2_rest_bytes(header) == len(rest)
    assert parse_v2(header, rest) == client
    assert server_name_for(SECRET, header, rest) == name
    assert not brings_token(header, rest)
    made = vouch(SECRET, client, name, by_token=True)
    assert server_name_for(SECRET, made[:V2_HEADER_BYTES], made[V2_HEADER_BYTES:]) == name
    assert brings_token(made[:V2_HEADER_BYTES], made[V2_HEADER_BYTES:])
    for secret in (b"", b"0123456789abcdeF", SECRET[:-1]):
        assert server_name_for(secret, header, rest) is None


def test_without_a_secret_nobody_is_believed() -> None:
    made = vouch(b"", ("203.0.113.7", 4711), "shop")
    assert server_name_for(b"", made[:V2_HEADER_BYTES], made[V2_HEADER_BYTES:]) is None
    assert server_name_for(SECRET, made[:V2_HEADER_BYTES], made[V2_HEADER_BYTES : V2_HEADER_BYTES + 14]) is None


def test_long_and_strange_names_are_cut() -> None:
    made = vouch(SECRET, ("203.0.113.7", 4711), "é" + "x" * 5000)
    assert server_name_for(SECRET, made[:V2_HEADER_BYTES], made[V2_HEADER_BYTES:]) == "?" + "x" * 254
