"""Sessions over real connections."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

import pytest

from tests.support.virtual import run as run_virtually
from torpor.compute.handover import BackendEnd
from torpor.compute.sessions import Session, Sessions
from torpor.metering.traffic import Traffic

GOODBYE = b"X\0\0\0\4"


@dataclass
class House:
    """Sessions with what they told."""

    traffic: list[Session] = field(default_factory=list)
    ends: int = 0

    def __post_init__(self) -> None:
        self.sessions = Sessions(self.traffic.append, self._end)

    def _end(self) -> None:
        self.ends += 1


@pytest.fixture
async def house() -> AsyncIterator[House]:
    made = House()
    yield made
    made.sessions.release()


@pytest.fixture
def connect() -> Iterator[Callable[[], tuple[socket.socket, socket.socket]]]:
    """Makes a client, and its server side."""
    opened: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def make() -> tuple[socket.socket, socket.socket]:
            client = socket.create_connection(listener.getsockname())
            server, _ = listener.accept()
            opened.extend((client, server))
            return client, server

        yield make
    for sock in opened:
        sock.close()


Connect = Callable[[], tuple[socket.socket, socket.socket]]


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(5000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise TimeoutError


def session(server: socket.socket, pid: int | None = None, host: str = "10.0.0.1") -> tuple[Session, BackendEnd]:
    end = BackendEnd()
    end.pid = pid
    return Session(server.dup(), end, host, None), end


async def test_a_sleeper_hears_of_the_first_byte(house: House, connect: Connect) -> None:
    (client, server), (_, quiet) = connect(), connect()
    first, _ = session(server)
    house.sessions.add(first)
    house.sessions.add(session(quiet)[0])
    client.sendall(b"before")
    await asyncio.sleep(0.005)
    assert house.traffic == [], "nobody watches while it is awake"
    house.sessions.watch()
    await until(lambda: bool(house.traffic))
    assert set(house.traffic) == {first}, "bytes that are there already count"
    house.sessions.unwatch()
    house.sessions.unwatch()
    count = len(house.traffic)
    client.sendall(b"after")
    await asyncio.sleep(0.005)
    assert len(house.traffic) == count
    assert server.recv(100) == b"beforeafter", "watching takes nothing"


async def test_a_session_that_is_added_while_watching_is_watched(house: House, connect: Connect) -> None:
    client, server = connect()
    house.sessions.watch()
    house.sessions.add(session(server)[0])
    client.sendall(b"x")
    await until(lambda: bool(house.traffic))


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@pytest.mark.parametrize(
    ("act", "left"),
    [
        pytest.param(lambda client: None, False, id="silent"),
        pytest.param(lambda client: client.sendall(b"Q\0\0\0\6;\0"), False, id="a query"),
        pytest.param(lambda client: client.sendall(GOODBYE[:3]), False, id="half a goodbye"),
        pytest.param(lambda client: client.sendall(GOODBYE), True, id="goodbye"),
        pytest.param(lambda client: client.close(), True, id="closed"),
        pytest.param(lambda client: client.shutdown(socket.SHUT_WR), True, id="half closed"),
        pytest.param(reset, True, id="reset"),
        pytest.param(lambda client: (client.sendall(b"Q"), client.close()), False, id="a last query, then closed"),
    ],
)
async def test_has_left(connect: Connect, act: Callable[[socket.socket], object], left: bool) -> None:
    client, server = connect()
    watched, _ = session(server)
    act(client)
    if left:
        await until(watched.has_left)
    else:
        await asyncio.sleep(0.005)
        assert not watched.has_left()
    watched.close()


async def test_what_clients_sent_and_what_is_unread(house: House, connect: Connect) -> None:
    (one, near), (two, far) = connect(), connect()
    for server in (near, far):
        house.sessions.add(session(server)[0])
    assert house.sessions.received_bytes() == (0, 0)
    one.sendall(b"x" * 1000)
    two.sendall(b"y" * 24)
    await until(lambda: house.sessions.received_bytes() == (1024, 1024))
    assert near.recv(1000, socket.MSG_WAITALL) == b"x" * 1000
    assert house.sessions.received_bytes() == (1024, 24)
    two.close()
    await until(lambda: house.sessions.received_bytes()[1] >= 24)


async def test_the_traffic_of_the_dead_is_kept(house: House, connect: Connect) -> None:
    client, server = connect()
    kept, end = session(server)
    house.sessions.add(kept)
    client.sendall(b"x" * 100)
    server.sendall(b"y" * 50)
    client.recv(50, socket.MSG_WAITALL)
    await until(lambda: house.sessions.traffic() == Traffic(100, 50))
    end.end()
    assert len(house.sessions) == 0
    assert house.sessions.traffic() == Traffic(100, 50)
    assert house.sessions.received_bytes() == (0, 0)
    assert house.ends == 1


@dataclass
class Carried:
    """Who carries a session, in memory."""

    carried: Traffic
    in_hand: int = 0

    def traffic(self) -> Traffic:
        return self.carried

    def in_transit(self) -> int:
        return self.in_hand


async def test_a_relay_counts_for_itself(house: House) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        carried = Carried(Traffic(7, 8))
        house.sessions.add(Session(theirs.dup(), BackendEnd(), "h", carried))
        assert house.sessions.traffic() == Traffic(7, 8)
        assert house.sessions.received_bytes() == (7, 0)
        ours.sendall(b"abc")
        assert house.sessions.received_bytes() == (7, 3)
        carried.in_hand = 2
        assert house.sessions.received_bytes() == (7, 5)  # what is still on its way keeps a compute awake


async def test_who_is_there(house: House, connect: Connect) -> None:
    first, end = session(connect()[1], 11, "10.0.0.1")
    second, late = session(connect()[1], None, "10.0.0.2")
    house.sessions.add(first)
    house.sessions.add(second)
    assert set(house.sessions.pids()) == {11, None}
    assert house.sessions.has("10.0.0.1", 11)
    assert not house.sessions.has("10.0.0.2", 11), "a pid alone is no proof"
    late.pid = 12
    assert house.sessions.has("10.0.0.2", 12)
    end.end()
    assert not house.sessions.has("10.0.0.1", 11)
    assert "1" in repr(house.sessions)


async def test_a_session_that_has_ended_before_it_was_added(house: House, connect: Connect) -> None:
    ended, end = session(connect()[1])
    end.end()
    house.sessions.watch()
    house.sessions.add(ended)
    assert len(house.sessions) == 0
    assert ended.ended
    assert house.ends == 1


async def test_end_all_tells_whoever_waits(house: House, connect: Connect) -> None:
    made = [session(connect()[1])[0] for _ in range(3)]
    for one in made:
        house.sessions.add(one)
    waiters = [asyncio.create_task(one.wait_ended()) for one in made]
    house.sessions.watch()
    await asyncio.sleep(0)
    house.sessions.end_all()
    house.sessions.end_all()
    async with asyncio.timeout(30):
        await asyncio.gather(*waiters)
    assert len(house.sessions) == 0
    assert house.ends == 3


def goodbye(client: socket.socket) -> None:
    client.sendall(GOODBYE)
    client.close()


@pytest.mark.parametrize(
    ("act", "ends_after_s", "waits_s", "left"),
    [
        pytest.param(goodbye, [], 5.0, 2, id="gone, but their backends hang"),
        pytest.param(goodbye, [0.5, 3.5], 3.5, 0, id="gone, and one backend is slow"),
        pytest.param(lambda client: None, [0.2, 0.9], 0.9, 0, id="goodbyes on their way"),
        pytest.param(lambda client: None, [0.2], 1.0, 1, id="one stays"),
        pytest.param(lambda client: client.sendall(b"Q\0\0\0\6;\0"), [], 1.0, 2, id="both are in use"),
    ],
)
def test_sessions_that_are_just_ending_are_waited_for(
    act: Callable[[socket.socket], object], ends_after_s: list[float], waits_s: float, left: int
) -> None:
    async def main() -> tuple[float, int]:
        house = House()
        loop = asyncio.get_running_loop()
        began = loop.time()
        await house.sessions.wait_ending()
        assert loop.time() == pytest.approx(began, abs=1e-6), "there are none"
        pairs = [socket.socketpair() for _ in range(2)]
        ends = []
        for client, server in pairs:
            made, end = session(server)
            house.sessions.add(made)
            ends.append(end)
            act(client)
        for end, after_s in zip(ends, ends_after_s, strict=False):
            loop.call_later(after_s, end.end)
        began = loop.time()
        await house.sessions.wait_ending()
        took_s, count = loop.time() - began, len(house.sessions)
        house.sessions.release()
        await house.sessions.wait_ending()  # they are the next Torpor's
        for pair in pairs:
            for sock in pair:
                sock.close()
        return took_s, count

    took_s, count = run_virtually(main())
    assert took_s == pytest.approx(waits_s, abs=0.001)
    assert count == left


async def test_release_lets_go_and_ends_nothing(house: House, connect: Connect) -> None:
    client, server = connect()
    kept, end = session(server)
    house.sessions.add(kept)
    house.sessions.watch()
    house.sessions.release()
    assert len(house.sessions) == 0
    assert kept.fileno() == -1
    assert not kept.ended
    client.sendall(b"goes on")
    assert server.recv(100) == b"goes on"
    end.end()
    assert house.ends == 0


async def test_who_broke_the_life_line_gets_no_further(house: House, connect: Connect) -> None:
    """A backend that says that it has ended, and goes on, has no client any more: its bytes would not be counted."""
    client, server = connect()
    kept, end = session(server)
    house.sessions.add(kept)
    server.sendall(b"the last words")
    end.end()
    client.settimeout(30)
    assert client.recv(100) == b"the last words"
    assert client.recv(100) == b""
    assert server.recv(100) == b""
    with pytest.raises(OSError):
        server.sendall(b"more")


async def test_sessions_that_postgresql_does_not_know_end_after_a_while(house: House, connect: Connect) -> None:
    """What a tenant's code left behind can hold a life line for ever, or report the pid of another session."""
    made = [session(connect()[1]) for _ in range(4)]
    for (each, end), pid in zip(made, (11, 12, 12, None), strict=True):
        end.pid = pid
        house.sessions.add(each)
    house.sessions.end_ghosts({11, 12, 13}, 100.0)
    house.sessions.end_ghosts({11, 12, 13}, 129.0)
    assert len(house.sessions) == 4
    house.sessions.end_ghosts({11, 12, 13}, 131.0)
    assert sorted(pid or 0 for pid in house.sessions.pids()) == [11, 12]
    house.sessions.end_ghosts({11}, 132.0)
    house.sessions.end_ghosts({11, 12}, 165.0)  # it was only not seen once
    house.sessions.end_ghosts({11}, 170.0)
    assert len(house.sessions) == 2


