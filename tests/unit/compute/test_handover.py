"""The sending side of a hand-over, life lines, and tickets. The receiving side: tests/unit/native."""

import array
import asyncio
import os
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import virtual
from torpor.base.processes import ProcessHandle
from torpor.compute import handover
from torpor.compute.fleet import Tickets
from torpor.compute.handover import AdoptedBackend, BackendEnd, LifeLine, hand_over, sockaddr
from torpor.model.errors import ComputeLost
from torpor.model.names import DatabaseId


def test_sockaddr_in() -> None:
    family, port, address, padding = struct.unpack("=H2s4s8s", sockaddr("192.0.2.1", 5432))
    assert family == socket.AF_INET
    assert (port, address, padding) == (b"\x15\x38", b"\xc0\x00\x02\x01", bytes(8))


@pytest.mark.parametrize("host", ["2001:db8::1", "fe80::1%eth0", "::1"])
def test_sockaddr_in6(host: str) -> None:
    family, port, flow, address, scope = struct.unpack("=H2sI16sI", sockaddr(host, 65535))
    assert family == socket.AF_INET6
    assert (port, flow, scope) == (b"\xff\xff", 0, 0)
    assert socket.inet_ntop(socket.AF_INET6, address) == host.partition("%")[0]


@pytest.fixture
def listener(tmp_path: Path) -> "socket.socket":
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "s"))
    sock.listen(1)
    return sock


async def test_what_is_sent(listener: socket.socket) -> None:
    ours, theirs = socket.socketpair()
    with listener, ours, theirs:
        line = await hand_over(Path(listener.getsockname()), theirs, ("10.0.0.1", 9), b"\0\0\0\x08abcd")
        channel, _ = listener.accept()
        with channel:
            data, control, _, _ = channel.recvmsg(1000, 1000)
            assert channel.recv(10) == b"", "a hand-over is one message"
        assert data == b"TORPOR1\0" + struct.pack("=II", 16, 8) + sockaddr("10.0.0.1", 9) + b"\0\0\0\x08abcd"
        fds = array.array("i")
        fds.frombytes(control[0][2])
        client, life = fds
        os.write(client, b"x")
        assert ours.recv(1) == b"x"
        os.write(life, b"y")
        assert os.read(line, 1) == b"y"
        for fd in (client, life, line):
            os.close(fd)


