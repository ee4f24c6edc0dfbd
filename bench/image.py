"""The root image: its size against the files that it is made of, how long it takes to build, and what it does to a start of PostgreSQL.

Every start is in the same sandbox (bubblewrap, namespaces of its own); only the root differs: the mounted image, the same files as a plain
directory, or all of the host's. "Cold" means that none of PostgreSQL's own files is in memory; the host's C library always is.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path, PurePath

from bench import harness
from bench.harness import Result, percentile
from bench.rig import need_root, postgres, say
from torpor.base.host.machine import Machine
from torpor.compute import binaries
from torpor.compute.binaries import Postgres
from torpor.compute.sandbox.image import mounting
from torpor.compute.sandbox.image.images import Images
from torpor.compute.sandbox.image.packing import LIMIT_BYTES
from torpor.daemon.configuration import load

_BENCH = "image"
_WARM, _COLD = 60, 12
_NOBODY = 65534
_OPTIONS = {"listen_addresses": "", "unix_socket_directories": "/tmp", "io_method": "sync", "fsync": "off", "shared_buffers": "16MB"}


class _NoRoot(Machine):
    """This host, as somebody sees it who may not mount."""

    @property
    def is_root(self) -> bool:
        return False


def measure() -> list[Result]:
    """One run: sizes of every installed major, starts of the default one."""
    need_root()
    place = Path(tempfile.mkdtemp(prefix="torpor-bench-", dir="/var/tmp"))
    place.chmod(0o755)
    images = Images(place, lambda major: _installed()[major])
    try:
        results = [result for major in sorted(_installed()) for result in _sizes(images, major)]
        return results + _starts(images, place)
    finally:
        images.close()
        shutil.rmtree(place, ignore_errors=True)


def _installed() -> dict[int, Postgres]:
    settings = load({}, os.environ)
    return binaries.find(Path(settings.postgres_home), settings.pg_bindir)


def _sizes(images: Images, major: int) -> list[Result]:
    say(f"building the image of PostgreSQL {major}")
    image = images.ensure(major, mounted=False, force=True)
    host = sum(share.source_bytes for share in image.shares)
    name = f"PostgreSQL {image.version}"
    return [
        Result(_BENCH, f"{name}, {image.kind}", "MB", image.bytes / 1e6, LIMIT_BYTES / 1e6),
        Result(_BENCH, f"{name}, unpacked", "MB", image.unpacked_bytes / 1e6),
        Result(_BENCH, f"{name}, unpacked", "MB", host / 1e6, rival="the same files on the host"),
        Result(_BENCH, f"{name}, time to build", "s", image.build_s),
    ]


def _starts(images: Images, place: Path) -> list[Result]:
    installed = postgres()
    image = images.ensure(installed.major)
    mounted = images.root(installed.major)
    plain = Images(place / "plain", lambda _: installed, machine=_NoRoot())
    tree = plain.path(plain.ensure(installed.major))
    host = place / "host"  # nobody else has this copy in memory
    shutil.copytree(installed.bindir.parent, host, symlinks=True)
    cluster = _cluster(place, installed)
    os.sync()

    def remount() -> None:
        mounting.unmount(mounted.path)
        _forget(images.home / image.file_name)
        mounting.mount(images.home / image.file_name, mounted.path, image.kind)

    in_image = _sandbox(cluster, "--ro-bind", mounted.path, "/", "--dev", "/dev", "--tmpfs", "/tmp")
    in_tree = _sandbox(cluster, "--ro-bind", tree, "/", "--dev", "/dev", "--tmpfs", "/tmp")
    on_host = _sandbox(cluster, "--ro-bind", "/", "/", "--dev", "/dev", "--tmpfs", "/tmp", "--dir", "/tmp/data", data="/tmp/data")
    cases: list[tuple[str, list[str], PurePath, Callable[[], None]]] = [
        ("", in_image, image.bindir, remount),
        ("the same as a plain directory", in_tree, image.bindir, lambda: _forget(tree)),
        ("all of the host as its root", on_host, host / "bin", lambda: _forget(host)),
    ]
    cold: dict[str, list[float]] = {}
    warm: dict[str, list[float]] = {}
    say(f"{_COLD} cold and {_WARM} warm starts of each")
    results = []
    for number in range(_COLD):
        for rival, sandbox, bindir, forget in cases:
            forget()
            cold.setdefault(rival, []).append(_start(sandbox, bindir))
            if number == 0 and rival != "all of the host as its root":
                held = _cached(mounted.path, images.home / image.file_name) if not rival else _cached(tree)
                results.append(Result(_BENCH, "page cache after the first start", "MB", held / 1e6, rival=rival))
    for _ in range(_WARM):
        for rival, sandbox, bindir, _ in cases:
            warm.setdefault(rival, []).append(_start(sandbox, bindir))
    for name, samples in (("cold start until ready", cold), ("warm start until ready", warm)):
        results += [Result(_BENCH, f"{name} p50", "ms", percentile(values, 50), rival=rival) for rival, values in samples.items()]
    return results


def _cluster(place: Path, installed: Postgres) -> Path:
    home = place / "cluster"
    home.mkdir(mode=0o700)
    os.chown(home, _NOBODY, _NOBODY)
    command = [str(installed.bindir / "initdb"), "-D", str(home / "data"), "--wal-segsize=1", "--username=owner", "--auth=trust"]
    subprocess.run(command, user=_NOBODY, group=_NOBODY, extra_groups=[], cwd="/", check=True, capture_output=True)
    return home


def _sandbox(cluster: Path, *mounts: str | Path, data: str = "/data") -> list[str]:
    drop = ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", "--no-new-privs"]
    shut = ["bwrap", "--unshare-all", "--die-with-parent", *map(str, mounts), "--bind", str(cluster), data, "--chdir", "/"]
    return [*drop, *shut, "--", f"{data}/data"]


def _start(sandbox: list[str], bindir: PurePath) -> float:
    """Until PostgreSQL says that it is ready, in ms; then it is stopped in order."""
    *shut_in, data = sandbox
    command = [*shut_in, str(bindir / "postgres"), "-D", data]
    command += [part for name, value in _OPTIONS.items() for part in ("-c", f"{name}={value}")]
    began = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        words = b""
        for line in process.stderr:
            words += line
            if b"ready to accept connections" in line:
                elapsed = (time.perf_counter() - began) * 1000
                break
        else:
            raise RuntimeError(words.decode(errors="replace"))
        process.kill()  # with its namespace everything in it ends
    return elapsed


def _forget(path: Path) -> None:
    """Have the kernel forget the contents of a file, or of all files below."""
    for file in _files(path):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _cached(*paths: Path) -> int:
    """How many bytes of some files are in memory."""
    files = [file for path in paths for file in _files(path)]
    return sum(map(int, subprocess.run(["fincore", "-n", "-b", "-o", "RES", *files], capture_output=True, check=True).stdout.split()))


def _files(path: Path) -> list[Path]:
    return [file for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file() and not file.is_symlink()]


if __name__ == "__main__":
    harness.main(measure)
