"""The relay worker as a real process: bytes arrive whole both ways, slow readers slow writers down, ends are passed on, garbage leaves
nothing behind, and it does without Torpor."""

import asyncio
import hashlib
import os
import random
import signal
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.support.pace import in_time
from tests.support.relaying import ADDRESS, TlsClient, carried, client_context, encryption, tcp_pair, until
from torpor.door.relays import Relays
from torpor.door.relaywire import configuration, new_ticket_key
from torpor.metering.traffic import Traffic
from torpor.model.errors import HandshakeFailed, Unavailable
from torpor.native import RELAY

PLAIN = configuration(new_ticket_key(), [])


@pytest.fixture
async def relays() -> AsyncIterator[Relays]:
    async with encryption() as made:
        yield made.relays


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


BOTH = pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])


@BOTH
async def test_bytes_go_both_ways_and_are_counted(relays: Relays, tls: bool) -> None:
    async with carried(relays, tls) as one:
        await one.send(b"ping")
        assert await one.hear() == b"ping"
        await one.serve(b"pong!")
        assert await one.recv() == b"pong!"
        assert one.session.traffic() == Traffic(received=4, sent=5)
        await until(lambda: one.session.in_transit() == 0)  # it is counted when the write returns, a moment after the bytes are there
        assert relays.sessions == 1
    await until(lambda: relays.sessions == 0)
    assert one.session.traffic() == Traffic(received=4, sent=5), "the count outlives the session"


@BOTH
@pytest.mark.slow
async def test_big_transfers_in_random_pieces_arrive_whole_both_ways_at_once(relays: Relays, tls: bool) -> None:
    chance = random.Random(4)
    up, down = chance.randbytes(12_000_000), chance.randbytes(12_000_000)

    async def write(sink: "object", data: bytes) -> None:
        assert callable(sink)
        at = 0
        while at < len(data):
            size = chance.choice((1, 100, 16_384, 16_385, 70_000, 300_000))
            await sink(data[at : at + size])
            at += size
            if chance.random() < 0.05:
                await asyncio.sleep(0.001)

    async def read(source: "object", length: int) -> str:
        assert callable(source)
        digest, got = hashlib.sha256(), 0
        while got < length:
            part = await source()
            assert part
            digest.update(part)
            got += len(part)
        return digest.hexdigest()

    async with carried(relays, tls) as one:
        results = await asyncio.gather(write(one.send, up), write(one.serve, down), read(one.hear, len(up)), read(one.recv, len(down)))
        assert list(results[2:]) == [hashlib.sha256(data).hexdigest() for data in (up, down)]
        assert one.session.traffic() == Traffic(received=len(up), sent=len(down))


@BOTH
async def test_a_client_that_ends_its_direction_still_hears_the_server_out(relays: Relays, tls: bool) -> None:
    async with carried(relays, tls) as one:
        await one.send(b"all")
        await one.end_direction()
        assert await one.hear() == b"all"
        assert await one.hear() == b""
        await one.serve(b"last words")
        one.server.close()
        assert await one.recv() == b"last words"
        assert await one.recv() == b""


@BOTH
async def test_a_server_that_ends_is_heard_out_though_the_client_still_sends(relays: Relays, tls: bool) -> None:
    async with carried(relays, tls) as one:
        await one.send(b"unread")
        await until(lambda: one.session.traffic().received == 6)
        await one.serve(b"bye" * 50_000)
        one.server.close()
        heard = b""
        while part := await one.recv():
            heard += part
        assert heard == b"bye" * 50_000
        await until(lambda: relays.sessions == 0)


@BOTH
async def test_a_client_that_is_lost_ends_the_session(relays: Relays, tls: bool) -> None:
    async with carried(relays, tls) as one:
        one.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.socket.close()
        assert await one.hear() == b""
        await until(lambda: relays.sessions == 0)


@BOTH
async def test_a_session_that_is_cut_is_over_for_both(relays: Relays, tls: bool) -> None:
    async with carried(relays, tls) as one:
        one.server.shutdown(socket.SHUT_RDWR)
        assert await one.recv() == b""
        await until(lambda: relays.sessions == 0)


