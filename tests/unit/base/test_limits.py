"""Limits as writes to the kernel's files: v2, v1 and hybrid on directories that look like the kernel's."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from torpor.base.limits import CpuLoad, Files, IdleMeter, Limiter, Limits, MemoryLoad, held, writes

V2 = Files(unified=Path("/u"))
V1 = Files(None, Path("/cpu"), Path("/cpuacct"), Path("/memory"), Path("/pids"), Path("/blkio"))
HYBRID = Files(Path("/u"), Path("/cpu"), None, Path("/memory"), Path("/pids"), Path("/blkio"))
SOME = Limits(cpu=0.5, cpu_weight=400, memory_bytes=1 << 30, memory_soft_bytes=1 << 28, processes=164)


def spelled(files: Files, old: Limits | None, new: Limits) -> list[str]:
    return [f"{path} {value}" for path, value in writes(files, old, new)]


def test_v2() -> None:
    assert spelled(V2, None, SOME) == [
        "/u/cpu.max 10000 20000",
        "/u/cpu.idle 0",
        "/u/cpu.weight 400",
        "/u/memory.max 1073741824",
        "/u/memory.swap.max 1073741824",
        "/u/memory.high 268435456",
        "/u/pids.max 164",
        "/u/io.bfq.weight default 400",
        "/u/io.weight default 400",
    ]


@pytest.mark.parametrize("files", [V1, HYBRID])
def test_v1(files: Files) -> None:
    assert spelled(files, None, SOME) == [
        "/cpu/cpu.cfs_period_us 20000",
        "/cpu/cpu.cfs_quota_us 10000",
        "/cpu/cpu.idle 0",
        "/cpu/cpu.shares 4096",
        "/memory/memory.limit_in_bytes 1073741824",
        "/memory/memory.memsw.limit_in_bytes 1073741824",
        "/memory/memory.limit_in_bytes 1073741824",
        "/memory/memory.soft_limit_in_bytes 268435456",
        "/pids/pids.max 164",
        "/blkio/blkio.bfq.weight 400",
    ]


def test_only_changes_are_written() -> None:
    assert writes(V1, SOME, SOME) == writes(V2, SOME, SOME) == []
    assert spelled(V1, SOME, replace(SOME, cpu=1)) == ["/cpu/cpu.cfs_quota_us 20000"]
    assert spelled(V1, SOME, replace(SOME, cpu=None)) == ["/cpu/cpu.cfs_quota_us -1"]
    assert spelled(V2, SOME, replace(SOME, cpu=None)) == ["/u/cpu.max max 20000"]
    assert spelled(V2, SOME, replace(SOME, processes=None)) == ["/u/pids.max max"]


def test_memory_and_swap_together_never_have_a_lower_limit_than_memory() -> None:
    more, less = replace(SOME, memory_bytes=1 << 31), replace(SOME, memory_bytes=1 << 29)
    assert spelled(V1, SOME, more) == ["/memory/memory.memsw.limit_in_bytes 2147483648", "/memory/memory.limit_in_bytes 2147483648"]
    assert spelled(V1, SOME, less) == ["/memory/memory.limit_in_bytes 536870912", "/memory/memory.memsw.limit_in_bytes 536870912"]
    assert spelled(V1, SOME, replace(SOME, memory_bytes=None))[0] == "/memory/memory.memsw.limit_in_bytes -1"


def test_yielding_is_an_idle_group_with_the_smallest_weight() -> None:
    """An idle group takes no weight: it is set before, and anew when it is idle no more."""
    yielding = replace(SOME, cpu_yields=True)
    assert spelled(V1, SOME, yielding) == ["/cpu/cpu.shares 10", "/cpu/cpu.idle 1"]
    assert spelled(V1, yielding, SOME) == ["/cpu/cpu.idle 0", "/cpu/cpu.shares 4096"]
    assert spelled(V2, SOME, yielding) == ["/u/cpu.weight 1", "/u/cpu.idle 1"]
    assert spelled(V1, yielding, replace(yielding, cpu_weight=100)) == ["/blkio/blkio.bfq.weight 100"]


def test_who_writes_much_comes_last_at_the_disk() -> None:
    assert spelled(V1, SOME, replace(SOME, disk_yields=True)) == ["/blkio/blkio.bfq.weight 1"]
    assert spelled(V2, replace(SOME, disk_yields=True), SOME) == ["/u/io.bfq.weight default 400", "/u/io.weight default 400"]


def test_a_host_that_lacks_controllers_gets_what_there_is() -> None:
    assert spelled(Files(cpu_v1=Path("/cpu")), None, SOME) == [
        "/cpu/cpu.cfs_period_us 20000",
        "/cpu/cpu.cfs_quota_us 10000",
        "/cpu/cpu.idle 0",
        "/cpu/cpu.shares 4096",
    ]
    assert writes(Files(), None, SOME) == []


def test_held(tmp_path: Path) -> None:
    assert held(V1) == held(HYBRID) == ("processor", "memory", "processes")
    assert held(Files(unified=tmp_path)) == ()
    (tmp_path / "pids.max").touch()
    assert held(Files(unified=tmp_path)) == ("processes",)
    assert held(Files()) == ()


def test_a_limiter_writes_once_and_reads_the_load_on_v1(tmp_path: Path) -> None:
    for name in ("u", "cpu", "memory", "pids"):
        (tmp_path / name).mkdir()
    limiter = Limiter(Files(tmp_path / "u", tmp_path / "cpu", None, tmp_path / "memory", tmp_path / "pids"))
    assert limiter.cpu_load() == CpuLoad(0, 0)
    limiter.set(SOME)
    assert (tmp_path / "pids/pids.max").read_text() == "164"
    (tmp_path / "pids/pids.max").write_text("by hand")
    limiter.set(SOME)
    assert (tmp_path / "pids/pids.max").read_text() == "by hand"
    (tmp_path / "u/cpu.stat").write_text("usage_usec 70\nuser_usec 50\n")
    (tmp_path / "cpu/cpu.stat").write_text("nr_periods 9\nnr_throttled 3\nthrottled_time 5000\n")
    assert limiter.cpu_load() == CpuLoad(70_000, 5000)
    (tmp_path / "memory/memory.stat").write_text("cache 3\ntotal_inactive_file 400\ntotal_workingset_refault_file 7\nodd line here\n")
    (tmp_path / "memory/memory.usage_in_bytes").write_text("1000\n")
    (tmp_path / "memory/memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    assert limiter.memory_load() == MemoryLoad(1000, 600, 7, 2)


def test_the_load_on_v2(tmp_path: Path) -> None:
    limiter = Limiter(Files(unified=tmp_path))
    assert limiter.memory_load() == MemoryLoad(0, 0, 0, 0)
    (tmp_path / "cpu.stat").write_text("usage_usec 70\nthrottled_usec 4\n")
    (tmp_path / "memory.stat").write_text("inactive_file 100\nworkingset_refault_file 3\n")
    (tmp_path / "memory.current").write_text("500\n")
    (tmp_path / "memory.events").write_text("low 0\nhigh 8\noom 1\noom_kill 1\n")
    assert limiter.cpu_load() == CpuLoad(70_000, 4000)
    assert limiter.memory_load() == MemoryLoad(500, 400, 3, 1)


def test_idle_processors(tmp_path: Path) -> None:
    stat, times = tmp_path / "stat", iter((0.0, 2.0, 4.0))
    meter = IdleMeter(lambda: next(times), stat)
    assert meter() == 0
    stat.write_text("cpu  10 0 10 1000 50 0 0 0 0 0\ncpu0 1 2 3\n")
    assert meter() == 0
    stat.write_text("cpu  10 0 10 1200 150 0 0 0 0 0\ncpu0 1 2 3\n")
    assert meter() == pytest.approx(300 / os.sysconf("SC_CLK_TCK") / 2)


def test_what_was_written_to_disks(tmp_path: Path) -> None:
    (tmp_path / "blkio.throttle.io_service_bytes").write_text("7:0 Read 5\n7:0 Write 100\n8:0 Write 20\n7:0 Total 105\nTotal 125\n")
    assert Limiter(Files(io_v1=tmp_path)).written_bytes() == 120
    (tmp_path / "io.stat").write_text("7:0 rbytes=5 wbytes=100 rios=1\n8:0 rbytes=0 wbytes=30\n")
    assert Limiter(Files(unified=tmp_path)).written_bytes() == 130
    assert Limiter(Files()).written_bytes() == 0