@pytest.mark.parametrize("over", ["tcp", "a socket pair"])
async def test_a_dismissed_session_is_told_why_once_its_backend_is_gone(house: House, connect: Connect, over: str) -> None:
    client, server = connect() if over == "tcp" else socket.socketpair()
    client.settimeout(30)
    dismissed, end = session(server)
    house.sessions.add(dismissed)
    dismissed.dismiss(b"farewell")
    dismissed.dismiss(b"another")
    assert server.recv(10) == b"", "the backend reads the end of its client"
    server.send(b"answer ")  # to what had come at that very moment
    server.close()
    end.end()
    assert client.recv(100, socket.MSG_WAITALL) == b"answer farewell"
    assert len(house.sessions) == 0
    client.close()


async def test_what_came_before_the_dismissal_is_read(connect: Connect) -> None:
    client, server = connect()
    dismissed, end = session(server)
    client.sendall(b"query")
    await until(lambda: dismissed.unread_bytes() == 5)
    dismissed.dismiss(b"farewell")
    assert server.recv(100) == b"query"
    assert server.recv(100) == b""
    client.close()
    end.end()
    dismissed.close()  # the client has left meanwhile: nobody to tell


async def test_a_session_that_is_left_to_the_next_torpor_is_told_nothing(connect: Connect) -> None:
    client, server = connect()
    client.settimeout(0.05)
    dismissed, _ = session(server)
    dismissed.dismiss(b"farewell")
    dismissed.close()
    with pytest.raises(TimeoutError):
        client.recv(100)
