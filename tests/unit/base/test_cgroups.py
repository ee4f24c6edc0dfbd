"""Cgroups on directories that look like the kernel's, and on the real ones as root."""

import asyncio
import os
import signal
import subprocess
from pathlib import Path

import pytest

from torpor.base import cgroups
from torpor.base.cgroups import CgroupTree, CgroupTrees, Layout, SignalTrees, Usage, detect, layout_from_mounts

PURE_V2 = """\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 22 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate
"""
PURE_V1 = """\
30 22 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/systemd rw,nosuid - cgroup cgroup rw,xattr,name=systemd
32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 / /sys/fs/cgroup/memory rw,nosuid shared:9 master:3 - cgroup cgroup rw,memory
34 30 0:30 / /sys/fs/cgroup/freezer rw,nosuid - cgroup cgroup rw,freezer
"""
HYBRID = PURE_V1 + "35 30 0:31 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
SYS = Path("/sys/fs/cgroup")


@pytest.mark.parametrize(
    ("text", "layout", "roots"),
    [
        pytest.param(PURE_V2, Layout(SYS, None, None, None), [SYS], id="v2"),
        pytest.param(
            PURE_V1,
            Layout(None, SYS / "memory", SYS / "freezer", SYS / "cpu,cpuacct", SYS / "cpu,cpuacct"),
            [SYS / "memory", SYS / "freezer", SYS / "cpu,cpuacct"],
            id="v1",
        ),
        pytest.param(
            HYBRID,
            Layout(SYS / "unified", SYS / "memory", None, None, SYS / "cpu,cpuacct"),
            [SYS / "unified", SYS / "memory", SYS / "cpu,cpuacct"],
            id="hybrid",
        ),
        pytest.param(
            PURE_V2 + "40 22 0:40 / /mnt/second rw - cgroup2 cgroup2 rw\n",
            Layout(SYS, None, None, None),
            [SYS],
            id="the first mount of a hierarchy counts",
        ),
        pytest.param("22 1 8:1 / / rw - ext4 /dev/sda1 rw\ngarbage\n\n", Layout(None, None, None, None), [], id="none"),
    ],
)
def test_layout_from_mounts(text: str, layout: Layout, roots: list[Path]) -> None:
    assert layout_from_mounts(text) == layout
    assert layout.roots == roots


# -- detection


def mounts(tmp_path: Path, *hierarchies: tuple[str, str, str]) -> Path:
    """A mountinfo with `(type, options, path)` each."""
    file = tmp_path / "mountinfo"
    file.write_text("".join(f"30 22 0:26 / {path} rw,nosuid - {kind} {kind} rw,{options}\n" for kind, options, path in hierarchies))
    return file


def own(tmp_path: Path, path: str) -> Path:
    file = tmp_path / "own"
    file.write_text(f"3:memory:/elsewhere\n0::{path}\n")
    return file


def test_a_user_gets_the_nearest_cgroup_that_was_delegated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    root = tmp_path / "cg"
    (root / "user.slice/user-1000.slice").mkdir(parents=True)
    trees = detect(
        "torpor-1", mounts(tmp_path, ("cgroup2", "nsdelegate", str(root))), own(tmp_path, "/user.slice/user-1000.slice/gone/app")
    )
    assert isinstance(trees, CgroupTrees)
    trees.open("d1")
    assert os.listdir(root) == ["user.slice"]
    assert "torpor-1.d1" in os.listdir(root / "user.slice/user-1000.slice")
    assert not any("probe" in name for name in os.listdir(root / "user.slice/user-1000.slice"))
    assert trees.description == "cgroups v2"


def test_a_user_without_delegation_gets_signals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    unwritable = mounts(tmp_path, ("cgroup2", "nsdelegate", str(tmp_path / "missing")))
    assert isinstance(detect("t", unwritable, own(tmp_path, "/user.slice")), SignalTrees)


def test_a_user_on_a_mixed_host_gets_signals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for name in ("unified", "memory"):
        (tmp_path / name).mkdir()
    hybrid = mounts(tmp_path, ("cgroup2", "nsdelegate", str(tmp_path / "unified")), ("cgroup", "memory", str(tmp_path / "memory")))
    assert isinstance(detect("t", hybrid, own(tmp_path, "/")), SignalTrees)
    assert os.listdir(tmp_path / "unified") == []


