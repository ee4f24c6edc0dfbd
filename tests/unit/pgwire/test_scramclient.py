"""The client's side of SCRAM against our own server's side, and against scramp's."""

import pytest
from scramp import ScramMechanism

from torpor.model.errors import ProtocolViolation
from torpor.pgwire.scram import ScramExchange, make_verifier, parse_verifier
from torpor.pgwire.scramclient import ScramClient


@pytest.mark.parametrize("password", ["secret", "pässwörd", "\u2168", "a,b=c", " "])
def test_it_proves_itself_to_our_server(password: str) -> None:
    verifier = parse_verifier(make_verifier(password))
    assert verifier is not None
    server, client = ScramExchange(verifier.salt, verifier.iterations, [verifier]), ScramClient(password)
    final = server.final(client.final(server.first(client.first())))
    assert final is not None
    assert client.verify(final)
    assert not client.verify(final[:-4] + b"AAA=")


def test_another_password_is_wrong() -> None:
    verifier = parse_verifier(make_verifier("secret"))
    assert verifier is not None
    server, client = ScramExchange(verifier.salt, verifier.iterations, [verifier]), ScramClient("Secret")
    assert server.final(client.final(server.first(client.first()))) is None


def test_it_proves_itself_to_scramp() -> None:
    mechanism = ScramMechanism("SCRAM-SHA-256")
    salt, stored_key, server_key, iterations = mechanism.make_auth_info("secret", iteration_count=4096)
    server = mechanism.make_server(lambda _user: (salt, stored_key, server_key, iterations))
    client = ScramClient("secret")
    server.set_client_first(client.first().decode())
    server.set_client_final(client.final(server.get_server_first().encode()).decode())
    assert client.verify(server.get_server_final().encode())


def test_nothing_was_verified_before_the_proof() -> None:
    assert not ScramClient("secret").verify(b"v=")


@pytest.mark.parametrize(
    "server_first",
    [
        b"",
        b"r=another,s=c2FsdA==,i=4096",
        b"r=mine,s=c2FsdA==,i=4096",
        b"r=mineX,s=!,i=4096",
        b"r=mineX,s=c2FsdA==,i=0",
        b"r=mineX,s=c2FsdA,i=4096",
    ],
)
def test_a_malformed_answer_is_refused(server_first: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        ScramClient("secret", b"mine").final(server_first)


def test_a_server_can_not_keep_us_busy() -> None:
    with pytest.raises(ProtocolViolation, match="too many"):
        ScramClient("secret", b"mine").final(b"r=mineX,s=c2FsdA==,i=9999999")
