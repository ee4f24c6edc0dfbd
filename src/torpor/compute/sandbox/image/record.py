"""What is known of an image that was built: one JSON file beside it. An image without its record doesn't count.

Written atomically; read by anyone.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from torpor.compute.sandbox.image.contents import Part
from torpor.compute.sandbox.image.packing import Kind
from torpor.compute.sandbox.image.tree import Share

SCRATCH_PREFIX = ".making-"
_SUFFIX = ".json"


@dataclass(frozen=True, slots=True)
class Image:
    """One image. `source`: the PostgreSQL that it was built from. `why_tree`: why it isn't one file that is mounted."""

    major: int
    version: str
    source: str
    digest: str
    fingerprint: str
    kind: Kind
    bindir: PurePosixPath
    shares: tuple[Share, ...]
    left_out: tuple[tuple[str, str], ...]
    bytes: int
    built_at: float
    build_s: float
    why_tree: str = ""

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.major}-{self.digest}"

    @property
    def file_name(self) -> str:
        """Of the file or the directory that holds it."""
        return self.name if self.kind is Kind.TREE else f"{self.name}.{self.kind}"

    @property
    def unpacked_bytes(self) -> int:
        """Of all files inside."""
        return sum(share.bytes for share in self.shares)


def save(directory: Path, image: Image) -> None:
    """Make an image count. Raises OSError."""
    path = directory / f"{image.name}{_SUFFIX}"
    temporary = directory / f"{SCRATCH_PREFIX}{path.name}"
    with temporary.open("w") as stream:
        json.dump(asdict(image), stream, default=str)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.chmod(0o644)
    temporary.replace(path)


def forget(directory: Path, image: Image) -> None:
    """The first step of removing an image. Idempotent."""
    (directory / f"{image.name}{_SUFFIX}").unlink(missing_ok=True)


def load_all(directory: Path) -> list[Image]:
    """The images that are there, newest first."""
    try:
        names = [name for name in os.listdir(directory) if name.endswith(_SUFFIX) and not name.startswith(".")]
    except OSError:
        return []
    found = [image for name in names if (image := _load(directory / name)) is not None and (directory / image.file_name).exists()]
    return sorted(found, key=lambda image: image.built_at, reverse=True)


def _load(path: Path) -> Image | None:
    try:
        raw = json.loads(path.read_text())
        raw["kind"] = Kind(raw["kind"])
        raw["bindir"] = PurePosixPath(raw["bindir"])
        raw["shares"] = tuple(Share(**share | {"part": Part(share["part"])}) for share in raw["shares"])
        raw["left_out"] = tuple((name, why) for name, why in raw["left_out"])
        return Image(**raw)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # of another version of Torpor, or damaged: built again
