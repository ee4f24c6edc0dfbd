"""Processes by their identity, on real ones."""

import asyncio
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from torpor.base.processes import (
    ProcessHandle,
    boot_id,
    descendants,
    dying_with_us,
    start_ticks,
    tcp_sockets_of,
    uid_runs,
)

NO_PID = 4_194_303  # the highest that Linux gives out; above the default of pid_max


@contextmanager
def running(*command: str) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def start(*command: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command)


def wait_dead(pid: int) -> None:
    """Until a child is dead; it isn't reaped."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def test_start_ticks_identify_a_process() -> None:
    own = start_ticks(os.getpid())
    assert own is not None
    with running("sleep", "60") as process:
        ticks = start_ticks(process.pid)
        assert ticks is not None
        assert ticks >= own
        assert start_ticks(process.pid) == ticks


def test_zombies_and_the_dead_have_no_start_ticks() -> None:
    process = start("true")
    wait_dead(process.pid)  # and not reaped: a zombie
    assert start_ticks(process.pid) is None
    process.wait()
    assert start_ticks(process.pid) is None
    assert start_ticks(NO_PID) is None


def test_a_process_name_with_parentheses_does_not_shift_the_fields() -> None:
    # The name of a process is its program's file name and may hold anything.
    code = "import ctypes, sys; ctypes.CDLL(None).prctl(15, b') Z 1 (x', 0, 0, 0); print(flush=True); sys.stdin.read()"
    with running(sys.executable, "-I", "-S", "-c", code) as process:
        assert process.stdout is not None
        before = start_ticks(process.pid)
        process.stdout.readline()
        assert start_ticks(process.pid) == before is not None


def test_boot_id_is_that_of_this_boot() -> None:
    assert boot_id() == boot_id()
    assert len(boot_id()) == 36


def test_descendants_parents_first() -> None:
    with running("sh", "-c", "(sleep 60 & echo go; wait) & wait") as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = descendants(process.pid)
        assert found[0] == process.pid
        assert len(found) == 3
        for pid in reversed(found):
            os.kill(pid, signal.SIGKILL)
    assert descendants(NO_PID) == [NO_PID]


def test_a_helper_dies_with_the_thread_that_started_it() -> None:
    code = (
        "import subprocess, sys\n"
        "from torpor.base.processes import dying_with_us\n"
        "print(subprocess.Popen(dying_with_us(['sleep', '60'])).pid, flush=True)\n"
        "sys.stdin.read()"
    )
    with running(sys.executable, "-c", code) as starter:
        assert starter.stdout is not None
        helper = int(starter.stdout.readline())
        deadline = time.monotonic() + 30
        while helper_name(helper) != "sleep":  # the program that sees to it has to begin first
            assert time.monotonic() < deadline
            time.sleep(0.002)
        starter.kill()
        while start_ticks(helper) is not None:
            assert time.monotonic() < deadline
            time.sleep(0.002)


def helper_name(pid: int) -> str:
    with open(f"/proc/{pid}/comm") as file:
        return file.read().strip()


def test_a_helper_still_runs_without_the_program_that_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert dying_with_us(["cp", "a"]) == ["cp", "a"]


def test_whether_a_user_runs_anything() -> None:
    assert uid_runs(os.geteuid())
    assert not uid_runs(1_987_654_321)


async def test_the_end_of_a_child_is_told_once_and_it_is_reaped() -> None:
    process = start("sleep", "60")
    handle = ProcessHandle(process.pid)
    ends: list[int] = []
    handle.watch(lambda: ends.append(1))
    assert not await handle.wait(0.01)
    assert not handle.exited
    assert handle.signal(signal.SIGTERM)
    assert await handle.wait(60)
    assert ends == [1]
    assert handle.exited
    assert "exited" in repr(handle)
    with pytest.raises(ChildProcessError):
        wait_dead(process.pid)
    assert not handle.signal(signal.SIGTERM)
    handle.close()
    process.wait()


async def test_a_process_that_dies_before_it_is_watched() -> None:
    process = start("sleep", "60")
    handle = ProcessHandle(process.pid)
    process.kill()
    wait_dead(process.pid)
    handle.watch(lambda: None)
    assert await handle.wait(60)
    process.wait()


def test_no_handle_for_the_dead() -> None:
    process = start("true")
    wait_dead(process.pid)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ProcessLookupError):
        ProcessHandle(process.pid)
    assert len(os.listdir("/proc/self/fd")) == before
    process.wait()
    with pytest.raises(ProcessLookupError):
        ProcessHandle(process.pid)


async def test_a_process_that_is_not_our_child() -> None:
    with running("sh", "-c", "sleep 60 & echo $!; wait") as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        handle = ProcessHandle(pid)
        handle.watch(lambda: None)
        handle.signal(signal.SIGKILL)
        assert await handle.wait(60)


async def test_signals_never_reach_a_stranger() -> None:
    process = start("sleep", "60")
    handle = ProcessHandle(process.pid)
    process.kill()
    process.wait()  # reaped: the pid may be anybody's now
    assert not handle.signal(signal.SIGKILL)
    handle.close()
    handle.close()


async def test_closing_stops_the_watch() -> None:
    with running("sleep", "60") as process:
        handle = ProcessHandle(process.pid)
        ends: list[int] = []
        handle.watch(lambda: ends.append(1))
        handle.close()
        process.kill()
        await asyncio.to_thread(process.wait)
        await asyncio.sleep(0.01)
        assert ends == []


HOLDER = """
import os, socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
extra = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socketpair(), socket.create_server(("127.0.0.1", 0))
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def holding(sock: socket.socket) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that holds `sock` beside sockets of all other kinds."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", HOLDER, str(sock.fileno())],
        pass_fds=[sock.fileno()], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_client_sockets_of_another_process(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection((host, port)) as client:
            server, _ = listener.accept()
            with holding(server) as process:
                server.close()
                os.kill(process.pid, signal.SIGSTOP)  # works on a frozen one
                found = tcp_sockets_of(process.pid, port)
                assert [sock.getpeername()[:2] for sock in found] == [client.getsockname()[:2]]
                assert tcp_sockets_of(process.pid, port + 1 if port < 65535 else port - 1) == []
                client.sendall(b"x")
                assert found[0].recv(1) == b"x"
                found[0].close()


def test_a_client_that_has_left_is_still_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        server, _ = listener.accept()
        with holding(server) as process:
            server.close()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()  # a reset: the socket has no peer any more
            found = tcp_sockets_of(process.pid, port)
            assert len(found) == 1
            found[0].close()


def test_a_zombie_has_no_sockets_for_an_ordinary_user_either() -> None:
    process = start("true")
    wait_dead(process.pid)
    user = os.geteuid()
    os.seteuid(user or pwd.getpwnam("nobody").pw_uid)
    try:
        assert tcp_sockets_of(process.pid, None) == []
    finally:
        os.seteuid(user)
        process.wait()


def test_the_sockets_of_nobody() -> None:
    with pytest.raises(ProcessLookupError):
        tcp_sockets_of(NO_PID, 1)
