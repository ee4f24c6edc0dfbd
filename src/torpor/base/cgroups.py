"""Process trees that can be frozen, measured, reclaimed and killed as one: cgroups v2, v1 and both mixed (hybrid).

`detect` finds what the host offers and what we may write; `SignalTrees` does what is possible without cgroups (stop signals; no
reclaim). Both give a `Tree` per compute.

Concurrency: calls are short writes and reads of kernel files, made on the event loop; `reclaim` alone can take seconds and belongs
in a thread. One tree is used by one task at a time.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torpor.base.limits import CpuLoad, Files, Limiter, Limits, MemoryLoad, held
from torpor.base.processes import descendants, start_ticks

_FREEZE_PATIENCE_S = 1.0
_CONTROLLERS = ("cpu", "io", "memory", "pids")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tree has used: processor time since it was made, memory now, of that swapped out."""

    cpu_ns: int
    memory_bytes: int
    swap_bytes: int


class Tree(Protocol):
    """The processes of one compute."""

    def entrances(self) -> list[Path]:
        """Files into which a process's pid is written to put it into the tree, before it starts children."""
        ...

    def adopt(self, pid: int) -> None:
        """Say which process is the root of the tree (needed where the kernel doesn't keep the tree for us)."""
        ...

    def pids(self) -> list[int]:
        """All processes of the tree."""
        ...

    async def freeze(self) -> None:
        """Stop all processes; returns when none runs any more. Raises TimeoutError (and thaws) after 1 s. Safe to cancel: thaw after."""
        ...

    def thaw(self) -> None:
        """Let all run again. Idempotent, immediate."""
        ...

    def is_frozen(self) -> bool:
        """Whether the kernel holds the tree frozen."""
        ...

    def reclaim(self) -> int:
        """Push memory of the tree out to swap and drop its cache; the bytes that are left. Blocking, up to seconds; best effort.

        One pass leaves what was used lately (measured: 5 of 20 MB), and moves it to where the next pass takes from.
        """
        ...

    def usage(self) -> Usage:
        """Figures now; zeros where the host can't tell."""
        ...

    def limit(self, limits: Limits) -> None:
        """Hold it to `limits` from now on, as far as this host can. Idempotent; writes only what changes."""
        ...

    def cpu_load(self) -> CpuLoad:
        """Processor time used and withheld."""
        ...

    def memory_load(self) -> MemoryLoad:
        """What of its memory is in use, and how short of it it is."""
        ...

    def written_bytes(self) -> int:
        """What its processes have written to disks themselves; what the kernel wrote for them later isn't counted on v1."""
        ...

    def kill(self) -> None:
        """SIGKILL to all processes, frozen ones too."""
        ...

    async def remove(self) -> None:
        """Forget the tree; its processes must be gone. Idempotent."""
        ...


class Trees(Protocol):
    """Makes trees by name and finds those that an earlier run left."""

    can_reclaim: bool
    description: str
    held: tuple[str, ...]  # which limits the host holds: of processor, memory, processes

    def open(self, name: str) -> Tree:
        """The tree of this name, made if need be."""
        ...

    def names(self) -> list[str]:
        """Trees that exist on the host."""
        ...


@dataclass(frozen=True, slots=True)
class Layout:
    """Where trees go: the v2 directory (freezer, kill, processor time), and the v1 hierarchies of what is elsewhere.

    `cpu_v1` accounts for processor time, `shares_v1` divides it; they often are one.
    """

    unified: Path | None
    memory_v1: Path | None
    freezer_v1: Path | None
    cpu_v1: Path | None
    shares_v1: Path | None = None
    pids_v1: Path | None = None
    io_v1: Path | None = None

    @property
    def roots(self) -> list[Path]:
        """Every hierarchy that a tree has a directory in."""
        every = (self.unified, self.memory_v1, self.freezer_v1, self.cpu_v1, self.shares_v1, self.pids_v1, self.io_v1)
        return list(dict.fromkeys(path for path in every if path is not None))

    def below(self, path: str) -> Files:
        """The directories of a tree, by controller."""
        places = (self.unified, self.shares_v1, self.cpu_v1, self.memory_v1, self.pids_v1, self.io_v1)
        return Files(*(place / path if place is not None else None for place in places))


