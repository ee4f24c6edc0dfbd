"""A million mutated handshakes: through everything that decides, and as many as time allows through the real door over real sockets.
No crash, no leaked descriptor, no growing memory. The seed is fixed; `make soak` goes on with others."""

import asyncio
import contextlib
import gc
import os
import socket
import time
from collections import Counter

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fuzz import Mutator, conduct, corpus
from tests.unit.door.test_login import log_in
from tests.unit.door.twin import Twin, client_of, open_door
from torpor.door.guard.guard import Guard
from torpor.door.listener import Door
from torpor.door.stats import LoginOutcome
from torpor.model.limits import DoorLimits

_SHARDS = 8
_EACH = 125_000  # a million in all
_WARM_UP = 5_000
_THROUGH_THE_DOOR = 4_000
_AT_ONCE = 40


def _rss_bytes() -> int:
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("shard", range(_SHARDS))
def test_a_million_mutated_handshakes_are_answered_or_refused(shard: int) -> None:
    mutator, outcomes = Mutator(shard), Counter[str]()
    before = 0
    for number in range(_EACH):
        if number == _WARM_UP:
            before = _rss_bytes()
        data, is_balanced = mutator.next()
        try:
            outcomes[conduct(data, is_balanced, number)] += 1
        except Exception as error:
            error.add_note(f"shard {shard}, number {number}: {data!r}, balanced: {is_balanced}")
            raise
    assert _rss_bytes() - before < 4 << 20
    # It reaches every part of the way.
    assert {"vanished", "stranger", "cancel", "wrong", "protocol_violation", "database_not_found", "login_forbidden"} <= set(outcomes)


def test_the_corpus_is_understood() -> None:
    outcomes = {name: conduct(data, name.startswith("proxy")) for name, data in corpus().items()}
    assert outcomes["psql-startup"] == outcomes["jdbc-startup"] == "vanished"  # until it answers the question for its password
    assert outcomes["cancel-3-0"] == outcomes["cancel-3-2"] == "cancel"
    assert {outcomes[name] for name in outcomes if name.startswith(("tls", "http", "ssh"))} == {"stranger"}
    assert {outcomes[name] for name in outcomes if name.startswith("proxy")} == {"vanished"}
    for scanner in ("rdp", "redis", "rtsp-options", "sip", "adb", "ldap", "telnet", "memcached", "postgres-2-0-startup"):
        assert outcomes[scanner] in ("protocol_violation", "stranger"), scanner


@settings(max_examples=300)
@given(st.lists(st.one_of(st.binary(max_size=40), st.sampled_from(list(corpus().values()))), max_size=6), st.booleans(), st.integers(0, 5))
def test_anything_is_answered_or_refused(parts: list[bytes], is_balanced: bool, number: int) -> None:
    conduct(b"".join(parts), is_balanced, number)


def test_thousands_through_the_real_door_leave_nothing_behind() -> None:
    uvloop.run(_through_the_door(_THROUGH_THE_DOOR, seed=1))


async def _through_the_door(count: int, seed: int) -> None:
    guard = Guard(time.monotonic, b"secret", DoorLimits(), load_balancers=("127.0.0.2",))
    mutator = Mutator(seed)
    twin = Twin()
    twin.may_wake.set()
    async with open_door(twin, login_timeout_s=5, max_logins=2 * _AT_ONCE, guard=guard) as door:
        await _say(door, [mutator.next() for _ in range(500)])
        descriptors, rss = _descriptors(), _rss_bytes()
        for _ in range(count // 500):
            await _say(door, [mutator.next() for _ in range(500)])
        await _settled(door)
        assert _descriptors() <= descriptors
        assert _rss_bytes() - rss < 4 << 20
        assert not guard.pending
        assert not guard.entering
        assert sum(door.stats.logins.values()) == door.stats.accepted
        assert door.stats.logins[LoginOutcome.FAILED] == 0
        assert len(asyncio.all_tasks()) <= 1
        async with client_of(door) as client:
            await log_in(client)


async def _say(door: Door, handshakes: list[tuple[bytes, bool]]) -> None:
    slots = asyncio.Semaphore(_AT_ONCE)
    loop = asyncio.get_running_loop()

    async def one(data: bytes, is_balanced: bool) -> None:
        async with slots:
            sock = socket.socket()
            sock.setblocking(False)
            sock.bind(("127.0.0.2" if is_balanced else "127.0.0.1", 0))
            with sock, contextlib.suppress(OSError):
                await loop.sock_connect(sock, door.address)
                await loop.sock_sendall(sock, data)
                sock.shutdown(socket.SHUT_WR)
                async with asyncio.timeout(30):
                    while await loop.sock_recv(sock, 4096):
                        pass

    await asyncio.gather(*(one(*handshake) for handshake in handshakes))


async def _settled(door: Door) -> None:
    async with asyncio.timeout(30):
        while door.stats.pending or door.stats.waiting or len(asyncio.all_tasks()) > 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
