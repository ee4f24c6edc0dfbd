"""`torpor image`: the root images that computes have as their `/`. Works on the host's files, without a running Torpor."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from torpor.cli import text
from torpor.cli.binaries import places
from torpor.cli.errors import CommandError
from torpor.cli.invocation import Invocation, with_invocation
from torpor.cli.root import LazyGroup
from torpor.compute import binaries
from torpor.compute.sandbox.image.images import Images
from torpor.compute.sandbox.image.packing import LIMIT_BYTES
from torpor.compute.sandbox.image.record import Image
from torpor.daemon import configuration
from torpor.model.errors import BadSettings
from torpor.model.settings import Settings

image = LazyGroup(
    "image",
    {
        "build": ("image:build", "Build the root image of a PostgreSQL major, and print what went where."),
        "ls": ("image:ls", "List the root images."),
        "show": ("image:show", "Print what is in an image."),
        "rm": ("image:rm", "Remove images; without a name those that were replaced."),
    },
    "The root images: what computes have as their /.",
)


@click.command()
@click.argument("major", type=int, required=False)
@click.option("--all", "every", is_flag=True, help="Of every installed major.")
@click.option("--force", is_flag=True, help="Also when the present one is up to date.")
@with_invocation
def build(invocation: Invocation, major: int | None, every: bool, force: bool) -> None:
    """Build the root image of an installed PostgreSQL MAJOR (default: the one that new databases get), and print what went where.

    Nothing is built when the image is there and nothing that went into it has changed. Computes that run keep the image they have.
    """
    images, majors = open_images(invocation), _majors(invocation)
    wanted = sorted(majors) if every else [major if major is not None else _default_major(invocation)]
    built = []
    for one in wanted:
        if one not in majors:
            have = f" (installed: {', '.join(map(str, sorted(majors)))})" if majors else ""
            raise CommandError(
                f"PostgreSQL {one} is not installed{have}", f"install it: `torpor postgres install {one}`", kind="binaries_missing"
            )
        before = {present.built_at for present in images.all()}
        with invocation.waiting(f"building the root image of PostgreSQL {one}"):
            found = images.ensure(one, mounted=False, force=force)
        built.append((found, found.built_at not in before))
    value = [_value(images, found) | {"built_now": now} for found, now in built]
    invocation.emit({"images": value}, lambda: "\n\n".join(_described(images, found, now) for found, now in built))


@click.command()
@with_invocation
def ls(invocation: Invocation) -> None:
    """List the root images, newest first."""
    images = open_images(invocation)
    values = [_value(images, found) for found in images.all()]
    head = ["IMAGE", "POSTGRESQL", "KIND", "MB", "UNPACKED", "BUILT", "STATE"]
    rows = [
        [
            value["name"],
            value["version"],
            value["kind"],
            _mb(value["bytes"]),
            _mb(value["unpacked_bytes"]),
            datetime.fromtimestamp(value["built_at"]).strftime("%Y-%m-%d %H:%M"),
            _state(value),
        ]
        for value in values
    ]
    invocation.emit({"images": values}, lambda: text.table(head, rows, frozenset({3, 4})) if rows else "there is none")


@click.command()
@click.argument("name", required=False)
@with_invocation
def show(invocation: Invocation, name: str | None) -> None:
    """Print what is in an image: NAME as `torpor image ls` has it, or a major (default: the newest image of the default major)."""
    images = open_images(invocation)
    found = _find(images, name or str(_default_major(invocation)))[0]
    invocation.emit(_value(images, found), lambda: _described(images, found, None))


@click.command()
@click.argument("name", required=False)
@click.option("--all", "every", is_flag=True, help="All of them.")
@with_invocation
def rm(invocation: Invocation, name: str | None, every: bool) -> None:
    """Remove the image NAME, or all of a major; without a name what a newer image has replaced. Those in use stay.

    `torpor serve` builds what is missing when it is needed.
    """
    images = open_images(invocation)
    if name is None and not every:
        removed = images.tidy()
    else:
        removed = images.all() if name is None else _find(images, name)
        for found in removed:
            images.remove(found)
    names = [found.name for found in removed]
    invocation.emit({"removed": names}, lambda: f"removed {', '.join(names)}" if names else "nothing was to be removed")


def open_images(invocation: Invocation) -> Images:
    """The images that the Torpor on this data directory uses."""
    home = _settings(invocation).image_home
    usual, shared = configuration.default_data_dir(os.environ) / "images", configuration.SYSTEM_DATA_DIR / "images"
    if Path(home) == usual and not usual.is_dir() and shared.is_dir() and os.access(shared, os.R_OK | os.W_OK):
        home = str(shared)
    return Images(invocation.data_dir, lambda major: _majors(invocation)[major], Path(home))


def _settings(invocation: Invocation) -> Settings:
    try:
        return configuration.load({"data_dir": str(invocation.data_dir)}, os.environ)
    except BadSettings as error:
        raise CommandError(error.message, error.hint, kind=error.kind, code=error.exit_code) from error


def _default_major(invocation: Invocation) -> int:
    return _settings(invocation).postgres_major


def _majors(invocation: Invocation) -> dict[int, binaries.Postgres]:
    return binaries.find(*places(invocation))


def _find(images: Images, name: str) -> list[Image]:
    found = [one for one in images.all() if name in (one.name, str(one.major))]
    if not found:
        raise CommandError(f"there is no image {text.clean(name, 60)!r}", "`torpor image ls` lists them", kind="image_not_found")
    return found


def _value(images: Images, found: Image) -> dict[str, Any]:
    fields = asdict(found) | {"bindir": str(found.bindir), "left_out": dict(found.left_out)}
    parts = [asdict(share) for share in found.shares]
    rest = found.bytes - sum(share.packed_bytes for share in found.shares)
    return fields | {
        "name": found.name,
        "path": str(images.home / found.file_name),
        "unpacked_bytes": found.unpacked_bytes,
        "shares": parts,
        "other_bytes": rest,
        "mounted": images.is_mounted(found),
        "users": images.users(found),
        "outdated": found in images.outdated(),
        "limit_bytes": LIMIT_BYTES,
    }


def _described(images: Images, found: Image, now: bool | None) -> str:
    head = ["PART", "FILES", "MB ON THE HOST", "MB UNPACKED", "MB IN THE IMAGE"]
    rows = [
        [str(share.part), str(share.files), _mb(share.source_bytes), _mb(share.bytes), _mb(share.packed_bytes)] for share in found.shares
    ]
    rest = found.bytes - sum(share.packed_bytes for share in found.shares)
    if rest:
        rows.append(["directories and inodes", "", "", "", _mb(rest)])
    totals = [sum(column) for column in zip(*((one.files, one.source_bytes, one.bytes) for one in found.shares), strict=True)]
    rows.append(["total", str(totals[0]), _mb(totals[1]), _mb(totals[2]), _mb(found.bytes)])
    lines = [text.table(head, rows, frozenset({1, 2, 3, 4})), ""]
    verb = "is" if now is None else f"was built in {found.build_s:.1f} s as" if now else "is up to date:"
    lines.append(
        f"the root image of PostgreSQL {found.version} {verb} {images.home / found.file_name} ({found.kind}, {_mb(found.bytes)} MB)"
    )
    if found.why_tree:
        lines.append(f"a plain directory, because {found.why_tree}")
    lines += [f"left out: {name} ({why})" for name, why in found.left_out]
    return "\n".join(lines)


def _state(value: dict[str, Any]) -> str:
    states: Sequence[str] = [
        "replaced" if value["outdated"] else "current",
        *(["mounted"] if value["mounted"] else []),
        *([f"{value['users']} computes"] if value["users"] else []),
    ]
    return ", ".join(states)


def _mb(count: int) -> str:
    return f"{count / 1e6:.2f}"
