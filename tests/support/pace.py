"""Limits of time that hold on a machine that is slow, or does something else as well: what took too long is measured against how slow it
is now. How fast Torpor is, bench/ measures; here a limit tells what waits for nothing from what waits for a timeout.

On a machine that is idle, and as fast as it should be, a limit is the limit. Blocking.
"""

import os
import tempfile
import time

_LOOP_S = 0.2
_TURNS = 1_000_000
_TURNS_S = 0.08  # of a slow processor that has nothing else to do
_SYNC_S = 0.01  # of a slow disk
_NEIGHBOUR = 3.0  # the tests of another worker start processes and flush disks: gone again when it is looked for
_MOST = 20.0


def slowness() -> float:
    """How many times longer than it should things take here now: processor, others who want it, disk. At least 1."""
    return max(1.0, _contention(), _processor(), _disk())


def in_time(took_s: float, limit_s: float) -> bool:
    """Whether something was as quick as it should be. A limit that was missed is stretched by how slow the machine is."""
    if took_s < limit_s:
        return True
    alone = 1.0 if "PYTEST_XDIST_WORKER" not in os.environ else _NEIGHBOUR
    # Twice: two processes at least take turns in what is measured.
    stretched = limit_s * min(_MOST, alone * (1 + 2 * (slowness() - 1)))
    print(f"took {took_s:.2f} s of {limit_s:g} s, {stretched:.2f} s on a machine as busy as this one")
    return took_s < stretched


def _contention() -> float:
    wall, cpu = time.monotonic(), time.thread_time()
    while time.thread_time() - cpu < _LOOP_S:
        pass
    return (time.monotonic() - wall) / _LOOP_S


def _processor() -> float:
    cpu, total = time.thread_time(), 0
    for number in range(_TURNS):
        total += number & 3
    return (time.thread_time() - cpu) / _TURNS_S


def _disk() -> float:
    times = []
    with tempfile.TemporaryFile(dir="/var/tmp") as file:
        for _ in range(5):
            file.write(bytes(8192))
            file.flush()
            began = time.monotonic()
            os.fsync(file.fileno())
            times.append(time.monotonic() - began)
    return sorted(times)[2] / _SYNC_S
