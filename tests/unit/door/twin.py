"""Computes in memory, with a backend that does just enough for drivers to connect; and a client that says what tests want said."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from tests.support.relaying import encryption
from torpor.door.guard.guard import Guard
from torpor.door.listener import Door
from torpor.door.ports import Tokens
from torpor.door.stats import LoginOutcome
from torpor.metering.traffic import Carrier
from torpor.model.database import Database, DatabaseState, Role
from torpor.model.encryption import TlsMode
from torpor.model.errors import Unavailable
from torpor.model.names import DatabaseId
from torpor.model.sleep import WakeReason
from torpor.pgwire.answers import Authentication, BackendMessage, Notice, parse_backend_message
from torpor.pgwire.frames import FrameBuffer, frame
from torpor.pgwire.passwords import make_md5_verifier
from torpor.pgwire.replies import authentication_ok
from torpor.pgwire.scram import make_verifier
from torpor.pgwire.startup import CancelRequest, FirstPacket, StartupMessage, parse_first_packet

PASSWORD = "correct horse"
VERIFIER = make_verifier(PASSWORD)
MOCK_SECRET = b"mock"


def database(name: str, major: int = 18) -> Database:
    return Database(DatabaseId(f"d{name}"), name, DatabaseState.READY, major, 1000, 0.0)


@dataclass
class HandedOver:
    """What the twin was handed. Is the Session too."""

    packet: FirstPacket
    address: tuple[str, int]
    carrier: Carrier | None
    pid: int | None = 4711
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    was_cut: bool = False
    claims: bytes = b""

    async def wait_ended(self) -> None:
        await self.ended.wait()

    def cut(self) -> None:
        self.was_cut = True

    def dismiss(self, farewell: bytes) -> None:
        self.was_cut = True

    def when_ended(self, callback: Callable[[], None]) -> None:
        pass

    @property
    def startup(self) -> StartupMessage:
        assert isinstance(self.packet, StartupMessage)
        return self.packet


class TwinCompute:
    """Answers a startup message like a PostgreSQL that trusts, and every query with an empty result after echoing it as a notice."""

    def __init__(self, major: int) -> None:
        self.major = major
        self.sessions: list[HandedOver] = []
        self.failure: Exception | None = None
        self.may_report = asyncio.Event()
        self.may_report.set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def hand_over(
        self, client: socket.socket, address: tuple[str, int], startup: bytes, carrier: Carrier | None = None, claims: bytes = b""
    ) -> HandedOver:
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        session = HandedOver(parse_first_packet(startup[4:]), address, carrier, claims=claims)
        assert len(startup) == struct.unpack("!i", startup[:4])[0]
        self.sessions.append(session)
        task = asyncio.get_running_loop().create_task(self._serve(client.dup(), session))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.sleep(0)  # so that the task owns its socket
        await self.may_report.wait()
        return session

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, sock: socket.socket, session: HandedOver) -> None:
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        try:
            if isinstance(session.packet, CancelRequest):
                return
            parameters = {"server_version": f"{self.major}.0", "client_encoding": "UTF8", "standard_conforming_strings": "on"}
            status = b"".join(frame(b"S", f"{name}\0{value}\0".encode()) for name, value in parameters.items())
            key = frame(b"K", struct.pack("!I", session.pid or 0) + b"key!")
            await loop.sock_sendall(sock, authentication_ok() + status + key + frame(b"Z", b"I"))
            buffer = FrameBuffer(limit_bytes=64 << 20)
            while data := await loop.sock_recv(sock, 65536):
                for tag, body in buffer.feed(data):
                    if tag == b"X":
                        return
                    if tag == b"Q":
                        await loop.sock_sendall(
                            sock, frame(b"N", b"SNOTICE\0M" + body + b"\0") + frame(b"C", b"ECHO\0") + frame(b"Z", b"I")
                        )
        except OSError:
            pass
        finally:
            sock.close()
            session.ended.set()


class Twin:
    """The Computes port in memory."""

    def __init__(self) -> None:
        self.databases = {name: database(name, major) for name, major in (("shop", 18), ("blog", 17))}
        self.roles: dict[str, Role] = {
            "app": Role("app", VERIFIER, True),
            "nologin": Role("nologin", VERIFIER, False),
            "expired": Role("expired", VERIFIER, True, valid_until=1.0),
            "nopassword": Role("nopassword", None, True),
            "old": Role("old", make_md5_verifier(PASSWORD, "old"), True),
            "torpor": Role("torpor", VERIFIER, True),
        }
        self.computes = {name: TwinCompute(one.major) for name, one in self.databases.items()}
        self.wakes: list[tuple[str | None, WakeReason, str]] = []
        self.may_wake = asyncio.Event()
        self.may_wake.set()
        self.may_tell_role = asyncio.Event()
        self.may_tell_role.set()
        self.turns: list[str | None] = []
        self.may_turn = asyncio.Event()
        self.may_turn.set()
        self.wake_failure: Unavailable | Exception | None = None
        self.asleep = False
        self.cancels: list[tuple[str, int]] = []
        self.cancellable: list[TwinCompute] = []

    @property
    def shop(self) -> TwinCompute:
        return self.computes["shop"]

    def find(self, name: str) -> Database | None:
        return self.databases.get(name)

    async def role(self, database: Database, name: str) -> Role | None:
        await self.may_tell_role.wait()
        return self.roles.get(name)

    async def turn(self, database: Database) -> None:
        self.turns.append(database.name)
        await self.may_turn.wait()

    def sleeps(self, database: Database) -> bool:
        return self.asleep

    def awake(self, database: Database, reason: WakeReason, detail: str) -> AbstractAsyncContextManager[TwinCompute]:
        return self._awake(database, reason, detail)

    @asynccontextmanager
    async def _awake(self, database: Database, reason: WakeReason, detail: str) -> AsyncIterator[TwinCompute]:
        self.wakes.append((database.name, reason, detail))
        await self.may_wake.wait()
        if self.wake_failure is not None:
            raise self.wake_failure
        yield self.computes[database.name or ""]

    def cancel(self, client_host: str, pid: int) -> Sequence[TwinCompute]:
        self.cancels.append((client_host, pid))
        return self.cancellable


@asynccontextmanager
async def open_door(
    twin: Twin,
    *,
    login_timeout_s: float = 120.0,  # on a busy machine three thousand connections take their time
    max_logins: int = 100,
    relay: bool = False,
    tls: TlsMode = TlsMode.OFF,
    host: str = "127.0.0.1",
    guard: Guard | None = None,
    gateway_secret: bytes = b"",
    tokens: Tokens | None = None,
) -> AsyncIterator[Door]:
    """A door; with `relay` or `tls` there are real relay workers behind it."""
    async with AsyncExitStack() as stack:
        encrypted = None if tls is TlsMode.OFF and not relay else await stack.enter_async_context(encryption(tls))
        door = Door(
            twin,
            host=host,
            port=0,
            login_timeout_s=login_timeout_s,
            max_logins=max_logins,
            mock_secret=MOCK_SECRET,
            encryption=encrypted,
            public_host="db.test",
            relay=relay,
            guard=guard,
            gateway_secret=gateway_secret,
            tokens=tokens,
        )
        async with _opened(door, twin):
            yield door


@asynccontextmanager
async def _opened(door: Door, twin: Twin) -> AsyncIterator[None]:
    await door.start()
    try:
        yield
    finally:
        await door.close()
        for compute in twin.computes.values():
            await compute.stop()
        assert (door.stats.pending, door.stats.waiting) == (0, 0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left


class Client:
    """A client over a real socket that says anything."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    async def hear(self) -> BackendMessage:
        header = await self.reader.readexactly(5)
        (length,) = struct.unpack("!i", header[1:])
        return parse_backend_message(header[:1], await self.reader.readexactly(length - 4))

    async def hear_authentication(self) -> Authentication:
        message = await self.hear()
        assert isinstance(message, Authentication), message
        return message

    async def hear_refusal(self) -> Notice:
        """The error, after which the connection must be closed in good order."""
        message = await self.hear()
        assert isinstance(message, Notice), message
        assert message.is_error
        assert message.severity == "FATAL"
        assert await self.reader.read() == b""
        return message

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


@asynccontextmanager
async def client_of(door: Door) -> AsyncIterator[Client]:
    host, port = door.address
    client = Client(*await asyncio.open_connection(host, port))
    try:
        yield client
    finally:
        await client.close()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something that another task does has happened."""
    async with asyncio.timeout(90):
        while not condition():  # noqa: ASYNC110  # what is waited for knows nothing of this test
            await asyncio.sleep(0.002)


def outcomes(door: Door) -> dict[LoginOutcome, int]:
    return {outcome: count for outcome, count in door.stats.logins.items() if count}
