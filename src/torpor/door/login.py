"""One connection, from its first bytes until PostgreSQL has it.

Concurrency: one task for each, which owns the socket and closes it. Until the client has proven who it is, a time limit runs (the
time that Torpor itself takes isn't counted) and the connection may have to give way to newer ones. Memory is bounded by the limits
of the startup packet and of the password message. Nothing is woken for a client that hasn't proven who it is.
"""

import asyncio
import contextlib
import secrets
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from torpor.base.logs import get_logger
from torpor.door.channel import Channel
from torpor.door.encryption import Encryption
from torpor.door.guard.guard import Guard
from torpor.door.guard.proxy import (
    MAX_V1_BYTES,
    SIGNATURE,
    V2_HEADER_BYTES,
    begins_proxy_header,
    brings_token,
    parse_v1,
    parse_v2,
    server_name_for,
    v2_rest_bytes,
)
from torpor.door.negotiation import negotiate
from torpor.door.ports import AwakeCompute, Computes, Pools, Session, Tokens
from torpor.door.relaywire import Handshake
from torpor.door.roles import (
    MAX_TOKEN_BYTES,
    Md5Check,
    ScramCheck,
    admitted_role,
    check_may_log_in,
    may_bring_token,
    password_check,
    wrong_password,
)
from torpor.door.routing import Route, ServerNames, database_not_found, route
from torpor.door.silence import Silent
from torpor.door.stats import DoorStats, LoginOutcome, outcome_of
from torpor.door.text import printable
from torpor.door.wire import ClientGone, linger, read_exactly, read_line, read_message, say_farewell, send
from torpor.model.database import Database, Role
from torpor.model.errors import (
    AddressForbidden,
    LoginTimeout,
    ProtocolViolation,
    RoutingConflict,
    ShuttingDown,
    TooManyConnections,
    TorporError,
    Unavailable,
    WrongToken,
)
from torpor.model.names import DatabaseId
from torpor.model.pool import PoolMode
from torpor.model.sleep import WakeReason
from torpor.model.tokens import Admission
from torpor.pgwire.frames import STARTUP_HEADER_BYTES, startup_body_length
from torpor.pgwire.passwords import MAX_PASSWORD_BYTES, PASSWORD_TAG, md5_fits, parse_sasl_initial
from torpor.pgwire.replies import (
    ENCRYPTION_ACCEPTED,
    ENCRYPTION_REFUSED,
    TLS_ALERT_HANDSHAKE_FAILURE,
    authentication_cleartext,
    authentication_md5,
    authentication_sasl,
    authentication_sasl_continue,
    authentication_sasl_final,
)
from torpor.pgwire.scram import MECHANISM, MECHANISM_PLUS, ScramExchange
from torpor.pgwire.startup import (
    CancelRequest,
    EncryptionRequest,
    StartupMessage,
    Stranger,
    parse_first_packet,
    recognise_stranger,
)

log = get_logger(__name__)
T = TypeVar("T")

_ENCRYPTION_REQUESTS_ANSWERED = 2
_MD5_SALT_BYTES = 4
_FALSE = frozenset({"false", "off", "no", "0", "f", "n", "fa", "fal", "fals", "of"})


@dataclass(slots=True)
class Doorway:
    """What the logins of one door share."""

    computes: Computes
    timeout_s: float
    max_waiting: int
    """Clients of one database that may wait for its wake at once, so that one tenant can't fill the door."""
    relay: bool
    """Whether also sessions in the clear are carried by relay workers."""
    encryption: Encryption
    server_names: ServerNames
    mock_secret: bytes
    gateway_secret: bytes
    """What Torpor's own gateway proves itself with, when it brings clients."""
    stats: DoorStats
    guard: Guard
    pools: Pools | None = None
    tokens: Tokens | None = None
    pool_port: int = 0
    """Who comes to this port is pooled; 0 where there is none."""
    waiting: Counter[DatabaseId] = field(default_factory=Counter)

    def too_slow(self, awaited: str) -> LoginTimeout:
        """The refusal for a client that made the door wait for `awaited`."""
        return LoginTimeout(
            f"the login took longer than {self.timeout_s:g} s: the server was still waiting for {awaited}",
            "connect again; for very slow links raise login_timeout_s",
        )


def give_way_error() -> TooManyConnections:
    """The refusal for a connection that has to give way to newer ones."""
    return TooManyConnections(
        "too many connections are logging in, and this one has waited longest without logging in",
        "connect again; if it happens often, raise max_logins",
    )


