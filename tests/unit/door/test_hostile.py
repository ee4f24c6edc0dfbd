"""Clients that don't behave: each is told why and closed in time, and nobody else notices."""

import asyncio
import contextlib
import os
import resource
import socket
import ssl
import struct
import time
import tracemalloc

import pytest

from tests.support.pace import in_time
from tests.unit.door.test_login import log_in, sasl_initial, scram, startup
from tests.unit.door.twin import Twin, client_of, open_door, outcomes, until
from torpor.door.stats import LoginOutcome
from torpor.pgwire.answers import Notice, parse_backend_message
from torpor.pgwire.frames import frame
from torpor.pgwire.startup import EncryptionRequest

USER = b"\x00\x03\x00\x00user\0app\0"


@pytest.mark.parametrize(
    "first",
    [
        b"\0\0\0\0",  # zero length
        b"\0\0\0\x04",
        b"\0\0\0\x07\0\x03\0",
        b"\x7f\xff\xff\xff",  # 2 GB
        b"\x80\0\0\0",
        b"\xff\xff\xff\xff",
        struct.pack("!i", 10_005),
        struct.pack("!i", 10_004) + bytes(10_000),
        bytes(range(256)) * 40,
        b"\0\0\0\x08\0\x03\0\0",  # no terminator
        struct.pack("!i", 4 + len(USER)) + USER,
        struct.pack("!i", 4 + 4 + 8) + b"\x00\x03\x00\x00" + b"usershop",  # no NULs
        struct.pack("!i", 8) + b"\x00\x02\x00\x00",  # protocol 2
        struct.pack("!i", 9) + EncryptionRequest.SSL.encode()[4:] + b"\0",
        struct.pack("!i", 12) + b"\x04\xd2\x16\x2e" + b"\0\0\0\1",  # a cancel request without a key
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: curl\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\r\n\r\n\r\n\r\n",
    ],
)
async def test_garbage_is_told_what_is_wrong_with_it(first: bytes) -> None:
    twin = Twin()
    async with open_door(twin) as door, client_of(door) as client:
        client.say(first)
        refusal = await client.hear_refusal()
        assert refusal.sqlstate == "08P01"
        assert refusal.message
        assert outcomes(door) == {LoginOutcome.PROTOCOL: 1}
        assert twin.wakes == []


async def test_a_browser_is_told_what_speaks_here() -> None:
    async with open_door(Twin()) as door, client_of(door) as client:
        client.say(b"GET / HTTP/1.1\r\n\r\n" + b"x" * 50_000)
        refusal = await client.hear_refusal()
        assert "not HTTP" in refusal.message
        assert "PostgreSQL client" in refusal.hint


async def test_a_tls_client_gets_an_alert_that_it_understands() -> None:
    async with open_door(Twin()) as door:
        host, port = door.address
        with pytest.raises(ssl.SSLError, match=r"(?i)handshake"):
            await asyncio.open_connection(host, port, ssl=ssl._create_unverified_context())
        assert outcomes(door) == {LoginOutcome.PROTOCOL: 1}


@pytest.mark.parametrize("sent", [b"", b"\0", b"\0\0\0", startup()[:-1], EncryptionRequest.SSL.encode(), startup(), startup() + b"p\0"])
async def test_who_stops_talking_is_closed_in_time_and_told_what_was_awaited(sent: bytes) -> None:
    began = time.monotonic()
    async with open_door(Twin(), login_timeout_s=0.5) as door, client_of(door) as client:
        client.say(sent)
        if sent == EncryptionRequest.SSL.encode():
            assert await client.reader.readexactly(1) == b"N"
        if sent.startswith(startup()):
            await client.hear_authentication()
        refusal = await client.hear_refusal()
        took_s = time.monotonic() - began
        assert took_s >= 0.5
        assert in_time(took_s, 2.3)
        assert refusal.sqlstate == "08006"
        assert "the login took longer than 0.5 s: the server was still waiting for the" in refusal.message
        assert refusal.hint
        assert outcomes(door) == {LoginOutcome.TIMEOUT: 1}


