"""A child process that is talked to line by line: it says that it is ready, waits to be told to go on, and ends."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self


class Dialogue:
    """Runs `command`; at the end of the block its input is closed and it must have ended well. pytest's timeout bounds every wait."""

    def __init__(self, command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1, env=environment
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self._process.kill()
        rest, _ = self._process.communicate()
        if kind is None:
            assert self._process.returncode == 0, rest

    def say(self, line: str) -> None:
        """Write one line to the child."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")

    def expect(self, line: str) -> None:
        """Read until the child says exactly `line`."""
        assert self._process.stdout is not None
        heard = []
        for heard_line in self._process.stdout:
            heard.append(heard_line)
            if heard_line.rstrip("\n") == line:
                return
        raise AssertionError(f"the child ended without saying {line!r}:\n{''.join(heard)}")
