"""Swap in compressed memory: set a zram device up, and take it down.

Needs root. The kernel forgets all of this at a reboot; `ensure_zram` brings back what the record says.
"""

import contextlib
import re
import time
from dataclasses import replace
from pathlib import Path

from torpor.base.host import record as records
from torpor.base.host.facts import probe_swaps, probe_zram
from torpor.base.host.machine import HostActionFailed, Machine
from torpor.base.host.record import ZramRecord

# Best ratio first; the kernel's own default comes last of the three.
_ALGORITHMS = ("zstd", "lz4", "lzo-rle")
# Above any swap on disk, which gets negative priorities by default.
_PRIORITY = 100
_HINT = "install the kernel's module (Ubuntu: linux-modules-extra-$(uname -r)) or run `torpor host setup --no-zram`"


def add_zram(size_bytes: int, device: str | None, machine: Machine) -> ZramRecord:
    """Set up `device`, or one more when None, as swap. Takes back what it did when it fails. Raises HostActionFailed."""
    added = False
    if device is None:
        device, added = _add_device(machine)
    name = Path(device).name
    try:
        offered = re.findall(r"[\w-]+", machine.read(f"/sys/block/{name}/comp_algorithm") or "")
        best = next((algorithm for algorithm in _ALGORITHMS if algorithm in offered), None)
        if best is not None:
            machine.write(f"/sys/block/{name}/comp_algorithm", best)
        machine.write(f"/sys/block/{name}/disksize", str(size_bytes))
        machine.must_run(["mkswap", device])
        machine.must_run(["swapon", "-p", str(_PRIORITY), device])
    except HostActionFailed:
        with contextlib.suppress(HostActionFailed):
            _reset(name, added, machine)
        raise
    return ZramRecord(device, size_bytes, added)


def remove_zram(zram: ZramRecord, machine: Machine) -> None:
    """Take our swap off and its device down. Idempotent. Raises HostActionFailed when its pages don't fit into memory."""
    if any(swap.device == zram.device for swap in probe_swaps(machine)):
        machine.must_run(["swapoff", zram.device], "stop some databases, so that what they swapped fits into memory", timeout_s=600)
    name = Path(zram.device).name
    if machine.path(f"/sys/block/{name}").exists():
        _reset(name, zram.added, machine)


def ensure_zram(data_dir: Path, machine: Machine | None = None) -> bool:
    """After a reboot, add the swap again that `torpor host setup` made. True when it is there; False when there is to be none.

    Raises HostActionFailed when it can't be added; Torpor runs without it all the same.
    """
    machine = machine or Machine()
    record = records.load(data_dir)
    if record.zram is None:
        return False
    if any(swap.device == record.zram.device for swap in probe_swaps(machine)):
        return True
    if not machine.is_root:
        raise HostActionFailed("the zram swap isn't there, and only root can add it", "run `torpor host setup` as root")
    if not probe_zram(machine).available:
        machine.run(["modprobe", "zram"])
    zram = add_zram(record.zram.size_bytes, probe_zram(machine).free_device, machine)
    records.save(data_dir, replace(record, zram=zram))
    return True


def _add_device(machine: Machine) -> tuple[str, bool]:
    if not probe_zram(machine).available:
        machine.run(["modprobe", "zram"])
    free = probe_zram(machine).free_device
    if free is not None:
        return free, False
    # Reading hot_add is what adds a device; it answers with the number.
    number = (machine.read("/sys/class/zram-control/hot_add") or "").strip()
    if not number.isdigit():
        raise HostActionFailed("this kernel has no zram, or all its zram devices are in use", _HINT)
    device = f"/dev/zram{number}"
    deadline = time.monotonic() + 2
    while not machine.path(device).exists() and time.monotonic() < deadline:  # the node is made by udev, a moment later
        time.sleep(0.02)
    return device, True


def _reset(name: str, added: bool, machine: Machine) -> None:
    machine.write(f"/sys/block/{name}/reset", "1")
    if added:
        machine.write("/sys/class/zram-control/hot_remove", name.removeprefix("zram"))