def layout_from_mounts(mountinfo: str) -> Layout:
    """Read the hierarchies from the text of /proc/self/mountinfo. Pure.

    With a v2 hierarchy the v1 freezer and processor accounting are not needed; v1 memory is used when v2 doesn't have that controller.
    """
    unified: Path | None = None
    v1: dict[str, Path] = {}
    for line in mountinfo.splitlines():
        head, _, tail = line.partition(" - ")
        if not tail:
            continue
        kind, _, options = tail.split(" ", 2)
        path = Path(head.split(" ")[4])
        if kind == "cgroup2":
            unified = unified or path
        elif kind == "cgroup":
            for name in options.split(","):
                v1.setdefault(name, path)
    freezer, accounting = (None, None) if unified else (v1.get("freezer"), v1.get("cpuacct"))
    return Layout(unified, v1.get("memory"), freezer, accounting, v1.get("cpu"), v1.get("pids"), v1.get("blkio"))


def detect(instance: str, mountinfo: Path = Path("/proc/self/mountinfo"), own: Path = Path("/proc/self/cgroup")) -> Trees:
    """The best trees this host lets us have, their names beginning with `instance`. Never fails: signals are the last resort."""
    layout = layout_from_mounts(mountinfo.read_text())
    for base in _candidate_bases(layout, own):
        with contextlib.suppress(OSError):
            return CgroupTrees(base, instance)
    return SignalTrees()


def _candidate_bases(layout: Layout, own: Path) -> Iterable[Layout]:
    if layout.unified is None and layout.freezer_v1 is None:
        return
    if os.geteuid() == 0:
        yield layout
    elif layout.unified is not None and layout.memory_v1 is None:
        # An ordinary user can use cgroups where systemd delegated a subtree: the nearest ancestor of ours that we may write.
        path = next((line[3:] for line in own.read_text().splitlines() if line.startswith("0::")), "/")
        for ancestor in [Path(path), *Path(path).parents]:
            yield Layout(layout.unified / str(ancestor).lstrip("/"), None, None, None)


class CgroupTrees:
    """Trees as cgroups `<hierarchy>/<instance>.<name>`.

    Side by side with everything else on the host, not below a parent of their own: a compute that yields must yield to the kernel's
    threads (a commit waits for them), to clients and to Torpor as well, and a parent would give it a share in the name of all computes.
    """

    def __init__(self, base: Layout, instance: str) -> None:
        """Raises OSError when directories can't be made."""
        self._base = base
        self._prefix = f"{instance}."
        if base.unified is not None:
            _enable_controllers(base.unified)
        probe = f"{instance}-probe-{os.getpid()}"
        made: list[Path] = []
        try:
            for root in base.roots:
                (root / probe).mkdir()
                made.append(root / probe)
            self.held = held(base.below(probe))
        finally:
            for directory in made:
                directory.rmdir()
        controllers = _read(base.unified / "cgroup.subtree_control").split() if base.unified else []
        self.can_reclaim = base.unified is None or base.memory_v1 is not None or "memory" in controllers
        kind = "v2" if base.memory_v1 is None and base.unified else "hybrid" if base.unified else "v1"
        self.description = f"cgroups {kind}"

    def open(self, name: str) -> "CgroupTree":
        for root in self._base.roots:
            (root / (self._prefix + name)).mkdir(exist_ok=True)
        return CgroupTree(self._base, self._prefix + name)

    def names(self) -> list[str]:
        found = {entry.name for root in self._base.roots for entry in os.scandir(root) if entry.name.startswith(self._prefix)}
        return sorted(name.removeprefix(self._prefix) for name in found)


