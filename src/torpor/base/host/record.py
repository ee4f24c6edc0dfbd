"""What `torpor host setup` changed on this host, kept in <data_dir>/host.json so that it can be taken back exactly.

Written before each change is relied on, atomically. One writer at a time: the command that runs as root.
"""

import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torpor.base.host.machine import HostActionFailed

RECORD_NAME = "host.json"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class ZramRecord:
    """A zram swap of ours. `added`: the device itself was added by us, too."""

    device: str
    size_bytes: int
    added: bool


@dataclass(frozen=True, slots=True)
class Record:
    """The changes that are in force. `kernel_before` holds the values to go back to. `pool_key_made`: its key is ours, and lies in the data
    directory; one that lies elsewhere is left where it is."""

    packages: tuple[str, ...] = ()
    pool_made: bool = False
    pool_key_made: bool = False
    zram: ZramRecord | None = None
    kernel_file: str | None = None
    kernel_before: dict[str, str] = field(default_factory=dict)

    def merge_kernel(self, file: str, before: dict[str, str]) -> "Record":
        """With a file set; the values of the first setup stay the ones to go back to."""
        return replace(self, kernel_file=file, kernel_before=before | self.kernel_before)


def load(data_dir: Path) -> Record:
    """The record; an empty one when nothing was ever done. Raises HostActionFailed when it can't be understood."""
    path = data_dir / RECORD_NAME
    try:
        raw: Any = json.loads(path.read_text())
        if raw["version"] != _VERSION:
            raise HostActionFailed(f"{path} was written by another version of Torpor", "use that version for `torpor host` commands")
        zram = raw["zram"]
        return Record(
            packages=tuple(raw["packages"]),
            pool_made=bool(raw["pool_made"]),
            pool_key_made=bool(raw.get("pool_key_made", False)),  # older ones say nothing of it
            zram=None if zram is None else ZramRecord(str(zram["device"]), int(zram["size_bytes"]), bool(zram["added"])),
            kernel_file=raw["kernel_file"],
            kernel_before=dict(raw["kernel_before"]),
        )
    except FileNotFoundError:
        return Record()
    except OSError as error:
        raise HostActionFailed(f"{path} can't be read: {error.strerror}", "run as root") from error
    except (ValueError, KeyError, TypeError) as error:
        raise HostActionFailed(f"{path} is damaged: {error!r}", "move it away; what setup did must then be taken back by hand") from error


def save(data_dir: Path, record: Record) -> None:
    """Replace the record, or remove it when it is empty. Raises HostActionFailed."""
    path = data_dir / RECORD_NAME
    try:
        if record == Record():
            path.unlink(missing_ok=True)
            return
        data_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        temporary = path.with_suffix(".new")
        with temporary.open("w") as stream:
            json.dump({"version": _VERSION, **asdict(record)}, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise HostActionFailed(f"{path} can't be written: {error.strerror}", "make room, or mend the directory's permissions") from error
