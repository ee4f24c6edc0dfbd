"""Holds one compute to its size: limits of its process tree from before PostgreSQL begins, ceilings while it is awake.

A compute is opened, and left asleep, without a ceiling of processor time: so a wake has the full processor at once, and thawing costs
no write more. Who decides on ceilings is `control.scaling`; the hard limits (memory, processes) are those of the size.

Concurrency: on the event loop, short writes of kernel files. One per compute; nothing but a reference while it is stopped.
"""

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torpor.base.cgroups import Tree
from torpor.base.files import read_untrusted
from torpor.base.limits import CpuLoad, Limits, MemoryLoad
from torpor.base.processes import run_on
from torpor.model.size import Size

_WEIGHT_PER_CPU = 400  # a minimum of 0.25, the usual one, has the usual weight of 100
_RESERVED = 4  # of PostgreSQL's own limit: three for superusers, and Torpor's session
_OPTIONS_FILE = "postmaster.opts"
_EVERYWHERE = frozenset(os.sched_getaffinity(0))
HOST_CPUS = len(_EVERYWHERE)


def apart(processors: frozenset[int]) -> frozenset[int]:
    """Where those run who take more than their share while others are awake: a quarter, one at least, is kept free of them.

    Of the only processor there is none to keep.
    """
    kept = max(1, len(processors) // 4)
    return frozenset(sorted(processors)[kept:]) or processors


_APART = apart(_EVERYWHERE)
APART_CPUS = len(_APART)


def starting_limits(size: Size) -> Limits:
    """What a compute of that size is held to before anybody knows what it needs."""
    weight = max(1, min(10_000, round(size.min_cpu * _WEIGHT_PER_CPU)))
    return Limits(cpu_weight=weight, memory_bytes=size.max_memory_bytes, processes=size.processes)


class Shares:
    """What one compute may use now."""

    def __init__(self) -> None:
        self.limits: Limits | None = None
        self._tree: Tree | None = None
        self._runs_apart: bool | None = None  # None: an earlier Torpor may have said so
        self._resizing = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<Shares {self.limits!r}>"

    def open(self, tree: Tree, size: Size) -> Tree:
        """Hold a tree to a size from now on, boosted. Whatever an earlier Torpor had set is replaced."""
        self._tree = tree
        self._set(starting_limits(size))
        return tree

    def close(self) -> None:
        """The tree is gone. Idempotent."""
        self._tree = self.limits = self._runs_apart = None

    def boost(self) -> None:
        """Lift the ceiling of the processor: as it falls asleep, so that the next wake is fast. Idempotent."""
        if self.limits is not None:
            self._set(replace(self.limits, cpu=None, cpu_yields=False, disk_yields=False))
            if self._runs_apart:
                self.run_apart(False)

    def run_apart(self, wanted: bool) -> None:
        """Keep it off the processors that are kept for others, or let it run on all. Asked again, it takes those started since.

        Yielding alone isn't enough: some kernels let who wakes up beside one that yields wait for the next tick, up to 4 ms, and a
        commit has several threads of the kernel wake each other.
        """
        if self._tree is not None and (wanted or self._runs_apart is not False):
            run_on(_APART if wanted else _EVERYWHERE, self._tree.pids())
            self._runs_apart = wanted

    def hold(self, cpu: float | None, yields: bool, memory_soft_bytes: int | None, disk_yields: bool = False) -> None:
        """Set the ceilings. A ceiling of all processors of the host is none. Nothing happens when there is no tree."""
        if self.limits is not None:
            cpu = None if cpu is None or cpu >= HOST_CPUS else cpu
            now = replace(self.limits, cpu=cpu, cpu_yields=yields, memory_soft_bytes=memory_soft_bytes, disk_yields=disk_yields)
            self._set(now)

    async def resize(self, size: Size) -> None:
        """Take over another size at once; ceilings stay until they are decided on anew. Idempotent.

        Returns when the kernel has freed what was above a lower limit of memory, or has given up; asking again tries again.
        """
        async with self._resizing:
            tree, now = self._tree, self.limits
            if tree is None or now is None:
                return
            start, soft = starting_limits(size), now.memory_soft_bytes
            self.limits = replace(start, cpu=now.cpu, cpu_yields=now.cpu_yields, memory_soft_bytes=soft, disk_yields=now.disk_yields)
            await asyncio.to_thread(tree.limit, self.limits)
        if self._tree is tree and self.limits is not None:
            tree.limit(self.limits)  # what was decided meanwhile

    def cpu_load(self) -> CpuLoad | None:
        """Processor time used and withheld; None without a tree."""
        return self._tree.cpu_load() if self._tree is not None else None

    def written_bytes(self) -> int:
        """What it has written to disks since it was started."""
        return self._tree.written_bytes() if self._tree is not None else 0

    def memory_load(self) -> MemoryLoad | None:
        """Memory in use; None without a tree."""
        return self._tree.memory_load() if self._tree is not None else None

    def _set(self, limits: Limits) -> None:
        assert self._tree is not None
        self.limits = limits
        if not self._resizing.locked():
            self._tree.limit(limits)


def server_options(size: Size, usual: Size) -> tuple[tuple[str, str], ...]:
    """What PostgreSQL must be told of a size at its start, beyond the configuration that all share.

    On the command line, which wins over ALTER SYSTEM: so only what the size promises.
    """
    return (("max_connections", str(size.connections + _RESERVED)),) if size.connections > usual.connections else ()


def connection_limit(size: Size, usual: Size, data: Callable[[], Path] | None) -> int:
    """How many connections clients may have: those of the size, or as many as the PostgreSQL that runs on `data` was started for."""
    if size.connections <= usual.connections or data is None:
        return size.connections
    try:
        _, found, rest = read_untrusted(data() / _OPTIONS_FILE).partition("max_connections=")
    except OSError:
        return usual.connections
    digits = rest.split('"')[0].strip()
    return min(size.connections, int(digits) - _RESERVED if found and digits.isdigit() else usual.connections)
