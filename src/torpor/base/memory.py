"""How much memory of the host is really in use. `used_bytes` is pure; `read` is one blocking read of /proc/meminfo, microseconds.

MemAvailable misleads after large copies (it counts cache that is about to be written), so use is added up from what can't be
given back: anonymous pages, kernel memory, and compressed swap that itself lies in memory.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Memory of the host. `zram_bytes` is the part of `used_bytes` that holds compressed swap."""

    total_bytes: int
    used_bytes: int
    swap_total_bytes: int
    swap_used_bytes: int
    zram_bytes: int

    @property
    def used_percent(self) -> float:
        """Share of memory in use."""
        return 100.0 * self.used_bytes / self.total_bytes


def parse(meminfo: str, zram_bytes: int) -> HostMemory:
    """From the text of /proc/meminfo and the bytes that zram devices hold."""
    kib: dict[str, int] = {}
    for line in meminfo.splitlines():
        name, _, rest = line.partition(":")
        kib[name] = int(rest.split()[0])
    used_kib = sum(kib.get(name, 0) for name in ("AnonPages", "Shmem", "SUnreclaim", "PageTables", "KernelStack", "Percpu"))
    swap_total, swap_free = kib.get("SwapTotal", 0), kib.get("SwapFree", 0)
    return HostMemory(kib["MemTotal"] * 1024, used_kib * 1024 + zram_bytes, swap_total * 1024, (swap_total - swap_free) * 1024, zram_bytes)


def read() -> HostMemory:
    """The host's memory now."""
    zram_bytes = 0
    for stat in Path("/sys/block").glob("zram*/mm_stat"):
        fields = stat.read_text().split()
        zram_bytes += int(fields[2]) if len(fields) > 2 else 0
    return parse(Path("/proc/meminfo").read_text(), zram_bytes)
