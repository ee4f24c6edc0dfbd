"""The one way in which this package touches the host: files below a root, and commands.

Synchronous; each method is one system call or one process. A test gives another root and another `run`.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath


class HostActionFailed(Exception):
    """The host refused something. `hint` says what to do next."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


@dataclass(frozen=True, slots=True)
class Output:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The last line the command said about its failure."""
        lines = (self.err.strip() or self.out.strip()).splitlines()
        return lines[-1] if lines else f"exit code {self.code}"


@dataclass(frozen=True, slots=True)
class Machine:
    """A Linux host whose files are seen below `root`."""

    root: Path = Path("/")

    @property
    def is_root(self) -> bool:
        """Whether we may change the host."""
        return os.geteuid() == 0

    def path(self, absolute: str | PurePath) -> Path:
        """Where the host's `absolute` path is to be found."""
        return self.root / str(absolute).lstrip("/")

    def read(self, absolute: str | PurePath) -> str | None:
        """The text of a file, None when there is none or it can't be read."""
        try:
            return self.path(absolute).read_text(errors="replace")
        except OSError:
            return None

    def write(self, absolute: str | PurePath, text: str) -> None:
        """Write a file of the kernel's, or replace one on disk. Raises HostActionFailed."""
        try:
            self.path(absolute).write_text(text)
        except OSError as error:
            raise HostActionFailed(f"{absolute} can't be written: {error.strerror}") from error

    def names(self, absolute: str | PurePath) -> tuple[str, ...]:
        """The sorted names in a directory; none when it isn't there."""
        try:
            return tuple(sorted(os.listdir(self.path(absolute))))
        except OSError:
            return ()

    def which(self, program: str) -> str | None:
        """Where a program is. Looks into the sbin directories too, which aren't in every user's PATH."""
        return shutil.which(program, path=os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin")

    def run(self, argv: Sequence[str], timeout_s: float = 60) -> Output:
        """Run a command to its end, without a shell. A missing program has exit code 127, one that hangs is killed (124)."""
        program = self.which(argv[0])
        if program is None:
            return Output(127, "", f"{argv[0]} is not installed")
        environment = os.environ | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        try:
            done = subprocess.run(
                [program, *argv[1:]], capture_output=True, text=True, errors="replace", timeout=timeout_s, env=environment, check=False
            )
        except subprocess.TimeoutExpired:
            return Output(124, "", f"{argv[0]} did not end within {timeout_s:.0f} s")
        except OSError as error:
            return Output(126, "", f"{argv[0]}: {error.strerror}")
        return Output(done.returncode, done.stdout, done.stderr)

    def must_run(self, argv: Sequence[str], hint: str = "", timeout_s: float = 60) -> str:
        """Run a command that has to succeed and return what it said. Raises HostActionFailed."""
        output = self.run(argv, timeout_s)
        if output.code != 0:
            raise HostActionFailed(f"{' '.join(argv[:2])} failed: {output.complaint}", hint)
        return output.out