@BOTH
async def test_who_does_not_read_slows_its_writer_down_and_costs_little_memory(relays: Relays, tls: bool) -> None:
    (pid,) = relays.pids
    async with AsyncExitStack() as stack:
        many = [await stack.enter_async_context(carried(relays, tls)) for _ in range(20)]
        before_kb = int(status(pid)["VmRSS"].split()[0])
        poured = dict.fromkeys(range(20), 0)

        async def pour(number: int) -> None:
            while True:
                await (many[number].serve if number % 2 else many[number].send)(bytes(65_536))
                poured[number] += 65_536

        pouring = [asyncio.ensure_future(pour(number)) for number in range(19)]
        stuck: dict[int, int] = {}
        async with asyncio.timeout(120):
            while stuck != poured:  # until nobody gets anything through any more
                stuck = dict(poured)
                await asyncio.sleep(0.3)
        grown_kb = int(status(pid)["VmRSS"].split()[0]) - before_kb
        assert grown_kb < 19 * 300, grown_kb
        began = time.monotonic()
        await many[19].send(b"quick")
        assert await many[19].hear() == b"quick"
        assert in_time(time.monotonic() - began, 0.5), "one's bulk holds up another"
        assert sum(one.session.in_transit() for one in many[:19:2]) > 0
        # As soon as the slow ones read, all goes on.
        for number in (0, 1):
            reader = many[number].recv if number % 2 else many[number].hear
            for _ in range(100):
                await reader()
            await until(lambda: poured[number] > stuck[number])  # noqa: B023  # called at once
        for task in pouring:
            task.cancel()
        await asyncio.gather(*pouring, return_exceptions=True)


# -- handshakes


async def test_what_the_handshake_tells(relays: Relays) -> None:
    async with carried(relays, name="shop.db.test") as one:
        facts = one.session.handshake.result()
        assert (facts.version, facts.server_name, facts.protocol) == ("TLSv1.3", "shop.db.test", "postgresql")
        assert isinstance(one.client, TlsClient)
        certificate = one.client.tls.getpeercert(binary_form=True)
        assert certificate is not None
        assert facts.end_point == hashlib.sha256(certificate).digest()


async def test_bytes_that_were_read_already_are_part_of_the_handshake(relays: Relays) -> None:
    ours, theirs = tcp_pair()
    with ours, theirs:
        client = TlsClient(ours)
        shaking = asyncio.ensure_future(client.shake_hands())
        prefix = await asyncio.get_running_loop().sock_recv(theirs, 4)
        assert prefix[:2] == b"\x16\x03"
        session, server = await relays.carry(theirs, ADDRESS, prefix=prefix, tls=True)
        with server:
            await shaking
            assert (await session.handshake).protocol == "postgresql"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_sessions_are_resumed_by_any_worker(version: ssl.TLSVersion) -> None:
    async with encryption(workers=2) as made:
        context = client_context()
        context.maximum_version = version
        async with carried(made.relays, context=context) as one:
            await one.serve(b"x")  # the ticket of TLS 1.3 comes with the first bytes
            assert await one.recv() == b"x"
            assert isinstance(one.client, TlsClient)
            ticket = one.client.tls.session
            for _ in range(2):
                ours, theirs = tcp_pair()
                with ours, theirs:
                    session, server = await made.relays.carry(theirs, ADDRESS, tls=True)
                    with server:
                        again = TlsClient(ours, context, session=ticket)
                        await asyncio.gather(again.shake_hands(), session.handshake)
                        assert again.tls.session_reused
                        assert session.handshake.result().end_point == one.session.handshake.result().end_point


async def refused(relays: Relays, context: ssl.SSLContext) -> str:
    """Why the worker refuses this client."""
    ours, theirs = tcp_pair()
    with ours, theirs:
        session, server = await relays.carry(theirs, ADDRESS, tls=True)
        with server:
            results = await asyncio.gather(TlsClient(ours, context).shake_hands(), session.handshake, return_exceptions=True)
            assert isinstance(results[0], ssl.SSLError | ConnectionError), results
            assert isinstance(results[1], HandshakeFailed), results
            return results[1].message


async def test_old_versions_and_other_protocols_are_refused(relays: Relays) -> None:
    old = client_context()
    with pytest.warns(DeprecationWarning):
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    assert "unsupported protocol" in await refused(relays, old)
    web = client_context(alpn=False)
    web.set_alpn_protocols(["h2"])
    assert "no application protocol" in await refused(relays, web)
    weak = client_context()
    weak.maximum_version = ssl.TLSVersion.TLSv1_2
    weak.set_ciphers("AES128-SHA256")
    assert "no shared cipher" in await refused(relays, weak)


