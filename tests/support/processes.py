"""Which processes of this host belong to which volume, in a sandbox or not."""

import contextlib
import os
from pathlib import Path

from torpor.base.processes import descendants, inner_pid, start_ticks


def by_volume(data_dir: Path) -> dict[str, list[int]]:
    """The running processes of each database's compute, by its id: those whose directory, or whose /data, is in its volume."""
    volumes: dict[tuple[int, int], str] = {}
    for data in data_dir.glob("volumes/*/data"):
        with contextlib.suppress(OSError):
            found = data.stat()
            volumes[found.st_dev, found.st_ino] = data.parent.name
    result: dict[str, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (id := _volume_of(entry, data_dir / "volumes", volumes)) is not None:
            result.setdefault(id, []).append(int(entry.name))
    return result


def postmaster_of(data: Path) -> int | None:
    """The postmaster of a cluster by its pid file, whose number counts inside of its sandbox."""
    try:
        inner = int((data / "postmaster.pid").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None
    for pid in by_volume(data.parents[2]).get(data.parent.name, []):
        with contextlib.suppress(ProcessLookupError, OSError):
            if inner_pid(pid) == inner and start_ticks(pid) is not None and os.path.samefile(f"/proc/{pid}/cwd", data):
                return pid
    return None


def starting_postmaster(torpor: int, data: Path) -> int | None:
    """The postmaster that a Torpor launches now, once it has written its pid file, and before it is ready; None when it was faster."""
    pid_file = data / "postmaster.pid"
    while not (words := pid_file.read_text().split() if pid_file.exists() else []):
        pass
    # Until it is ready it is below Torpor; to look through all processes would take longer than its start.
    while "ready" not in words:
        for pid in descendants(torpor):
            with contextlib.suppress(OSError):
                if inner_pid(pid) == int(words[0]) and Path(f"/proc/{pid}/comm").read_text() == "postgres\n":
                    return pid
        words = pid_file.read_text().split()
    return None


def _volume_of(process: Path, directory: Path, volumes: dict[tuple[int, int], str]) -> str | None:
    with contextlib.suppress(OSError):
        place = Path(os.readlink(process / "cwd"))
        if place.is_relative_to(directory) and place != directory:
            return place.relative_to(directory).parts[0]
    for name in ("cwd", "root/data"):
        with contextlib.suppress(OSError):
            found = (process / name).stat()
            if (id := volumes.get((found.st_dev, found.st_ino))) is not None:
                return id
    return None
