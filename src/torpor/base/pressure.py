"""How long the host's processes wait for memory and disks, as the kernel counts it (pressure stall information). `parse` is pure; `read` is
two reads of kernel files, microseconds.

Of processors nothing is said here: whoever yields there makes place at once, and needs no figure for it.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Pressure:
    """Of the last ten seconds, percent: in which somebody waited for memory, and in which nobody got on for waiting for disks."""

    memory: float = 0.0
    disk: float = 0.0


def parse(text: str, line: str) -> float:
    """The figure of the last ten seconds in a line (`some` or `full`) of a kernel file; 0 where there is none."""
    for found in text.splitlines():
        name, *fields = found.split()
        if name == line:
            for field in fields:
                key, _, value = field.partition("=")
                with contextlib.suppress(ValueError):
                    if key == "avg10":
                        return float(value)
    return 0.0


def read(root: Path = Path("/proc/pressure")) -> Pressure:
    """The host's pressure now; none on a kernel that doesn't count it."""
    return Pressure(parse(_text(root / "memory"), "some"), parse(_text(root / "io"), "full"))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
