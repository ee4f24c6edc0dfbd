"""Starting, stopping, and the addresses a door listens on."""

import asyncio
import contextlib
import errno
import socket

import pytest

from tests.unit.door.test_login import log_in, scram, startup
from tests.unit.door.twin import MOCK_SECRET, Twin, client_of, open_door, outcomes, until
from torpor.door.listener import Door, _cannot_listen
from torpor.door.stats import LoginOutcome
from torpor.model.errors import AddressInUse
from torpor.pgwire.answers import Notice, query


def make_door(host: str, port: int, pool_port: int | None = None) -> Door:
    return Door(Twin(), host=host, port=port, login_timeout_s=1, max_logins=10, mock_secret=MOCK_SECRET, pool_port=pool_port)


async def test_a_taken_port_is_told_in_one_sentence() -> None:
    async with open_door(Twin()) as door:
        host, port = door.address
        other = make_door(host, port)
        with pytest.raises(AddressInUse, match=rf"can't listen on 127\.0\.0\.1:{port}: another program does; .*door_port"):
            await other.start()
        await other.close()


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host.invalid"])
async def test_an_address_that_is_not_ours_is_told_in_one_sentence(host: str) -> None:
    door = make_door(host, 0)
    with pytest.raises(AddressInUse, match="door_host"):
        await door.start()
    await door.close()


def test_every_cause_has_its_sentence() -> None:
    texts = {
        str(_cannot_listen("x:1", OSError(code, "why"), "door_port"))
        for code in (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL, errno.EIO)
    }
    assert len(texts) == 4


async def test_a_port_for_the_pool_is_kept_opened_and_closed_as_the_next_door_wants() -> None:
    door = make_door("127.0.0.1", 0, 0)
    await door.start()
    (_, port), pooled = door.address, door.pool_address
    assert pooled is not None and pooled[1] != port
    for wanted, kept in ((pooled[1], True), (0, True), (None, False), (0, False)):
        door.pause()
        listeners, _ = door.release()
        await door.close()
        door = make_door("127.0.0.1", port, wanted)
        await door.start(listeners)
        assert door.address[1] == port
        if wanted is None:
            assert door.pool_address == (pooled if kept else None)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(pooled)
        else:
            assert door.pool_address is not None
            assert not kept or door.pool_address == pooled
            socket.create_connection(door.pool_address).close()
    taken = make_door("127.0.0.1", 0, port)
    with pytest.raises(AddressInUse, match="pool_port"):
        await taken.start()
    await taken.close()
    await door.close()


async def test_a_closed_door_can_be_opened_again_on_its_port() -> None:
    async with open_door(Twin()) as door:
        host, port = door.address
        async with client_of(door) as client:
            await log_in(client)
    again = make_door(host, port)
    await again.start()
    assert again.address == (host, port)
    assert repr(again) == f"<Door {host}:{port} pending=0 waiting=0 relayed=0>"
    await again.close()
    await again.close()
    assert repr(again) == "<Door closed pending=0 waiting=0 relayed=0>"


async def test_a_host_name_stands_for_all_its_addresses_on_one_port() -> None:
    async with open_door(Twin(), host="localhost") as door:
        _, port = door.address
        families = {listener.family for listener in door._listeners}
        assert {listener.getsockname()[1] for listener in door._listeners} == {port}
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            if family in families:
                _, writer = await asyncio.open_connection(host, port)
                writer.close()
                await writer.wait_closed()


async def test_no_host_stands_for_every_address() -> None:
    async with open_door(Twin(), host="") as door:
        assert {listener.getsockname()[0] for listener in door._listeners} <= {"0.0.0.0", "::"}


async def test_stopping_sends_the_silent_away_and_lets_logins_end() -> None:
    twin = Twin()
    async with open_door(twin) as door, client_of(door) as silent, client_of(door) as busy, client_of(door) as done:
        await log_in(done)
        twin.may_wake.clear()
        busy.say(startup())
        await scram(busy)
        await until(lambda: door.stats.waiting == 1 and door.stats.pending == 1)
        host, port = door.address
        await door.stop_accepting()
        assert (await silent.hear_refusal()).sqlstate == "57P01"
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(host, port)
        twin.may_wake.set()
        assert [(await busy.hear_authentication()).code for _ in range(2)] == [12, 0]
        assert outcomes(door) == {LoginOutcome.HANDED_OVER: 2, LoginOutcome.SHUTDOWN: 1}
        done.say(query("still here"))
        await done.hear()


async def test_closing_tells_logins_that_torpor_shuts_down_and_leaves_sessions_alone() -> None:
    twin = Twin()
    async with open_door(twin) as door, contextlib.AsyncExitStack() as stack:
        done, half, unread, waiting = [await stack.enter_async_context(client_of(door)) for _ in range(4)]
        await log_in(done)
        twin.may_wake.clear()
        waiting.say(startup())
        await scram(waiting)
        assert (await waiting.hear_authentication()).code == 12
        half.say(startup()[:9])
        await until(lambda: len(door._logins) == 1 and door.stats.waiting == 1)
        unread.say(startup()[:9])
        # Its task is spawned, and hasn't run yet when the door closes.
        while len(door._logins) != 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await door.close()
        for client in (half, unread, waiting):
            assert (await client.hear_refusal()).sqlstate == "57P01"
        assert outcomes(door) == {LoginOutcome.HANDED_OVER: 1, LoginOutcome.SHUTDOWN: 3}
        done.say(query("still here"))
        await done.hear()


async def test_closing_in_the_middle_of_a_hand_over_leaves_the_session_alone() -> None:
    twin = Twin()
    twin.shop.may_report.clear()
    async with open_door(twin) as door, client_of(door) as client:
        await log_in(client)
        assert door.stats.waiting == 1
        await door.close()
        client.say(query("still here"))
        assert isinstance(await client.hear(), Notice)


async def test_a_door_that_was_never_started_can_be_closed() -> None:
    door = make_door("127.0.0.1", 0)
    await door.close()
    assert "closed" in repr(door)
