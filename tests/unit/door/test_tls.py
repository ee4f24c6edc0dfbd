"""Encrypted logins over real sockets and a real relay worker: how clients ask for TLS, what is refused, what reaches PostgreSQL."""

import asyncio
import hashlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import scramp

from tests.support.relaying import TlsClient, client_context
from tests.unit.door.test_login import sasl_initial, startup
from tests.unit.door.twin import PASSWORD, Twin, client_of, open_door, outcomes, until
from torpor.door.listener import Door
from torpor.door.relaywire import (
    MAX_PREFIX_BYTES,
    address_in,
    configuration,
    new_session,
    parse_handshake,
    parse_report,
    session_name,
)
from torpor.door.stats import LoginOutcome
from torpor.metering.traffic import Traffic
from torpor.model.encryption import TlsMode, must_encrypt
from torpor.pgwire.answers import Authentication, BackendMessage, CommandComplete, Notice, ReadyForQuery, parse_backend_message, query
from torpor.pgwire.frames import frame
from torpor.pgwire.startup import CancelRequest, EncryptionRequest

PLUS = b"SCRAM-SHA-256-PLUS"


class Client:
    """A client that speaks PostgreSQL's protocol over TLS."""

    def __init__(self, tls: TlsClient) -> None:
        self.tls = tls

    async def hear(self) -> BackendMessage:
        header = await self._exactly(5)
        return parse_backend_message(header[:1], await self._exactly(struct.unpack("!i", header[1:])[0] - 4))

    async def hear_refusal(self) -> Notice:
        """The error, after which the connection must end in good order."""
        message = await self.hear()
        assert isinstance(message, Notice), message
        assert await self.tls.recv() == b""
        return message

    async def _exactly(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = await self.tls.recv(length - len(data))
            assert part, "the connection has ended"
            data += part
        return data

    async def log_in(self, first: bytes, mechanism: bytes = PLUS) -> None:
        await self.tls.send(first)
        request = await self.hear()
        assert request == Authentication(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0")
        certificate = self.tls.tls.getpeercert(binary_form=True)
        assert certificate is not None
        binding = ("tls-server-end-point", hashlib.sha256(certificate).digest()) if mechanism == PLUS else None
        theirs = scramp.ScramClient([mechanism.decode()], "app", PASSWORD, channel_binding=binding)
        await self.tls.send(sasl_initial(theirs.get_client_first().encode(), mechanism))
        request = await self.hear()
        assert isinstance(request, Authentication), request
        theirs.set_server_first(request.data.decode())
        await self.tls.send(frame(b"p", theirs.get_client_final().encode()))
        request = await self.hear()
        assert isinstance(request, Authentication), request
        theirs.set_server_final(request.data.decode())
        assert await self.hear() == Authentication(0, b"")
        while not isinstance(await self.hear(), ReadyForQuery):
            pass


@asynccontextmanager
async def encrypted(
    door: Door, *, direct: bool = False, name: str = "localhost", context: ssl.SSLContext | None = None
) -> AsyncIterator[Client]:
    loop = asyncio.get_running_loop()
    with socket.create_connection(door.address) as sock:
        sock.setblocking(False)
        if not direct:
            await loop.sock_sendall(sock, EncryptionRequest.SSL.encode())
            assert await loop.sock_recv(sock, 10) == b"S"
        yield Client(await TlsClient(sock, context, name).shake_hands())


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("mechanism", [PLUS, b"SCRAM-SHA-256"])
async def test_an_encrypted_login_is_handed_over_in_the_clear(direct: bool, mechanism: bytes) -> None:
    twin = Twin()
    async with open_door(twin, tls=TlsMode.REQUIRE) as door, encrypted(door, direct=direct) as client:
        await client.log_in(startup(), mechanism)
        (session,) = twin.shop.sessions
        assert session.address == client.tls.sock.getsockname()
        await client.tls.send(query("hello"))
        echo = await client.hear()
        assert isinstance(echo, Notice)
        assert echo.message == "hello"
        assert await client.hear() == CommandComplete("ECHO")
        assert outcomes(door) == {LoginOutcome.HANDED_OVER: 1}
        assert session.carrier is not None
        carrier = session.carrier
        await until(lambda: carrier.in_transit() == 0)
        assert session.carrier.traffic().received > len(startup()) + len(query("hello"))


async def test_a_relayed_session_in_the_clear_works_and_is_counted() -> None:
    twin = Twin()
    async with open_door(twin, relay=True) as door, client_of(door) as client:
        from tests.unit.door.test_login import log_in

        await log_in(client)
        (session,) = twin.shop.sessions
        assert session.carrier is not None
        client.say(query("x" * 3_000_000))
        echo = await client.hear()
        assert isinstance(echo, Notice)
        assert len(echo.message) == 3_000_000
        assert session.carrier.traffic().received == len(query("x" * 3_000_000))
        assert session.carrier.traffic() != Traffic()


async def test_closing_the_door_leaves_relayed_sessions_alone() -> None:
    twin = Twin()
    async with open_door(twin, tls=TlsMode.ALLOW) as door, encrypted(door) as client:
        await client.log_in(startup())
        await door.close()
        await client.tls.send(query("still here"))
        echo = await client.hear()
        assert isinstance(echo, Notice)
        assert echo.message == "still here"


async def test_the_server_name_says_which_database() -> None:
    twin = Twin()
    async with open_door(twin, tls=TlsMode.ALLOW) as door:
        async with encrypted(door, name="shop.db.test") as client:
            await client.log_in(startup(database="other"))
            (session,) = twin.shop.sessions
            assert session.startup.parameters["database"] == "other"
        async with encrypted(door, name="shop.db.test") as client:
            await client.tls.send(startup(database="blog.other"))
            refusal = await client.hear_refusal()
            assert refusal.sqlstate == "08004"
            assert refusal.message == 'the host name names database "shop", the database name "blog.other" names another'
        async with encrypted(door, name="nothere.db.test") as client:
            await client.tls.send(startup())
            assert (await client.hear_refusal()).sqlstate == "3D000"


async def test_direct_tls_needs_alpn() -> None:
    async with open_door(Twin(), tls=TlsMode.ALLOW) as door:
        async with encrypted(door, direct=True, context=client_context(alpn=False)) as client:
            await client.tls.send(startup())
            refusal = await client.hear_refusal()
            assert (refusal.sqlstate, refusal.message) == ("08P01", "TLS without asking needs ALPN")
        async with encrypted(door, context=client_context(alpn=False)) as client:  # with SSLRequest it doesn't
            await client.log_in(startup())


async def test_encryption_inside_encryption_is_refused() -> None:
    async with open_door(Twin(), tls=TlsMode.ALLOW) as door:
        async with encrypted(door) as client:
            await client.tls.send(EncryptionRequest.GSS.encode())
            assert await client.tls.recv() == b"N"
            await client.tls.send(EncryptionRequest.SSL.encode())
            assert await client.tls.recv() == b"N"
            await client.log_in(startup())
        async with encrypted(door) as client:
            await client.tls.send(b"\x16\x03\x01\x01\x00")
            assert (await client.hear_refusal()).message == "this port speaks the PostgreSQL protocol, not TLS"


async def test_gss_is_refused_and_tls_taken() -> None:
    async with open_door(Twin(), tls=TlsMode.ALLOW) as door, client_of(door) as client:
        client.say(EncryptionRequest.GSS.encode())
        assert await client.reader.readexactly(1) == b"N"
        client.say(EncryptionRequest.SSL.encode())
        assert await client.reader.readexactly(1) == b"S"


@pytest.mark.parametrize(
    ("mode", "host", "expected"),
    [
        (TlsMode.OFF, "192.0.2.1", False),
        (TlsMode.ALLOW, "192.0.2.1", False),
        (TlsMode.REQUIRE, "127.0.0.1", True),
        (TlsMode.REMOTE, "127.0.0.1", False),
        (TlsMode.REMOTE, "127.9.9.9", False),
        (TlsMode.REMOTE, "::1", False),
        (TlsMode.REMOTE, "::ffff:127.0.0.1", False),
        (TlsMode.REMOTE, "::ffff:192.0.2.1", True),
        (TlsMode.REMOTE, "192.0.2.1", True),
        (TlsMode.REMOTE, "fe80::1%eth0", True),
        (TlsMode.REMOTE, "", True),
    ],
)
def test_who_must_encrypt(mode: TlsMode, host: str, expected: bool) -> None:
    assert must_encrypt(mode, host) is expected


async def test_who_must_encrypt_and_does_not_is_told() -> None:
    twin = Twin()
    async with open_door(twin, tls=TlsMode.REQUIRE) as door:
        async with client_of(door) as client:
            client.say(startup())
            refusal = await client.hear_refusal()
            assert (refusal.sqlstate, refusal.message) == ("28000", "this server takes clients over TLS only")
            assert outcomes(door) == {LoginOutcome.ENCRYPTION: 1}
        async with client_of(door) as client:  # a cancel request tells nobody anything, and older clients can't encrypt it
            client.say(CancelRequest(1, b"key!").encode())
            assert await client.reader.read() == b""
        assert twin.cancels == [("127.0.0.1", 1)]


async def test_cancel_requests_come_encrypted_too() -> None:
    twin = Twin()
    twin.cancellable = [twin.shop]
    async with open_door(twin, tls=TlsMode.ALLOW) as door, encrypted(door) as client:
        await client.tls.send(CancelRequest(7, b"key!").encode())
        assert await client.tls.recv() == b""
        assert [session.packet for session in twin.shop.sessions] == [CancelRequest(7, b"key!")]
        assert twin.cancels == [("127.0.0.1", 7)]


async def test_a_wrong_password_is_told_through_the_encryption() -> None:
    twin = Twin()
    async with open_door(twin, tls=TlsMode.ALLOW) as door, encrypted(door) as client:
        await client.tls.send(startup())
        await client.hear()
        theirs = scramp.ScramClient(["SCRAM-SHA-256"], "app", "wrong")
        await client.tls.send(sasl_initial(theirs.get_client_first().encode()))
        request = await client.hear()
        assert isinstance(request, Authentication)
        theirs.set_server_first(request.data.decode())
        await client.tls.send(frame(b"p", theirs.get_client_final().encode()))
        assert (await client.hear_refusal()).sqlstate == "28P01"
        assert twin.wakes == []


async def test_slow_handshakes_are_ended_in_time() -> None:
    async with open_door(Twin(), tls=TlsMode.ALLOW, login_timeout_s=1.0) as door, client_of(door) as client:
        client.say(EncryptionRequest.SSL.encode())
        assert await client.reader.readexactly(1) == b"S"
        client.say(b"\x16\x03\x01")
        assert await asyncio.wait_for(client.reader.read(), 30) == b""
        await until(lambda: outcomes(door) == {LoginOutcome.TIMEOUT: 1})


async def test_garbage_instead_of_a_handshake_is_counted() -> None:
    async with open_door(Twin(), tls=TlsMode.ALLOW) as door:
        async with client_of(door) as client:
            client.say(EncryptionRequest.SSL.encode())
            assert await client.reader.readexactly(1) == b"S"
            client.say(startup())  # in the clear
            await client.reader.read()
        await until(lambda: outcomes(door) == {LoginOutcome.ENCRYPTION: 1})


async def test_without_tls_direct_clients_hear_an_alert() -> None:
    async with open_door(Twin()) as door, client_of(door) as client:
        client.say(b"\x16\x03\x01\x00\x05hello")
        assert (await client.reader.read())[:1] == b"\x15"


# -- what Torpor and its workers say to each other


@pytest.mark.parametrize("address", [("192.0.2.1", 4711), ("2001:db8::1", 1), ("fe80::1%eth0", 65535)])
def test_names_of_sessions(address: tuple[str, int]) -> None:
    name = session_name(address)
    assert len(name) <= 107
    assert address_in(name) == address
    assert session_name(address) != name


def test_what_is_no_name_of_a_session() -> None:
    for broken in (b"", b"\0torpor-relay/", b"\0torpor-relay/1/x/h", b"\0other/1/2/3"):
        with pytest.raises(ValueError):  # any will do
            address_in(broken)


@pytest.mark.parametrize("packet", [b"", b"H", b"?" * 16])
def test_reports_that_are_none(packet: bytes) -> None:
    with pytest.raises(ValueError):
        parse_report(packet)


def test_limits_of_commands() -> None:
    with pytest.raises(ValueError, match="too much was read"):
        new_session(0, 1, bytes(MAX_PREFIX_BYTES + 1), tls=True)
    with pytest.raises(ValueError, match="80 bytes"):
        configuration(b"", [])
    with pytest.raises(ValueError):
        parse_handshake(b"TLSv1.3")
