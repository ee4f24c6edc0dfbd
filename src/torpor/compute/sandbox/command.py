"""The command line that shuts a program in, level by level. Pure.

What is inside of a sandbox, and nothing else:

    /            the root image of the major, read-only
    /data        the volume, the one place that outlives the compute
    /conf        Torpor's configuration files, read-only
    /torpor      Torpor's library, read-only
    /tmp, /dev   private, in memory, limited in size, counted as the compute's own; /dev/shm is a directory of /dev

There is no /proc and no /sys: PostgreSQL needs neither (docs/decisions/0007-the-sandbox.md).
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from torpor.model.errors import HostError
from torpor.model.sandbox import SandboxLevel

DATA, CONFIGURATION, LIBRARY_DIRECTORY = PurePath("/data"), PurePath("/conf"), PurePath("/torpor")
LOCKED_FILE = "PG_VERSION"
"""Of the volume: the sandbox's first process holds a lock on it as long as it lives, which tells who still uses a volume."""

_DEVICES = ("null", "zero", "random", "urandom")
_HOSTNAME = "database"
_TMP_BYTES = 128 << 20
_SHARED_MEMORY_BYTES = 512 << 20  # for /dev/shm: what parallel workers share
_PATH = "/usr/bin:/bin:/usr/sbin:/sbin"


@dataclass(frozen=True, slots=True)
class Confinement:
    """What is shut in: by whom it is run, and the directories of the host that it gets. `filter_fd` holds the system-call filter."""

    level: SandboxLevel
    uid: int
    root: Path
    data: Path
    configuration: Path
    library: Path
    filter_fd: int


def confined(given: Confinement, environment: Mapping[str, str], program: list[str], more: Sequence[str] = ()) -> list[str]:
    """The command line that runs `program` (a path inside) with exactly this environment, at a level that is a sandbox.

    `more` are further options of bwrap's.

    Descriptors that are open stay open for the program, but for the filter's.
    """
    inside = dict(environment)
    line = []
    match given.level:
        case SandboxLevel.FULL:
            line += dropped(given.uid)
        case SandboxLevel.SHARED_USER:
            # Torpor may have been given one to listen on a low port, say; bwrap refuses to run with any.
            line += [tool("setpriv"), "--inh-caps=-all", "--ambient-caps=-all"]
        case _:
            pass
    line.append(tool("bwrap"))
    if given.level is SandboxLevel.NO_USER_NAMESPACE:
        # bwrap itself needs root for the other namespaces. What it starts keeps the right to change its user, and the library, which
        # runs before PostgreSQL does, uses that up; no-new-privileges (bwrap sets it) holds from the start.
        line += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        inside["TORPOR_UID"] = str(given.uid)
    else:
        line.append("--unshare-user")
    line += ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-net", "--hostname", _HOSTNAME, "--new-session"]
    line += ["--ro-bind", str(given.root), "/"]
    line += ["--size", str(_SHARED_MEMORY_BYTES), "--tmpfs", "/dev", "--perms", "1777", "--dir", "/dev/shm"]  # noqa: S108  # of the sandbox
    for name in _DEVICES:
        line += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    line += ["--perms", "1777", "--size", str(_TMP_BYTES), "--tmpfs", "/tmp"]  # noqa: S108
    line += ["--bind", str(given.data), str(DATA)]
    line += ["--ro-bind", str(given.configuration), str(CONFIGURATION)]
    line += ["--ro-bind", str(given.library.parent), str(LIBRARY_DIRECTORY)]
    if given.level is not SandboxLevel.NO_USER_NAMESPACE:  # there the first process is a root without any rights, to whom /data is closed
        line += ["--lock-file", str(DATA / LOCKED_FILE)]
    line += [*more, "--chdir", "/", "--clearenv"]
    for name, value in inside.items():
        line += ["--setenv", name, value]
    return [*line, "--seccomp", str(given.filter_fd), "--", *program]


def dropped(uid: int) -> list[str]:
    """The beginning of a command line that becomes an ordinary user for good. Needs root."""
    return [tool("setpriv"), f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--no-new-privs", "--inh-caps=-all",
            "--bounding-set=-all"]  # fmt: skip


def tool(name: str) -> str:
    """The path of a program of the host. Raises HostError."""
    path = shutil.which(name, path=_PATH)
    if path is None:
        package = "bubblewrap" if name == "bwrap" else "util-linux"
        raise HostError(f"the program {name} (package {package}) is missing", "install it")
    return path
