"""Compiles the C library that receives sockets inside a compute, for wheels and for editable installs.

`CC`, `CFLAGS` and `LDFLAGS` are respected. The library is written beside its source and replaced atomically, since a running
Torpor may have just mapped the one that is there.
"""

import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("src/torpor/native/handover.c")
LIBRARY = Path("src/torpor/native/libtorpor.so")
FLAGS = ("-std=gnu11", "-O2", "-g", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-fstack-protector-strong", "-Wl,-z,relro,-z,now")


def compile_library(root: Path) -> None:
    """Compile SOURCE to LIBRARY below `root`. Ends the build with one sentence when there is no compiler or the code is refused."""
    compiler = shlex.split(os.environ.get("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        raise SystemExit(f"Torpor needs a C compiler and {compiler[0]!r} isn't there: install gcc and libc6-dev, or set CC")
    target = root / LIBRARY
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    extra = shlex.split(os.environ.get("CFLAGS", "")), shlex.split(os.environ.get("LDFLAGS", ""))
    command = [*compiler, *FLAGS, *extra[0], "-o", str(partial), str(root / SOURCE), *extra[1], "-ldl"]
    try:
        run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if run.returncode:
            raise SystemExit(f"{SOURCE} doesn't compile with {shlex.join(command)}:\n{run.stderr.strip()}")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


class NativeLibraryHook(BuildHookInterface[Any]):
    """Puts the compiled library into the wheel, which is then good for this platform only but for any Python 3."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Runs before a target is built; `version` is "editable" for an editable install."""
        if self.target_name != "wheel":
            return
        compile_library(Path(self.root))
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
