"""The data directory: made, locked against a second Torpor, and told to the command line.

Concurrency: used at start and end only, before and after everything else. Files that are published have their content in their name, so
a Torpor that is about to take over publishes its own beside those of the one that still runs.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import time
from pathlib import Path

from torpor.base.files import sync_directory
from torpor.model.errors import AlreadyRunning, BinariesMissing, DataDirectoryUnusable

_MAX_SOCKET_PATH = 107  # sockaddr_un holds 108 bytes with the final zero
_LONGEST_TAIL = "run/dabcdefghijkl/door.sock"
_TRAVERSABLE = 0o711
_LOCK_AGAIN_S = 0.01


def instance_name(data_dir: Path) -> str:
    """Names the cgroups of the Torpor on a data directory."""
    return "torpor-" + hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:8]


class DataFiles:
    """A data directory as whoever runs Torpor may use it without the lock."""

    def __init__(self, path: Path) -> None:
        """Make it. Raises DataDirectoryUnusable."""
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
        except OSError as error:
            raise _unusable(path, error) from error
        if os.geteuid() == 0:
            self._check_reachable()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path}>"

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
        return self._publish("libtorpor", "so", content, 0o755)

    def publish_filter(self, content: bytes) -> Path:
        """The system-call filter of the sandboxes, in a file."""
        return self._publish("filter", "bpf", content, 0o644)

    def _publish(self, name: str, kind: str, content: bytes, mode: int) -> Path:
        target = self.path / "native" / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}.{kind}"
        if not target.exists() or target.read_bytes() != content:
            _write(target, content, mode)
        return target

    def configuration(self, major: int) -> Path:
        """Where the configuration files of a major are, once they are written."""
        return self.path / "conf" / str(major)

    def write_configuration(self, major: int, files: dict[str, str]) -> Path:
        """The configuration files that all computes of a major share."""
        directory = self.configuration(major)
        directory.mkdir(exist_ok=True)
        directory.chmod(0o755)
        for name, text in files.items():
            _write(directory / name, text.encode(), 0o644)
        return directory

    def _check_reachable(self) -> None:
        for parent in self.path.resolve().parents:
            if not parent.stat().st_mode & 0o001:
                raise DataDirectoryUnusable(
                    f"computes run as users of their own and can't enter {parent}",
                    f"choose a data directory elsewhere (--data-dir), or `chmod o+x {parent}`",
                )


class DataDirectory(DataFiles):
    """A locked data directory. `close` gives the lock back."""

    def __init__(self, path: Path, lock: int | None = None, patience_s: float = 0.0) -> None:
        """Make it and lock it. `lock` is that of another Torpor that `give_lock` gave; `patience_s` is for one that is just ending.

        Raises DataDirectoryUnusable or AlreadyRunning.
        """
        super().__init__(path)
        try:
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600) if lock is None else lock
        except OSError as error:
            raise _unusable(path, error) from error
        try:
            self._take_lock(patience_s)
        except BlockingIOError as error:
            os.close(self._lock)
            raise already_running(path) from error

    def _take_lock(self, patience_s: float) -> None:
        """Lock it, or see that a lock that was given is one on this directory. Raises BlockingIOError."""
        ours, theirs = os.fstat(self._lock), os.stat(self.path / "lock")
        if (ours.st_dev, ours.st_ino) != (theirs.st_dev, theirs.st_ino):
            raise BlockingIOError
        deadline = time.monotonic() + patience_s
        while True:
            try:
                return fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_LOCK_AGAIN_S)

    def give_lock(self) -> int:
        """The lock, which is the caller's from now on; `close` closes nothing any more."""
        lock, self._lock = self._lock, -1
        return lock

    def announce(self, url: str, door_host: str, door_port: int, version: str, tls_authority: str = "", http: str = "") -> None:
        """Tell the command line on this machine where the API is, and the next Torpor where the door was."""
        facts = {
            "url": url,
            "door": f"{door_host}:{door_port}",
            "door_port": door_port,
            "pid": os.getpid(),
            "version": version,
            "tls_authority": tls_authority,
            "token_file": str(self.path / "token"),
        }
        if http:
            facts["http"] = http
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
        """Give the lock back, unless it was given away."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _unusable(path: Path, error: OSError) -> DataDirectoryUnusable:
    return DataDirectoryUnusable(
        f"the data directory {path} can't be used: {error.strerror}", "choose another with --data-dir, or mend its owner and mode"
    )


def already_running(path: Path) -> AlreadyRunning:
    """The refusal to start where another Torpor runs."""
    return AlreadyRunning(
        f"another Torpor runs on {path}",
        "stop that one, take its place while it runs (`torpor serve --take-over`), or give this one its own --data-dir",
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    """All or nothing, also when the power fails."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(content)
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)