@pytest.mark.root  # others may not look at a worker's descriptors
@pytest.mark.slow
async def test_ten_thousand_garbage_handshakes_leave_nothing_behind(relays: Relays) -> None:
    (pid,) = relays.pids
    loop = asyncio.get_running_loop()
    ours, theirs = tcp_pair()
    with ours, theirs:
        hello_client = TlsClient(ours)
        shaking = asyncio.ensure_future(hello_client.shake_hands())
        hello = await loop.sock_recv(theirs, 4096)
        shaking.cancel()
    chance = random.Random(1)

    def garbage() -> bytes:
        match chance.randrange(4):
            case 0:
                return chance.randbytes(chance.randrange(1, 400))
            case 1:
                return b"\x16\x03\x01" + struct.pack("!H", chance.randrange(65536)) + chance.randbytes(chance.randrange(300))
            case 2:
                return hello[: chance.randrange(1, len(hello))]
            case _:
                mutated = bytearray(hello)
                for _ in range(chance.randrange(1, 8)):
                    mutated[chance.randrange(len(mutated))] = chance.randrange(256)
                return bytes(mutated)

    async def one(listener: socket.socket) -> None:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
        with client:
            with accepted:
                accepted.setblocking(False)
                session, server = await relays.carry(accepted, ADDRESS, tls=True)
            client.setblocking(False)
            with server:
                await loop.sock_sendall(client, garbage())
                if chance.random() < 0.5:
                    client.shutdown(socket.SHUT_WR)
                    await asyncio.wait([session.handshake])
                    assert session.handshake.exception() is not None

    with socket.create_server(("127.0.0.1", 0)) as listener:
        for _ in range(100):
            await one(listener)
        await until(lambda: relays.sessions == 0)
        before, before_kb = descriptors(pid), int(status(pid)["VmRSS"].split()[0])
        for _ in range(9_900):
            await one(listener)
        await until(lambda: relays.sessions == 0)
    assert relays.pids == (pid,)
    assert descriptors(pid) == before
    assert int(status(pid)["VmRSS"].split()[0]) - before_kb < 2_000


async def test_a_client_that_says_nothing_goes_with_its_login(relays: Relays) -> None:
    ours, theirs = tcp_pair()
    with ours:
        with theirs:
            session, server = await relays.carry(theirs, ADDRESS, tls=True)
        server.close()  # what the door does when the time is up
        with pytest.raises(HandshakeFailed):
            await session.handshake
        assert await asyncio.get_running_loop().sock_recv(ours, 100) == b""


async def test_sockets_that_torpor_still_holds_are_forgotten_all_the_same(relays: Relays) -> None:
    """Closing a descriptor doesn't take a socket out of epoll while anybody else has one."""
    pids = relays.pids
    async with AsyncExitStack() as stack:
        for _ in range(50):
            ours, theirs = tcp_pair()
            stack.enter_context(theirs)  # as if Torpor were slow
            with ours:
                session, server = await relays.carry(theirs, ADDRESS, tls=True)
                server.close()
                await asyncio.wait([session.handshake])
            await until(lambda: relays.sessions == 0)
            theirs.shutdown(socket.SHUT_RDWR)  # an event on a socket whose session is gone
        async with carried(relays) as one:
            await one.send(b"ping")
            assert await one.hear() == b"ping"
    assert relays.pids == pids


@pytest.mark.parametrize("command", ["k", "K"], ids=["key update", "key update of both"])
async def test_keys_are_changed_in_the_middle_of_a_session(relays: Relays, command: str) -> None:
    await _s_client(relays, command, "-tls1_3", survives=True)


async def test_renegotiation_is_refused(relays: Relays) -> None:
    await _s_client(relays, "R", "-tls1_2", survives=False)


