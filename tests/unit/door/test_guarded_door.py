"""The door with its guard, over real sockets: load balancers, failed logins, lists, limits; and that others feel nothing."""

import asyncio
import contextlib
import socket
import statistics
import struct
import time
from collections.abc import AsyncIterator

import pytest
import scramp

from tests.support.pace import in_time
from tests.unit.door.guard.packets import proxy_v2
from tests.unit.door.test_login import log_in, sasl_initial, scram, startup
from tests.unit.door.twin import Client, Twin, client_of, open_door, outcomes, until
from torpor.door.guard.guard import Guard
from torpor.door.listener import Door
from torpor.door.stats import LoginOutcome
from torpor.model.access import GLOBAL, AccessBook, ListScope, access_list
from torpor.model.database import Database
from torpor.model.limits import DoorLimits, Rates
from torpor.pgwire.answers import Notice, ReadyForQuery
from torpor.pgwire.frames import frame
from torpor.pgwire.startup import CancelRequest, EncryptionRequest


class Clock:
    """Turned by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Live:
    """Sessions as a test wants them."""

    def __init__(self) -> None:
        self.all = 0
        self.by_key: dict[str, int] = {}
        self.of: dict[str, tuple[int, int]] = {}

    def total(self) -> int:
        return self.all

    def from_address(self, key: str) -> int:
        return self.by_key.get(key, 0)

    def room(self, database: Database) -> tuple[int, int]:
        return self.of.get(database.id, (0, 100))


def guard_of(clock: Clock | None = None, live: Live | None = None, balancers: tuple[str, ...] = (), **limits: object) -> Guard:
    return Guard(clock or Clock(), b"secret", DoorLimits(**limits), live or Live(), balancers)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def client_from(door: Door, host: str) -> AsyncIterator[Client]:
    """A client whose own address is `host`, one of 127.0.0.0/8."""
    client = Client(*await asyncio.open_connection(*door.address, local_addr=(host, 0)))
    try:
        yield client
    finally:
        await client.close()


async def fail(door: Door, password: str = "wrong", database: str = "shop", host: str = "127.0.0.1") -> Notice:
    async with client_from(door, host) as client:
        client.say(startup(database=database))
        message = await client.hear()
        if isinstance(message, Notice):
            return message
        theirs = scramp.ScramClient(["SCRAM-SHA-256"], "app", password)
        client.say(sasl_initial(theirs.get_client_first().encode()))
        theirs.set_server_first((await client.hear_authentication()).data.decode())
        client.say(frame(b"p", theirs.get_client_final().encode()))
        return await client.hear_refusal()


# -- load balancers


@pytest.mark.parametrize("source", ["203.0.113.7", "2001:db8::7"])
@pytest.mark.parametrize("relay", [False, True])
async def test_the_true_address_goes_everywhere(source: str, relay: bool) -> None:
    twin = Twin()
    guard = guard_of(balancers=("127.0.0.0/8",))
    async with open_door(twin, guard=guard, relay=relay) as door:
        async with client_of(door) as client:
            client.say(proxy_v2(source, 40_000) + startup())
            await scram(client)
            while not isinstance(await client.hear(), ReadyForQuery):
                pass
            (session,) = twin.shop.sessions
            assert session.address == (source, 40_000)
            assert twin.wakes[0][2] == f"app@{source}"
        async with client_of(door) as client:
            client.say(proxy_v2(source, 40_001) + CancelRequest(4711, b"key!").encode())
            assert await client.reader.read() == b""
        assert twin.cancels == [(source, 4711)]
        assert not guard.pending
        assert not guard.entering


@pytest.mark.parametrize(
    "head",
    [
        proxy_v2("203.0.113.7", 4) + startup(),
        b"PROXY TCP4 203.0.113.7 192.0.2.1 4 7432\r\n" + startup(),
    ],
)
async def test_not_a_byte_is_read_past_the_header(head: bytes) -> None:
    async with open_door(Twin(), guard=guard_of(balancers=("127.0.0.1",))) as door, client_of(door) as client:
        for byte in head:
            client.say(bytes([byte]))
            await asyncio.sleep(0)
        await scram(client)
        assert (await client.hear_authentication()).code == 12


async def test_a_header_comes_before_encryption() -> None:
    async with open_door(Twin(), guard=guard_of(balancers=("127.0.0.1",))) as door, client_of(door) as client:
        client.say(proxy_v2("203.0.113.7", 4) + EncryptionRequest.SSL.encode())
        assert await client.reader.readexactly(1) == b"N"
        await log_in(client)


async def test_a_health_check_is_the_balancers_own() -> None:
    twin = Twin()
    async with open_door(twin, guard=guard_of(balancers=("127.0.0.1",))) as door, client_of(door) as client:
        client.say(proxy_v2(None, 0))
        await log_in(client)
        assert twin.shop.sessions[0].address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("balancers", "sent", "words"),
    [
        ((), proxy_v2("203.0.113.7", 4) + startup(), "isn't taken from this address"),
        (("192.0.2.0/24",), b"PROXY TCP4 203.0.113.7 192.0.2.1 4 7432\r\n" + startup(), "isn't taken from this address"),
        (("127.0.0.1",), startup(), "must begin with a PROXY header"),
        (("127.0.0.1",), EncryptionRequest.SSL.encode(), "must begin with a PROXY header"),
        (("127.0.0.1",), proxy_v2("203.0.113.7", 4)[:-1] + b"\xff" + bytes(300), "invalid length|the PROXY header is wrong"),
        (("127.0.0.1",), proxy_v2("203.0.113.7", 4, version_command=0x31) + startup(), "the PROXY header is wrong"),
        (("127.0.0.1",), b"PROXY " + b"x" * 300, "the PROXY header is wrong"),
        (("127.0.0.1",), proxy_v2("203.0.113.7", 4) * 2 + startup(), "isn't taken from this address"),
    ],
)
async def test_headers_out_of_place_are_refused(balancers: tuple[str, ...], sent: bytes, words: str) -> None:
    twin = Twin()
    async with open_door(twin, guard=guard_of(balancers=balancers)) as door, client_of(door) as client:
        client.say(sent)
        refusal = await client.hear_refusal()
        assert refusal.sqlstate == "08P01"
        assert any(word in refusal.message for word in words.split("|")), refusal.message
        assert twin.wakes == []
        assert outcomes(door) == {LoginOutcome.PROTOCOL: 1}


# -- failed logins


async def test_after_a_wrong_password_the_next_try_waits() -> None:
    twin, clock = Twin(), Clock()
    async with open_door(twin, guard=guard_of(clock, failed_login_penalty_s=1.0)) as door:
        assert (await fail(door)).sqlstate == "28P01"
        for hint in ("1 s", "1 s"):
            refusal = await fail(door, "correct horse")
            assert refusal.sqlstate == "28T01"
            assert refusal.message == "too many failed logins to this database from 127.0.0.1"
            assert f"try again in {hint}" in refusal.hint or "try again in 2 s" in refusal.hint
        # Another address, and another database, aren't concerned.
        assert (await fail(door, host="127.0.0.2")).sqlstate == "28P01"
        assert (await fail(door, database="blog")).sqlstate == "28P01"
        clock.now += 1.2
        assert (await fail(door)).sqlstate == "28P01"
        clock.now += 1.2
        refusal = await fail(door)
        assert (refusal.sqlstate, refusal.hint.partition(",")[0]) == ("28T01", "try again in 1 s")
        clock.now += 1.2
        async with client_of(door) as client:
            await log_in(client)
        assert (await fail(door)).sqlstate == "28P01"
        clock.now += 1.2
        async with client_of(door) as client:  # it was one second again
            await log_in(client)
        assert [why for _, _, why in twin.wakes] == ["app@127.0.0.1"] * 2


async def test_of_many_guesses_at_once_one_is_heard() -> None:
    twin = Twin()
    async with open_door(twin, max_logins=200, guard=guard_of(failed_login_penalty_s=1.0)) as door:
        refusals = await asyncio.gather(*(fail(door, f"guess{number}") for number in range(50)))
        states = [refusal.sqlstate for refusal in refusals]
        assert states.count("28P01") == 1
        assert states.count("28T01") == 49


async def test_unknown_databases_count_and_a_new_one_begins_anew() -> None:
    twin = Twin()
    async with open_door(twin, guard=guard_of(failed_login_penalty_s=1.0)) as door:
        assert (await fail(door, database="later")).sqlstate == "3D000"
        assert (await fail(door, database="later")).sqlstate == "28T01"
        twin.databases["later"] = twin.databases.pop("shop")
        async with client_of(door) as client:
            client.say(startup(database="later"))
            await scram(client)
            assert (await client.hear_authentication()).code == 12


async def test_what_is_no_wrong_password_costs_nothing() -> None:
    twin = Twin()
    async with open_door(twin, login_timeout_s=1.0, guard=guard_of(failed_login_penalty_s=1.0)) as door:
        async with client_of(door) as client:  # psql that hasn't asked for the password yet
            client.say(startup())
            await client.hear_authentication()
        async with client_of(door) as client:
            client.say(startup() + b"Q\0\0\0\x05\0")
            await client.hear_authentication()
            assert (await client.hear_refusal()).sqlstate == "08P01"
        async with client_of(door) as client:
            client.say(startup())
            await client.hear_authentication()
            assert (await client.hear_refusal()).sqlstate == "08006"
        async with client_of(door) as client:
            client.say(startup("nologin"))
            await scram(client)
            assert (await client.hear_authentication()).code == 12
            assert (await client.hear_refusal()).sqlstate == "28000"
        async with client_of(door) as client:
            await log_in(client)


# -- access lists


async def test_lists_keep_addresses_out() -> None:
    twin, guard = Twin(), guard_of(balancers=("127.0.0.1",))
    shop = twin.databases["shop"]
    guard.use(
        AccessBook()
        .with_lists(GLOBAL, access_list([], ["203.0.113.0/24"]))
        .with_lists((ListScope.DATABASE, shop.id), access_list(["198.51.100.0/24"], []))
    )

    async def answer(source: str, database: str, *before: bytes) -> str:
        async with client_of(door) as client:
            client.say(proxy_v2(source, 4) + b"".join(before) + startup(database=database))
            message = await client.hear()
            return f"{message.sqlstate} {message.message}" if isinstance(message, Notice) else "password"

    async with open_door(twin, guard=guard) as door:
        assert await answer("198.51.100.7", "shop") == "password"
        assert await answer("192.0.2.7", "blog") == "password"
        assert await answer("192.0.2.7", "shop") == (
            '28000 connections from 192.0.2.7 to database "shop" are forbidden: it is not on the allow list of the database'
        )
        for database in ("shop", "blog", "nowhere"):
            assert await answer("203.0.113.7", database) == (
                "28000 connections from 203.0.113.7 to this Torpor are forbidden: 203.0.113.0/24 is on the deny list of this Torpor"
            )
        assert (await answer("203.0.113.7", "shop", CancelRequest(1, b"key!").encode())).startswith("28000")
        assert twin.cancels == []
        assert outcomes(door)[LoginOutcome.ADDRESS] == 5
        assert twin.wakes == []


async def test_who_is_denied_again_and_again_gets_no_handshake_more() -> None:
    clock = Clock()
    guard = guard_of(clock)
    guard.use(AccessBook().with_lists(GLOBAL, access_list([], ["127.0.0.66"])))
    async with open_door(Twin(), guard=guard) as door:

        async def first_byte() -> bytes:
            async with client_from(door, "127.0.0.66") as client:
                client.say(EncryptionRequest.SSL.encode())
                return await client.reader.readexactly(1)

        said = [await first_byte() for _ in range(25)]
        assert said == [b"N"] * 20 + [b"E"] * 5  # an encryption request is answered, so that the client reads why it may not go on
        clock.now += 1.1
        assert [await first_byte() for _ in range(2)] == [b"N", b"E"]


async def test_a_change_during_the_wake_is_noticed() -> None:
    twin, guard = Twin(), guard_of()
    twin.may_wake.clear()
    async with open_door(twin, guard=guard) as door, client_of(door) as client:
        client.say(startup())
        await scram(client)
        assert (await client.hear_authentication()).code == 12
        await until(lambda: door.stats.waiting == 1)
        guard.use(AccessBook().with_lists(GLOBAL, access_list([], ["127.0.0.0/8"])))
        twin.may_wake.set()
        assert (await client.hear_refusal()).sqlstate == "28000"
        assert twin.shop.sessions == []


async def test_a_change_in_the_middle_of_the_hand_over_is_noticed() -> None:
    twin, guard = Twin(), guard_of()
    twin.shop.may_report.clear()
    async with open_door(twin, guard=guard) as door, client_of(door) as client:
        client.say(startup())
        await scram(client)
        await until(lambda: bool(twin.shop.sessions))
        guard.use(AccessBook().with_lists(GLOBAL, access_list([], ["127.0.0.0/8"])))
        twin.shop.may_report.set()
        await until(lambda: twin.shop.sessions[0].was_cut)
        assert not guard.entering


# -- limits


async def test_an_address_has_so_many_connections() -> None:
    live = Live()
    live.by_key["127.0.0.1"] = 3
    twin, guard = Twin(), guard_of(live=live, connections_per_address=5)
    twin.may_wake.clear()
    async with open_door(twin, guard=guard) as door, client_of(door) as waiting, client_of(door) as client:
        waiting.say(startup())
        await scram(waiting)
        assert (await waiting.hear_authentication()).code == 12
        await until(lambda: guard.entering_overall == 1)
        client.say(startup())
        await client.hear_authentication()  # the fifth
        async with client_of(door) as sixth:
            sixth.say(startup())
            refusal = await sixth.hear_refusal()
            assert (refusal.sqlstate, refusal.message) == ("53300", "there are too many connections from 127.0.0.1 (5)")
            assert refusal.hint
        async with client_from(door, "127.0.0.2") as other:
            other.say(startup())
            await other.hear_authentication()
        # Cancelling what one has must go on working.
        async with client_of(door) as canceller:
            canceller.say(CancelRequest(1, b"key!").encode())
            assert await canceller.reader.read() == b""
        assert outcomes(door)[LoginOutcome.FROM_ADDRESS] == 1
        twin.may_wake.set()
        await waiting.hear()
    assert not guard.pending
    assert not guard.entering


async def test_a_database_has_so_many_connections_and_the_last_place_is_given_once() -> None:
    live = Live()
    twin, guard = Twin(), guard_of(live=live)
    live.of[twin.databases["shop"].id] = (9, 10)
    twin.may_wake.clear()
    async with open_door(twin, guard=guard) as door, client_of(door) as one, client_of(door) as two:
        for client in (one, two):
            client.say(startup())
        await scram(one)
        await scram(two)
        messages = [await one.hear_authentication(), await two.hear_authentication()]
        assert [message.code for message in messages] == [12, 12]  # both passwords are right
        await until(lambda: outcomes(door).get(LoginOutcome.IN_DATABASE) == 1)
        assert guard.entering_overall == 1
        async with client_of(door) as other:
            other.say(startup(database="blog"))
            await other.hear_authentication()
        async with client_of(door) as third:
            third.say(startup())
            refusal = await third.hear_refusal()
            assert refusal.sqlstate == "53300"
            assert refusal.message == 'database "shop" has 10 connections, and 10 are its limit'
        twin.may_wake.set()
        await until(lambda: guard.entering_overall == 0)


async def test_all_databases_have_so_many_connections() -> None:
    live = Live()
    live.all = 7
    async with open_door(Twin(), guard=guard_of(live=live, connections_overall=7)) as door, client_of(door) as client:
        client.say(startup())
        refusal = await client.hear_refusal()
        assert (refusal.sqlstate, refusal.message) == ("53300", "there are too many connections to all databases (7)")
        assert outcomes(door) == {LoginOutcome.TOO_MANY: 1}


async def test_so_many_of_an_address_log_in_at_once() -> None:
    guard = guard_of(logins_per_address=3)
    async with open_door(Twin(), guard=guard) as door, contextlib.AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(client_of(door)) for _ in range(3)]
        await until(lambda: door.stats.pending == 3)
        async with client_of(door) as fourth:
            refusal = await fourth.hear_refusal()
            assert (refusal.sqlstate, refusal.message) == ("53300", "too many connections from 127.0.0.1 are logging in at once (3)")
            assert "few seconds" in refusal.hint
        async with client_from(door, "127.0.0.2") as other:
            await log_in(other)
        await log_in(silent[0])
        async with client_of(door) as next_one:
            await log_in(next_one)
        assert guard.pending == {"127.0.0.1": 2}
    assert not guard.pending


async def test_behind_a_balancer_the_true_addresses_are_counted() -> None:
    guard = guard_of(logins_per_address=2, balancers=("127.0.0.1",))
    async with open_door(Twin(), guard=guard) as door, contextlib.AsyncExitStack() as stack:
        for source in ("203.0.113.7", "203.0.113.7", "203.0.113.8", "203.0.113.8"):
            client = await stack.enter_async_context(client_of(door))
            client.say(proxy_v2(source, 4))
        await until(lambda: guard.pending.total() == 4)
        async with client_of(door) as third:
            third.say(proxy_v2("203.0.113.7", 4) + startup())
            assert (await third.hear_refusal()).sqlstate == "53300"
        async with client_of(door) as other:
            other.say(proxy_v2("203.0.113.9", 4))
            await log_in(other)
        assert guard.pending == {"203.0.113.7": 2, "203.0.113.8": 2}


async def test_wakes_have_a_rate() -> None:
    twin, clock = Twin(), Clock()
    guard = guard_of(clock, wakes_per_database=Rates(((1.0, 1.0), (0.1, 60.0))), wakes_overall=Rates(((3.0, 1.0),)))
    async with open_door(twin, guard=guard) as door:
        twin.asleep = True
        for _ in range(3):
            guard.woken(twin.databases["shop"].id)
        async with client_of(door) as client:
            client.say(startup())
            await scram(client)
            assert (await client.hear_authentication()).code == 12
            refusal = await client.hear_refusal()
            assert (refusal.sqlstate, refusal.message) == ("53400", 'database "shop" was woken too often')
            assert refusal.hint == "try again in 1 s; keep connections open"
        async with client_of(door) as client:
            client.say(startup(database="blog"))
            await scram(client)
            await client.hear_authentication()
            assert (await client.hear_refusal()).message == "too many databases of this host are being woken"
        twin.asleep = False  # one that is awake may be entered
        async with client_of(door) as client:
            await log_in(client)
        twin.asleep = True
        clock.now += 1.1
        async with client_of(door) as client:
            await log_in(client)
        assert outcomes(door)[LoginOutcome.WAKES] == 2


async def test_an_address_wakes_so_often_and_others_are_not_concerned() -> None:
    twin, clock = Twin(), Clock()
    async with open_door(twin, guard=guard_of(clock, wakes_per_address=Rates(((2.0, 1.0), (0.1, 60.0))))) as door:
        twin.asleep = True

        async def wake(host: str, database: str) -> Notice | None:
            async with client_from(door, host) as client:
                client.say(startup(database=database))
                await scram(client)
                assert (await client.hear_authentication()).code == 12
                message = await client.hear()
                return message if isinstance(message, Notice) else None

        assert [await wake("127.0.0.1", database) for database in ("shop", "blog")] == [None, None]
        refusal = await wake("127.0.0.1", "shop")
        assert refusal is not None
        assert (refusal.sqlstate, refusal.message) == ("53400", "logins from 127.0.0.1 wake databases too often")
        assert refusal.hint == "try again in 1 s; keep connections open"
        assert await wake("127.0.0.2", "shop") is None
        twin.asleep = False
        assert await wake("127.0.0.1", "shop") is None, "who wakes nothing isn't concerned"
        twin.asleep = True
        clock.now += 0.6
        assert await wake("127.0.0.1", "shop") is None


async def test_a_flood_of_one_address_leaves_the_others_their_latency() -> None:
    guard = guard_of(logins_per_address=50, failed_login_penalty_s=1.0)
    async with open_door(Twin(), max_logins=1000, guard=guard) as door:

        async def login_ms() -> float:
            times = []
            for _ in range(25):
                began = time.perf_counter()
                async with client_from(door, "127.0.0.9") as client:
                    await log_in(client)
                times.append((time.perf_counter() - began) * 1000)
            return statistics.median(times)

        quiet_ms = await login_ms()
        address, stopped = door.address, False
        held: list[socket.socket] = []

        def flood() -> None:
            """As fast as one thread can: hold what is silent, be refused, guess."""
            first = startup()
            while not stopped:
                sock = socket.socket()
                with contextlib.suppress(OSError):
                    sock.bind(("127.0.0.66", 0))
                    sock.connect(address)
                    if len(held) < 60:
                        held.append(sock)
                        continue
                    sock.send(first)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.close()

        flooding = asyncio.get_running_loop().run_in_executor(None, flood)
        await until(lambda: outcomes(door).get(LoginOutcome.FROM_ADDRESS, 0) > 50)
        flooded_ms = await login_ms()
        await until(lambda: outcomes(door)[LoginOutcome.FROM_ADDRESS] > 200)
        refused = outcomes(door)[LoginOutcome.FROM_ADDRESS]
        stopped = True
        await flooding
        for sock in held:
            sock.close()
        # The flooder shares this process, and its interpreter, with the door: this is its worst.
        print(f"quiet {quiet_ms:.2f} ms, flooded {flooded_ms:.2f} ms, refused {refused}")
        assert in_time(flooded_ms, max(20 * quiet_ms, 100)), (quiet_ms, flooded_ms)
        (heaviest, *_) = guard.heaviest(5)
        assert (heaviest.address, heaviest.reason) == ("127.0.0.66", "too_many_from_address")
        assert heaviest.count >= refused


# -- names


async def test_names_can_not_poison_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "a\x1b[2J\n2026 [error] forged\u202e" + "x" * 3000
    async with open_door(Twin(), guard=guard_of()) as door:
        for sent in (
            startup(evil, "shop"),
            startup("app", evil),
            startup("app", "shop", application_name=evil),
            startup("app", "shop." + evil),
        ):
            async with client_of(door) as client:
                client.say(sent)
                with contextlib.suppress(asyncio.IncompleteReadError):
                    await client.hear()
        await until(lambda: door.stats.pending == 0)
    written = capsys.readouterr().err
    assert "login refused" in written
    assert "\x1b[2J" not in written
    assert "\u202e" not in written
    assert all(" [" in line[:40] for line in written.splitlines()), written  # each line begins with a time and a level
    assert max(map(len, written.splitlines())) < 1000
