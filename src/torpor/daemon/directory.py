"""The data directory: made, locked against a second Torpor, and told to the command line.

Concurrency: used at start and end only, before and after everything else.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from pathlib import Path

from torpor.model.errors import AlreadyRunning, BinariesMissing, DataDirectoryUnusable

_MAX_SOCKET_PATH = 107  # sockaddr_un holds 108 bytes with the final zero
_LONGEST_TAIL = "run/dabcdefghijkl/door.sock"
_TRAVERSABLE = 0o711


def instance_name(data_dir: Path) -> str:
    """Names the cgroups of the Torpor on a data directory."""
    return "torpor-" + hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:8]


class DataDirectory:
    """A locked data directory. `close` gives the lock back."""

    def __init__(self, path: Path) -> None:
        """Make it and lock it. Raises DataDirectoryUnusable or AlreadyRunning."""
        self.path = path
        if len(str(path)) + 1 + len(_LONGEST_TAIL) > _MAX_SOCKET_PATH:
            raise DataDirectoryUnusable(
                f"the data directory's path is too long for sockets below it ({len(str(path))} characters)",
                f"choose one of at most {_MAX_SOCKET_PATH - len(_LONGEST_TAIL) - 1}",
            )
        try:
            path.mkdir(mode=_TRAVERSABLE, parents=True, exist_ok=True)
            for name, mode in (("run", 0o700), ("logs", 0o700), ("native", 0o755), ("conf", 0o755)):
                (path / name).mkdir(exist_ok=True)
                (path / name).chmod(mode)
            if os.geteuid() == 0:
                path.chmod(_TRAVERSABLE)  # computes run as other users and must reach their volume
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DataDirectoryUnusable(
                f"the data directory {path} can't be used: {error.strerror}",
                "choose another with --data-dir, or mend its owner and mode",
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise AlreadyRunning(f"another Torpor runs on {path}", "stop that one, or give this one its own --data-dir") from error
        if os.geteuid() == 0:
            try:
                self._check_reachable()
            except BaseException:
                self.close()
                raise

    def __repr__(self) -> str:
        return f"<DataDirectory {self.path}>"

    @property
    def instance(self) -> str:
        """Names this Torpor's cgroups: several can run on one host."""
        return instance_name(self.path)

    def publish_library(self, built: Path) -> Path:
        """A copy of the preloaded library that every user can read. Running computes keep the version that they loaded."""
        try:
            content = built.read_bytes()
        except FileNotFoundError as error:
            raise BinariesMissing(f"the library {built.name} was not built", "run `make setup` (it needs gcc)") from error
        target = self.path / "native" / f"libtorpor-{hashlib.sha256(content).hexdigest()[:12]}.so"
        if not target.exists():
            _write(target, content, 0o755)
        return target

    def write_configuration(self, major: int, files: dict[str, str]) -> Path:
        """The configuration files that all computes of a major share."""
        directory = self.path / "conf" / str(major)
        directory.mkdir(exist_ok=True)
        directory.chmod(0o755)
        for name, text in files.items():
            _write(directory / name, text.encode(), 0o644)
        return directory

    def announce(self, url: str, door_host: str, door_port: int, version: str) -> None:
        """Tell the command line on this machine where the API is, and the next Torpor where the door was."""
        facts = {
            "url": url,
            "door": f"{door_host}:{door_port}",
            "door_port": door_port,
            "pid": os.getpid(),
            "version": version,
            "token_file": str(self.path / "token"),
        }
        _write(self.path / "api.json", json.dumps(facts, indent=1).encode() + b"\n", 0o644)

    def previous_door_port(self) -> int:
        """The port of the door of the Torpor that was killed or left here; 0 when the last one stopped everything."""
        try:
            return int(json.loads((self.path / "api.json").read_text())["door_port"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return 0

    def retract(self) -> None:
        """Take the announcement back. Idempotent."""
        with contextlib.suppress(OSError):
            (self.path / "api.json").unlink()

    def close(self) -> None:
        """Give the lock back."""
        os.close(self._lock)

    def _check_reachable(self) -> None:
        for parent in self.path.resolve().parents:
            if not parent.stat().st_mode & 0o001:
                raise DataDirectoryUnusable(
                    f"computes run as users of their own and can't enter {parent}",
                    f"choose a data directory elsewhere (--data-dir), or `chmod o+x {parent}`",
                )


def _write(path: Path, content: bytes, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(content)
    temporary.chmod(mode)
    temporary.replace(path)
