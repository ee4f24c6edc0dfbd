"""What this host's computes are shut in with: found out once at start by really trying, then the same for every start.

Concurrency: `find_sandbox` starts processes and waits for them (50 ms): call it before the event loop runs. The rest are values.
"""

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torpor.compute.sandbox.command import LIBRARY_DIRECTORY, LOCKED_FILE, Confinement, confined
from torpor.compute.sandbox.filter import compile_filter
from torpor.compute.sandbox.image.images import Images, Root
from torpor.compute.sandbox.libseccomp import ARCHITECTURES, SeccompMissing
from torpor.model.errors import HostError, SandboxTooWeak
from torpor.model.sandbox import AUTO, SandboxLevel, SandboxReport

_PATIENCE_S = 20.0

AS_ROOT = (SandboxLevel.FULL, SandboxLevel.NO_USER_NAMESPACE, SandboxLevel.OWN_USER)
AS_USER = (SandboxLevel.SHARED_USER, SandboxLevel.NONE)


@dataclass(frozen=True, slots=True)
class Sandbox:
    """The level that computes get, and what that takes. `images` and `filter` are there for levels that are sandboxes."""

    report: SandboxReport
    images: Images | None = None
    filter: Path | None = None

    @property
    def level(self) -> SandboxLevel:
        """The level that every compute started from now on gets."""
        return self.report.level

    async def root(self, major: int) -> Root | None:
        """What a compute of that major has as `/`, made if need be; None for the host's own. Raises HostError."""
        return await self.images.ready(major) if self.images is not None and self.level.is_sandbox else None


def no_sandbox() -> Sandbox:
    """Without trying: what is always there."""
    return Sandbox(SandboxReport(SandboxLevel.OWN_USER if os.geteuid() == 0 else SandboxLevel.NONE))


def find_sandbox(
    required: str, major: int, uid: int, images: Images, library: Path, configuration: Path, publish: Callable[[bytes], Path]
) -> Sandbox:
    """The strongest level at which PostgreSQL `major` starts on this host; builds its root image first if need be.

    `publish` keeps the filter in a file. Raises SandboxTooWeak when the level is below `required`, HostError when no image can be built.
    """
    levels = AS_ROOT if os.geteuid() == 0 else AS_USER
    found = _strongest(levels, major, uid, images, library, configuration, publish)
    if required != AUTO and not found.level.suffices(SandboxLevel(required)):
        raise SandboxTooWeak(
            f"this host gives computes the sandbox level {found.level} ({found.report.why}), and the setting sandbox asks for {required}",
            found.report.remedy or "set sandbox to auto to run all the same",
        )
    return found


def _strongest(
    levels: tuple[SandboxLevel, ...],
    major: int,
    uid: int,
    images: Images,
    library: Path,
    configuration: Path,
    publish: Callable[[bytes], Path],
) -> Sandbox:
    unprivileged = os.geteuid() != 0
    complaints: list[str] = []
    try:
        filter_path = publish(compile_filter(_machine()))
    except SeccompMissing as error:
        return Sandbox(SandboxReport(levels[-1], f"system calls can't be filtered: {error}", "install the package libseccomp2"))
    if shutil.which("bwrap", path="/usr/bin:/bin:/usr/sbin:/sbin") is None:
        return Sandbox(SandboxReport(levels[-1], "bubblewrap (bwrap) is not installed", "install the package bubblewrap"))
    images.ensure(major)
    root = images.root(major)
    for level in levels:
        if not level.is_sandbox:
            break
        complaint = try_level(level, uid, root, library, configuration, filter_path)
        if complaint is None:
            return Sandbox(_report(level, complaints, unprivileged), images, filter_path)
        complaints.append(complaint)
    remedy = (
        "allow user namespaces (user.max_user_namespaces above 0, kernel.apparmor_restrict_unprivileged_userns = 0), or run as root"
        if unprivileged
        else "let this root make namespaces (in a container: run it privileged)"
    )
    return Sandbox(SandboxReport(levels[-1], f"no sandbox could be made: {(complaints or ['not tried'])[0]}", remedy))


def _report(level: SandboxLevel, complaints: list[str], unprivileged: bool) -> SandboxReport:
    if not complaints and not unprivileged:
        return SandboxReport(level)
    if unprivileged:
        return SandboxReport(level, "Torpor doesn't run as root, so every compute has its uid", "run `torpor serve` as root")
    return SandboxReport(
        level,
        f"ordinary users may not make user namespaces here: {complaints[0]}",
        "set kernel.apparmor_restrict_unprivileged_userns = 0, or user.max_user_namespaces above 0",
    )


def try_level(level: SandboxLevel, uid: int, root: Root, library: Path, configuration: Path, filter_path: Path) -> str | None:
    """Run `postgres --version` shut in exactly as a compute is. None when it worked, else what was complained of."""
    with tempfile.TemporaryDirectory(prefix=".probe-", dir=filter_path.parent) as scratch:
        Path(scratch).chmod(0o711)
        data = Path(scratch) / "data"
        data.mkdir(mode=0o700)
        (data / LOCKED_FILE).touch(0o600)
        if os.geteuid() == 0:
            for path in (data, data / LOCKED_FILE):
                os.chown(path, uid, uid)
        try:
            with filter_path.open("rb") as filter_file:
                given = Confinement(level, uid, root.path, data, configuration, library, filter_file.fileno())
                environment = {"LANG": "C.UTF-8", "LD_PRELOAD": str(LIBRARY_DIRECTORY / library.name)}
                run = subprocess.run(
                    confined(given, environment, [str(root.bindir / "postgres"), "--version"]),
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    timeout=_PATIENCE_S,
                    check=False,
                    cwd="/",
                    env={},
                    pass_fds=[filter_file.fileno()],
                )
        except (OSError, subprocess.TimeoutExpired, HostError) as error:
            return str(error)
    if run.returncode == 0 and "PostgreSQL" in run.stdout:
        return None
    lines = run.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit code {run.returncode}"


def _machine() -> str:
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise SeccompMissing(f"there is no filter for {machine}")
    return machine
