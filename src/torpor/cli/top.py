"""`torpor top`: what is awake, and why, once a second.

Cost: one request for the host and at most one per tier, each for no more rows than fit the screen, so ten thousand sleepers cost
nothing. One thread; it waits for a key or the next second, whichever comes first.
"""

import contextlib
import json
import os
import select
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from torpor.cli import text
from torpor.cli.client import Client
from torpor.cli.databases import last_wake
from torpor.cli.errors import CommandError, Exit
from torpor.cli.invocation import Invocation, with_invocation
from torpor.model.pool import PoolMode
from torpor.model.size import Pace
from torpor.model.sleep import Tier
from torpor.model.views import DatabasePage, DatabaseView, HostView

if TYPE_CHECKING:
    from rich.console import RenderableType

_REFRESH_S = 1.0
_MAX_ROWS = 200
_HEADER_LINES = 7
_REFUSED_SHOWN = 3
_DEPTH = (Tier.AWAKE, Tier.FROZEN, Tier.PAGED, Tier.STOPPED, Tier.ARCHIVED)
_COLORS = {Tier.AWAKE: "green", Tier.FROZEN: "cyan", Tier.PAGED: "blue", Tier.STOPPED: "bright_black", Tier.ARCHIVED: "bright_black"}
_HEAD = ("NAME", "TIER", "SINCE", "CONNS", "CPU%", "CEILING", "MEMORY", "LAST WAKE", "AWAKE BY")
_RIGHT = frozenset({2, 3, 4, 5, 6})


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen at one moment. `cpu_percent` has an entry for each database that was seen before, too."""

    at: float
    host: HostView
    databases: tuple[DatabaseView, ...]
    cpu_percent: dict[str, float]


@click.command()
@click.option("--once", is_flag=True, help="Print one snapshot and end (the default when stdout is no terminal).")
@with_invocation
def top(invocation: Invocation, once: bool) -> None:
    """A live table of what is awake and why. q ends it. With --json one line a second."""
    client = invocation.connect()
    if invocation.json:
        for sample in _samples(client, _MAX_ROWS):
            value = {"at": sample.at, "host": asdict(sample.host), "databases": [_as_json(sample, view) for view in sample.databases]}
            sys.stdout.write(json.dumps(value) + "\n")
            sys.stdout.flush()
            if once:
                return
            time.sleep(_REFRESH_S)
    elif once or not sys.stdout.isatty():
        click.echo("\n".join(snapshot(take(client, _MAX_ROWS, None))))
    else:
        _live(client)


def take(client: Client, rows: int, before: Sample | None) -> Sample:
    """One look: the awake ones first, then the less deeply asleep, until the rows are full."""
    at = time.time()
    host = client.fetch(HostView, "/v1/host")
    found: list[DatabaseView] = []
    for tier in _DEPTH:
        # A tier that the host's own count says is empty needn't be asked for.
        if len(found) < rows and host.tiers.get(tier, 1):
            found += client.fetch(DatabasePage, "/v1/databases", tier=str(tier), limit=rows - len(found)).databases
    # One that changed its tier between two requests is in both answers.
    views = list({view.id: view for view in found}.values())
    shares = cpu_percent(before, views, at)
    views.sort(key=lambda view: (_DEPTH.index(view.tier), -shares.get(view.id, 0.0), view.name))
    return Sample(at, host, tuple(views), shares)


def cpu_percent(before: Sample | None, views: list[DatabaseView], at: float) -> dict[str, float]:
    """The share of one processor since the sample before, for each database that was in it. Pure."""
    if before is None or at <= before.at:
        return {}
    used = {view.id: view.cpu_ms for view in before.databases}
    # A compute that was started anew counts from zero again.
    return {view.id: max(view.cpu_ms - used[view.id], 0) / (at - before.at) / 10 for view in views if view.id in used}


def header(sample: Sample) -> list[str]:
    """The host in two lines, and in a third who is refused, if anybody is. Pure."""
    host = sample.host
    tiers = ", ".join(f"{host.tiers.get(tier, 0)} {tier}" for tier in _DEPTH)
    memory = f"{text.size(host.memory_used_bytes)} of {text.size(host.memory_total_bytes)}"
    swap = f", {text.size(host.swap_used_bytes)} in swap" if host.swap_used_bytes else ""
    refused = [
        f"{text.clean(one.address, 44)} {text.clean(one.reason, 30)} x{one.count} {text.age(one.last_at, sample.at)} ago"
        for one in host.refused[:_REFUSED_SHOWN]
    ]
    pooled = f" (pooled {host.pool_door})" if host.pool_door else ""
    return [
        f"torpor {host.version}  up {text.duration(sample.at - host.started_at)}  door {host.door}{pooled}  API {host.api}",
        f"{host.databases} databases: {tiers}; {host.warm} warm; {host.connections} connections; memory {memory}{swap}{_pool(host)}",
        *([f"refused: {', '.join(refused)}"] if refused else []),
    ]


def _pool(host: HostView) -> str:
    """Room in the pool; a daemon of before doesn't say."""
    if not host.pool_total_bytes:
        return ""
    full = "" if host.pool_level == "room" else f" ({host.pool_level.upper()}: read-only until there is room)"
    return f"; pool {text.size(host.pool_free_bytes)} of {text.size(host.pool_total_bytes)} free{full}"