async def test_a_byte_now_and_then_does_not_buy_time() -> None:
    async with open_door(Twin(), login_timeout_s=0.3) as door, client_of(door) as client:

        async def drip() -> None:
            for byte in startup(application_name="x" * 500):
                client.say(bytes([byte]))
                await asyncio.sleep(0.05)

        dripping = asyncio.ensure_future(drip())
        began = time.monotonic()
        assert (await client.hear()).__class__ is Notice
        assert in_time(time.monotonic() - began, 1)
        dripping.cancel()
        assert outcomes(door) == {LoginOutcome.TIMEOUT: 1}


async def test_the_time_that_torpor_takes_is_not_the_clients_fault() -> None:
    twin = Twin()
    twin.may_tell_role.clear()
    twin.may_wake.clear()
    async with open_door(twin, login_timeout_s=0.6) as door, client_of(door) as client:
        client.say(startup())
        await asyncio.sleep(0.8)
        twin.may_tell_role.set()
        await scram(client)
        assert (await client.hear_authentication()).code == 12
        await asyncio.sleep(0.8)
        twin.may_wake.set()
        assert (await client.hear_authentication()).code == 0
        assert outcomes(door) == {LoginOutcome.HANDED_OVER: 1}


@pytest.mark.parametrize("is_reset", [False, True])
@pytest.mark.parametrize("step", ["connected", "half", "encryption", "startup", "initial", "final", "waiting"])
@pytest.mark.parametrize("relay", [False, True])
async def test_a_client_that_vanishes_at_any_step_leaves_nothing_behind(step: str, is_reset: bool, relay: bool) -> None:
    twin = Twin()
    twin.may_wake.clear()
    async with open_door(twin, relay=relay) as door:
        async with client_of(door) as client:
            await until(lambda: door.stats.pending == 1)
            match step:
                case "half":
                    client.say(startup()[:7])
                case "encryption":
                    client.say(EncryptionRequest.SSL.encode())
                    await client.reader.readexactly(1)
                case "startup" | "initial":
                    client.say(startup())
                    await client.hear_authentication()
                    if step == "initial":
                        client.say(sasl_initial(b"n,,n=,r=abc"))
                        await client.hear_authentication()
                case "final" | "waiting":
                    client.say(startup())
                    await scram(client)
                    if step == "waiting":
                        await until(lambda: door.stats.waiting == 1)
            if is_reset:
                client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.writer.transport.abort()
        twin.may_wake.set()
        await until(lambda: sum(door.stats.logins.values()) == 1)
        await until(lambda: (door.stats.pending, door.stats.waiting) == (0, 0))
        assert set(outcomes(door)) <= {LoginOutcome.VANISHED, LoginOutcome.HANDED_OVER}
        async with client_of(door) as client:
            await log_in(client)


async def test_silent_connections_above_the_limit_give_way_to_newer_ones() -> None:
    async with open_door(Twin(), max_logins=3) as door, contextlib.AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(client_of(door)) for _ in range(3)]
        await until(lambda: door.stats.pending == 3)
        async with client_of(door) as newcomer:
            await log_in(newcomer)
        refusal = await silent[0].hear_refusal()
        assert refusal.sqlstate == "53300"
        assert "max_logins" in refusal.hint
        await log_in(silent[1])
        await log_in(silent[2])
        assert outcomes(door) == {LoginOutcome.HANDED_OVER: 3, LoginOutcome.TOO_MANY: 1}


async def test_half_logins_above_the_limit_give_way_too() -> None:
    twin = Twin()
    async with open_door(twin, max_logins=3) as door, contextlib.AsyncExitStack() as stack:
        stuck = [await stack.enter_async_context(client_of(door)) for _ in range(3)]
        for client in stuck:
            client.say(b"\0")
        await until(lambda: len(door._logins) == 3)
        async with client_of(door) as newcomer:
            await log_in(newcomer)
        assert (await stuck[0].hear_refusal()).sqlstate == "53300"
        assert outcomes(door) == {LoginOutcome.HANDED_OVER: 1, LoginOutcome.TOO_MANY: 1}


async def test_logins_that_are_done_with_their_part_do_not_give_way() -> None:
    twin = Twin()
    twin.may_wake.clear()
    async with open_door(twin, max_logins=1) as door, client_of(door) as waiting:
        waiting.say(startup())
        await scram(waiting)
        await until(lambda: door.stats.waiting == 1)
        async with client_of(door) as silent, client_of(door) as newcomer:
            await until(lambda: door.stats.accepted == 3)
            assert (await silent.hear_refusal()).sqlstate == "53300"
            newcomer.say(startup(database="nowhere"))
            assert (await newcomer.hear_refusal()).sqlstate == "3D000"
        twin.may_wake.set()
        assert [(await waiting.hear_authentication()).code for _ in range(2)] == [12, 0]


