"""Compiles what is written in C, for wheels and for editable installs: the library that receives sockets inside a compute, the program
that copies volumes, and the relay that terminates TLS.

`CC`, `CFLAGS` and `LDFLAGS` are respected. Each is written beside its source and replaced atomically, since a running Torpor may have
just mapped the one that is there. The relay needs OpenSSL's headers; where they are missing Torpor is built without it, and says so.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LIBRARY_SOURCE = Path("src/torpor/native/handover.c")
LIBRARY = Path("src/torpor/native/libtorpor.so")
COPIER_SOURCE = Path("src/torpor/native/copier.c")
COPIER = Path("src/torpor/native/torpor-copier")
RELAY_SOURCES = Path("src/torpor/native/relay")
RELAY = Path("src/torpor/native/torpor-relay")
FLAGS = ("-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-fstack-protector-strong", "-Wl,-z,relro,-z,now")
LIBRARY_FLAGS = ("-fPIC", "-shared")
PROGRAM_FLAGS = ("-fPIE", "-pie", "-D_FORTIFY_SOURCE=2")


def compile_native(root: Path) -> None:
    """Compile everything below `root`. Ends the build with one sentence when there is no compiler or the code is refused."""
    compiler = shlex.split(os.environ.get("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        raise SystemExit(f"Torpor needs a C compiler and {compiler[0]!r} isn't there: install gcc and libc6-dev, or set CC")
    _compile(compiler, root, [LIBRARY_SOURCE], LIBRARY, LIBRARY_FLAGS, ("-ldl",))
    _compile(compiler, root, [COPIER_SOURCE], COPIER, PROGRAM_FLAGS, ("-pthread",))
    if _has_header(compiler, "openssl/ssl.h"):
        sources = sorted(path.relative_to(root) for path in (root / RELAY_SOURCES).glob("*.c"))
        _compile(compiler, root, sources, RELAY, PROGRAM_FLAGS, ("-lssl", "-lcrypto"))
    else:
        (root / RELAY).unlink(missing_ok=True)
        print("Torpor is built without TLS, as OpenSSL's headers are missing: install libssl-dev and install Torpor again", file=sys.stderr)


def _compile(
    compiler: list[str], root: Path, sources: list[Path], product: Path, flags: tuple[str, ...], libraries: tuple[str, ...]
) -> None:
    target = root / product
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    extra = shlex.split(os.environ.get("CFLAGS", "")), shlex.split(os.environ.get("LDFLAGS", ""))
    command = [*compiler, *FLAGS, *flags, *extra[0], "-o", str(partial), *(str(root / source) for source in sources), *extra[1], *libraries]
    try:
        run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if run.returncode:
            raise SystemExit(f"{sources[0].parent} doesn't compile with {shlex.join(command)}:\n{run.stderr.strip()}")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _has_header(compiler: list[str], name: str) -> bool:
    command = [*compiler, *shlex.split(os.environ.get("CFLAGS", "")), "-E", "-include", name, "-xc", "-"]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0


class NativeLibraryHook(BuildHookInterface[Any]):
    """Puts what was compiled into the wheel, which is then good for this platform only but for any Python 3."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Runs before a target is built; `version` is "editable" for an editable install."""
        if self.target_name != "wheel":
            return
        compile_native(Path(self.root))
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
