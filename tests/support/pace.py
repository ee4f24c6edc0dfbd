"""Limits of time that hold on a machine that does something else as well: what took too long is measured against how slow it is now.

On a machine that is idle, or as fast as it should be, a limit is the limit. Blocking.
"""

import time

_LOOP_S = 0.2
_MOST = 20.0


def slowness() -> float:
    """How many times longer a process that wants to run needs than it would on its own: 1 when nobody else runs."""
    wall, cpu = time.monotonic(), time.thread_time()
    while time.thread_time() - cpu < _LOOP_S:
        pass
    return max(1.0, (time.monotonic() - wall) / _LOOP_S)


def in_time(took_s: float, limit_s: float) -> bool:
    """Whether something was as quick as it should be. A limit that was missed is stretched by how busy the machine is."""
    if took_s < limit_s:
        return True
    stretched = limit_s * min(_MOST, 1 + 2 * (slowness() - 1))  # twice: two processes at least take turns in what is measured
    print(f"took {took_s:.2f} s of {limit_s:g} s, {stretched:.2f} s on a machine as busy as this one")
    return took_s < stretched