def test_root_gets_the_whole_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for name in ("unified", "memory"):
        (tmp_path / name).mkdir()
    hybrid = mounts(tmp_path, ("cgroup2", "nsdelegate", str(tmp_path / "unified")), ("cgroup", "memory", str(tmp_path / "memory")))
    trees = detect("t", hybrid, own(tmp_path, "/"))
    assert trees.description == "cgroups hybrid"
    assert trees.can_reclaim


def test_no_cgroups_at_all(tmp_path: Path) -> None:
    trees = detect("t", mounts(tmp_path), own(tmp_path, "/"))
    assert isinstance(trees, SignalTrees)
    assert not trees.can_reclaim


@pytest.mark.parametrize(("enabled", "can_reclaim"), [("cpu io memory pids", True), ("cpu pids", False), ("", False)])
def test_reclaim_needs_the_memory_controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enabled: str, can_reclaim: bool) -> None:
    def as_the_kernel(directory: Path) -> None:
        (directory / "cgroup.subtree_control").write_text(enabled)

    monkeypatch.setattr(cgroups, "_enable_controllers", as_the_kernel)
    assert CgroupTrees(Layout(tmp_path, None, None, None), "t").can_reclaim is can_reclaim


# -- trees


@pytest.fixture
def v2(tmp_path: Path) -> tuple[CgroupTree, Path]:
    trees = CgroupTrees(Layout(tmp_path, None, None, None), "t")
    return trees.open("d1"), tmp_path / "t.d1"


@pytest.fixture
def v1(tmp_path: Path) -> tuple[CgroupTree, Path]:
    """With all three hierarchies in directories of `tmp_path`."""
    for name in ("memory", "freezer", "cpu"):
        (tmp_path / name).mkdir()
    trees = CgroupTrees(Layout(None, tmp_path / "memory", tmp_path / "freezer", tmp_path / "cpu"), "t")
    return trees.open("d1"), tmp_path


def test_trees_are_directories_in_every_hierarchy(v1: tuple[CgroupTree, Path]) -> None:
    tree, root = v1
    assert tree.entrances() == [root / name / "t.d1/cgroup.procs" for name in ("memory", "freezer", "cpu")]
    assert all(entrance.parent.is_dir() for entrance in tree.entrances())
    assert "t.d1" in repr(tree)


async def test_trees_are_found_again_beside_those_of_others(tmp_path: Path) -> None:
    for name in ("memory", "freezer"):
        (tmp_path / name).mkdir()
    trees = CgroupTrees(Layout(None, tmp_path / "memory", tmp_path / "freezer", None), "t")
    assert trees.description == "cgroups v1"
    assert trees.names() == []
    tree = trees.open("d2")
    trees.open("d1")
    (tmp_path / "freezer/t.d3").mkdir()  # left in one hierarchy only
    (tmp_path / "memory/t2.d4").mkdir()
    (tmp_path / "memory/tasks").touch()
    assert trees.names() == ["d1", "d2", "d3"]
    assert trees.open("d2").entrances() == tree.entrances()
    for name in ("d1", "d2", "d3"):
        await trees.open(name).remove()
    assert sorted(os.listdir(tmp_path / "memory")) == ["t2.d4", "tasks"]
    assert os.listdir(tmp_path / "freezer") == []