async def _s_client(relays: Relays, command: str, version: str, survives: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        arguments = ["openssl", "s_client", "-connect", f"127.0.0.1:{listener.getsockname()[1]}", version]
        process = await asyncio.create_subprocess_exec(*arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert process.stdin is not None
        accepted, _ = await asyncio.get_running_loop().sock_accept(listener)
        with accepted:
            session, server = await relays.carry(accepted, ADDRESS, tls=True)
        with server:
            await session.handshake
            loop = asyncio.get_running_loop()
            process.stdin.write(b"before\n")
            assert await loop.sock_recv(server, 100) == b"before\n"
            process.stdin.write(command.encode() + b"\n")
            if survives:
                assert process.stdout is not None
                while b"KEYUPDATE" not in await process.stdout.readline():  # what it reads together with a command is lost
                    assert not process.stdout.at_eof()
                process.stdin.write(b"after\n")
                assert await loop.sock_recv(server, 100) == b"after\n"
                await loop.sock_sendall(server, b"answer")
                server.close()
                out, _ = await process.communicate()
                assert b"answer" in out
            else:
                out, _ = await process.communicate()
                assert b"no renegotiation" in out, out
                assert await loop.sock_recv(server, 100) == b""


# -- the process


@pytest.mark.root
async def test_a_worker_has_no_privileges(tmp_path: Path) -> None:
    relays = Relays(RELAY, tmp_path, 399_998, 1)
    await relays.start(PLAIN)
    try:
        (pid,) = relays.pids
        found = status(pid)
        assert found["Uid"].split() == ["399998"] * 4
        assert (found["NoNewPrivs"], found["Seccomp"], found["Groups"]) == ("1", "2", "")
        assert {found[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
        assert Path(os.readlink(f"/proc/{pid}/cwd")) == Path("/")
        assert sorted(map(int, os.listdir(f"/proc/{pid}/fd"))) == [0, 1, 2, 3, 4, 5, 6]
    finally:
        await relays.stop(leave=False)


async def test_a_worker_that_crashes_takes_only_its_own_sessions_and_is_replaced() -> None:
    async with encryption(workers=2) as made:
        async with carried(made.relays) as one, carried(made.relays) as other:
            os.kill(made.relays.pids[0], signal.SIGKILL)
            ends = [asyncio.ensure_future(carried_one.hear()) for carried_one in (one, other)]
            done, pending = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            assert [end.result() for end in done] == [b""]
            survivor = other if ends[0] in done else one
            await survivor.send(b"on")
            assert await pending.pop() == b"on"
            await until(lambda: len(made.relays.pids) == 2)
        async with carried(made.relays):
            pass


def _end(pid: int) -> None:
    """It has ended, and the loop hasn't heard of it yet."""
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_client_that_comes_in_the_moment_of_a_crash_notices_nothing(workers: int) -> None:
    async with encryption(workers=workers) as made:
        for pid in made.relays.pids[:-1] or made.relays.pids:
            _end(pid)
        async with carried(made.relays) as one:
            await one.send(b"in")
            assert await one.hear() == b"in"


async def test_without_a_worker_a_client_is_told(tmp_path: Path) -> None:
    relays = Relays(RELAY, tmp_path, 0, 0)
    ours, theirs = tcp_pair()
    with ours, theirs, pytest.raises(Unavailable):
        await relays.carry(theirs, ADDRESS, tls=False)


async def test_the_next_torpor_takes_workers_over_with_their_sessions(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        first = Relays(RELAY, tmp_path, 0, 1)
        await first.start(PLAIN)
        pids = first.pids
        one = await stack.enter_async_context(carried(first, tls=False))
        await one.send(b"before")
        assert await one.hear() == b"before"
        await first.stop(leave=True)
        await one.send(b"between")
        assert await one.hear() == b"between"
        second = Relays(RELAY, tmp_path, 0, 1)
        await second.take_over()
        await second.start(PLAIN)
        assert second.pids == pids, "the same build goes on working"
        found = second.find(one.server.getpeername())
        assert found is not None
        assert (found.address, found.traffic()) == (ADDRESS, Traffic(13, 0))
        await until(lambda: found.in_transit() == 0)
        assert second.find(b"\0torpor-relay/0/1/2") is None
        async with carried(second, tls=False) as another:
            await another.send(b"new")
            assert await another.hear() == b"new"
            await one.serve(b"after")
            assert await one.recv() == b"after"
            assert found.traffic() == Traffic(13, 5)
        # A Torpor that still runs learns that it was succeeded, and doesn't take it for a crash.
        third = Relays(tmp_path / "another build", tmp_path, 0, 0)
        await third.take_over()
        await until(lambda: second.pids == ())
        await asyncio.sleep(0.3)
        assert second.pids == ()
        assert third.find(one.server.getpeername()) is not None
        assert not third.is_running, "another build takes no new sessions"
        await one.send(b"still")
        assert await one.hear() == b"still"
        await third.stop(leave=True)
        await second.stop(leave=False)
    await until(lambda: not Path(f"/proc/{pids[0]}").exists() or status(pids[0])["State"].startswith("Z"))
