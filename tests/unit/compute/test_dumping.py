"""Whose connection is taken for pg_dump's, and what becomes of a program that ends, without a PostgreSQL."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from torpor.compute.dumping import Dump
from torpor.compute.programs import accept_from
from torpor.model.errors import DumpFailed

_CONNECT = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); sys.stdout.write('it is'); s.recv(1)"


def spawn(*line: str) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        os.set_blocking(stream.fileno(), False)
    return process


async def test_only_pg_dump_itself_gets_the_session(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as stranger:
        listener.bind(path)
        listener.listen(5)
        listener.setblocking(False)
        stranger.connect(path)  # before pg_dump does
        stranger.setblocking(False)
        dump = Dump(spawn(sys.executable, "-c", _CONNECT, path), contextlib.ExitStack())
        try:
            async with asyncio.timeout(60):
                taken = await accept_from(listener, dump._process.pid)
                assert await asyncio.get_running_loop().sock_recv(stranger, 1) == b""
                taken.close()
                assert b"".join([part async for part in dump.parts()]) == b"it is"
        finally:
            dump.close()


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo 'pg_dump: warning: x' >&2; echo 'pg_dump: error: no \x1b[2J luck' >&2; exit 1", "could not be dumped: no  [2J luck"),
        ("head -c 3000000 /dev/zero >&2; echo >&2; echo 'pg_dump: error: late' >&2; exit 1", "could not be dumped: late"),
        ("exit 3", "it ended without a word"),
        ("kill -9 $$", "it ended without a word"),
    ],
)
async def test_a_failure_is_told_in_the_programs_words(script: str, says: str) -> None:
    dump = Dump(spawn("sh", "-c", f"printf begun; {script}"), contextlib.ExitStack())
    got = []
    with pytest.raises(DumpFailed) as failed:
        async for part in dump.parts():
            got.append(part)
    dump.close()
    dump.close()
    assert b"".join(got) == b"begun" and says in failed.value.message and len(failed.value.message) < 500


async def test_closing_ends_it_at_once() -> None:
    ended: list[bool] = []
    place = contextlib.ExitStack()
    place.callback(ended.append, True)
    process = spawn("yes")
    dump = Dump(process, place)
    async with contextlib.aclosing(dump.parts()) as parts:
        assert await anext(parts)
    dump.close()
    assert process.returncode == -9 and ended == [True]