def shutting_down() -> ShuttingDown:
    """The refusal while Torpor stops."""
    return ShuttingDown("Torpor is shutting down", "connect again once it is back")


class Login:
    """One connection's time at the door. `proven` is called once, when it stops being one of the pending, in whatever way."""

    def __init__(self, doorway: Doorway, silent: Silent, head: bytes, proven: "Callable[[Login], None]") -> None:
        self._doorway = doorway
        self._channel = Channel(silent.sock)
        self._address = silent.address
        self._visit = silent.visit
        self._deadline = silent.deadline
        self._head = head
        self._proven = proven
        self._timeout: asyncio.Timeout | None = None
        self._awaited = "the startup message"
        self._gives_way = False
        self._is_settled = False
        self._is_handing_over = False
        self._who = ""
        self._target = ""
        self._cause = ""
        # Now: once the client is relayed, this is another socket.
        self._is_at_pool_port = bool(doorway.pool_port) and silent.sock.getsockname()[1] == doorway.pool_port
        self._vouched_name: str | None = None  # the server name, of a client that Torpor's own gateway brings
        self._by_token = False  # the gateway says that it has a token for us
        self._admission: Admission | None = None
        self._farewell: bytes | None = None

    def __repr__(self) -> str:
        return f"<Login {self._address[0]} {self._who or 'unknown'} {'settled' if self._is_settled else 'waits for ' + self._awaited}>"

    @property
    def _sock(self) -> socket.socket:
        return self._channel.sock

    def give_way(self) -> None:
        """Send this connection away, because newer ones need its place. Only while it is pending."""
        self._gives_way = True
        if self._timeout is not None:
            self._timeout.reschedule(asyncio.get_running_loop().time())

    async def run(self) -> None:
        """Log the client in, or tell it why not. Raises nothing but CancelledError."""
        try:
            await self._conduct()
        except asyncio.CancelledError:
            # Cut off in the middle of a hand-over, nobody knows whether PostgreSQL has the client already: then leave it alone.
            if not self._is_settled and not self._is_handing_over:
                self._refuse(shutting_down())
            raise
        except ClientGone:
            self._count(LoginOutcome.VANISHED)
        except TorporError as error:
            self._refuse(error)
            if not self._gives_way:
                await linger(self._sock)
        except Exception:
            log.exception("login failed", client=self._address[0], who=self._who)
            self._refuse(TorporError("internal error in the door", "Torpor's log says more"))
        finally:
            self._visit.release()
            self._channel.close()

    def abandon(self) -> None:
        """Send this connection away although its task never ran."""
        self._proven(self)
        self._visit.release()
        self._refuse(shutting_down())
        self._channel.close()

    async def _conduct(self) -> None:
        try:
            async with asyncio.timeout_at(0 if self._gives_way else self._deadline) as self._timeout:
                first = await self._greet()
                if isinstance(first, CancelRequest):
                    go_on = partial(self._cancel, first)
                else:
                    go_on = partial(self._serve, *await self._authenticate(first))
        except TimeoutError:
            if self._timeout is None or not self._timeout.expired():
                raise
            raise (give_way_error() if self._gives_way else self._doorway.too_slow(self._awaited)) from None
        finally:
            self._proven(self)
        await go_on()

    async def _greet(self) -> StartupMessage | CancelRequest:
        """Read what the client wants, with or without encryption as it asks on the way."""
        head, self._head = self._head, b""
        encryption = self._doorway.encryption
        if self._visit.expects_proxy:
            await self._read_proxy_header(head)
            head = b""
        answered: Counter[EncryptionRequest] = Counter()
        while True:
            header = await read_exactly(self._sock, STARTUP_HEADER_BYTES, head)
            head = b""
            self._visit.check_worth()
            if begins_proxy_header(header) and self._vouched_name is None:
                if await self._read_gateway_header(header):
                    continue
                raise ProtocolViolation(
                    "a PROXY header isn't taken from this address", "if it is a load balancer's, list it in proxy_protocol_from"
                )
            if (stranger := recognise_stranger(header)) is not None:
                if stranger is not Stranger.TLS or self._channel.tls is not None:
                    raise ProtocolViolation(f"this port speaks the PostgreSQL protocol, not {stranger}", "use a PostgreSQL client")
                await self._encrypt_directly(header)
                continue
            packet = parse_first_packet(await read_exactly(self._sock, startup_body_length(header)))
            if not isinstance(packet, EncryptionRequest):
                return packet
            if packet is EncryptionRequest.SSL and self._channel.tls is None and encryption.is_offered:
                send(self._sock, ENCRYPTION_ACCEPTED)
                await self._encrypt()
                continue
            answered[packet] += 1
            if answered[packet] > _ENCRYPTION_REQUESTS_ANSWERED:
                raise ProtocolViolation("the client asks for encryption again and again", "it was answered: go on, or leave")
            send(self._sock, ENCRYPTION_REFUSED)

    async def _encrypt(self, prefix: bytes = b"") -> Handshake:
        self._awaited = "the TLS handshake"
        self._farewell = b""  # until it is done there is nothing that the client could read
        done = await self._channel.encrypt(self._doorway.encryption.relays, self._address, prefix)
        self._farewell = None
        self._awaited = "the startup message"
        return done

    async def _encrypt_directly(self, head: bytes) -> None:
        """A client that begins with TLS at once (sslnegotiation=direct)."""
        if not self._doorway.encryption.is_offered:
            self._farewell = TLS_ALERT_HANDSHAKE_FAILURE
            raise ProtocolViolation("this server doesn't speak TLS", "without TLS: sslnegotiation=postgres and sslmode=prefer or disable")
        if not (await self._encrypt(head)).protocol:
            # As with PostgreSQL: or what another protocol's client sends could be taken for ours.
            raise ProtocolViolation("TLS without asking needs ALPN", 'offer the protocol "postgresql", or use sslnegotiation=postgres')

    async def _read_proxy_header(self, head: bytes) -> None:
        """From here on the client's true address is the only one that anybody sees."""
        self._awaited = "the PROXY header"
        head = await read_exactly(self._sock, STARTUP_HEADER_BYTES, head)
        if not begins_proxy_header(head):
            raise ProtocolViolation(
                "connections from this address must begin with a PROXY header",
                "have the load balancer send one, or take it out of proxy_protocol_from",
            )
        if SIGNATURE.startswith(head):
            header = await read_exactly(self._sock, V2_HEADER_BYTES, head)
            rest = await read_exactly(self._sock, v2_rest_bytes(header))
            self._vouched_name = server_name_for(self._doorway.gateway_secret, header, rest)
            self._by_token = self._vouched_name is not None and brings_token(header, rest)
            client = parse_v2(header, rest)
        else:
            client = parse_v1(await read_line(self._sock, MAX_V1_BYTES, head))
        self._address = client or self._address
        self._visit.came_from(self._address[0])
        self._awaited = "the startup message"

    async def _read_gateway_header(self, head: bytes) -> bool:
        """Whether it is Torpor's own gateway that brings a client: then it says whose connection this is, and sees to encryption itself."""
        if not SIGNATURE.startswith(head) or not self._doorway.gateway_secret:
            return False
        header = await read_exactly(self._sock, V2_HEADER_BYTES, head)
        rest = await read_exactly(self._sock, v2_rest_bytes(header))
        name = server_name_for(self._doorway.gateway_secret, header, rest)
        client = parse_v2(header, rest)
        if name is None or client is None:
            return False
        self._vouched_name = name
        self._by_token = brings_token(header, rest)
        self._address = client
        self._visit.came_from(client[0])
        return True

    async def _authenticate(self, startup: StartupMessage) -> tuple[Database, Route]:
        """Find the database, and have the client prove that it is a role that may log in."""
        tls = self._channel.tls
        server_name = self._vouched_name if tls is None else tls.server_name
        if server_name is None:
            self._doorway.encryption.check_clear(self._address[0])
        by_host = self._doorway.server_names.database_in(server_name) if server_name is not None else None
        way = route(startup, by_host, self._is_at_pool_port, self._by_token)
        self._who, self._target = f"{printable(way.user)}@{way.target}", way.target
        database = self._doorway.computes.find(way.target)
        self._visit.check(way.target, database, database is not None and self._pool_mode(way, database) is not PoolMode.OFF)
        if database is None:
            self._visit.failed(way.target, None)
            raise database_not_found(way.target)
        agreed, answer = negotiate(way.startup, database.major)
        role = await self._off_the_clock(self._doorway.computes.role(database, way.user)) if way.user else None
        if self._by_token or self._may_bring_token(database, role):
            agreed = await self._ask_token(database, way, agreed, answer)
            return database, Route(way.target, agreed, way.pool)
        check = password_check(role, way.user, time.time(), self._doorway.mock_secret)
        self._awaited = "the password"
        may_try = partial(self._visit.check_failures, way.target, database)
        ask = self._ask_scram(check, answer, may_try) if isinstance(check, ScramCheck) else self._ask_md5(check, answer, may_try)
        is_right = await ask
        if role is None or not is_right:
            self._cause = check.cause
            self._visit.failed(way.target, database)
            raise wrong_password(way.user)
        self._visit.succeeded(way.target, database)
        check_may_log_in(role)
        return database, Route(way.target, agreed, way.pool)

    async def _off_the_clock(self, work: Awaitable[T]) -> T:
        """Await work of Torpor's own, for whose time the client isn't to blame."""
        loop = asyncio.get_running_loop()
        if self._timeout is None or (deadline := self._timeout.when()) is None:
            return await work
        begun = loop.time()
        self._timeout.reschedule(None)
        result = await work
        self._timeout.reschedule(deadline + loop.time() - begun)
        return result

    async def _ask_scram(self, check: ScramCheck, before: bytes, may_try: Callable[[], None]) -> bool:
        end_point = self._channel.tls.end_point if self._channel.tls is not None else b""
        offered = (MECHANISM_PLUS, MECHANISM) if end_point else (MECHANISM,)
        send(self._sock, before + authentication_sasl(offered))
        mechanism, first = parse_sasl_initial(await self._read_password())
        if mechanism not in offered:
            raise ProtocolViolation("client selected an invalid SASL authentication mechanism", f"on offer: {', '.join(offered)}")
        exchange = ScramExchange(check.salt, check.iterations, check.candidates, end_point=end_point, is_bound=mechanism == MECHANISM_PLUS)
        if first is None:
            send(self._sock, authentication_sasl_continue(b""))
            first = await self._read_password()
        send(self._sock, authentication_sasl_continue(exchange.first(first)))
        proof = await self._read_password()
        may_try()
        final = exchange.final(proof)
        if final is None:
            return False
        # AuthenticationOk is PostgreSQL's to send, after the hand-over.
        send(self._sock, authentication_sasl_final(final))
        return True

    def _may_bring_token(self, database: Database, role: Role | None) -> bool:
        """Whether to ask for a token, in the clear: only of whom we couldn't ask for a password, and inside of what encrypts."""
        tokens = self._doorway.tokens
        is_encrypted = self._channel.tls is not None or self._vouched_name is not None
        return tokens is not None and role is not None and is_encrypted and may_bring_token(role) and tokens.takes(database, role.name)

    async def _ask_token(self, database: Database, way: Route, agreed: StartupMessage, before: bytes) -> StartupMessage:
        """Have the client show a token, and be the role that this says."""
        tokens = self._doorway.tokens
        self._awaited = "the token"
        send(self._sock, before + authentication_cleartext())
        body = await self._read_password(MAX_TOKEN_BYTES)
        self._visit.check_failures(way.target, database)
        try:
            if tokens is None:
                raise WrongToken("no tokens are taken here")
            admission = await self._off_the_clock(tokens.admit(database, body.removesuffix(b"\0").decode("ascii", "replace")))
        except WrongToken as error:
            self._cause = error.message
            self._visit.failed(way.target, database)
            raise
        self._visit.succeeded(way.target, database)
        self._who = f"{printable(admission.role)}@{way.target}"
        admitted_role(admission.role, way.user, await self._off_the_clock(self._doorway.computes.role(database, admission.role)))
        self._admission = admission
        return StartupMessage({**agreed.parameters, "user": admission.role}, agreed.minor)

    async def _ask_md5(self, check: Md5Check, before: bytes, may_try: Callable[[], None]) -> bool:
        salt = secrets.token_bytes(_MD5_SALT_BYTES)
        send(self._sock, before + authentication_md5(salt))
        answer = await self._read_password()
        may_try()
        return md5_fits(check.verifier, salt, answer) and not check.is_doomed

    async def _read_password(self, limit_bytes: int = MAX_PASSWORD_BYTES) -> bytes:
        tag, body = await read_message(self._sock, limit_bytes)
        if tag != PASSWORD_TAG:
            raise ProtocolViolation(f"expected password response, got message type {ord(tag)}")
        return body

    async def _serve(self, database: Database, way: Route) -> None:
        """Wake the database's compute and hand the client over."""
        mode = self._pool_mode(way, database)
        if mode is not PoolMode.OFF:
            self._visit.enter(database, pooled=True)
            self._pool(database, way, mode)
            return
        stats, waiting = self._doorway.stats, self._doorway.waiting
        self._visit.enter(database)
        if self._doorway.computes.sleeps(database):
            self._visit.check_wake(database)
        if waiting[database.id] >= self._doorway.max_waiting:
            raise TooManyConnections(
                f'too many clients wait for database "{printable(way.target)}" to wake',
                "connect again in a moment, with fewer connections at once",
            )
        application = printable(way.startup.parameters.get("application_name", ""))
        detail = f"{printable(way.user)}@{self._address[0]} {application}".rstrip()
        waiting[database.id] += 1
        stats.waiting += 1
        try:
            await self._doorway.computes.turn(database)
            async with self._doorway.computes.awake(database, WakeReason.CONNECTION, detail) as compute:
                self._doorway.guard.check_access(self._address[0], database)  # the lists may have changed since
                session = await self._hand_over(compute, way.startup.encode(), self._admission.claims if self._admission else b"")
                self._visit.release()
                self._count(LoginOutcome.HANDED_OVER)
                try:
                    self._doorway.guard.check_access(self._address[0], database)  # or in the very moment of the hand-over
                except AddressForbidden:
                    session.cut()
                    raise
                if self._admission is not None:
                    self._begun(database, session, self._admission)
        finally:
            stats.waiting -= 1
            waiting[database.id] -= 1
            if not waiting[database.id]:
                del waiting[database.id]

    def _pool_mode(self, way: Route, database: Database) -> PoolMode:
        """Whether this client is pooled: as it says, else as its database is set. A stream of replication never is, nor a session by token:
        its backend knows whose it is."""
        if self._by_token or self._admission is not None:
            return PoolMode.OFF
        replicates = way.startup.parameters.get("replication", "false").lower() not in _FALSE
        if self._doorway.pools is None or replicates:
            if way.pool is PoolMode.ON:
                raise RoutingConflict(
                    "a replication connection can't be pooled" if replicates else "there is no pool here",
                    "connect without the pool: the plain host and database name",
                )
            return PoolMode.OFF
        return way.pool or database.pool.mode or self._doorway.pools.default

    def _pool(self, database: Database, way: Route, mode: PoolMode) -> None:
        """Give the client to the pool, which answers it from now on. Wakes nothing."""
        pools = self._doorway.pools
        assert pools is not None
        pools.admit(database, way.startup, self._sock, self._address, mode is PoolMode.AUTO)
        self._visit.release()
        self._count(LoginOutcome.POOLED)

    async def _cancel(self, request: CancelRequest) -> None:
        """Pass the request to every compute that it can be meant for. As with PostgreSQL, there is no answer, whatever comes of it."""
        self._visit.check_cancel()
        self._count(LoginOutcome.CANCEL)
        if self._doorway.pools is not None and self._doorway.pools.cancel(self._address[0], request.pid, request.key):
            return
        for compute in self._doorway.computes.cancel(self._address[0], request.pid):
            with contextlib.suppress(Unavailable):
                await self._hand_over(compute, request.encode())

    def _begun(self, database: Database, session: Session, admission: Admission) -> None:
        """From here on a session by token ends with that; and what it takes may have been changed in the moment of the hand-over."""
        assert self._doorway.tokens is not None
        if not self._doorway.tokens.begun(database, session, admission):
            session.cut()
            raise WrongToken("this database takes other tokens now, or none")

    async def _hand_over(self, compute: AwakeCompute, packet: bytes, claims: bytes = b"") -> Session:
        self._is_handing_over = True
        if self._doorway.relay:
            await self._channel.relay(self._doorway.encryption.relays, self._address)
        return await compute.hand_over(self._sock, self._address, packet, self._channel.carrier, claims)

    def _refuse(self, error: TorporError) -> None:
        """Tell the client and the log why not; but once PostgreSQL may be speaking to the client, the log alone."""
        if not self._is_settled:
            say_farewell(self._sock, error if self._farewell is None else self._farewell)
            self._count(outcome_of(error))
        outcome = outcome_of(error)
        unlogged = self._doorway.guard.refused(self._address[0], outcome, self._target)
        if unlogged is None:
            return
        details: dict[str, object] = {"cause": self._cause} if self._cause else {}
        if unlogged:
            details["unlogged"] = unlogged  # refusals before this one, for which a flood left no room
        log.info("login refused", client=self._address[0], who=self._who, outcome=outcome, error=error.message, **details)

    def _count(self, outcome: LoginOutcome) -> None:
        self._is_settled = True
        self._doorway.stats.count(outcome)
