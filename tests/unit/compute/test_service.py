"""Torpor's own session: what happens when it is dropped while somebody waits for an answer, and when who answers is hostile."""

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections.abc import AsyncIterator

import pytest
import uvloop

from tests.support.pace import in_time
from torpor.compute.handover import LifeLine
from torpor.compute.service import MOST_ROLES, QueryFailed, ServiceSession, identifier, literal
from torpor.model.database import Role
from torpor.model.errors import ComputeLost
from torpor.pgwire.frames import frame


@pytest.mark.parametrize("loops", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_whoever_waits_for_an_answer_is_told_when_the_session_is_dropped(loops: object) -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        read_end, write_end = os.pipe2(os.O_NONBLOCK)
        session = ServiceSession(ours, LifeLine(read_end))
        asking = asyncio.create_task(session.query("SELECT 1"))
        queued = asyncio.create_task(session.query("SELECT 2"))
        await asyncio.sleep(0.01)
        session.abandon()
        session.abandon()
        for task in (asking, queued):
            with pytest.raises(ComputeLost):
                await asyncio.wait_for(task, 1)
        assert session.broken
        assert ours.fileno() == -1
        theirs.close()
        os.close(write_end)

    with asyncio.Runner(loop_factory=loops) as runner:  # type: ignore[arg-type]
        runner.run(run())


@pytest.mark.parametrize(("name", "quoted"), [("shop", '"shop"'), ('a"b', '"a""b"')])
def test_identifiers_are_quoted(name: str, quoted: str) -> None:
    assert identifier(name) == quoted


@pytest.mark.parametrize(("text", "quoted"), [("it's", "E'it''s'"), ("a\\b", "E'a\\\\b'")])
def test_literals_are_quoted(text: str, quoted: str) -> None:
    assert literal(text) == quoted


@pytest.fixture
async def hostile() -> AsyncIterator[tuple[ServiceSession, socket.socket]]:
    """A session whose other end is in the hands of a tenant."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    read_end, write_end = os.pipe2(os.O_NONBLOCK)
    session = ServiceSession(ours, LifeLine(read_end))
    yield session, theirs
    session.abandon()
    theirs.close()
    os.close(write_end)


def row(*values: bytes | None) -> bytes:
    parts = [struct.pack("!i", -1) if value is None else struct.pack("!i", len(value)) + value for value in values]
    return frame(b"D", struct.pack("!h", len(values)) + b"".join(parts))


READY = frame(b"Z", b"I")
ACTIVITY: tuple[bytes, ...] = (b"7", b"client backend", b"idle", b"Client", b"ClientRead", b"u", b"", b"app", b"1.5", b"SELECT 1", b"f")


@pytest.mark.parametrize(
    "endless",
    [
        frame(b"N", b"\0"), frame(b"S", b"a\0b\0"), row(b"x"), frame(b"N", b"SNOTICE\0M" + b"x" * 60_000 + b"\0\0"),
        frame(b"D", struct.pack("!h", 0)), b"D" + struct.pack("!i", 1 << 20) + b"x" * 100_000,
    ],
)  # fmt: skip
async def test_an_endless_answer_is_cut_off(hostile: tuple[ServiceSession, socket.socket], endless: bytes) -> None:
    """It costs what was asked for, in memory and in time, and no more."""
    session, theirs = hostile
    loop, sent = asyncio.get_running_loop(), 0

    async def flood() -> None:
        nonlocal sent
        block = endless * max(1, 65_536 // len(endless))
        with contextlib.suppress(OSError):
            while True:
                await loop.sock_sendall(theirs, block)
                sent += len(block)

    flooding = asyncio.create_task(flood())
    began = time.monotonic()
    with pytest.raises(ComputeLost):
        await session.activity()
    assert in_time(time.monotonic() - began, 5)
    await flooding
    assert sent < 48 << 20
    assert session.broken


@pytest.mark.parametrize("change", [{0: b"x"}, {0: b"1\n2"}, {8: b"soon"}, {0: None}, {11: b"one more"}, {0: b""}, {8: b"\xff"}])
async def test_rows_that_make_no_sense_are_told_and_not_believed(
    hostile: tuple[ServiceSession, socket.socket], change: dict[int, bytes | None]
) -> None:
    session, theirs = hostile
    values: dict[int, bytes | None] = {**dict(enumerate(ACTIVITY)), **change}
    theirs.send(row(*(values[position] for position in sorted(values))) + READY)
    with pytest.raises(ComputeLost, match="can't be"):
        await session.activity()


async def test_what_is_shown_of_a_row_is_short_and_can_be_written_anywhere(hostile: tuple[ServiceSession, socket.socket]) -> None:
    session, theirs = hostile
    theirs.send(row(*ACTIVITY[:5], b"\xff\xfe", b"", b"a" * 100_000, *ACTIVITY[8:]) + READY)
    (found,) = await session.activity()
    assert found.user == "\ufffd\ufffd"
    assert len(found.application) == 200
    theirs.send(row(*ACTIVITY[:5], b"x\x1b[2J\n\xe2\x80\xaey", *ACTIVITY[6:]) + READY)
    (found,) = await session.activity()
    assert found.user == "x [2J  y"
    theirs.send(row(b"\xff", b"x" * 10_000, b"t", None, b"t") + row(b"plain", None, b"f", b"1.0", b"f") + READY)
    roles = await session.roles()
    assert roles == [Role("\ufffd", "", True, None, rules=True), Role("plain", None, False, 1.0)]


@pytest.mark.parametrize(
    "values", [(None, None, b"t", None, b"f"), (b"a", None, b"t", b"nan", b"f"), (b"a", None, b"t", b"x", b"f"), (b"a", b"b")]
)
async def test_roles_that_make_no_sense(hostile: tuple[ServiceSession, socket.socket], values: tuple[bytes | None, ...]) -> None:
    session, theirs = hostile
    theirs.send(row(*values) + READY)
    with pytest.raises(ComputeLost):
        await session.roles()


@pytest.mark.parametrize(("count", "kept"), [(MOST_ROLES, True), (MOST_ROLES + 1, False)])
async def test_a_million_roles_are_too_many_to_keep(hostile: tuple[ServiceSession, socket.socket], count: int, kept: bool) -> None:
    session, theirs = hostile
    answer = b"".join(row(b"role%d" % number, None, b"t", None, b"f") for number in range(count)) + READY
    answering = asyncio.create_task(asyncio.get_running_loop().sock_sendall(theirs, answer))
    assert (await session.roles() is not None) is kept
    await answering


async def test_an_error_of_a_tenant_is_shown_in_part(hostile: tuple[ServiceSession, socket.socket]) -> None:
    session, theirs = hostile
    theirs.send(frame(b"E", b"SERROR\0CXX000\0M" + b"\xff" + b"y" * 50_000 + b"\0\0") + READY)
    with pytest.raises(QueryFailed) as caught:
        await session.query("SELECT 1")
    assert len(caught.value.message) < 300
    caught.value.message.encode()


async def test_a_malformed_answer_ends_the_session(hostile: tuple[ServiceSession, socket.socket]) -> None:
    session, theirs = hostile
    theirs.send(b"D\xff\xff\xff\xff")
    with pytest.raises(ComputeLost):
        await session.query("SELECT 1")
    assert session.broken


async def test_the_question_for_a_role_is_planned_once_and_asked_without_a_plan_after_a_failure(
    hostile: tuple[ServiceSession, socket.socket],
) -> None:
    session, theirs = hostile
    loop = asyncio.get_running_loop()

    async def ask(answer: bytes) -> tuple[str, Role | None]:
        asking = asyncio.create_task(session.role("o'neill"))
        asked = await loop.sock_recv(theirs, 10_000)
        await loop.sock_sendall(theirs, answer + READY)
        with contextlib.suppress(QueryFailed):
            return asked[5:-1].decode(), await asking
        return asked[5:-1].decode(), None

    found = row(b"o'neill", None, b"t", None, b"f")
    role = Role("o'neill", None, True)
    first, answer = await ask(found)
    assert answer == role
    assert first.startswith("PREPARE ")
    assert first.endswith("(E'o''neill')")
    again, answer = await ask(found)
    assert (again, answer) == (first.rpartition("; ")[2], role)
    assert again.startswith("EXECUTE ")
    assert (await ask(frame(b"E", b"SERROR\0Mno\0\0")))[1] is None
    plain, answer = await ask(found)
    assert answer == role
    assert plain.endswith("AND rolname = E'o''neill'")
    assert "PREPARE" not in plain
