"""What counts as used memory of the host."""

import pytest

from torpor.base.memory import HostMemory, parse, read

MEMINFO = """\
MemTotal:        8000000 kB
MemFree:          100000 kB
MemAvailable:     150000 kB
Buffers:           50000 kB
Cached:          3000000 kB
AnonPages:       1000000 kB
Shmem:            200000 kB
SUnreclaim:        30000 kB
SReclaimable:     500000 kB
KernelStack:        4000 kB
PageTables:         5000 kB
Percpu:             1000 kB
SwapTotal:       4000000 kB
SwapFree:        3900000 kB
HugePages_Total:       0
"""


def test_what_can_be_given_back_is_not_used() -> None:
    memory = parse(MEMINFO, 0)
    assert memory == HostMemory(8000000 * 1024, 1240000 * 1024, 4000000 * 1024, 100000 * 1024, 0)
    assert memory.used_percent == pytest.approx(15.5)


def test_compressed_swap_lies_in_memory() -> None:
    memory = parse(MEMINFO, 40000 * 1024)
    assert memory.used_bytes == 1280000 * 1024
    assert memory.zram_bytes == 40000 * 1024
    assert memory.swap_used_bytes == 100000 * 1024


def test_a_kernel_that_tells_less() -> None:
    assert parse("MemTotal: 1000 kB\nAnonPages: 10 kB\n", 0) == HostMemory(1024000, 10240, 0, 0, 0)


def test_this_host() -> None:
    memory = read()
    assert 0 < memory.used_bytes < memory.total_bytes
    assert 0 <= memory.swap_used_bytes <= memory.swap_total_bytes