class CgroupTree:
    """One compute's cgroups."""

    def __init__(self, base: Layout, path: str) -> None:
        self._directories = [root / path for root in base.roots]
        self._unified = base.unified / path if base.unified else None
        self._memory_v1 = base.memory_v1 / path if base.memory_v1 else None
        self._freezer_v1 = base.freezer_v1 / path if base.freezer_v1 else None
        self._cpu_v1 = base.cpu_v1 / path if base.cpu_v1 else None
        limiter = Limiter(base.below(path))
        self.limit, self.cpu_load, self.memory_load = limiter.set, limiter.cpu_load, limiter.memory_load
        self.written_bytes = limiter.written_bytes

    def __repr__(self) -> str:
        return f"<CgroupTree {self._directories[0]}>"

    def entrances(self) -> list[Path]:
        return [directory / "cgroup.procs" for directory in self._directories]

    def adopt(self, pid: int) -> None:
        """The kernel keeps the tree; what an older Torpor has put into fewer hierarchies enters the others now."""
        if not (mine := set(self.pids())):
            return
        for directory in self._directories[1:]:
            for each in mine - {int(other) for other in _read(directory / "cgroup.procs").split()}:
                with contextlib.suppress(OSError):
                    (directory / "cgroup.procs").write_text(str(each))

    def pids(self) -> list[int]:
        return [int(pid) for pid in _read(self._directories[0] / "cgroup.procs").split()]

    async def freeze(self) -> None:
        if self._unified is not None:
            (self._unified / "cgroup.freeze").write_text("1")
        else:
            assert self._freezer_v1 is not None
            (self._freezer_v1 / "freezer.state").write_text("FROZEN")
        # Usually done within 0.1 ms: the first look mostly suffices.
        waited_s, pause_s = 0.0, 0.0005
        while not self.is_frozen():
            if waited_s > _FREEZE_PATIENCE_S:
                self.thaw()
                raise TimeoutError("a process did not freeze within a second (uninterruptible disk wait)")
            await asyncio.sleep(pause_s)
            waited_s, pause_s = waited_s + pause_s, min(pause_s * 2, 0.02)

    def thaw(self) -> None:
        if self._unified is not None:
            (self._unified / "cgroup.freeze").write_text("0")
        else:
            assert self._freezer_v1 is not None
            (self._freezer_v1 / "freezer.state").write_text("THAWED")

    def is_frozen(self) -> bool:
        if self._unified is not None:
            return "frozen 1" in _read(self._unified / "cgroup.events")
        assert self._freezer_v1 is not None
        return _read(self._freezer_v1 / "freezer.state").strip() == "FROZEN"

    def reclaim(self) -> int:
        for directory in self._directories:
            _read(directory / "memory.stat")  # brings the figures up to date by which the kernel decides whether a pass is worth while
        # Both interfaces report failure when not everything could go: what went, went.
        with contextlib.suppress(OSError):
            if self._memory_v1 is not None:
                (self._memory_v1 / "memory.force_empty").write_text("0")
            elif self._unified is not None:
                (self._unified / "memory.reclaim").write_text(str(self._memory_bytes()))
        return self._memory_bytes()

    def usage(self) -> Usage:
        if self._unified is not None:
            cpu_ns = _figure(self._unified / "cpu.stat", "usage_usec") * 1000
        else:
            cpu_ns = int(_read(self._cpu_v1 / "cpuacct.usage") or 0) if self._cpu_v1 else 0
        if self._memory_v1 is not None:
            swap = _figure(self._memory_v1 / "memory.stat", "swap")
        elif self._unified is not None:
            swap = int(_read(self._unified / "memory.swap.current") or 0)
        else:
            swap = 0
        return Usage(cpu_ns, self._memory_bytes(), swap)

    def _memory_bytes(self) -> int:
        if self._memory_v1 is not None:
            return int(_read(self._memory_v1 / "memory.usage_in_bytes") or 0)
        return int(_read(self._unified / "memory.current") or 0) if self._unified is not None else 0

    def kill(self) -> None:
        if self._unified is not None:
            with contextlib.suppress(OSError):  # kernels before 5.14 lack cgroup.kill
                (self._unified / "cgroup.kill").write_text("1")
                return
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(OSError):  # a frozen v1 cgroup takes the signal only when thawed
            self.thaw()

    async def remove(self) -> None:
        for directory in self._directories:
            for _ in range(200):  # a dead process leaves its cgroup a moment after it was reaped
                try:
                    directory.rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    await asyncio.sleep(0.005)
                else:
                    break


