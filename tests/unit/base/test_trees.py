"""What every kind of tree promises, on real processes: a shell, its child, and a grandchild that burns processor time."""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from torpor.base.cgroups import CgroupTrees, SignalTrees, Tree, Trees, detect
from torpor.base.processes import start_ticks

ENTER = 'for entrance in "$@"; do echo 0 > "$entrance"; done; '
BURN = "( (echo go; while :; do :; done) & wait) & wait"
PATIENCE_S = 30.0


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def start(tree: Tree, script: str) -> "subprocess.Popen[bytes]":
    """A shell that enters the tree as a compute does, until it says that it goes."""
    process = subprocess.Popen(["sh", "-c", ENTER + script, "sh", *map(str, tree.entrances())], stdout=subprocess.PIPE)
    tree.adopt(process.pid)
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.fixture(params=["signals", pytest.param("cgroups", marks=pytest.mark.root)])
async def trees(request: pytest.FixtureRequest) -> Trees:
    if request.param == "signals":
        return SignalTrees()
    found = detect(f"torpor-test-{os.getpid()}")
    assert isinstance(found, CgroupTrees)
    return found


@pytest.fixture
def tree(trees: Trees) -> Tree:
    return trees.open("daaaaaaaaaaaa")


@pytest.fixture
def burner(trees: Trees, tree: Tree) -> Iterator["subprocess.Popen[bytes]"]:
    process = start(tree, BURN)
    pids = tree.pids()
    try:
        yield process
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        tree.thaw()
        process.communicate()


@pytest.fixture(autouse=True)
async def _leave_nothing(trees: Trees, tree: Tree) -> AsyncIterator[None]:
    yield
    await tree.remove()
    assert trees.names() == []


async def test_a_frozen_tree_uses_no_processor_time(tree: Tree, burner: "subprocess.Popen[bytes]") -> None:
    pids = tree.pids()
    assert burner.pid in pids
    assert len(pids) == 3
    eventually(lambda: sum(map(ticks, pids)) > 0)
    assert not tree.is_frozen()
    await tree.freeze()
    assert tree.is_frozen()
    before = [ticks(pid) for pid in pids]
    await asyncio.sleep(0.05)  # five ticks
    assert [ticks(pid) for pid in pids] == before
    tree.thaw()
    tree.thaw()
    assert not tree.is_frozen()
    eventually(lambda: sum(map(ticks, pids)) > sum(before))


async def test_usage_grows_with_use(tree: Tree, burner: "subprocess.Popen[bytes]") -> None:
    eventually(lambda: tree.usage().cpu_ns >= 20_000_000)
    assert tree.usage().memory_bytes > 0
    assert tree.usage().swap_bytes >= 0


async def test_a_frozen_tree_can_be_killed(tree: Tree, burner: "subprocess.Popen[bytes]") -> None:
    pids = tree.pids()
    await tree.freeze()
    tree.kill()
    assert burner.wait(PATIENCE_S) == -signal.SIGKILL
    eventually(lambda: all(start_ticks(pid) is None for pid in pids))
    eventually(lambda: tree.pids() == [])


async def test_reclaim_does_no_harm(tree: Tree, burner: "subprocess.Popen[bytes]") -> None:
    await tree.freeze()
    tree.reclaim()
    assert tree.is_frozen()
    tree.thaw()
    before = sum(map(ticks, tree.pids()))
    eventually(lambda: sum(map(ticks, tree.pids())) > before)


async def test_an_empty_tree(trees: Trees, tree: Tree) -> None:
    assert tree.pids() == []
    tree.kill()
    tree.thaw()
    assert tree.usage().swap_bytes == 0
    await tree.remove()
    await tree.remove()
    assert trees.open("daaaaaaaaaaaa").pids() == []


async def test_a_tree_that_was_frozen_by_an_earlier_torpor(trees: Trees, tree: Tree, burner: "subprocess.Popen[bytes]") -> None:
    await tree.freeze()
    again = trees.open("daaaaaaaaaaaa")
    again.adopt(burner.pid)
    assert again.is_frozen()
    assert set(again.pids()) == set(tree.pids())
    again.thaw()
    assert not again.is_frozen()


async def test_a_tree_that_forks_all_the_time_comes_to_rest(tree: Tree) -> None:
    process = start(tree, "echo go; while :; do (:); done")
    try:
        for _ in range(20):
            await tree.freeze()
            pids = tree.pids()
            await asyncio.sleep(0.002)
            assert tree.pids() == pids
            tree.thaw()
    finally:
        tree.kill()
        process.communicate()


async def test_what_outlives_a_killed_root_while_frozen_is_found_and_killed(tree: Tree, burner: "subprocess.Popen[bytes]") -> None:
    rest = [pid for pid in tree.pids() if pid != burner.pid]
    assert rest
    await tree.freeze()
    burner.kill()
    burner.wait()
    assert sorted(tree.pids()) == sorted(rest)
    tree.kill()
    eventually(lambda: all(start_ticks(pid) is None for pid in rest))
