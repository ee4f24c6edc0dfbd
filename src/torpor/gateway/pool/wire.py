"""What a worker asks of the kernel all the time: read, write, wait. Nothing here waits but `wait`.

`wire.pyx` is the same as system calls with nothing around them, for the compiled form (docs/decisions/0032-the-pool-is-compiled.md).
What is promised here holds for both: tests/unit/gateway/pool/test_forms.py.
"""

import os
import select

READ_BYTES = 65_536
EVENTS = 256
IN, OUT, HANGUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLRDHUP

_buffer = bytearray(READ_BYTES)
_whole = memoryview(_buffer)
_events: list[tuple[int, int]] = []


def receive(fd: int) -> bytes:
    """What has come, at most READ_BYTES; nothing when the other side has ended it. Raises BlockingIOError, OSError."""
    return bytes(_whole[: os.readv(fd, (_buffer,))])


def send(fd: int, data: bytes) -> int:
    """How many of these bytes the kernel has taken; 0 when it takes none now. Raises OSError."""
    try:
        return os.write(fd, data)
    except BlockingIOError:
        return 0


def wait(epoll: select.epoll, timeout_s: float) -> int:
    """How many descriptors something has happened to, EVENTS at most; below 0 it has all the time in the world. Raises OSError."""
    _events[:] = epoll.poll(timeout_s, EVENTS)
    return len(_events)


def who(number: int) -> int:
    """One of the descriptors that the last `wait` found."""
    return _events[number][0]


def what(number: int) -> int:
    """What has happened to it, as epoll says it."""
    return _events[number][1]
