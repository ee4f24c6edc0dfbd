"""Limits on a tree of processes, and how near it is to them: the same few words for cgroups v2 and v1.

`Files` says which directories hold which controller; `writes` is the pure part, tested without a kernel. A limit that the host can't
hold is left out silently here: `held` says which ones are held, for `torpor doctor` and `torpor show`.

Concurrency: short writes and reads of kernel files on the caller's thread. Lowering a memory limit can take long, as the kernel makes
room first: that one belongs in a thread.
"""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Short, so that who is held back by a ceiling of a quarter waits 15 ms for its next turn and not 75.
PERIOD_US = 20_000
_MIN_QUOTA_US = 1_000
_DEFAULT_WEIGHT = 100
_SHARES_PER_WEIGHT = 1024 / _DEFAULT_WEIGHT
_UNLIMITED_V1 = "-1"
_YIELDING_WEIGHT = 1


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tree may use. None is no limit.

    `cpu` in processors. `cpu_weight` decides who gets how much of what all want (100 is usual). `cpu_yields`: everybody who doesn't yield
    goes first, at once. `memory_bytes` is never passed, page cache included, and what is swapped out counts where the kernel can tell
    (v1; on v2 swap has the same limit of its own). Memory above `memory_soft_bytes` is taken first. `disk_yields`: its reads and writes
    come after those of everybody else, where the device has a scheduler that knows groups (BFQ).
    """

    cpu: float | None = None
    cpu_weight: int = _DEFAULT_WEIGHT
    cpu_yields: bool = False
    memory_bytes: int | None = None
    memory_soft_bytes: int | None = None
    processes: int | None = None
    disk_yields: bool = False


@dataclass(frozen=True, slots=True)
class CpuLoad:
    """Processor time since the tree was made, and of it how long it was held back by its ceiling."""

    used_ns: int
    throttled_ns: int


@dataclass(frozen=True, slots=True)
class MemoryLoad:
    """Memory now, what of it is in use again and again (all but cache that nobody has used twice), pages that had to be read again since
    they were dropped too early, and how many processes the kernel has killed for want of memory."""

    used_bytes: int
    working_set_bytes: int
    refaults: int
    killed: int


@dataclass(frozen=True, slots=True)
class Files:
    """The directories of one tree by controller; None where the host has none. `unified` gives the processor time on v2 and hybrid."""

    unified: Path | None = None
    cpu_v1: Path | None = None
    cpuacct_v1: Path | None = None
    memory_v1: Path | None = None
    pids_v1: Path | None = None
    io_v1: Path | None = None


def writes(files: Files, old: Limits | None, new: Limits) -> list[tuple[Path, str]]:
    """What to write where, in this order, to get from `old` (None: not known) to `new`. Pure."""
    result = [*_cpu_writes(files, old, new), *_memory_writes(files, old, new)]
    if old is None or old.processes != new.processes:
        pids = files.pids_v1 or files.unified
        if pids is not None:
            result.append((pids / "pids.max", "max" if new.processes is None else str(new.processes)))
    if old is None or (old.cpu_weight, old.disk_yields) != (new.cpu_weight, new.disk_yields):
        weight = 1 if new.disk_yields else min(1000, new.cpu_weight)
        if files.io_v1 is not None:
            result.append((files.io_v1 / "blkio.bfq.weight", str(weight)))
        elif files.unified is not None:
            result += [(files.unified / name, f"default {weight}") for name in ("io.bfq.weight", "io.weight")]
    return result


def _cpu_writes(files: Files, old: Limits | None, new: Limits) -> list[tuple[Path, str]]:
    result: list[tuple[Path, str]] = []
    v1, v2 = files.cpu_v1, files.unified if files.cpu_v1 is None else None
    quota = None if new.cpu is None else max(_MIN_QUOTA_US, round(new.cpu * PERIOD_US))
    if old is None or old.cpu != new.cpu:
        if v1 is not None:
            result += [(v1 / "cpu.cfs_period_us", str(PERIOD_US))] if old is None or old.cpu is None else []
            result.append((v1 / "cpu.cfs_quota_us", _UNLIMITED_V1 if quota is None else str(quota)))
        elif v2 is not None:
            result.append((v2 / "cpu.max", f"{'max' if quota is None else quota} {PERIOD_US}"))
    if old is None or (old.cpu_weight, old.cpu_yields) != (new.cpu_weight, new.cpu_yields):
        directory = v1 or v2
        if directory is not None:
            # Kernels before 5.15 have no cpu.idle; there the smallest weight has nearly the effect. It can't be set on an idle group.
            weight = _YIELDING_WEIGHT if new.cpu_yields else new.cpu_weight
            name, value = ("cpu.shares", max(2, round(weight * _SHARES_PER_WEIGHT))) if v1 else ("cpu.weight", max(1, min(10_000, weight)))
            if old is None or old.cpu_yields != new.cpu_yields:
                if not new.cpu_yields:
                    result.append((directory / "cpu.idle", "0"))
                result.append((directory / name, str(value)))
                if new.cpu_yields:
                    result.append((directory / "cpu.idle", "1"))
            elif not new.cpu_yields:
                result.append((directory / name, str(value)))
    return result


def _memory_writes(files: Files, old: Limits | None, new: Limits) -> list[tuple[Path, str]]:
    result: list[tuple[Path, str]] = []
    v1, v2 = files.memory_v1, files.unified if files.memory_v1 is None else None
    if old is None or old.memory_bytes != new.memory_bytes:
        if v1 is not None:
            value = _UNLIMITED_V1 if new.memory_bytes is None else str(new.memory_bytes)
            both = [(v1 / "memory.limit_in_bytes", value), (v1 / "memory.memsw.limit_in_bytes", value)]
            # Memory may at no moment have a higher limit than memory and swap together have.
            growing = old is not None and old.memory_bytes is not None and (new.memory_bytes is None or new.memory_bytes > old.memory_bytes)
            result += reversed(both) if growing else both
            if old is None:
                result += both[:1]  # when an earlier Torpor had set lower ones, the first write failed
        elif v2 is not None:
            value = "max" if new.memory_bytes is None else str(new.memory_bytes)
            result += [(v2 / "memory.max", value), (v2 / "memory.swap.max", value)]
    if old is None or old.memory_soft_bytes != new.memory_soft_bytes:
        if v1 is not None:
            result.append(
                (v1 / "memory.soft_limit_in_bytes", _UNLIMITED_V1 if new.memory_soft_bytes is None else str(new.memory_soft_bytes))
            )
        elif v2 is not None:
            result.append((v2 / "memory.high", "max" if new.memory_soft_bytes is None else str(new.memory_soft_bytes)))
    return result


class Limiter:
    """Sets the limits of one tree and reads its load. Remembers what it has written, so that a change costs only what changes."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._now: Limits | None = None

    def set(self, limits: Limits) -> None:
        """Hold the tree to `limits` from now on, as far as this host can. Idempotent."""
        old, self._now = self._now, limits
        for path, value in writes(self._files, old, limits):
            try:
                path.write_text(value)
            except FileNotFoundError:
                continue  # what this host doesn't have
            except OSError as error:
                if error.errno == errno.EBUSY:  # memory that could not be freed now
                    self._now = None

    def cpu_load(self) -> CpuLoad:
        """Processor time; zeros where the host can't tell. Two short reads."""
        files = self._files
        if files.unified is not None:
            stat = _figures(files.unified / "cpu.stat")
            used_ns, throttled_ns = stat.get("usage_usec", 0) * 1000, stat.get("throttled_usec", 0) * 1000
        else:
            used_ns, throttled_ns = _number(files.cpuacct_v1 / "cpuacct.usage") if files.cpuacct_v1 else 0, 0
        if files.cpu_v1 is not None:
            throttled_ns = _figures(files.cpu_v1 / "cpu.stat").get("throttled_time", 0)
        return CpuLoad(used_ns, throttled_ns)

    def written_bytes(self) -> int:
        """What was written to disks; 0 where the host can't tell."""
        if (v1 := self._files.io_v1) is not None:
            lines = _lines(v1 / "blkio.throttle.io_service_bytes")
            return sum(int(parts[2]) for line in lines if len(parts := line.split()) == 3 and parts[1] == "Write")
        words = [word for line in _lines(self._files.unified / "io.stat") for word in line.split()] if self._files.unified else []
        return sum(int(word.removeprefix("wbytes=")) for word in words if word.startswith("wbytes="))

    def memory_load(self) -> MemoryLoad:
        """Memory; zeros where the host can't tell. The kernel adds up its counters for this: about 0.1 ms."""
        if (v1 := self._files.memory_v1) is not None:
            stat, used = _figures(v1 / "memory.stat"), _number(v1 / "memory.usage_in_bytes")
            idle, killed = stat.get("total_inactive_file", 0), _figures(v1 / "memory.oom_control").get("oom_kill", 0)
            refaults = stat.get("total_workingset_refault_file", stat.get("workingset_refault_file", 0))
        elif (v2 := self._files.unified) is not None:
            stat, used = _figures(v2 / "memory.stat"), _number(v2 / "memory.current")
            idle, killed = stat.get("inactive_file", 0), _figures(v2 / "memory.events").get("oom_kill", 0)
            refaults = stat.get("workingset_refault_file", stat.get("workingset_refault", 0))
        else:
            return MemoryLoad(0, 0, 0, 0)
        return MemoryLoad(used, max(0, used - idle), refaults, killed)


