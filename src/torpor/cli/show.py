"""`torpor show`: one database, everything."""

import time

import click

from torpor.cli import text
from torpor.cli.caching import figures
from torpor.cli.client import database_path
from torpor.cli.databases import policy_text
from torpor.cli.history import state
from torpor.cli.invocation import Invocation, with_invocation
from torpor.cli.pools import policy_words
from torpor.cli.sizes import summary
from torpor.model.cache import NO_CACHE
from torpor.model.pool import PoolView
from torpor.model.size import ScaleReason
from torpor.model.sleep import Tier
from torpor.model.views import DatabaseDetail, DatabaseView, WakeView

_LABEL_WIDTH = 13
_RECENT = 10


@click.command()
@click.argument("name")
@with_invocation
def show(invocation: Invocation, name: str) -> None:
    """All there is to say about one database: what woke it, why it is awake, what comes next."""
    client = invocation.connect()
    answer = client.get(database_path(name))
    invocation.emit(answer, lambda: "\n".join(lines(client.decode(DatabaseDetail, answer), time.time())))


def lines(detail: DatabaseDetail, now: float) -> list[str]:
    """The whole page. Pure."""
    view = detail.database
    result = [f"{view.name}  PostgreSQL {view.major}, made {text.duration(now - view.created_at)} ago, id {view.id}", view.url, ""]
    if detail.lineage:
        result += [_line("branch of", _lineage(detail, now)), ""]
    if detail.broken:
        result += [_line("broken", text.clean(detail.broken)), ""]
    result.append(_line("tier", f"{view.tier} for {text.duration(now - view.tier_since)}{_because(view)}"))
    result += _awake(view)
    result.append(_line("next", _next(detail, now)))
    result.append(_line("last wake", "none yet" if view.last_wake is None else _wake(view.last_wake, now)))
    if view.last_wake is not None:
        result += text.waterfall([(step.name, step.elapsed_ms) for step in view.last_wake.steps], " " * _LABEL_WIDTH)
    if detail.last_activity_at is not None:
        result.append(_line("last active", f"{text.duration(now - detail.last_activity_at)} ago"))
    result += [
        "",
        _line("idle times", policy_text(detail)),
        _line("workspace", view.workspace),
        *_pool(detail),
        *_cache(detail),
        *_size(detail, now),
        _line("CPU", f"{view.cpu_ms / 1000:.1f} s since it was started"),
        _line("traffic", f"{text.size(view.ingress_bytes)} received, {text.size(view.egress_bytes)} sent"),
        *([_line(label, words) for label, words in state(detail.history, now)] if detail.history is not None else []),
        _line("volume", _volume(detail)),
        _line("sandbox", text.clean(detail.sandbox)),
        *([_line("", text.clean(detail.sandbox_lacks, 300))] if detail.sandbox_lacks else []),
    ]
    return result + _recent(detail, now)


def _lineage(detail: DatabaseDetail, now: float) -> str:
    view = detail.database
    as_of = f", as of {text.duration(now - view.branched_at)} ago" if view.branched_at is not None else ", on a machine that was lost"
    end = f"; it is removed in {text.duration(view.expires_at - now)}" if view.expires_at is not None else ""
    return f"{', a branch of '.join(text.clean(name) for name in detail.lineage)}{as_of}{end}"


def _pool(detail: DatabaseDetail) -> list[str]:
    lines = [policy] if (policy := policy_words(detail)) else []
    pool = detail.database.pool
    if pool is not None and pool.clients:
        lines += _pooled(pool)
    return [_line("pool" if position == 0 else "", line) for position, line in enumerate(lines)]


def _cache(detail: DatabaseDetail) -> list[str]:
    pool = detail.database.pool
    if pool is None or pool.cache == NO_CACHE:
        return []
    return [_line("cache", figures(pool.cache))]


def _pooled(pool: PoolView) -> list[str]:
    waits = f"; {pool.waits} waits, the longest {text.milliseconds(1000 * pool.longest_wait_s)}" if pool.waits else ""
    now = [f"{pool.clients} clients over {pool.backends} connections, {pool.working} working, {pool.waiting} waiting{waits}"]
    return now + [
        text.clean(f"pinned: {client.role} {client.application}".rstrip() + f", by {client.because}", 120) for client in pool.pinned_clients
    ]


def _line(label: str, value: str) -> str:
    return f"{label.ljust(_LABEL_WIDTH)}{value}"


def _because(view: DatabaseView) -> str:
    return "" if view.tier_reason is None else f" ({view.tier_reason})"


def _awake(view: DatabaseView) -> list[str]:
    if view.tier is not Tier.AWAKE:
        return []
    causes = [f"{cause.reason}: {text.clean(cause.detail, 120)}" if cause.detail else str(cause.reason) for cause in view.awake_because]
    return [_line("awake by" if position == 0 else "", cause) for position, cause in enumerate(causes)]


def _next(detail: DatabaseDetail, now: float) -> str:
    step = detail.next_step
    if step is None:
        return "stays as it is"
    if step.at is None:
        return f"{step.tier}, once nothing keeps it {detail.database.tier}"
    return f"{step.tier} in {text.duration(step.at - now)} if nothing happens"


def _wake(wake: WakeView, now: float) -> str:
    who = f" ({text.clean(wake.detail, 80)})" if wake.detail else ""
    return f"{text.duration(now - wake.at)} ago by {wake.reason}{who}, from {wake.tier} in {text.milliseconds(wake.elapsed_ms)}"


def _volume(detail: DatabaseDetail) -> str:
    if detail.archived_bytes is None:
        return text.clean(detail.volume)
    return f"archived: {text.size(detail.archived_bytes)} in the store; it comes back with the next connection, or by `torpor wake`"


def _memory(view: DatabaseView) -> str:
    if view.tier in (Tier.STOPPED, Tier.ARCHIVED):
        return "none"
    return text.size(view.memory_bytes) + (f", and {text.size(view.swap_bytes)} in swap" if view.swap_bytes else "")


def _size(detail: DatabaseDetail, now: float) -> list[str]:
    view = detail.database
    if detail.size is None:  # a daemon of before sizes
        return [_line("connections", str(view.connections)), _line("memory", _memory(view)), _line("disk", text.size(detail.disk_bytes))]
    lines = summary(detail.size)
    short = next((each for each in detail.size.decisions if each.reason is ScaleReason.OUT_OF_MEMORY), None)
    if short is not None:
        lines.insert(
            2,
            _line("", f"out of memory {text.duration(max(now - short.at, 0))} ago: the kernel ended the largest process, the rest goes on"),
        )
    return [*lines, _line("in swap", text.size(view.swap_bytes))] if view.swap_bytes else lines


def _recent(detail: DatabaseDetail, now: float) -> list[str]:
    wakes = detail.recent_wakes[:_RECENT]
    if not wakes:
        return []
    rows = [
        [f"{text.age(wake.at, now)} ago", str(wake.reason), str(wake.tier), text.milliseconds(wake.elapsed_ms), text.clean(wake.detail, 60)]
        for wake in wakes
    ]
    head = f"wakes: {detail.database.wakes} in all, the newest {len(wakes)}:"
    table = text.table(["WHEN", "REASON", "FROM", "TOOK", "DETAIL"], rows, frozenset({0, 3}))
    return ["", head, *[f"  {line}" for line in table.splitlines()]]
