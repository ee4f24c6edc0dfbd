"""Memory of the whole host for each of 500 paged databases: without swap, then with zram. Each had a client that filled a table.

Counted is what can't be given back (torpor.base.memory: anonymous and shared pages, unreclaimable slab, page tables, kernel stacks,
per-CPU data, what zram holds), and the kernel's tables for swap and zram; before and after, so Torpor's own growth is in it.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench import harness
from bench.harness import Result
from bench.rig import FILL, BenchServer, Client, Zram, running, say
from torpor.base import memory

_BENCH = "memory"
_DATABASES = 500
_HANDS = 3


def measure() -> list[Result]:
    """One run of 500."""
    names = [f"db{number}" for number in range(_DATABASES)]
    with Zram() as zram, running(pool_gib=60, page_after_s="never", stop_after_s="never", memory_high_percent=99) as torpor:
        _make(torpor, "first")  # makes the template, too
        torpor.lay_down("first", "paged")
        with ThreadPoolExecutor(_HANDS) as hands:
            before, daemon_before = _used_bytes(), _resident_bytes(torpor.pid)
            say(f"making {_DATABASES} databases")
            list(hands.map(lambda name: _make(torpor, name), names))
            frozen = _used_bytes() - before
            list(hands.map(lambda name: torpor.lay_down(name, "paged"), names))
            without = _used_bytes() - before
            zram.add(12)
            say("the same with zram")
            list(hands.map(lambda name: _page_again(torpor, name), names))
            paged, daemon = _used_bytes() - before, _resident_bytes(torpor.pid) - daemon_before
            now = memory.read()
    return [
        Result(_BENCH, "per paged database, with zram", "MB", paged / _DATABASES / 1e6, 6),
        Result(_BENCH, "of that, compressed pages", "MB", now.zram_bytes / _DATABASES / 1e6),
        Result(_BENCH, "of that, Torpor's own process", "MB", daemon / _DATABASES / 1e6),
        Result(_BENCH, "swapped out", "MB", now.swap_used_bytes / _DATABASES / 1e6),
        Result(_BENCH, "per paged database, without swap", "MB", without / _DATABASES / 1e6),
        Result(_BENCH, "per frozen database", "MB", frozen / _DATABASES / 1e6),
    ]


def _make(torpor: BenchServer, name: str) -> None:
    database = torpor.create(name)
    with Client(database.url) as client:
        client.ask(FILL)
    torpor.lay_down(name, "frozen")


def _page_again(torpor: BenchServer, name: str) -> None:
    torpor.call("POST", f"/v1/databases/{name}/wake")
    torpor.lay_down(name, "paged")


def _used_bytes() -> int:
    fields = {line.split(":")[0]: line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines()}
    tables_kib = int(fields["VmallocUsed"]) - int(fields["KernelStack"])  # stacks lie in there, and are counted already
    return memory.read().used_bytes + tables_kib * 1024


def _resident_bytes(pid: int) -> int:
    return next(int(line.split()[1]) * 1024 for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("RssAnon"))


if __name__ == "__main__":
    harness.main(measure)
