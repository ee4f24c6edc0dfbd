"""What the mounted control groups allow: version, freezer, memory reclaim, CPU accounting, and whether we may make groups.

Reads files only, changes nothing.
"""

import os
from collections.abc import Container
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath

from torpor.base.host.machine import Machine


class CgroupMode(StrEnum):
    """Which hierarchies are mounted."""

    NONE = "none"  # no control groups at all
    V1 = "v1"  # one hierarchy per controller
    HYBRID = "hybrid"  # v1 controllers, and a v2 hierarchy beside them
    V2 = "v2"  # the unified hierarchy


@dataclass(frozen=True, slots=True)
class CgroupFacts:
    """What can be done with control groups from where this process is."""

    mode: CgroupMode = CgroupMode.NONE
    freezer: bool = False
    reclaim: bool = False
    cpu: bool = False
    writable: bool = False
    own_group: str = ""
    limits: tuple[str, ...] = ()  # what of a database's size can be held: processor, memory, processes


@dataclass(frozen=True, slots=True)
class _Mount:
    point: PurePosixPath
    root: str
    controllers: frozenset[str]


def probe_cgroups(machine: Machine, release: tuple[int, int]) -> CgroupFacts:
    """Look at the hierarchies. `release` is the kernel's (major, minor): some files exist only below the root group."""
    unified, legacy = _mounts(machine)
    groups = _own_groups(machine)
    if unified is None and not legacy:
        return CgroupFacts()
    if not legacy and unified is not None:
        return _v2(machine, unified, groups.get("", "/"), release)
    by_controller = {name: mount for mount in legacy for name in mount.controllers}
    freezer = "freezer" in by_controller or (unified is not None and release >= (5, 2))
    anchor = by_controller.get("freezer") or by_controller.get("memory")
    own = groups.get("freezer" if "freezer" in by_controller else "memory", "/")
    return CgroupFacts(
        mode=CgroupMode.V1 if unified is None else CgroupMode.HYBRID,
        freezer=freezer,
        reclaim="memory" in by_controller,
        cpu="cpuacct" in by_controller,
        writable=anchor is not None and _may_make_groups(machine, _inside(anchor, own)),
        own_group=own,
        limits=_limits(by_controller),
    )


def _v2(machine: Machine, mount: _Mount, own: str, release: tuple[int, int]) -> CgroupFacts:
    here = _inside(mount, own)
    controllers = (machine.read(here / "cgroup.controllers") or "").split()
    memory = "memory" in controllers
    return CgroupFacts(
        mode=CgroupMode.V2,
        freezer=machine.path(here / "cgroup.freeze").exists() or release >= (5, 2),
        reclaim=memory and (machine.path(here / "memory.reclaim").exists() or release >= (5, 19)),
        cpu="cpu" in controllers,
        writable=_may_make_groups(machine, here),
        own_group=own,
        limits=_limits(controllers),
    )


def _limits(controllers: Container[str]) -> tuple[str, ...]:
    return tuple(
        name for name, controller in (("processor", "cpu"), ("memory", "memory"), ("processes", "pids")) if controller in controllers
    )


def _may_make_groups(machine: Machine, group: PurePosixPath) -> bool:
    directory = machine.path(group)
    return os.access(directory, os.W_OK) and os.access(directory / "cgroup.procs", os.W_OK)


def _inside(mount: _Mount, group: str) -> PurePosixPath:
    """The directory of `group`. Inside a container the mount may show only a part of the hierarchy (its `root`)."""
    relative = group
    if mount.root != "/" and (group == mount.root or group.startswith(mount.root + "/")):
        relative = group[len(mount.root) :]
    return mount.point / relative.lstrip("/")


def _mounts(machine: Machine) -> tuple[_Mount | None, list[_Mount]]:
    unified: _Mount | None = None
    legacy: list[_Mount] = []
    for line in (machine.read("/proc/self/mountinfo") or "").splitlines():
        head, _, tail = line.partition(" - ")
        before, after = head.split(), tail.split()
        if len(before) < 6 or len(after) < 3:
            continue
        point, root = PurePosixPath(before[4].replace("\\040", " ")), before[3]
        if after[0] == "cgroup2":
            unified = unified or _Mount(point, root, frozenset())
        elif after[0] == "cgroup":
            # A named hierarchy (systemd's) has no controllers and is of no use to us.
            names = frozenset(name for name in after[2].split(",") if name not in ("rw", "ro", "xattr") and "=" not in name)
            if names:
                legacy.append(_Mount(point, root, names))
    return unified, legacy


def _own_groups(machine: Machine) -> dict[str, str]:
    """The group of this process by controller; the unified hierarchy's under ""."""
    result: dict[str, str] = {}
    for line in (machine.read("/proc/self/cgroup") or "").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            for name in parts[1].split(","):
                result[name] = parts[2]
    return result
