"""The images of one Torpor: built when missing or out of date, mounted, found again at the next start, thrown away.

Concurrency: `ready` belongs to the event loop and works in threads, one at a time per major; whoever asks meanwhile waits for it. All
else is synchronous, for commands and threads. A file lock keeps two processes from building at once. An image counts only when its record
is there; what an interruption leaves is removed by the next build.
"""

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from torpor.base.host.machine import HostActionFailed, Machine
from torpor.base.logs import get_logger
from torpor.compute.binaries import Postgres
from torpor.compute.sandbox.image import mounting, record, tree
from torpor.compute.sandbox.image.contents import Contents, gather
from torpor.compute.sandbox.image.packing import LIMIT_BYTES, PACKED, Kind, obstacle, pack
from torpor.compute.sandbox.image.record import SCRATCH_PREFIX, Image
from torpor.compute.sandbox.image.tree import Tree
from torpor.model.errors import Conflict, ImageUnusable

log = get_logger(__name__)

DIRECTORY_NAME = "images"


@dataclass(frozen=True, slots=True)
class Root:
    """What a sandbox has as `/`: a directory of the host, and where in it `postgres` is."""

    path: Path
    bindir: PurePath


class Images:
    """The images in one directory, mounted below a data directory. By default both are <data_dir>/images."""

    def __init__(
        self, data_dir: Path, binaries: Callable[[int], Postgres], home: Path | None = None, machine: Machine | None = None
    ) -> None:
        """`home` is where the images are kept; several Torpors may share one. Nothing is made yet."""
        self.points = data_dir / DIRECTORY_NAME
        self.home = home or self.points
        self._binaries = binaries
        self._machine = machine or Machine()
        self._roots: dict[int, Root] = {}
        self._locks: dict[int, asyncio.Lock] = {}

    async def ready(self, major: int) -> Root:
        """The root of a major, built first if need be (a second or two, once). Raises HostError. Safe to cancel: the build goes on."""
        if not self._is_there(major):
            async with self._locks.setdefault(major, asyncio.Lock()):
                if not self._is_there(major):
                    await asyncio.to_thread(self.ensure, major)
        return self._roots[major]

    def root(self, major: int) -> Root:
        """The root of a major that is ready. Raises ImageUnusable before."""
        if major not in self._roots:
            raise ImageUnusable(f"the root image of PostgreSQL {major} isn't there yet", f"run `torpor image build {major}`")
        return self._roots[major]

    def ensure(self, major: int, mounted: bool = True, force: bool = False) -> Image:
        """The image of the installed PostgreSQL of a major as it is now, built if need be, and mounted unless that isn't wanted.

        Raises HostError. Where an image can't be mounted a plain tree is built instead, and `why_tree` says why.
        """
        contents = gather(self._binaries(major))
        with self._locked():
            possible, why = self._possible_kinds()
            fingerprint = tree.fingerprint(contents, ",".join(possible))
            image = next((one for one in record.load_all(self.home) if one.major == major and one.fingerprint == fingerprint), None)
            if image is None or force:
                image = self._build(contents, possible, why, fingerprint)
            if mounted and image.kind is not Kind.TREE:
                try:
                    mounting.mount(self.home / image.file_name, self.points / image.name, image.kind)
                except (HostActionFailed, OSError) as error:  # it could be when it was built, maybe elsewhere
                    log.warning("the root image can't be mounted; making a plain tree", major=major, cause=str(error))
                    image = self._build(contents, (), str(error), fingerprint)
        if mounted:
            self._roots[major] = Root(self.path(image), image.bindir)
        return image

    def path(self, image: Image) -> Path:
        """The directory that shows what is in an image, once it is mounted."""
        return (self.home if image.kind is Kind.TREE else self.points) / image.name

    def all(self) -> list[Image]:
        """The images that are there, newest first."""
        return record.load_all(self.home)

    def users(self, image: Image) -> int:
        """How many sandboxes run on an image. Looks at every process (100 ms with ten thousand of them)."""
        return mounting.users(self.path(image))

    def is_mounted(self, image: Image) -> bool:
        """Whether it is mounted below this data directory."""
        return image.kind is not Kind.TREE and os.path.ismount(self.path(image))

    def outdated(self) -> list[Image]:
        """The images that a newer one of the same PostgreSQL has replaced."""
        newest: dict[tuple[int, str], Image] = {}
        return [image for image in self.all() if newest.setdefault((image.major, image.source), image) is not image]

    def tidy(self) -> list[Image]:
        """Remove what was replaced and isn't used any more, mounts of what is gone, and half-made images. Returns what was removed."""
        if not self.home.is_dir():
            return []
        with self._locked():
            self._clear_half_made()
            removed = [image for image in self.outdated() if not self.users(image) and self._remove(image)]
            known = {image.name for image in self.all()}
            with contextlib.suppress(FileNotFoundError):
                for point in list(self.points.iterdir()):
                    if point.name not in known and os.path.ismount(point) and not mounting.users(point):
                        mounting.unmount(point)
            return removed

    def remove(self, image: Image) -> None:
        """Remove one image. Raises Conflict while sandboxes run on it."""
        with self._locked():
            if count := self.users(image):
                raise Conflict(
                    f"{count} running computes use the image {image.name}",
                    "once they have stopped (`torpor sleep NAME --tier stopped`) it can be removed",
                )
            self._remove(image)
        self._roots = {major: root for major, root in self._roots.items() if root.path != self.path(image)}

    def close(self) -> None:
        """Unmount what this Torpor has mounted and no compute uses. Images stay; so do mounts that somebody is in."""
        for root in self._roots.values():
            if root.path.parent == self.points and os.path.ismount(root.path) and not mounting.users(root.path):
                mounting.unmount(root.path)
        self._roots.clear()

    def _is_there(self, major: int) -> bool:
        """Whether the root is still where it was: somebody may have unmounted or removed it."""
        root = self._roots.get(major)
        return root is not None and (root.path / root.bindir.relative_to("/") / "postgres").exists()

    def _possible_kinds(self) -> tuple[tuple[Kind, ...], str]:
        obstacles = {kind: obstacle(kind, self._machine) for kind in PACKED}
        return tuple(kind for kind in PACKED if not obstacles[kind]), "; ".join(dict.fromkeys(why for why in obstacles.values() if why))

    def _build(self, contents: Contents, possible: tuple[Kind, ...], why: str, fingerprint: str) -> Image:
        self._clear_half_made()
        started = time.monotonic()
        try:
            with tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, dir=self.home, ignore_cleanup_errors=True) as name:
                scratch = Path(name)
                written = tree.write(contents, scratch / "root")
                image = Image(
                    major=contents.major,
                    version=contents.version,
                    source=str(self._binaries(contents.major).bindir),
                    digest=_digest(written, Kind.TREE),
                    fingerprint=fingerprint,
                    kind=Kind.TREE,
                    bindir=contents.bindir,
                    shares=written.shares,
                    left_out=contents.left_out,
                    bytes=sum(share.bytes for share in written.shares),
                    built_at=time.time(),
                    build_s=0.0,
                )
                packed, complaints = self._pack(contents, written, image, scratch, possible)
                image = packed or replace(image, why_tree="; ".join(complaints) or why)
                made = scratch / ("root" if packed is None else image.kind)
                image = replace(image, build_s=round(time.monotonic() - started, 2))
                self._put_in_place(made, image)
                record.save(self.home, image)
                return image
        except OSError as error:
            raise _refused(contents.major, error) from error

    def _pack(
        self, contents: Contents, written: Tree, image: Image, scratch: Path, possible: tuple[Kind, ...]
    ) -> tuple[Image | None, list[str]]:
        """The first kind that can be made and mounted, the smallest if none is below the limit; and why others can't."""
        best: Image | None = None
        complaints = []
        for kind in possible:
            file = scratch / kind
            point = scratch / "mounted"
            try:
                pack(scratch / "root", file, kind, written.digest, self._machine)
                size = file.stat().st_size
                mounting.mount(file, point, kind)
                try:
                    shares = tree.packed_shares(contents, written.shares, point, size)
                finally:
                    mounting.unmount(point)
            except HostActionFailed as error:
                complaints.append(str(error))
                continue
            if best is None or size < best.bytes:
                best = replace(image, kind=kind, digest=_digest(written, kind), bytes=size, shares=shares)
            if size <= LIMIT_BYTES:
                break
        return best, complaints

    def _put_in_place(self, made: Path, image: Image) -> None:
        final = self.home / image.file_name
        if image.kind is not Kind.TREE:
            made.chmod(0o644)
            descriptor = os.open(made, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            made.replace(final)
        elif not mounting.users(final):  # those who are in it have the same files, by its name
            mounting.sync(self.home)  # a crash after the rename must not leave empty files behind it
            if final.exists():
                final.rename(made.with_name("replaced"))
            made.rename(final)

    def _remove(self, image: Image) -> bool:
        record.forget(self.home, image)
        if image.kind is Kind.TREE:
            shutil.rmtree(self.home / image.file_name, ignore_errors=True)
            return True
        (self.home / image.file_name).unlink(missing_ok=True)
        return mounting.unmount(self.path(image))

    def _clear_half_made(self) -> None:
        """What a killed build has left: it holds no lock any more. Whoever calls holds it."""
        for left in self.home.glob(f"{SCRATCH_PREFIX}*"):
            mounting.unmount(left / "mounted")
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
        known = {name for image in self.all() for name in (image.name, image.file_name)}
        for path in self.home.glob("[0-9]*-*"):
            if path.name in known or path.suffix == ".json":
                continue
            # A packed image or a tree whose record was never written, or an empty mount point.
            if not path.is_dir():
                path.unlink(missing_ok=True)
            elif not os.path.ismount(path) and not mounting.users(path):
                shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            for directory in {self.home, self.points}:
                directory.mkdir(parents=True, exist_ok=True)
                directory.chmod(0o755)
            descriptor = os.open(self.home / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ImageUnusable(
                f"{error.filename} can't be written ({error.strerror})", "mend its owner and mode, or set image_home to another directory"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _digest(written: Tree, kind: Kind) -> str:
    return hashlib.sha256(f"{written.digest} {kind}".encode()).hexdigest()[:12]


def _refused(major: int, error: OSError) -> ImageUnusable:
    what = f"the root image of PostgreSQL {major} can't be built"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ImageUnusable(f"{what}: the disk is full", "make room: it takes about 80 MB while it is built, and 20 to 45 MB afterwards")
    return ImageUnusable(f"{what}: {error.filename} ({error.strerror})", "mend that, and run `torpor image build`")
