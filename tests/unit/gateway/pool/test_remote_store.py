"""The worker's connection to a shared store: what is asked and answered, and how little it is waited for."""

import select
import socket
from collections.abc import Iterator, Sequence

import pytest

from torpor.gateway.cache.resp import command
from torpor.gateway.pool.links import Sockets
from torpor.gateway.pool.shared import DEADLINE_S, RemoteStore

Values = Sequence[bytes | None] | None


class Rig:
    """One with a store at the other end that a test plays."""

    def __init__(self) -> None:
        self.now = 100.0
        self.wanted = 0
        self.found: list[Values] = []
        self.control, self.far_control = socket.socketpair()
        self.sockets = Sockets(self.control.fileno(), memoryview(bytearray(16)).cast("Q"), lambda _owner: None)
        self.store = RemoteStore(self.sockets, self._want, lambda: self.now)
        self.peer: socket.socket | None = None

    def _want(self) -> None:
        self.wanted += 1

    def connect(self) -> socket.socket:
        near, self.peer = socket.socketpair()
        near.setblocking(False)
        self.peer.settimeout(30)
        self.store.connected(near)
        return self.peer

    def ask(self, *names: bytes) -> bool:
        return self.store.get(names, self.found.append)

    def turn(self) -> None:
        """Wait for what comes next."""
        self.far_control.send(b"x")
        self.sockets.turn(0.0)
        self.control.recv(1)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.store.close()
    for sock in (rig.control, rig.far_control, rig.peer):
        if sock is not None:
            sock.close()


def test_a_connection_is_wanted_when_it_is_needed(rig: Rig) -> None:
    assert rig.wanted == 0 and not rig.ask(b"a")
    assert rig.wanted == 1 and not rig.ask(b"a") and rig.wanted == 1
    rig.store.connected(None)
    assert not rig.ask(b"a") and rig.wanted == 1  # not at once
    rig.now += 0.3
    assert not rig.ask(b"a") and rig.wanted == 2
    rig.store.connected(None)
    rig.now += 0.3
    assert not rig.ask(b"a") and rig.wanted == 2  # and then less and less often
    rig.now += 0.3
    assert not rig.ask(b"a") and rig.wanted == 3


def test_answers_belong_to_who_asked(rig: Rig) -> None:
    peer = rig.connect()
    assert rig.ask(b"a", b"b")
    rig.store.put(b"c", b"value", 1500)
    assert rig.ask(b"d")
    said = command(b"MGET", b"a", b"b") + command(b"SET", b"c", b"value", b"PX", b"1500") + command(b"MGET", b"d")
    assert peer.recv(1000) == said
    peer.send(b"*2\r\n$1\r\nA\r\n$-1\r\n+OK\r\n-ERR no\r\n")
    rig.turn()
    assert rig.found == [[b"A", None], None]


def test_who_is_slow_is_left_alone_for_a_while(rig: Rig) -> None:
    peer = rig.connect()
    assert rig.ask(b"a") and rig.ask(b"b")
    rig.now += DEADLINE_S
    while not rig.found:  # the timer's time is the machine's
        rig.turn()
    assert rig.found == [None, None] and not rig.ask(b"a") and rig.wanted == 0
    while peer.recv(1000):
        pass  # it was hung up
    peer.close()
    rig.now += 0.3
    assert not rig.ask(b"a") and rig.wanted == 1
    rig.connect()
    assert rig.ask(b"a")


def test_what_has_come_in_time_counts_even_if_it_is_heard_late(rig: Rig) -> None:
    peer = rig.connect()
    assert rig.ask(b"a")
    peer.send(b"*1\r\n$1\r\nA\r\n")
    rig.now += 10
    select.select([rig.store._timer], [], [], 30)
    rig.turn()
    assert rig.found == [[b"A"]] and rig.ask(b"a")


@pytest.mark.parametrize("said", [b"", b"nonsense\r\n", b"$99999999\r\n", b"+OK\r\n+OK\r\n"])
def test_a_store_that_is_none_is_given_up(rig: Rig, said: bytes) -> None:
    peer = rig.connect()
    rig.store.put(b"a", b"b", 1000)
    if said:
        peer.send(said)
    else:
        peer.close()
    rig.turn()
    assert not rig.ask(b"a") and rig.wanted == 0


def test_what_it_does_not_take_is_kept_for_it_and_bounded(rig: Rig) -> None:
    peer = rig.connect()
    for _ in range(100):
        rig.store.put(b"a", b"x" * (1 << 20), 1000)
    assert len(rig.store._unsent) < 10 << 20 and not rig.ask(b"a")
    peer.recv(1000)
