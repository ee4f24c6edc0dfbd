"""Doing what the plan says, step by step, and taking it back.

Synchronous, as root, one at a time (a lock file in the data directory). Each step is recorded when it is done, so a failure or an
interruption leaves only whole steps behind, and a second run does what remains.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from torpor.base.host import packages, pool, record, zram
from torpor.base.host.facts import KERNEL_SETTINGS_FILE, POOL_DIRECTORY_NAME, POOL_IMAGE_NAME, can_reflink
from torpor.base.host.findings import show_bytes
from torpor.base.host.machine import HostActionFailed, Machine
from torpor.base.host.plan import Action, AddZram, InstallPackages, MakePool, MountPool, SetKernel, State, Step

_LOCK_NAME = "host.lock"


def apply(steps: tuple[Step, ...], data_dir: Path, machine: Machine) -> Iterator[Step]:
    """Do what is to be done and yield each step as it now stands. A failed step doesn't keep the others from being done."""
    with _locked(data_dir):
        for step in steps:
            if step.action is None:
                yield step
                continue
            try:
                text = _apply(step.action, data_dir, machine)
            except HostActionFailed as error:
                yield replace(step, state=State.FAILED, text=str(error), action=None)
            else:
                yield replace(step, state=State.CHANGED, text=text, action=None)


def undo(data_dir: Path, machine: Machine) -> Iterator[Step]:
    """Take back what the record says, last step first, and yield each step. Packages stay, as others may use them by now."""
    with _locked(data_dir):
        # The kernel first: swap that goes away must not meet eager swapping.
        yield _undo_step("kernel settings", lambda: _undo_kernel(data_dir, machine))
        yield _undo_step("zram swap", lambda: _undo_zram(data_dir, machine))
        yield _undo_step("copy-on-write pool", lambda: _undo_pool(data_dir, machine))
        yield _undo_step("packages", lambda: _undo_packages(data_dir))
    with contextlib.suppress(OSError):
        (data_dir / _LOCK_NAME).unlink(missing_ok=True)


def _apply(action: Action, data_dir: Path, machine: Machine) -> str:
    match action:
        case InstallPackages(names):
            text = packages.install(machine, names)
            known = record.load(data_dir)
            record.save(data_dir, replace(known, packages=tuple(dict.fromkeys((*known.packages, *names)))))
            return text
        case MakePool(size, filesystem):
            pool.make_pool(data_dir, size, machine, filesystem)
            record.save(data_dir, replace(record.load(data_dir), pool_made=True))
            return f"{_mount(data_dir, machine)}, {show_bytes(size)}"
        case MountPool():
            return _mount(data_dir, machine)
        case AddZram(size, device):
            known = record.load(data_dir)
            made = zram.add_zram(size, device, machine)
            record.save(data_dir, replace(known, zram=made))
            return f"{made.device}, {show_bytes(size)}"
        case SetKernel(values):
            return _set_kernel(action, values, data_dir, machine)


def _mount(data_dir: Path, machine: Machine) -> str:
    pool.ensure_pool_mounted(data_dir, machine)
    point = data_dir / POOL_DIRECTORY_NAME
    if not can_reflink(point):
        raise HostActionFailed(f"{point} is mounted but can't share blocks", f"remove {data_dir / POOL_IMAGE_NAME} and run this again")
    return f"mounted at {point}"


def _set_kernel(action: SetKernel, values: tuple[tuple[str, str], ...], data_dir: Path, machine: Machine) -> str:
    before = {key: (machine.read(f"/proc/sys/vm/{key}") or "").strip() for key, _ in values}
    record.save(data_dir, record.load(data_dir).merge_kernel(KERNEL_SETTINGS_FILE, before))
    with contextlib.suppress(OSError):  # hosts without sysctl.d have the directory made
        machine.path(KERNEL_SETTINGS_FILE).parent.mkdir(parents=True, exist_ok=True)
    machine.write(KERNEL_SETTINGS_FILE, action.file_text)
    for key, value in values:
        machine.write(f"/proc/sys/vm/{key}", value)
    return ", ".join(f"vm.{key}={value}" for key, value in values)


def _undo_step(name: str, act: Callable[[], tuple[State, str]]) -> Step:
    try:
        return Step(name, *act())
    except HostActionFailed as error:
        return Step(name, State.FAILED, str(error))


def _undo_kernel(data_dir: Path, machine: Machine) -> tuple[State, str]:
    known = record.load(data_dir)
    if known.kernel_file is None:
        return State.DONE, "nothing was set"
    with contextlib.suppress(FileNotFoundError):
        machine.path(known.kernel_file).unlink()
    for key, value in known.kernel_before.items():
        if value:
            machine.write(f"/proc/sys/vm/{key}", value)
    record.save(data_dir, replace(known, kernel_file=None, kernel_before={}))
    return State.CHANGED, ", ".join(f"vm.{key}={value}" for key, value in known.kernel_before.items()) + f", {known.kernel_file} removed"


def _undo_zram(data_dir: Path, machine: Machine) -> tuple[State, str]:
    known = record.load(data_dir)
    if known.zram is None:
        return State.DONE, "none was added"
    zram.remove_zram(known.zram, machine)
    record.save(data_dir, replace(known, zram=None))
    return State.CHANGED, f"{known.zram.device} taken off"


def _undo_pool(data_dir: Path, machine: Machine) -> tuple[State, str]:
    known = record.load(data_dir)
    if not known.pool_made:
        return State.DONE, "none was made"
    was_mounted = os.path.ismount(data_dir / POOL_DIRECTORY_NAME)
    gone = pool.unmount_pool(data_dir, machine)
    if not gone:
        return (
            State.CHANGED if was_mounted else State.DONE,
            f"unmounted; its volumes are kept in {data_dir / POOL_IMAGE_NAME}, which the next `torpor serve` mounts again",
        )
    record.save(data_dir, replace(known, pool_made=False))
    return State.CHANGED, "unmounted and, as it was empty, removed"


def _undo_packages(data_dir: Path) -> tuple[State, str]:
    known = record.load(data_dir)
    if not known.packages:
        return State.DONE, "none were installed"
    record.save(data_dir, replace(known, packages=()))
    return State.SKIPPED, f"left installed; to remove them: `apt-get remove {' '.join(known.packages)}`"


@contextlib.contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    """Hold the lock. Raises HostActionFailed when another setup runs."""
    try:
        data_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = os.open(data_dir / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostActionFailed(f"{data_dir} can't be used: {error.strerror}", "give another with --data-dir") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise HostActionFailed("another `torpor host` command is at work on this directory", "wait for it to end") from error
    finally:
        os.close(descriptor)