async def test_v2_freeze_waits_for_the_kernel(v2: tuple[CgroupTree, Path]) -> None:
    tree, directory = v2
    (directory / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    freezing = asyncio.create_task(tree.freeze())
    await asyncio.sleep(0.005)
    assert (directory / "cgroup.freeze").read_text() == "1"
    assert not freezing.done()
    assert not tree.is_frozen()
    (directory / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    await freezing
    assert tree.is_frozen()
    tree.thaw()
    assert (directory / "cgroup.freeze").read_text() == "0"


async def test_v1_freeze_waits_for_the_kernel(v1: tuple[CgroupTree, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    tree, root = v1
    answers = ["THAWED\n", "FREEZING\n", "FREEZING\n", "FROZEN\n"]
    monkeypatch.setattr(cgroups, "_read", lambda path: answers.pop(0))  # a file can't answer with something else than was written
    await tree.freeze()
    assert answers == []
    assert (root / "freezer/t.d1/freezer.state").read_text() == "FROZEN"
    monkeypatch.undo()
    assert tree.is_frozen()
    tree.thaw()
    assert not tree.is_frozen()
    assert (root / "freezer/t.d1/freezer.state").read_text() == "THAWED"


async def test_a_process_that_does_not_freeze_is_let_go(v2: tuple[CgroupTree, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "_FREEZE_PATIENCE_S", 0.01)
    tree, directory = v2
    (directory / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    with pytest.raises(TimeoutError, match="did not freeze"):
        await tree.freeze()
    assert (directory / "cgroup.freeze").read_text() == "0"


async def test_a_v1_process_that_does_not_freeze_is_let_go(v1: tuple[CgroupTree, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "_FREEZE_PATIENCE_S", 0.01)
    monkeypatch.setattr(cgroups, "_read", lambda path: "FREEZING\n")
    tree, root = v1
    with pytest.raises(TimeoutError):
        await tree.freeze()
    assert (root / "freezer/t.d1/freezer.state").read_text() == "THAWED"


def test_v2_usage(v2: tuple[CgroupTree, Path]) -> None:
    tree, directory = v2
    assert tree.usage() == Usage(0, 0, 0)  # controllers may be missing
    (directory / "cpu.stat").write_text("usage_usec 1234\nuser_usec 1000\nsystem_usec 234\n")
    (directory / "memory.current").write_text("4096\n")
    (directory / "memory.swap.current").write_text("8192\n")
    assert tree.usage() == Usage(1_234_000, 4096, 8192)


def test_v1_usage(v1: tuple[CgroupTree, Path]) -> None:
    tree, root = v1
    assert tree.usage() == Usage(0, 0, 0)
    (root / "cpu/t.d1/cpuacct.usage").write_text("5678\n")
    (root / "memory/t.d1/memory.usage_in_bytes").write_text("4096\n")
    (root / "memory/t.d1/memory.stat").write_text("cache 1\nswap 8192\ntotal_swap 9999\n")
    assert tree.usage() == Usage(5678, 4096, 8192)


def test_reclaim_asks_for_all_there_is(v2: tuple[CgroupTree, Path], v1: tuple[CgroupTree, Path]) -> None:
    tree, directory = v2
    (directory / "memory.current").write_text("123456\n")
    tree.reclaim()
    assert (directory / "memory.reclaim").read_text().strip() == "123456"
    tree, root = v1
    tree.reclaim()
    assert (root / "memory/t.d1/memory.force_empty").read_text() == "0"


def test_reclaim_that_fails_is_no_failure(v2: tuple[CgroupTree, Path]) -> None:
    tree, directory = v2
    (directory / "memory.reclaim").mkdir()  # can't be written
    tree.reclaim()


def test_v2_kill_is_one_write(v2: tuple[CgroupTree, Path]) -> None:
    tree, directory = v2
    with subprocess.Popen(["sleep", "60"]) as process:
        (directory / "cgroup.procs").write_text(f"{process.pid}\n")
        tree.kill()
        assert (directory / "cgroup.kill").read_text() == "1"
        assert process.poll() is None  # the kernel would have done it
        process.kill()


def test_a_kernel_without_cgroup_kill(v2: tuple[CgroupTree, Path]) -> None:
    tree, directory = v2
    (directory / "cgroup.kill").mkdir()  # can't be written
    with subprocess.Popen(["sleep", "60"]) as process, subprocess.Popen(["true"]) as gone:
        gone.wait()
        (directory / "cgroup.procs").write_text(f"{gone.pid}\n{process.pid}\n")
        tree.kill()
        assert process.wait(60) == -signal.SIGKILL
    assert (directory / "cgroup.freeze").read_text() == "0"


def test_v1_kill_thaws_so_that_the_signal_arrives(v1: tuple[CgroupTree, Path]) -> None:
    tree, root = v1
    with subprocess.Popen(["sleep", "60"]) as process:
        (root / "memory/t.d1/cgroup.procs").write_text(f"{process.pid}\n")
        assert tree.pids() == [process.pid]
        tree.kill()
        assert process.wait(60) == -signal.SIGKILL
    assert (root / "freezer/t.d1/freezer.state").read_text() == "THAWED"


async def test_remove_waits_until_the_kernel_lets_go(v1: tuple[CgroupTree, Path]) -> None:
    tree, root = v1
    busy = root / "freezer/t.d1/busy"
    busy.touch()
    asyncio.get_running_loop().call_later(0.01, busy.unlink)
    await tree.remove()
    assert not any((root / name / "t.d1").exists() for name in ("memory", "freezer", "cpu"))
    await tree.remove()


async def test_what_is_gone_has_no_processes(v2: tuple[CgroupTree, Path]) -> None:
    tree, _ = v2
    await tree.remove()
    assert tree.pids() == []
    assert not tree.is_frozen()
    assert tree.usage() == Usage(0, 0, 0)
