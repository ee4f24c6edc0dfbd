"""The preloaded library in a real process, and the hand-over that talks to it."""

import asyncio
import errno
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.pace import in_time
from torpor.base.processes import descendants
from torpor.compute.handover import LifeLine, hand_over, sockaddr
from torpor.native import LIBRARY
from torpor.storage.haste import Haste

RECEIVER = Path(__file__).parents[2] / "support/receiver.py"
ADDRESS = ("203.0.113.9", 54321)
STARTUP = b"\0\0\0\x10" + b"startup pack" + b"X" * 100
MAGIC = b"TORPOR1\0"
MSG_PEEK = socket.MSG_PEEK


class Receiver:
    """A process that listens like a postmaster, under our command."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "door.sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen(16)
        self.ready, ready_write = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(RECEIVER), str(directory / "own.sock")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            pass_fds=[listener.fileno(), ready_write],
            env={"PATH": "/usr/bin:/bin", "LD_PRELOAD": str(LIBRARY), "TORPOR_LISTENER_FD": str(listener.fileno()),
                 "TORPOR_READY_FD": str(ready_write), "KEPT": "yes"},
        )  # fmt: skip
        listener.close()
        os.close(ready_write)

    def say(self, *command: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the receiver has ended"
        return json.loads(line)

    def ask(self, *command: object) -> Any:
        self.say(*command)
        return self.hear()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self.ready)


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    # The receiver is a sibling of what it forks: all of them hold our end of its output.
    made = Receiver(tmp_path)
    assert made.ask("nothing") is None
    yield made
    made.close()


@pytest.fixture
def client() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client and the door's end of its connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        near.settimeout(30)
        far, _ = listener.accept()
        with near, far:
            yield near, far


@contextmanager
def life_line(fd: int) -> Iterator[LifeLine]:
    line = LifeLine(fd)
    try:
        yield line
    finally:
        line.close()


async def pid_of(line: LifeLine) -> int:
    for _ in range(15_000):
        if line.pid is not None:
            return line.pid
        await asyncio.sleep(0.002)
    raise TimeoutError


async def ended(line: LifeLine) -> None:
    async with asyncio.timeout(30):
        await line.wait_ended()


async def test_a_client_is_handed_over_and_its_backend_reports(receiver: Receiver, client: tuple[socket.socket, socket.socket]) -> None:
    near, far = client
    with life_line(await hand_over(receiver.path, far, ADDRESS, STARTUP)) as line:
        far.close()
        got = receiver.ask("accept")
        assert got["fd"] >= 0
        assert bytes.fromhex(got["address"]) == sockaddr(*ADDRESS)
        assert receiver.ask("recv", got["fd"], 4, 0) == STARTUP[:4].hex()
        assert line.pid is None

        backend = receiver.ask("fork", got["fd"])
        receiver.ask("close", got["fd"])
        assert await pid_of(line) == backend
        assert not line.ended
        # What is left of the startup message belongs to the backend, and then comes the client itself.
        near.sendall(b"hello")
        assert near.recv(1000, socket.MSG_WAITALL | MSG_PEEK) != b""
        received = b""
        while len(received) < len(STARTUP) - 4 + 5:
            received += near.recv(1000)
        assert received == STARTUP[4:] + b"hello"

        near.close()
        assert receiver.ask("wait", backend) == 0
        await ended(line)


async def test_the_life_line_breaks_when_a_backend_is_killed(receiver: Receiver, client: tuple[socket.socket, socket.socket]) -> None:
    _, far = client
    with life_line(await hand_over(receiver.path, far, ADDRESS, STARTUP)) as line:
        got = receiver.ask("accept")
        backend = receiver.ask("fork", got["fd"])
        assert await pid_of(line) == backend
        os.kill(backend, signal.SIGKILL)
        await ended(line)


async def test_programs_that_a_backend_starts_do_not_hold_the_life_line(
    receiver: Receiver, client: tuple[socket.socket, socket.socket]
) -> None:
    near, far = client
    with life_line(await hand_over(receiver.path, far, ADDRESS, b"start")) as line:
        got = receiver.ask("accept")
        backend = receiver.ask("fork", got["fd"])
        assert near.recv(100) == b"start"
        near.sendall(b"x")
        assert near.recv(1) == b"x"  # the program runs
        program = descendants(backend)[-1]
        try:
            os.kill(backend, signal.SIGKILL)
            receiver.ask("wait", backend)
            await ended(line)
            os.kill(program, 0)
        finally:
            os.kill(program, signal.SIGKILL)


async def test_the_life_line_breaks_when_the_fork_fails(receiver: Receiver, client: tuple[socket.socket, socket.socket]) -> None:
    """PostgreSQL closes the socket then; the next accept() lets go of the rest."""
    _, far = client
    with life_line(await hand_over(receiver.path, far, ADDRESS, b"one")) as first:
        got = receiver.ask("accept")
        receiver.ask("close", got["fd"])
        with life_line(await hand_over(receiver.path, far, ADDRESS, b"two")) as second:
            again = receiver.ask("accept")
            await ended(first)
            assert first.pid is None
            assert receiver.ask("recv", again["fd"], 100, 0) == b"two".hex()
            assert not second.ended


async def test_a_peek_takes_nothing(receiver: Receiver, client: tuple[socket.socket, socket.socket]) -> None:
    near, far = client
    os.close(await hand_over(receiver.path, far, ADDRESS, b"abcdef"))
    near.sendall(b"ghi")
    fd = receiver.ask("accept")["fd"]
    asked = [(4, MSG_PEEK), (4, 0), (4, MSG_PEEK), (100, 0), (100, 0)]
    got = [bytes.fromhex(receiver.ask("recv", fd, *arguments)) for arguments in asked]
    assert got == [b"abcd", b"abcd", b"ef", b"ef", b"ghi"]


@pytest.mark.parametrize("host", ["2001:db8::7", "::ffff:192.0.2.1"])
async def test_an_ipv6_client(receiver: Receiver, client: tuple[socket.socket, socket.socket], host: str) -> None:
    os.close(await hand_over(receiver.path, client[1], (host, 1), b"s"))
    shown = bytes.fromhex(receiver.ask("accept")["address"])
    assert struct.unpack("=H", shown[:2]) == (socket.AF_INET6,)
    assert shown[2:4] == b"\0\1"
    assert socket.inet_ntop(socket.AF_INET6, shown[8:24]) == host
    assert len(shown) == 28


async def test_torpors_own_sessions_come_from_the_unix_socket(receiver: Receiver) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        os.close(await hand_over(receiver.path, theirs, None, b"s"))
        assert bytes.fromhex(receiver.ask("accept")["address"]) == struct.pack("=H", socket.AF_UNIX)


async def test_the_longest_startup_message(receiver: Receiver, client: tuple[socket.socket, socket.socket]) -> None:
    startup = bytes(range(256)) * 64
    os.close(await hand_over(receiver.path, client[1], ADDRESS, startup))
    fd = receiver.ask("accept")["fd"]
    assert receiver.ask("recv", fd, 20000, 0) == startup.hex()


async def test_many_in_a_row_leave_nothing_open(receiver: Receiver, client: tuple[socket.socket, socket.socket]) -> None:
    before = receiver.ask("descriptors")
    for n in range(50):
        line = await hand_over(receiver.path, client[1], ADDRESS, b"%d" % n)
        got = receiver.ask("accept")
        assert bytes.fromhex(receiver.ask("recv", got["fd"], 10, 0)) == b"%d" % n
        receiver.ask("close", got["fd"])
        os.close(line)
    assert receiver.ask("descriptors") <= before + 1  # the life line of the last one


def send(receiver: Receiver, payload: bytes, descriptors: list[int]) -> socket.socket:
    channel = socket.socket(socket.AF_UNIX)
    channel.connect(str(receiver.path))
    if descriptors:
        socket.send_fds(channel, [payload], descriptors)
    elif payload:
        channel.sendall(payload)
    return channel


def header(address: int, startup: int, magic: bytes = MAGIC) -> bytes:
    return struct.pack("=8sII", magic, address, startup)


@pytest.mark.parametrize(
    ("payload", "descriptors"),
    [
        pytest.param(b"", 0, id="nothing"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", 0, id="another protocol"),
        pytest.param(header(16, 5, b"TORPOR2\0") + bytes(16) + b"start", 2, id="another magic"),
        pytest.param(header(16, 5) + bytes(16) + b"start", 0, id="no descriptors"),
        pytest.param(header(16, 5) + bytes(16) + b"start", 1, id="one descriptor"),
        pytest.param(header(16, 5)[:7], 2, id="half a header"),
        pytest.param(header(16, 5) + bytes(7), 2, id="half an address"),
        pytest.param(header(16, 5) + bytes(16) + b"sta", 2, id="half a startup message"),
        pytest.param(header(129, 5) + bytes(129) + b"start", 2, id="an address that is too long"),
        pytest.param(header(16, 16385) + bytes(16) + bytes(16385), 2, id="a startup message that is too long"),
        pytest.param(header(2**32 - 1, 2**32 - 1), 2, id="lengths at their limit"),
    ],
)
def test_what_is_no_hand_over_is_refused_and_leaves_nothing(receiver: Receiver, payload: bytes, descriptors: int) -> None:
    before = receiver.ask("descriptors")
    read_end, write_end = os.pipe()
    try:
        send(receiver, payload, [write_end] * descriptors).close()
        os.close(write_end)
        got = receiver.ask("accept")
        assert (got["fd"], got["errno"]) == (-1, errno.ECONNABORTED)
        assert in_time(got["elapsed_s"], 0.9), "the peer has left: there is nothing to wait for"
        assert receiver.ask("descriptors") == before
        assert os.read(read_end, 1) == b"", "nobody holds what was sent"
    finally:
        os.close(read_end)


async def test_more_descriptors_than_two(receiver: Receiver, client: tuple[socket.socket, socket.socket]) -> None:
    before = receiver.ask("descriptors")
    read_end, write_end = os.pipe()
    fds = [client[1].fileno(), write_end, write_end, write_end]
    send(receiver, header(16, 5) + sockaddr(*ADDRESS) + b"start", fds).close()
    os.close(write_end)
    got = receiver.ask("accept")
    if got["fd"] >= 0:
        assert receiver.ask("descriptors") == before + 2
        receiver.ask("close", got["fd"])
    os.close(read_end)


@pytest.mark.parametrize("payload", [b"", header(16, 5)[:9], header(16, 5) + bytes(16) + b"st"], ids=["nothing", "a bit", "nearly all"])
async def test_a_peer_that_falls_silent_holds_nobody_up(
    receiver: Receiver, client: tuple[socket.socket, socket.socket], payload: bytes
) -> None:
    read_end, write_end = os.pipe()
    silent = send(receiver, payload, [write_end, write_end] if payload else [])
    os.close(write_end)
    line = await hand_over(receiver.path, client[1], ADDRESS, b"next")
    got = receiver.ask("accept")
    assert (got["fd"], got["errno"]) == (-1, errno.ECONNABORTED)
    assert in_time(got["elapsed_s"], 1.9)
    got = receiver.ask("accept")
    assert receiver.ask("recv", got["fd"], 10, 0) == b"next".hex()
    silent.close()
    os.close(read_end)
    os.close(line)


async def test_bytes_that_come_in_pieces(receiver: Receiver, client: tuple[socket.socket, socket.socket]) -> None:
    read_end, write_end = os.pipe()
    receiver.say("accept")
    whole = header(16, 5) + sockaddr(*ADDRESS) + b"start"
    channel = send(receiver, whole[:16], [client[1].fileno(), write_end])
    os.close(write_end)
    for n in range(16, len(whole)):
        channel.send(whole[n : n + 1])
    got = await asyncio.to_thread(receiver.hear)
    assert bytes.fromhex(got["address"]) == sockaddr(*ADDRESS)
    assert receiver.ask("recv", got["fd"], 10, 0) == b"start".hex()
    channel.close()
    os.close(read_end)


def test_other_listeners_are_untouched(receiver: Receiver) -> None:
    port = receiver.ask("tcp port")
    with socket.create_connection(("127.0.0.1", port)) as plain:
        plain.sendall(b"plain")
        got = receiver.ask("accept tcp")
        assert receiver.ask("recv", got["fd"], 10, 0) == b"plain".hex()
        assert not (receiver.path.parent / "own.sock").is_socket() or refuses(receiver.path.parent / "own.sock")


def refuses(path: Path) -> bool:
    """Nobody listens on the socket that PostgreSQL made itself."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
    return False


