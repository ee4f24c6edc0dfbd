"""Probing: on a fake tree of files for hosts of every kind, and once on this host."""

import os
from pathlib import Path

import pytest

from torpor.base.host import facts
from torpor.base.host.cgroup_facts import CgroupFacts, CgroupMode, probe_cgroups
from torpor.base.host.machine import Machine

V1 = """\
30 20 0:20 / /sys/fs/cgroup ro - tmpfs tmpfs ro
31 30 0:21 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
32 30 0:22 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
33 30 0:23 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
34 30 0:24 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
"""
UNIFIED = "35 30 0:25 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
V2 = "30 20 0:20 {root} /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def tree(root: Path, files: dict[str, str]) -> Machine:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Machine(root)


def test_no_cgroups(tmp_path: Path) -> None:
    assert probe_cgroups(tree(tmp_path, {"proc/self/mountinfo": "garbage\n\n1 2 - x\n"}), (6, 1)) == CgroupFacts()


def test_v1(tmp_path: Path) -> None:
    machine = tree(
        tmp_path,
        {
            "proc/self/mountinfo": V1,
            "proc/self/cgroup": "3:freezer:/me\n2:memory:/other\n1:name=systemd:/\n",
            "sys/fs/cgroup/freezer/me/cgroup.procs": "",
        },
    )
    assert probe_cgroups(machine, (4, 19)) == CgroupFacts(CgroupMode.V1, True, True, True, True, "/me", ("processor", "memory"))


def test_hybrid_freezes_through_v2_when_v1_has_no_freezer(tmp_path: Path) -> None:
    mounts = "".join(line + "\n" for line in (V1 + UNIFIED).splitlines() if "freezer" not in line)
    machine = tree(tmp_path, {"proc/self/mountinfo": mounts, "proc/self/cgroup": "2:memory:/m\n0::/\n"})
    seen = probe_cgroups(machine, (5, 10))
    assert (seen.mode, seen.freezer, seen.writable, seen.own_group) == (CgroupMode.HYBRID, True, False, "/m")
    assert not probe_cgroups(machine, (4, 19)).freezer


@pytest.mark.parametrize(
    ("controllers", "reclaim", "cpu", "limits"),
    [("cpu memory pids", True, True, ("processor", "memory", "processes")), ("pids", False, False, ("processes",))],
)
def test_v2_delegated(tmp_path: Path, controllers: str, reclaim: bool, cpu: bool, limits: tuple[str, ...]) -> None:
    own = "sys/fs/cgroup/user.slice/run.scope"
    machine = tree(
        tmp_path,
        {
            "proc/self/mountinfo": V2.format(root="/"),
            "proc/self/cgroup": "0::/user.slice/run.scope\n",
            f"{own}/cgroup.procs": "",
            f"{own}/cgroup.freeze": "0",
            f"{own}/cgroup.controllers": controllers,
        },
    )
    assert probe_cgroups(machine, (6, 1)) == CgroupFacts(CgroupMode.V2, True, reclaim, cpu, True, "/user.slice/run.scope", limits)
    assert not probe_cgroups(machine, (5, 10)).reclaim


def test_v2_in_a_container_that_shows_a_part_of_the_tree(tmp_path: Path) -> None:
    machine = tree(
        tmp_path,
        {
            "proc/self/mountinfo": V2.format(root="/docker/1"),
            "proc/self/cgroup": "0::/docker/1/inner\n",
            "sys/fs/cgroup/inner/cgroup.procs": "",
        },
    )
    assert probe_cgroups(machine, (6, 1)).writable


def test_swaps_and_zram(tmp_path: Path) -> None:
    machine = tree(
        tmp_path,
        {
            "proc/swaps": "Filename Type Size Used Priority\n/dev/zram1 partition 1024 12 100\n/my\\040swap file 2048 0 -2\nshort\n",
            "sys/block/zram0/disksize": "0\n",
            "sys/block/zram1/disksize": "1048576\n",
            "sys/class/zram-control/hot_add": "",
        },
    )
    swaps = facts.probe_swaps(machine)
    assert [(s.device, s.size_bytes, s.used_bytes, s.priority, s.is_zram) for s in swaps] == [
        ("/dev/zram1", 1 << 20, 12288, 100, True),
        ("/my swap", 2 << 20, 0, -2, False),
    ]
    assert facts.probe_zram(machine) == facts.ZramFacts(True, "/dev/zram0", True)
    assert facts.probe_zram(Machine(tmp_path / "nothing")) == facts.ZramFacts()


@pytest.mark.parametrize(("text", "release"), [("6.18.44-fc", (6, 18)), ("5.10.0-28-amd64", (5, 10)), ("odd", (0, 0))])
def test_kernel_release(text: str, release: tuple[int, int]) -> None:
    assert facts.kernel_release(text) == release


def test_a_directory_that_is_yet_to_be_made_is_seen_through_its_parent(tmp_path: Path) -> None:
    seen = facts.probe_directory(tmp_path / "a" / "b")
    assert not seen.exists
    assert seen.empty
    assert seen.writable
    assert seen.free_bytes > 0
    assert seen.filesystem
    assert seen.reflinks is not None
    assert os.listdir(tmp_path) == []


def test_lost_and_found_counts_as_empty(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    assert facts.probe_directory(tmp_path).empty
    (tmp_path / "x").touch()
    assert not facts.probe_directory(tmp_path).empty


def test_reflinks_are_unknown_where_nothing_can_be_tried(tmp_path: Path) -> None:
    assert facts.can_reflink(tmp_path / "absent") is None


def test_this_host_can_be_probed(tmp_path: Path) -> None:
    seen = facts.probe(tmp_path)
    assert seen.memory_bytes > 0
    assert seen.max_files > 0
    assert seen.kernel
    assert not seen.pool_image_exists
    assert os.listdir(tmp_path) == []


def test_an_empty_tree_can_be_probed(tmp_path: Path) -> None:
    seen = facts.probe(tmp_path / "data", Machine(tmp_path))
    assert (seen.distribution, seen.memory_bytes, seen.kvm, seen.swaps) == ("unknown", 0, False, ())


def test_commands_that_are_missing_fail_or_hang_are_told_apart() -> None:
    machine = Machine()
    assert machine.run(["no-such-program-here"]).code == 127
    assert machine.run(["sh", "-c", "echo first; echo last >&2; exit 3"]).complaint == "last"
    assert machine.run(["sleep", "5"], timeout_s=0.05).code == 124
