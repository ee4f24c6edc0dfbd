"""Compiles what is written in C, for wheels and for editable installs: the library that receives sockets inside a compute, the program
that copies volumes, and the relay that terminates TLS; and the pool's hot path, which is Python that Cython makes C of.

`CC`, `CFLAGS` and `LDFLAGS` are respected. Each is written beside its source and replaced atomically, since a running Torpor may have
just mapped the one that is there. The relay needs OpenSSL's headers; where they are missing Torpor is built without it, and says so. So
it is with the pool and Python's headers: it is interpreted then. `python hatch_build.py` compiles the pool if it has changed, and no more.
"""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LIBRARY_SOURCE = Path("src/torpor/native/handover.c")
LIBRARY = Path("src/torpor/native/libtorpor.so")
COPIER_SOURCE = Path("src/torpor/native/copier.c")
COPIER = Path("src/torpor/native/torpor-copier")
RELAY_SOURCES = Path("src/torpor/native/relay")
RELAY = Path("src/torpor/native/torpor-relay")
POOL = Path("src/torpor/gateway/pool")
FLAGS = ("-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-fstack-protector-strong", "-Wl,-z,relro,-z,now")
LIBRARY_FLAGS = ("-fPIC", "-shared")
CYTHON_FLAGS = ("-3", "-X", "annotation_typing=False")  # types are those of the .pxd files; annotations stay what mypy reads
MODULE_FLAGS = ("-O1", "-fPIC", "-shared", "-fno-strict-overflow", "-fwrapv", "-fstack-protector-strong", "-Wl,-z,relro,-z,now")
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


def compile_pool(root: Path) -> bool:
    """Compile the pool's hot path below `root`, unless it is compiled as it is. Whether there is a compiled form now."""
    package = root / POOL
    forms = _load(package / "forms.py")
    folder = package / forms.COMPILED
    now = forms.stamp(package)
    if (folder / forms.STAMP).is_file() and (folder / forms.STAMP).read_text() == now:
        return True
    compiler = shlex.split(os.environ.get("CC") or "cc")
    lacking = _lacking(compiler)
    if lacking:
        shutil.rmtree(folder, ignore_errors=True)
        print(f"Torpor's pool of connections is interpreted, not compiled: {lacking}, and install Torpor again", file=sys.stderr)
        return False
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    partial.mkdir()
    try:
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for _ in threads.map(lambda each: _compile_module(compiler, root, partial, *each), forms.modules(package).items()):
                pass
        (partial / forms.STAMP).write_text(now)
        shutil.rmtree(folder, ignore_errors=True)  # what is running has it mapped, and keeps it
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _lacking(compiler: list[str]) -> str:
    """What is to be done before Python modules can be compiled; empty when nothing is."""
    if shutil.which(compiler[0]) is None:
        return "install gcc and libc6-dev, or set CC"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return f"install python{sys.version_info.major}.{sys.version_info.minor}-dev"
    if importlib.util.find_spec("Cython") is None:
        return "install Cython"
    return ""


def _compile_module(compiler: list[str], root: Path, folder: Path, name: str, source: Path) -> None:
    code = folder / f"{name}.c"
    module = ".".join((*POOL.parts[1:], name))
    cython = [
        sys.executable,
        "-m",
        "cython",
        *CYTHON_FLAGS,
        "--module-name",
        module,
        "-o",
        str(code),
        str(source.relative_to(root / "src")),
    ]
    _run(cython, root / "src", f"{source} can't be made C of")
    extra = shlex.split(os.environ.get("CFLAGS", "")), shlex.split(os.environ.get("LDFLAGS", ""))
    product = folder / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    include = f"-I{sysconfig.get_path('include')}"
    _run([*compiler, *MODULE_FLAGS, *extra[0], include, "-o", str(product), str(code), *extra[1]], root, f"{source} doesn't compile")
    code.unlink()


def _run(command: list[str], directory: Path, trouble: str) -> None:
    run = subprocess.run(command, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{trouble} with {shlex.join(command)}:\n{run.stdout.strip()}\n{run.stderr.strip()}")


class NativeLibraryHook(BuildHookInterface[Any]):
    """Puts what was compiled into the wheel: good for this platform only, and for this Python only if the pool is compiled."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Runs before a target is built; `version` is "editable" for an editable install."""
        if self.target_name != "wheel":
            return
        compile_native(Path(self.root))
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        python = f"cp{sys.version_info.major}{sys.version_info.minor}"
        build_data["tag"] = f"{python}-{python}-{platform}" if compile_pool(Path(self.root)) else f"py3-none-{platform}"


if __name__ == "__main__":
    compile_pool(Path(__file__).parent)
