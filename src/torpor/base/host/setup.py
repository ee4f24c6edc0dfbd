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

from torpor.base.host import packages, pool, poolkey, record, zram
from torpor.base.host.facts import KERNEL_SETTINGS_FILE, POOL_DIRECTORY_NAME, POOL_IMAGE_NAME, can_reflink
from torpor.base.host.findings import show_bytes
from torpor.base.host.machine import HostActionFailed, Machine
from torpor.base.host.plan import Action, AddZram, InstallPackages, MakePool, MountPool, SetKernel, State, Step
from torpor.base.host.sealed import SEALED_IMAGE_NAME, Sealed

_LOCK_NAME = "host.lock"


def apply(steps: tuple[Step, ...], data_dir: Path, machine: Machine, pool_key_file: Path | None = None) -> Iterator[Step]:
    """Do what is to be done and yield each step as it now stands. A failed step doesn't keep the others from being done."""
    key_file = pool_key_file or data_dir / poolkey.KEY_NAME
    with _locked(data_dir):
        for step in steps:
            if step.action is None:
                yield step
                continue
            try:
                text = _apply(step.action, data_dir, machine, key_file)
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


def lock(data_dir: Path, machine: Machine) -> Iterator[Step]:
    """Close an encrypted pool until it is mounted again: unmounted, and its key gone from the kernel."""
    with _locked(data_dir):
        yield _undo_step("copy-on-write pool", lambda: _lock_pool(data_dir, machine))


def _apply(action: Action, data_dir: Path, machine: Machine, key_file: Path) -> str:
    match action:
        case InstallPackages(names):
            text = packages.install(machine, names)
            known = record.load(data_dir)
            record.save(data_dir, replace(known, packages=tuple(dict.fromkeys((*known.packages, *names)))))
            return text
        case MakePool(size, filesystem, encrypted):
            _make_pool(data_dir, machine, size, filesystem, key_file if encrypted else None)
            kept = f"; keep a copy of {key_file} elsewhere: without it nobody can read the databases" if encrypted else ""
            return f"{_mount(data_dir, machine, key_file)}, {show_bytes(size)}{', encrypted' if encrypted else ''}{kept}"
        case MountPool():
            return _mount(data_dir, machine, key_file)
        case AddZram(size, device):
            known = record.load(data_dir)
            made = zram.add_zram(size, device, machine)
            record.save(data_dir, replace(known, zram=made))
            return f"{made.device}, {show_bytes(size)}"
        case SetKernel(values):
            return _set_kernel(action, values, data_dir, machine)


def _make_pool(data_dir: Path, machine: Machine, size_bytes: int, filesystem: str, key_file: Path | None) -> None:
    """Encrypted, if there is to be a key: the one that is there, or a new one."""
    before = record.load(data_dir)
    new_key = key_file is not None and not os.path.lexists(key_file)
    ours = before.pool_key_made or (new_key and key_file == data_dir / poolkey.KEY_NAME)
    # Recorded first: what is half made when we are killed may be mounted.
    record.save(data_dir, replace(before, pool_made=True, pool_key_made=ours))
    try:
        key = None if key_file is None else poolkey.make(key_file) if new_key else poolkey.load(key_file)
        pool.make_pool(data_dir, size_bytes, machine, filesystem, key)
    except HostActionFailed:
        if new_key and key_file is not None:
            poolkey.remove(key_file, unfinished_only=False)  # nothing was ever encrypted with it
        record.save(data_dir, before)
        raise


def _mount(data_dir: Path, machine: Machine, key_file: Path) -> str:
    pool.ensure_pool_mounted(data_dir, machine, key_file)
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
    was_mounted, was_sealed = os.path.ismount(data_dir / POOL_DIRECTORY_NAME), Sealed(data_dir).exists
    gone = pool.unmount_pool(data_dir, machine)
    if not gone:
        kept = data_dir / (SEALED_IMAGE_NAME if was_sealed else POOL_IMAGE_NAME)
        return (
            State.CHANGED if was_mounted else State.DONE,
            f"unmounted; its volumes are kept in {kept}, which the next `torpor serve` mounts again",
        )
    key_file = data_dir / poolkey.KEY_NAME
    if known.pool_key_made:  # a pool that isn't there may have been put elsewhere: its key stays
        poolkey.remove(key_file, unfinished_only=not was_sealed)
    record.save(data_dir, replace(known, pool_made=False, pool_key_made=known.pool_key_made and os.path.lexists(key_file)))
    left = f"; its key is left in {key_file}" if known.pool_key_made and os.path.lexists(key_file) else ""
    return State.CHANGED, f"unmounted and, as it was empty, removed{left}"


def _lock_pool(data_dir: Path, machine: Machine) -> tuple[State, str]:
    sealed = Sealed(data_dir)
    if not sealed.exists:
        raise HostActionFailed("there is no encrypted pool here", "`torpor host setup --encrypt-pool` makes one")
    was_open = sealed.is_open or os.path.ismount(data_dir / POOL_DIRECTORY_NAME)
    pool.unmount(data_dir, machine)
    if not was_open:
        return State.DONE, "it is closed"
    return State.CHANGED, "unmounted, and its key is gone from the kernel; the next `torpor serve` opens it again"


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
