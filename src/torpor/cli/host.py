"""`torpor host setup` and `torpor host undo`: as root, step by step, as often as one likes."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click

from torpor.base.host import packages, record
from torpor.base.host import setup as executors
from torpor.base.host.facts import probe
from torpor.base.host.machine import HostActionFailed, Machine
from torpor.base.host.plan import State, Step, Wishes, plan
from torpor.cli.errors import CommandError, Exit
from torpor.cli.invocation import Invocation, with_invocation
from torpor.cli.root import LazyGroup
from torpor.daemon import configuration

T = TypeVar("T")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", re.IGNORECASE)
_COLORS = {State.CHANGED: "green", State.FAILED: "red", State.CHANGE: "yellow"}

host = LazyGroup(
    "host",
    {
        "setup": ("host:setup", "Give this host what it lacks: packages, a copy-on-write pool, zram swap. As root; idempotent."),
        "lock": ("host:lock", "Close an encrypted pool: unmount it and take its key from the kernel. As root."),
        "undo": ("host:undo", "Take back exactly what setup did. As root."),
    },
    "Give this host what it lacks, or take that back.",
)


class Size(click.ParamType[int]):
    """Bytes, with k, M, G or T (powers of 1024)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of bytes."""
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            self.fail(f"{value!r} is not a size: give for instance 500M or 20G", param, ctx)
        return int(float(match[1]) * 1024 ** " kmgt".index(match[2].lower() or " "))


@click.command()
@click.option("--pool-size", type=Size(), help="Size of the pool (default: half of the free space, at most 100G; takes room as it fills).")
@click.option(
    "--pool-filesystem",
    type=click.Choice(["xfs", "btrfs"]),
    default="xfs",
    show_default=True,
    help="What the pool is made with. On btrfs the kernel holds each database to its size; on XFS PostgreSQL writes faster.",
)
@click.option("--encrypt-pool", is_flag=True, help="Encrypt the pool, with a key in a file of its own (pool_key_file).")
@click.option("--pool-key-file", type=click.Path(path_type=Path), help="That file; made if it isn't there. Tell `torpor serve`, too.")
@click.option("--zram/--no-zram", default=None, help="Add zram swap although there is swap, or don't add any.")
@click.option("--zram-size", type=Size(), help="Size of the zram swap (default: half of the memory).")
@click.option("--skip-packages", is_flag=True, help="Ask nothing of apt.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@with_invocation
@click.pass_context
def setup(
    context: click.Context,
    invocation: Invocation,
    pool_size: int | None,
    pool_filesystem: str,
    encrypt_pool: bool,
    pool_key_file: Path | None,
    zram: bool | None,
    zram_size: int | None,
    skip_packages: bool,
    dry_run: bool,
) -> None:
    """Give this host what it lacks: packages, a copy-on-write pool, zram swap, kernel settings that go with it.

    What is there already is left alone, so it can be run again at any time. `torpor host undo` takes it back.
    """
    machine, data_dir = Machine(), invocation.data_dir
    if not dry_run:
        _require_root("setup")
    key_file = configured_key_file(data_dir, pool_key_file)
    facts = probe(data_dir, machine, key_file)
    names = packages.needed(facts.distribution, facts.distribution_version)
    missing = None if names is None else packages.missing(machine, names)
    steps = plan(facts, missing, Wishes(pool_size, pool_filesystem, encrypt_pool, zram, zram_size, not skip_packages))
    if dry_run:
        _report(context, invocation, iter(steps))
        return
    if any(step.name == "copy-on-write pool" and step.action is not None for step in steps):
        _require_stopped(data_dir, "setup")
    _report(context, invocation, executors.apply(steps, data_dir, machine, key_file))


@click.command()
@with_invocation
@click.pass_context
def lock(context: click.Context, invocation: Invocation) -> None:
    """Close an encrypted pool until the next `torpor serve`: unmount it, and take its key from the kernel. Torpor must have ended."""
    _require_root("lock")
    _require_stopped(invocation.data_dir, "lock")
    _report(context, invocation, executors.lock(invocation.data_dir, Machine()))


@click.command()
@with_invocation
@click.pass_context
def undo(context: click.Context, invocation: Invocation) -> None:
    """Take back exactly what `torpor host setup` did on this host. Databases in the pool stay in its file."""
    _require_root("undo")
    if _told(lambda: record.load(invocation.data_dir)).pool_made:
        _require_stopped(invocation.data_dir, "undo")
    _report(context, invocation, executors.undo(invocation.data_dir, Machine()))


def configured_key_file(data_dir: Path, given: Path | None = None) -> Path:
    """Where the key of the pool is to be, as `torpor serve` would find it. Raises BadSettings."""
    flags = {"data_dir": str(data_dir)} | ({} if given is None else {"pool_key_file": str(given)})
    return Path(configuration.load(flags, os.environ).pool_key_file)


def _require_root(verb: str) -> None:
    if os.geteuid() != 0:
        raise CommandError(f"`torpor host {verb}` changes the host and needs root", f"run `sudo torpor host {verb}`", kind="not_root")


def _require_stopped(data_dir: Path, verb: str) -> None:
    """Refuse while a Torpor runs on this directory: its volumes would be hidden, or taken away."""
    import fcntl

    try:
        descriptor = os.open(data_dir / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return  # never started here
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CommandError(
            f"Torpor is running on {data_dir}", f"stop it, then run `torpor host {verb}` again", kind="already_running"
        ) from error
    finally:
        os.close(descriptor)


def _report(context: click.Context, invocation: Invocation, steps: Iterator[Step]) -> None:
    """Say each step as it is done; fail when one did."""
    done: list[Step] = []
    while (step := _next(invocation, steps)) is not None:
        done.append(step)
        if not invocation.json:
            mark = click.style(step.state.ljust(8), fg=_COLORS.get(step.state))
            click.echo(f"{mark}  {step.name}: {step.text}")
    failed = any(step.state is State.FAILED for step in done)
    if invocation.json:
        shown = [{key: value for key, value in asdict(step).items() if key != "action"} for step in done]
        invocation.emit({"steps": shown, "ok": not failed}, "")
    if failed:
        context.exit(Exit.REFUSED)


def _next(invocation: Invocation, steps: Iterator[Step]) -> Step | None:
    with invocation.waiting("working"):
        return _told(lambda: next(steps, None))


def _told(act: Callable[[], T]) -> T:
    try:
        return act()
    except HostActionFailed as error:
        raise CommandError(error.message, error.hint, kind="host_error") from error
