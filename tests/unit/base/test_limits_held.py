"""Limits that the kernel itself holds, on whatever cgroups this host has."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from torpor.base.cgroups import CgroupTree, CgroupTrees, detect
from torpor.base.limits import Limits

pytestmark = pytest.mark.root
MIB = 1 << 20
_BOMB = "import os\nfor _ in range(50):\n    if os.fork() == 0:\n        import time; time.sleep(60)\n"
_MEMORY = "x = bytearray(300 << 20)\n"
_CACHE = "import sys\nwith open(sys.argv[1], 'wb') as f:\n    for _ in range(100): f.write(bytes(1 << 20))\n"
_BUSY = "while True: pass\n"


@pytest.fixture
def tree() -> Iterator[CgroupTree]:
    trees = detect(f"torpor-test-limits-{os.getpid()}")
    if not isinstance(trees, CgroupTrees) or len(trees.held) < 3:
        pytest.skip("this host has no cgroups for all limits")
    made = trees.open("d1")
    try:
        yield made
    finally:
        made.thaw()
        made.kill()
        asyncio.run(made.remove())


def start(tree: CgroupTree, program: str, *arguments: str) -> "subprocess.Popen[bytes]":
    """A Python in the tree before it begins."""
    process = subprocess.Popen(
        ["/bin/sh", "-c", 'read go; exec "$@"', "sh", sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    for entrance in tree.entrances():
        entrance.write_text(str(process.pid))
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.close()
    return process


def end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    assert process.stderr is not None
    process.stderr.close()


def test_a_fork_bomb_ends_at_the_limit(tree: CgroupTree) -> None:
    tree.limit(Limits(processes=10))
    process = start(tree, _BOMB)
    assert process.wait(60) == 1
    assert 5 < len(tree.pids()) <= 10
    tree.kill()
    assert process.stderr is not None
    assert b"BlockingIOError" in process.stderr.read()  # fork: resource temporarily unavailable
    end(process)


def test_memory_ends_at_the_limit_and_is_told(tree: CgroupTree) -> None:
    tree.limit(Limits(memory_bytes=64 * MIB))
    process = start(tree, _MEMORY)
    assert process.wait(60) == -9
    assert tree.memory_load().killed == 1
    end(process)


def test_the_page_cache_counts_and_gives_way(tree: CgroupTree, tmp_path: Path) -> None:
    tree.limit(Limits(memory_bytes=48 * MIB))
    process = start(tree, _CACHE, str(tmp_path / "file"))
    assert process.wait(60) == 0
    load = tree.memory_load()
    assert 8 * MIB < load.used_bytes <= 48 * MIB
    assert load.killed == 0
    end(process)


def test_a_ceiling_holds_back_and_says_so(tree: CgroupTree) -> None:
    tree.limit(Limits(cpu=0.2))
    process = start(tree, _BUSY)
    time.sleep(0.3)
    before, began = tree.cpu_load(), time.monotonic()
    time.sleep(1)
    while tree.cpu_load().throttled_ns == before.throttled_ns:  # others may leave it less than its ceiling, but not for ever
        assert time.monotonic() - began < 60
        time.sleep(0.1)
    after, elapsed_ns = tree.cpu_load(), (time.monotonic() - began) * 1e9
    assert (after.used_ns - before.used_ns) / elapsed_ns < 0.3
    tree.limit(Limits(cpu=None, cpu_yields=True))
    tree.limit(Limits(cpu=None))
    end(process)


def test_lower_memory_is_freed_at_once_and_more_can_be_given_back(tree: CgroupTree, tmp_path: Path) -> None:
    tree.limit(Limits(memory_bytes=200 * MIB))
    process = start(tree, _CACHE, str(tmp_path / "file"))
    assert process.wait(60) == 0
    tree.limit(Limits(memory_bytes=32 * MIB))
    assert tree.memory_load().used_bytes <= 32 * MIB
    tree.limit(Limits(memory_bytes=200 * MIB))
    tree.limit(Limits())
    end(process)