class SignalTrees:
    """Without cgroups: processes are found below the compute's first one and stopped by signal. No reclaim, no figures of memory."""

    def __init__(self) -> None:
        self.can_reclaim = False
        self.description = "stop signals (no cgroup can be written)"
        self.held: tuple[str, ...] = ()

    def open(self, name: str) -> "SignalTree":
        return SignalTree()

    def names(self) -> list[str]:
        return []


class SignalTree:
    """The descendants of one process. PostgreSQL doesn't mind: it asks not to be told of stopped children."""

    def __init__(self) -> None:
        self._root: int | None = None
        self._frozen = False
        # By pid, with their start: once the root has died, stopped orphans can be found no other way.
        self._stopped: dict[int, int | None] = {}

    def entrances(self) -> list[Path]:
        return []

    def adopt(self, pid: int) -> None:
        self._root = pid
        self._frozen = _state(pid) == "T"
        if self._frozen:
            self._stopped = {each: start_ticks(each) for each in descendants(pid)}

    def pids(self) -> list[int]:
        if self._root is None or start_ticks(self._root) is None:
            return [pid for pid, ticks in self._stopped.items() if ticks is not None and start_ticks(pid) == ticks]
        return descendants(self._root)

    async def freeze(self) -> None:
        # Parents first, and again until nobody new has appeared: a stopped parent can't fork.
        stopped: set[int] = set()
        while fresh := [pid for pid in self.pids() if pid not in stopped]:
            for pid in fresh:
                _signal(pid, signal.SIGSTOP)
            stopped.update(fresh)
        waited_s = 0.0
        while any(_state(pid) not in "TtZX" for pid in stopped):
            if waited_s > _FREEZE_PATIENCE_S:
                self.thaw()
                raise TimeoutError("a process did not stop within a second (uninterruptible disk wait)")
            await asyncio.sleep(0.001)
            waited_s += 0.001
        self._frozen = True
        self._stopped = {pid: start_ticks(pid) for pid in stopped}

    def thaw(self) -> None:
        for pid in self.pids():
            _signal(pid, signal.SIGCONT)
        self._frozen = False
        self._stopped = {}

    def is_frozen(self) -> bool:
        return self._frozen

    def reclaim(self) -> int:
        """Not possible without cgroups."""
        return self.usage().memory_bytes

    def usage(self) -> Usage:
        ticks = resident = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
                pages = Path(f"/proc/{pid}/statm").read_text().split()  # not rss of `stat`, which lags behind and can be less than `shared`
                resident += (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE")
        return Usage(ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK"), resident, 0)

    def limit(self, limits: Limits) -> None:
        """Not possible without cgroups: `held` of the trees says so."""

    def cpu_load(self) -> CpuLoad:
        return CpuLoad(self.usage().cpu_ns, 0)

    def written_bytes(self) -> int:
        return 0

    def memory_load(self) -> MemoryLoad:
        used = self.usage().memory_bytes
        return MemoryLoad(used, used, 0, 0)

    def kill(self) -> None:
        for pid in self.pids():
            _signal(pid, signal.SIGKILL)

    async def remove(self) -> None:
        self._root = None
        self._stopped = {}


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def _enable_controllers(directory: Path) -> None:
    for name in _CONTROLLERS:  # one by one: some may be missing or not delegated
        with contextlib.suppress(OSError):
            (directory / "cgroup.subtree_control").write_text(f"+{name}")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _figure(path: Path, key: str) -> int:
    for line in _read(path).splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0
