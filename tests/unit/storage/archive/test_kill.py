"""kill -9, at any moment, of somebody who makes and expires a history in a directory."""

import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.archiving import ID, MASTER, archive, log_at
from tests.support.faults import eventually
from torpor.storage.archive.retention import Retention

pytestmark = pytest.mark.fault
KILLS = 5


def live_and_die(directory: Path, wrapped: bytes) -> list[str]:
    """What it had said when it was killed, in the midst of its second turn or later."""
    said = directory / "said"
    with said.open("w") as output:
        command = [sys.executable, "-m", "tests.support.archiving", str(directory), wrapped.hex()]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output) as process:
            eventually(lambda: said.read_text().count("base") or process.poll() is not None, 60)
            assert process.poll() is None
            time.sleep(random.uniform(0, 0.3))
            process.kill()
    return said.read_text().splitlines()


async def look(directory: Path, wrapped: bytes, said: list[str]) -> None:
    """All that was surely stored is there, and whole."""
    with ThreadPoolExecutor(4) as executor:
        repository = archive(directory, executor).repository(ID, wrapped)
        bases = await repository.bases()
        numbers = [int(line.split()[1]) for line in said if line.startswith("base ")]
        assert bases[-1].number in (numbers[-1], numbers[-1] + 1)
        logged = max(int(line.split()[1]) for line in said if line.startswith("log "))
        for base in bases:
            await repository.verify(base.number)
            reached = base.facts.start_lsn
            async for at, data in repository.wal(1, base.facts.start_lsn):
                assert data == log_at(at, len(data))
                reached = at + len(data)
            assert reached >= logged
        await repository.expire(Retention(0.0, 1), 1.0)
        (last,) = await repository.bases()
        # One manifest, an index, the large file and at most 13 packs of small ones: no orphan, however often somebody was killed.
        assert (await repository.stored()).objects - len(await repository.wal_pieces()) <= 16
        await repository.verify(last.number)


async def test_a_history_survives(tmp_path: Path) -> None:
    wrapped = MASTER.new_data_key(ID)
    for _ in range(KILLS):
        await look(tmp_path, wrapped, live_and_die(tmp_path, wrapped))