class IdleMeter:
    """How many processors of the host had nothing to do since the last call. Called for one purpose only, as it remembers."""

    def __init__(self, monotonic: Callable[[], float], stat: Path = Path("/proc/stat")) -> None:
        self._monotonic = monotonic
        self._stat = stat
        self._before: tuple[float, float] | None = None

    def __call__(self) -> float:
        """Processors; 0 at the first call, and where it can't be known."""
        try:
            fields = self._stat.read_text().split("\n", 1)[0].split()
            idle_s = (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")  # waiting for a disk is idle, too
        except (OSError, IndexError, ValueError):
            return 0.0
        now, before = self._monotonic(), self._before
        self._before = now, idle_s
        return (idle_s - before[1]) / (now - before[0]) if before is not None and now > before[0] else 0.0


def held(files: Files) -> tuple[str, ...]:
    """Which limits this host holds for a tree with these directories, in words: a subset of processor, memory, processes."""
    cpu = files.cpu_v1 is not None or _has(files.unified, "cpu.max")
    memory = files.memory_v1 is not None or _has(files.unified, "memory.max")
    pids = files.pids_v1 is not None or _has(files.unified, "pids.max")
    return tuple(name for name, there in (("processor", cpu), ("memory", memory), ("processes", pids)) if there)


def _has(directory: Path | None, name: str) -> bool:
    return directory is not None and (directory / name).exists()


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _figures(path: Path) -> dict[str, int]:
    try:
        pairs = (line.split(" ") for line in path.read_text().splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
    except OSError:
        return {}
