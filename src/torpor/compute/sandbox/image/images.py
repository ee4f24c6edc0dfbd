"""The images of one Torpor: built when missing or out of date, found again at the next start.

Concurrency: `ready` belongs to the event loop and works in threads, one build at a time per major, whoever asks meanwhile waits for it.
`ensure` is synchronous, for commands and threads; a file lock keeps two processes from building at once. An image is there only under
its final name, with its record; whatever an interruption leaves is removed by the next build.
"""

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path, PurePath, PurePosixPath

from torpor.compute.binaries import Postgres
from torpor.compute.sandbox.image import tree
from torpor.compute.sandbox.image.contents import Contents, Part, gather
from torpor.compute.sandbox.image.tree import Share
from torpor.model.errors import ImageUnusable

DIRECTORY_NAME = "images"
_SCRATCH = ".making-"


class Kind(StrEnum):
    """How an image is kept."""

    TREE = "tree"  # a plain directory


@dataclass(frozen=True, slots=True)
class Root:
    """What a sandbox has as `/`: a directory of the host, and where in it `postgres` is."""

    path: Path
    bindir: PurePath


@dataclass(frozen=True, slots=True)
class Image:
    """One image that is there."""

    major: int
    version: str
    digest: str
    fingerprint: str
    kind: Kind
    bindir: PurePosixPath
    shares: tuple[Share, ...]
    left_out: tuple[tuple[str, str], ...]
    built_at: float
    build_s: float

    @property
    def name(self) -> str:
        """Of its files, below the directory of images."""
        return f"{self.major}-{self.digest}"

    @property
    def bytes(self) -> int:
        """Of all files, unpacked."""
        return sum(share.bytes for share in self.shares)


class Images:
    """All images below one data directory."""

    def __init__(self, data_dir: Path, binaries: Callable[[int], Postgres]) -> None:
        self.directory = data_dir / DIRECTORY_NAME
        self._binaries = binaries
        self._roots: dict[int, Root] = {}
        self._locks: dict[int, asyncio.Lock] = {}

    async def ready(self, major: int) -> Root:
        """The root of a major, built first if need be (a second or two, once). Raises HostError. Safe to cancel: the build goes on."""
        if major not in self._roots:
            async with self._locks.setdefault(major, asyncio.Lock()):
                if major not in self._roots:
                    await asyncio.to_thread(self.ensure, major)
        return self._roots[major]

    def root(self, major: int) -> Root:
        """The root of a major that is ready. Raises ImageUnusable before."""
        if major not in self._roots:
            raise ImageUnusable(f"the root image of PostgreSQL {major} isn't there yet", f"run `torpor image build {major}`")
        return self._roots[major]

    def ensure(self, major: int, force: bool = False) -> Image:
        """The image of the installed PostgreSQL of a major as it is now, built if need be. Raises HostError."""
        contents = gather(self._binaries(major))
        with self._locked():
            fingerprint = tree.fingerprint(contents)
            image = next((found for found in self.all() if found.major == major and found.fingerprint == fingerprint), None)
            if image is None or force:
                image = self._build(contents, fingerprint)
        self._roots[major] = Root(self.directory / image.name, image.bindir)
        return image

    def all(self) -> list[Image]:
        """What is there, newest first."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for path in self.directory.glob("*.json"):
                if (image := _read(path)) is not None and (self.directory / image.name).is_dir():
                    found.append(image)
        return sorted(found, key=lambda image: image.built_at, reverse=True)

    def _build(self, contents: Contents, fingerprint: str) -> Image:
        started = time.monotonic()
        for left in self.directory.glob(f"{_SCRATCH}*"):
            shutil.rmtree(left, ignore_errors=True)
        try:
            with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=self.directory) as scratch:
                root = Path(scratch) / "root"
                written = tree.write(contents, root)
                image = Image(
                    contents.major, contents.version, written.digest, fingerprint, Kind.TREE, contents.bindir, written.shares,
                    contents.left_out, time.time(), time.monotonic() - started,
                )  # fmt: skip
                final = self.directory / image.name
                if not final.exists():
                    os.sync()  # a crash after the rename must not leave empty files behind it
                    root.rename(final)
                self._save(image)
                return image
        except OSError as error:
            raise _refused(contents.major, error) from error

    def _save(self, image: Image) -> None:
        path = self.directory / f"{image.name}.json"
        temporary = path.with_name(f"{_SCRATCH}{path.name}")
        with temporary.open("w") as stream:
            json.dump(asdict(image), stream, default=str)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self.directory.chmod(0o755)
            descriptor = os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ImageUnusable(f"{self.directory} can't be written ({error.strerror})", "mend its owner and mode") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _read(path: Path) -> Image | None:
    try:
        raw = json.loads(path.read_text())
        return Image(
            **raw
            | {
                "kind": Kind(raw["kind"]),
                "bindir": PurePosixPath(raw["bindir"]),
                "shares": tuple(Share(**share | {"part": Part(share["part"])}) for share in raw["shares"]),
                "left_out": tuple((name, why) for name, why in raw["left_out"]),
            }
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None  # of another version, or damaged: built again


def _refused(major: int, error: OSError) -> ImageUnusable:
    what = f"the root image of PostgreSQL {major} can't be built"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ImageUnusable(f"{what}: the disk is full", "make room (it takes about 120 MB while it is built, 20 to 40 MB after)")
    return ImageUnusable(f"{what}: {error.strerror} ({error.filename})", "mend that and run `torpor image build`")
