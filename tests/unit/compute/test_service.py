"""Torpor's own session: what happens when it is dropped while somebody waits for an answer."""

import asyncio
import os
import socket

import pytest
import uvloop

from torpor.compute.handover import LifeLine
from torpor.compute.service import ServiceSession, identifier, literal
from torpor.model.errors import ComputeLost


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
