"""The exchange between a Torpor and the next one, without either: packets, addresses, descriptors."""

import asyncio
import fcntl
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from torpor.base.processes import ProcessHandle
from torpor.daemon.handoff import Estate, Heir, Heirs, Predecessor, ask
from torpor.door.guard.throttle import Remembered
from torpor.model.errors import AlreadyRunning, BadSettings, TakeOverFailed
from torpor.model.settings import Settings

ADDRESSES = {"door_host": "127.0.0.1", "door_port": 7432, "api_host": "127.0.0.1", "api_port": 7480}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=str(tmp_path))


@pytest.fixture
def estate(tmp_path: Path) -> Iterator[Estate]:
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    pairs = [socket.socketpair() for _ in range(450)]
    door, api = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    failures = Remembered(os.memfd_create("failures"), 12.5, "eight")
    yield Estate(lock, [door], api, [one for one, _ in pairs], [[f"d{n}", "shop", "verifier", 59.5] for n in range(450)], failures)
    os.close(lock)
    os.close(failures.fd)
    for sock in (door, api, *(sock for pair in pairs for sock in pair)):
        sock.close()


class Old:
    """A predecessor without a Torpor."""

    def __init__(self, directory: Path, draining: bool = False) -> None:
        self.asked: asyncio.Queue[Heir] = asyncio.Queue()
        self.heirs = Heirs(directory, ADDRESSES, lambda: draining, self.asked.put_nowait)
        self.heirs.open()


async def test_the_whole_estate_arrives(tmp_path: Path, settings: Settings, estate: Estate) -> None:
    old = Old(tmp_path)

    def take() -> Estate | None:
        predecessor = ask(settings, take_over=True)
        assert predecessor is not None
        taken = predecessor.let_go()
        predecessor.confirm()
        return taken

    taking = asyncio.create_task(asyncio.to_thread(take))
    heir = await old.asked.get()
    assert heir.pid == os.getpid()
    assert await heir.inherit(estate)
    taken = await taking
    assert taken is not None
    assert os.path.samestat(os.fstat(taken.lock), os.fstat(estate.lock))
    assert [one.getsockname() for one in (*taken.door, taken.api)] == [one.getsockname() for one in (*estate.door, estate.api)]
    assert [os.fstat(one.fileno()).st_ino for one in taken.silent] == [os.fstat(one.fileno()).st_ino for one in estate.silent]
    assert not any(os.get_inheritable(one.fileno()) for one in (*taken.silent, *taken.door, taken.api))
    assert taken.tickets == estate.tickets
    assert taken.failures is not None
    assert estate.failures is not None
    assert (taken.failures.epoch, taken.failures.layout) == (12.5, "eight")
    assert os.path.samestat(os.fstat(taken.failures.fd), os.fstat(estate.failures.fd))
    os.close(taken.failures.fd)
    # Nobody else gets the lock, though the one who had it has closed it.
    os.close(os.dup(estate.lock))
    third = os.open(tmp_path / "lock", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(third, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(taken.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(third)
    os.close(taken.lock)
    for sock in (*taken.door, taken.api, *taken.silent):
        sock.close()
    await old.heirs.close(remove=True)
    assert not (tmp_path / "handoff.sock").exists()


async def test_who_serves_is_left_alone(tmp_path: Path, settings: Settings) -> None:
    old = Old(tmp_path)
    with pytest.raises(AlreadyRunning, match="torpor serve --take-over"):
        await asyncio.to_thread(ask, settings, False)
    assert old.asked.empty()
    await old.heirs.close(remove=True)


async def test_who_drains_is_followed_without_being_told(tmp_path: Path, settings: Settings) -> None:
    old = Old(tmp_path, draining=True)
    predecessor = await asyncio.to_thread(ask, settings, False)
    assert predecessor is not None
    assert old.heirs.expected == 1
    await old.heirs.close(remove=True)
    assert predecessor.let_go() is None


async def test_who_asks_when_it_is_closing_is_not_left_open(tmp_path: Path) -> None:
    old = Old(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
        asking.settimeout(10)
        asking.connect(str(tmp_path / "handoff.sock"))
        old.heirs._accept()
        await old.heirs.close(remove=True)
        assert await asyncio.to_thread(asking.recv, 1) == b""


@pytest.mark.parametrize(("name", "value"), [("door_port", 1), ("api_port", 2), ("door_host", "0.0.0.0"), ("api_host", "::1")])
async def test_other_addresses(tmp_path: Path, name: str, value: Any) -> None:
    old = Old(tmp_path)
    with pytest.raises(BadSettings, match=f"{name} is {value!r} here, and {ADDRESSES[name]!r} where the running Torpor listens"):
        await asyncio.to_thread(ask, Settings(data_dir=str(tmp_path), **{name: value}), True)
    predecessor = await asyncio.to_thread(ask, Settings(data_dir=str(tmp_path), door_port=0, api_port=0), True)
    assert isinstance(predecessor, Predecessor), "a free port means: whatever there is"
    await old.heirs.close(remove=True)
    assert predecessor.let_go() is None


def test_nobody_there(settings: Settings, tmp_path: Path) -> None:
    assert ask(settings, True) is None
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(tmp_path / "handoff.sock"))
    assert ask(settings, True) is None, "what a killed Torpor left"


@pytest.mark.parametrize("said", [b"[]", b"{", b"\xff", json.dumps({"something": "else"}).encode()])
def test_an_answer_that_is_not_understood(settings: Settings, tmp_path: Path, said: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "handoff.sock"))
        listener.listen()

        def answer() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(1000)
                sock.send(said)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            predecessor = ask(settings, True)
        except TakeOverFailed as error:
            assert "wasn't understood" in error.message
        else:
            assert predecessor is not None
            assert predecessor.let_go() is None
        thread.join()


async def test_an_heir_that_ends_gives_the_estate_back(estate: Estate) -> None:
    """It took everything, and its process is gone."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    process = await asyncio.create_subprocess_exec("sleep", "600")
    heir = Heir(ours, ProcessHandle(process.pid))
    theirs.close()
    began = asyncio.get_running_loop().time()
    assert not await heir.inherit(estate), "it hung up, though it lives: it is killed"
    assert asyncio.get_running_loop().time() - began < 30
    assert await process.wait() != 0