async def test_thousands_of_silent_connections_cost_little_and_block_nobody() -> None:
    count, limit = 3_000, 1_000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * count + 500:
        count = hard // 2 - 500
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2 * count + 500)), hard))
    loop = asyncio.get_running_loop()
    silent: list[socket.socket] = []
    try:
        async with open_door(Twin(), max_logins=limit) as door:
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(count):
                sock = socket.socket()
                sock.setblocking(False)
                await loop.sock_connect(sock, door.address)
                silent.append(sock)
            await until(lambda: door.stats.accepted == count)
            traced = tracemalloc.get_traced_memory()[0] - before
            tracemalloc.stop()
            assert door.stats.pending == limit
            assert outcomes(door) == {LoginOutcome.TOO_MANY: count - limit}
            assert len(asyncio.all_tasks()) == 1  # no task for any of them
            assert traced < 3_000 * count
            began = time.monotonic()
            async with client_of(door) as client:
                await log_in(client)
            assert in_time(time.monotonic() - began, 1)
            header = silent[0].recv(5)
            refusal = parse_backend_message(header[:1], silent[0].recv(4096))
            assert isinstance(refusal, Notice)
            assert refusal.sqlstate == "53300"
            assert silent[0].recv(1) == b""
            with pytest.raises(BlockingIOError):
                silent[-1].recv(1)
    finally:
        tracemalloc.stop()
        for sock in silent:
            sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_silent_connections_are_closed_in_the_order_they_came() -> None:
    async with open_door(Twin(), login_timeout_s=0.2) as door, contextlib.AsyncExitStack() as stack:
        silent = []
        for _ in range(3):
            silent.append(await stack.enter_async_context(client_of(door)))
            await asyncio.sleep(0.05)
        for client in silent:
            assert (await client.hear_refusal()).sqlstate == "08006"
        assert outcomes(door) == {LoginOutcome.TIMEOUT: 3}


async def test_a_client_that_never_reads_is_not_waited_for() -> None:
    async with open_door(Twin(), login_timeout_s=0.3) as door:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        sock.connect(door.address)
        with sock:
            sock.sendall(startup() + sasl_initial(b"n,,n=,r=abc") + frame(b"p", b"c=biws,r=abc,p=AAAA"))
            await until(lambda: outcomes(door) == {LoginOutcome.PROTOCOL: 1})


async def test_short_of_file_descriptors_the_silent_make_room_and_the_door_comes_back() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with open_door(Twin()) as door, client_of(door) as silent:
        await until(lambda: door.stats.pending == 1)
        newcomer = socket.socket()
        fillers = []
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, hard))
        try:
            with contextlib.suppress(OSError):
                while True:
                    fillers.append(socket.socket())
            newcomer.connect(door.address)
            assert (await silent.hear_refusal()).sqlstate == "53300"
            assert "paused" in repr(door)
            fillers.append(socket.socket())  # takes the place of the one that left
            await asyncio.sleep(0.25)  # tries again, in vain, and says nothing more
            assert door.stats.accepted == 1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for filler in fillers:
                filler.close()
        await until(lambda: door.stats.accepted == 2)
        newcomer.close()
        async with client_of(door) as client:
            await log_in(client)


async def test_an_unexpected_error_while_accepting_does_not_end_the_door() -> None:
    async with open_door(Twin()) as door:
        door._could_not_accept(OSError(1, "odd"))
        async with client_of(door) as client:
            await log_in(client)


async def test_many_clients_at_once_are_all_served() -> None:
    async with open_door(Twin(), max_logins=400) as door:

        async def one(index: int) -> None:
            async with client_of(door) as client:
                if index % 3 == 0:
                    client.say(b"\x7f\xff\xff\xff")
                    await client.hear_refusal()
                else:
                    await log_in(client)

        await asyncio.gather(*(one(index) for index in range(60)))
        assert outcomes(door) == {LoginOutcome.HANDED_OVER: 40, LoginOutcome.PROTOCOL: 20}
