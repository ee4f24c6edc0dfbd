"""The kernel's counters, read from real loopback connections."""

import socket
import time
from collections.abc import Iterator

import pytest

from torpor.metering.traffic import Traffic, tcp_traffic


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        with client, server:
            yield client, server


def read_exactly(sock: socket.socket, count: int) -> None:
    while count:
        count -= len(sock.recv(min(count, 65536)))


def eventually(sock: socket.socket, expected: Traffic) -> None:
    """Acknowledgements come a moment after the data: delayed by at most 200 ms."""
    deadline = time.monotonic() + 30
    while tcp_traffic(sock) != expected and time.monotonic() < deadline:
        time.sleep(0.005)
    assert tcp_traffic(sock) == expected


def test_a_new_connection_has_moved_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    assert tcp_traffic(pair[1]) == Traffic(0, 0)


def test_counts_both_directions_from_the_servers_side(pair: tuple[socket.socket, socket.socket]) -> None:
    client, server = pair
    client.sendall(b"q" * 1234)
    read_exactly(server, 1234)
    server.sendall(b"r" * 56789)
    read_exactly(client, 56789)
    eventually(server, Traffic(received=1234, sent=56789))


def test_a_duplicate_reads_the_same_counters(pair: tuple[socket.socket, socket.socket]) -> None:
    client, server = pair
    client.sendall(b"q" * 100)
    read_exactly(server, 100)
    with server.dup() as duplicate:
        eventually(duplicate, Traffic(received=100, sent=0))


def test_counters_outlive_the_connection(pair: tuple[socket.socket, socket.socket]) -> None:
    client, server = pair
    client.sendall(b"q" * 100)
    read_exactly(server, 100)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # close with a reset
    client.close()
    with pytest.raises(ConnectionResetError):
        server.recv(1)
    assert tcp_traffic(server).received == 100


def test_what_is_not_tcp_counts_nothing() -> None:
    left, right = socket.socketpair()
    with left, right, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
        left.sendall(b"x")
        assert tcp_traffic(left) == tcp_traffic(right) == tcp_traffic(datagram) == Traffic(0, 0)


def test_a_closed_socket_counts_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[1].close()
    assert tcp_traffic(pair[1]) == Traffic(0, 0)


def test_arithmetic() -> None:
    assert Traffic(5, 7) + Traffic(1, 2) == Traffic(6, 9)
    assert Traffic(5, 7) - Traffic(1, 2) == Traffic(4, 5)
    assert not Traffic()
    assert Traffic(0, 1)