def test_programs_that_postgresql_runs_know_nothing(receiver: Receiver) -> None:
    child, own = receiver.ask("environment")
    assert "KEPT" in own
    for names in (child, own):
        assert "LD_PRELOAD" not in names
        assert not any("TORPOR" in name for name in names)


def test_ready_is_told_once_when_postgresql_says_so(receiver: Receiver) -> None:
    os.set_blocking(receiver.ready, False)
    receiver.ask("pwrite", "123\n/data\nstarting\n")
    with pytest.raises(BlockingIOError):
        os.read(receiver.ready, 1)
    receiver.ask("pwrite", "123\n/data\nready   \n")
    assert os.read(receiver.ready, 10) == b"R"
    assert os.read(receiver.ready, 10) == b"", "and the promise is closed"
    receiver.ask("pwrite", "123\n/data\nready   \n")


def test_the_promise_breaks_with_the_process(tmp_path: Path) -> None:
    receiver = Receiver(tmp_path)
    timer = threading.Timer(0.05, receiver.process.kill)
    timer.start()
    assert os.read(receiver.ready, 1) == b""
    timer.join()
    receiver.close()


@pytest.mark.parametrize(("word", "code"), [(b"G", 0), (b"", 126)])
def test_postgresql_begins_when_it_is_let_go_and_never_without_torpor(word: bytes, code: int) -> None:
    go_read, go_write = os.pipe()
    environment = {"PATH": "/usr/bin:/bin", "LD_PRELOAD": str(LIBRARY), "TORPOR_GO_FD": str(go_read)}
    process = subprocess.Popen(["/bin/true"], pass_fds=[go_read], env=environment)
    os.close(go_read)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    os.write(go_write, word)
    os.close(go_write)
    assert process.wait(60) == code


def test_nothing_is_synced_in_haste() -> None:
    """Until it is over, which a process notices at once; and it can't say so itself."""
    program = """
import os
def synced(call):
    try:
        call(1000)
    except OSError:
        return True  # there is no such file
    return False
print(*map(synced, (os.fsync, os.fdatasync)), flush=True)
input()
print(*map(synced, (os.fsync, os.fdatasync)), flush=True)
"""
    haste = Haste()
    with pytest.raises(OSError):
        os.pwrite(haste.reader, b"\0", 0)
    environment = {"LD_PRELOAD": str(LIBRARY), "TORPOR_HASTE_FD": str(haste.reader)}
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", program],
        pass_fds=[haste.reader],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "False False\n"
        haste.end()
        haste.end()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "True True\n"