def row(sample: Sample, view: DatabaseView) -> list[str]:
    """One database. Pure."""
    share = sample.cpu_percent.get(view.id)
    causes = ", ".join(f"{cause.reason} ({text.clean(cause.detail, 40)})" if cause.detail else cause.reason for cause in view.awake_because)
    return [
        view.name,
        str(view.tier),
        text.age(view.tier_since, sample.at),
        _connections(view),
        "-" if share is None else f"{share:.1f}",
        _ceiling(view),
        "-" if view.tier in (Tier.STOPPED, Tier.ARCHIVED) else text.size(view.memory_bytes),
        last_wake(view, sample.at),
        causes or "-",
    ]


def _connections(view: DatabaseView) -> str:
    """How many PostgreSQL has, how many clients share some of these, and who doesn't share any more, and why."""
    pool = view.pool
    if pool is None or not pool.clients:
        return f"{view.connections}{' auto' if view.pool_mode is PoolMode.AUTO else ''}"
    waiting = f", {pool.waiting} waiting" if pool.waiting else ""
    why = ", ".join(sorted({text.clean(client.because, 30) for client in pool.pinned_clients})[:2])
    pinned = f", {pool.pinned} pinned by {why}" if pool.pinned else ""
    auto = " auto" if view.pool_mode is PoolMode.AUTO else ""
    return f"{view.connections}{auto}, {pool.clients} pooled{waiting}{pinned}"


def _ceiling(view: DatabaseView) -> str:
    """Up to how many percent of a processor it may use now, with a mark when it yields to others."""
    if view.pace is None:
        return "-"
    ceiling = "all" if view.cpu_ceiling is None else f"{view.cpu_ceiling * 100:.0f}"
    return f"{ceiling} {view.pace}" if view.pace is not Pace.NORMAL else ceiling


def snapshot(sample: Sample) -> list[str]:
    """Everything as plain text. Pure."""
    return [*header(sample), "", text.table(_HEAD, [row(sample, view) for view in sample.databases], _RIGHT)]


def _as_json(sample: Sample, view: DatabaseView) -> dict[str, object]:
    return {**asdict(view), "cpu_percent": sample.cpu_percent.get(view.id)}


def _samples(client: Client, rows: int) -> Iterator[Sample]:
    before: Sample | None = None
    while True:
        before = take(client, rows, before)
        yield before


def _live(client: Client) -> None:
    from rich.live import Live

    sample = take(client, _rows(), None)
    with _keys() as pressed, Live(_render(sample, ""), screen=True, auto_refresh=False) as live:
        live.refresh()
        while not pressed():
            trouble = ""
            try:
                sample = take(client, _rows(), sample)
            except CommandError as error:
                if error.code != Exit.UNREACHABLE:
                    raise
                trouble = str(error)  # Torpor may be restarting: what was seen last stays on the screen
            live.update(_render(sample, trouble), refresh=True)


def _render(sample: Sample, trouble: str) -> "RenderableType":
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for position, name in enumerate(_HEAD):
        table.add_column(name, justify="right" if position in _RIGHT else "left", no_wrap=True, overflow="ellipsis")
    for view in sample.databases:
        name, tier, *rest = row(sample, view)
        table.add_row(Text(name), Text(tier, style=_COLORS[view.tier]), *(Text(cell) for cell in rest))
    last = Text(trouble, style="red") if trouble else Text("q quits", style="bright_black")
    return Group(*(Text(line, no_wrap=True, overflow="ellipsis") for line in header(sample)), last, Text(""), table)


def _rows() -> int:
    return max(min(shutil.get_terminal_size().lines - _HEADER_LINES, _MAX_ROWS), 1)


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[], bool]]:
    """Unbuffered keys for as long as it lasts; yields a wait of one refresh that says whether to quit."""
    if not sys.stdin.isatty():
        yield _only_wait
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    saved = termios.tcgetattr(descriptor)

    def pressed() -> bool:
        deadline = time.monotonic() + _REFRESH_S
        while (left := deadline - time.monotonic()) > 0:
            if select.select([descriptor], [], [], left)[0] and os.read(descriptor, 64)[:1] in (b"q", b"Q", b"\x1b", b""):
                return True
        return False

    try:
        tty.setcbreak(descriptor)
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, saved)


def _only_wait() -> bool:
    time.sleep(_REFRESH_S)
    return False