async def test_claims_follow_the_startup_message(listener: socket.socket) -> None:
    ours, theirs = socket.socketpair()
    with listener, ours, theirs:
        os.close(await hand_over(Path(listener.getsockname()), theirs, None, b"abcd", b'{"sub":"u1"}'))
        channel, _ = listener.accept()
        with channel:
            data = channel.recv(1000)
    assert (
        data
        == b"TORPOR2\0" + struct.pack("=II", 2, 4) + struct.pack("=H", socket.AF_UNIX) + b"abcd" + struct.pack("=I", 12) + b'{"sub":"u1"}'
    )


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_nobody_listens(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        before = open_descriptors()
        with pytest.raises(ComputeLost):
            await hand_over(tmp_path / "missing", theirs, None, b"")
        assert open_descriptors() == before


async def test_a_listener_that_is_full_is_tried_again(listener: socket.socket) -> None:
    ours, theirs = socket.socketpair()
    path = Path(listener.getsockname())
    with listener, ours, theirs:
        waiting = [asyncio.create_task(hand_over(path, theirs, None, b"")) for _ in range(6)]
        await asyncio.sleep(0.01)
        assert not all(task.done() for task in waiting)
        for _ in waiting:
            await asyncio.sleep(0.005)
            listener.accept()[0].close()
        async with asyncio.timeout(30):
            for fd in await asyncio.gather(*waiting):
                os.close(fd)


def test_patience_with_a_full_listener_ends(listener: socket.socket) -> None:
    ours, theirs = socket.socketpair()

    async def main() -> tuple[int, float]:
        began, done = asyncio.get_running_loop().time(), []
        with pytest.raises(ComputeLost):
            while True:
                done.append(await hand_over(Path(listener.getsockname()), theirs, None, b""))
        for fd in done:
            os.close(fd)
        return len(done), asyncio.get_running_loop().time() - began

    with listener, ours, theirs:
        before = open_descriptors()
        queued, elapsed_s = virtual.run(main())
        assert open_descriptors() == before
    assert queued <= 3
    assert handover._PATIENCE_S <= elapsed_s < handover._PATIENCE_S + 1


async def test_a_hand_over_can_be_cancelled(listener: socket.socket) -> None:
    ours, theirs = socket.socketpair()
    path = Path(listener.getsockname())
    with listener, ours, theirs:
        before = open_descriptors()
        waiting = [asyncio.create_task(hand_over(path, theirs, None, b"")) for _ in range(6)]
        await asyncio.sleep(0.01)
        for task in waiting:
            task.cancel()
        for result in await asyncio.gather(*waiting, return_exceptions=True):
            if isinstance(result, int):
                os.close(result)
        assert open_descriptors() == before


async def test_a_life_line_tells_the_pid_even_in_pieces() -> None:
    read_end, write_end = os.pipe2(os.O_NONBLOCK)
    line = LifeLine(read_end)
    pid = struct.pack("=i", 123456)
    for n in range(4):
        assert line.pid is None
        os.write(write_end, pid[n : n + 1])
        await asyncio.sleep(0.001)
    assert (line.pid, line.ended) == (123456, False)
    os.close(write_end)
    async with asyncio.timeout(30):
        await line.wait_ended()
    assert line.ended
    line.close()


@pytest.mark.parametrize("more", [b"m", b"more" * 1000])
async def test_a_life_line_that_says_more_than_a_pid_is_let_go(more: bytes) -> None:
    """A tenant's own code holds the other end: what it writes there must not keep Torpor reading."""
    read_end, write_end = os.pipe2(os.O_NONBLOCK)
    line = LifeLine(read_end)
    os.write(write_end, struct.pack("=i", 123456))
    await asyncio.sleep(0.001)
    os.write(write_end, more)
    async with asyncio.timeout(30):
        await line.wait_ended()
    assert line.pid == 123456
    with pytest.raises(BrokenPipeError):
        os.write(write_end, more)
    os.close(write_end)


async def test_a_life_line_that_is_closed_tells_nothing() -> None:
    read_end, write_end = os.pipe2(os.O_NONBLOCK)
    line = LifeLine(read_end)
    ends: list[str] = []
    line.when_ended(lambda: ends.append("end"))
    line.close()
    line.close()
    os.close(write_end)
    await asyncio.sleep(0.005)
    assert ends == []


async def test_an_end_is_told_once_to_everybody() -> None:
    end, told = BackendEnd(), list[int]()

    def tell(n: int) -> Callable[[], None]:
        return lambda: told.append(n)

    end.when_ended(tell(1))
    end.when_ended(tell(2))
    waiters = [asyncio.create_task(end.wait_ended()) for _ in range(3)]
    quitter = asyncio.create_task(end.wait_ended())
    await asyncio.sleep(0)
    quitter.cancel()
    end.end()
    end.end()
    end.when_ended(tell(3))
    await asyncio.gather(*waiters)
    await end.wait_ended()
    assert told == [1, 2, 3]
    assert repr(end) == "<BackendEnd pid=None ended>"


async def test_an_adopted_backend_ends_with_its_process() -> None:
    process = start_sleeper()
    backend = AdoptedBackend(ProcessHandle(process.pid), 17)
    assert backend.pid == 17  # as it is told its client: the number inside of its sandbox
    process.kill()
    async with asyncio.timeout(30):
        await backend.wait_ended()
    process.wait()


def start_sleeper() -> "subprocess.Popen[bytes]":
    return subprocess.Popen(["sleep", "60"])


ID, OTHER = DatabaseId("daaaaaaaaaaaa"), DatabaseId("dbbbbbbbbbbbb")


def test_tickets_expire() -> None:
    async def main() -> None:
        tickets = Tickets(virtual.VirtualClock())
        tickets.add(ID, "ann", "v1", 60)
        await asyncio.sleep(40)
        tickets.add(ID, "ann", "v2", 60)
        assert tickets.of(ID, "ann") == ("v1", "v2")
        assert tickets.of(ID, "bob") == tickets.of(OTHER, "ann") == ()
        await asyncio.sleep(20)
        assert tickets.of(ID, "ann") == ("v2",)
        await asyncio.sleep(40)
        assert tickets.of(ID, "ann") == ()

    virtual.run(main())


def test_tickets_are_bounded_and_forgotten() -> None:
    async def main() -> None:
        tickets = Tickets(virtual.VirtualClock())
        for n in range(100):
            tickets.add(ID, "ann", str(n), 60)
        assert tickets.of(ID, "ann") == tuple(map(str, range(84, 100)))
        tickets.forget(ID)
        tickets.forget(ID)
        assert tickets.of(ID, "ann") == ()

    virtual.run(main())
