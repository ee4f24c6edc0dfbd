"""PostgreSQL's own log of one compute: what it last said, and keeping it small.

Concurrency: short blocking calls; the daemon is the only one that cuts a log, PostgreSQL only appends.
"""

import contextlib
import os
from pathlib import Path

_LIMIT_BYTES = 8 << 20
_TAIL_BYTES = 8192


def last_words(log: Path) -> str:
    """The last error of a PostgreSQL log, for people: a FATAL or PANIC message, else its last line."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        for line in reversed(lines):
            for level in ("PANIC:", "FATAL:"):
                if level in line:
                    return line.partition(level)[2].strip()
        if lines:
            return lines[-1].strip()
    return "it left no message"


def keep_small(log: Path) -> None:
    """Move a log above 8 MB aside (to `.log.1`, replacing the one before): a database holds at most 16 MB of logs, and a tick's worth."""
    with contextlib.suppress(OSError):
        if log.stat().st_size > _LIMIT_BYTES:
            # PostgreSQL appends to the open file: it is copied and cut, not renamed.
            copy = log.with_suffix(".log.new")
            copy.write_bytes(log.read_bytes())
            copy.chmod(0o600)
            copy.replace(log.with_suffix(".log.1"))
            os.truncate(log, 0)


def remove(log: Path) -> None:
    """Remove a log with its older part. Idempotent."""
    log.unlink(missing_ok=True)
    log.with_suffix(".log.1").unlink(missing_ok=True)
