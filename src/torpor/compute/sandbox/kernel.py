"""Which sandbox level a running process has, by the kernel's word: also for one that an earlier Torpor started.

Stateless; reads two small files of /proc.
"""

import os
from pathlib import Path

from torpor.model.sandbox import SandboxLevel

_FILTERED = "2"  # of /proc/<pid>/status, Seccomp


def level_of(pid: int) -> SandboxLevel | None:
    """The level; None when the process has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
        status = {name: value.split() for name, _, value in (line.partition(":") for line in text.splitlines())}
        has_own_user = int(status["Uid"][0]) != os.geteuid()
        if len(status.get("NSpid", ())) < 2 or status.get("Seccomp") != [_FILTERED]:
            return SandboxLevel.OWN_USER if has_own_user else SandboxLevel.NONE
        if not has_own_user:
            return SandboxLevel.SHARED_USER
        shares_namespace = os.readlink(f"/proc/{pid}/ns/user") == os.readlink("/proc/self/ns/user")
    except (OSError, LookupError, ValueError):
        return None
    return SandboxLevel.NO_USER_NAMESPACE if shares_namespace else SandboxLevel.FULL
