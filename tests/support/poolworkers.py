"""The workers of a Torpor's pool, as the host sees them."""

import contextlib
import os
from pathlib import Path

from tests.support.server import Server


def workers(torpor: Server) -> list[int]:
    """The processes."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"torpor.gateway.pool.worker" in words and _parent(process) == torpor.pid:
                found.append(int(process.name))
    return found


def rss(pid: int) -> int:
    """Bytes of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _parent(process: Path) -> int:
    return int((process / "stat").read_text().rpartition(")")[2].split()[1])
