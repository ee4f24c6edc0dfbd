"""`torpor history`, `torpor backup` and `torpor backups`: what of a database's past can be restored, and what it costs."""

import time
from datetime import UTC, datetime
from typing import Any

import click

from torpor.cli import text
from torpor.cli.client import database_path
from torpor.cli.drills import last
from torpor.cli.invocation import Invocation, with_invocation
from torpor.model.history_views import BaseList, HistoryView, RetentionView, ShippingView

_DAY_S = 86_400.0
_LABEL_WIDTH = 13


class Keep(click.ParamType[float | str]):
    """A number, or "default"."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        """A number, or the word."""
        if isinstance(value, float) or value == "default":
            return value  # type: ignore[no-any-return]  # narrowed by the line above
        try:
            return float(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor default", param, ctx)


@click.command()
@click.argument("name")
@click.option("--keep-days", type=Keep(), help="Keep any moment of the last days, or default: as Torpor is set to.")
@click.option("--keep-bases", type=Keep(), help="Keep so many base copies at most, or default.")
@with_invocation
def history(invocation: Invocation, name: str, keep_days: float | str | None, keep_bases: float | str | None) -> None:
    """To which moments a database can be brought back, and what that costs; or change how much is kept."""
    client = invocation.connect()
    given = {"keep_days": keep_days, "keep_bases": int(keep_bases) if isinstance(keep_bases, float) else keep_bases}
    body = {key: None if value == "default" else value for key, value in given.items() if value is not None}
    if body:
        changed = client.patch(database_path(name, "history"), body)
        invocation.emit(changed, lambda: f"{name}: {kept(client.decode(RetentionView, changed))}")
        return
    answer = client.get(database_path(name, "history"))
    invocation.emit(answer, lambda: "\n".join(lines(client.decode(HistoryView, answer), time.time())))


@click.command()
@click.argument("name")
@click.option("--no-wait", is_flag=True, help="Don't wait for its end.")
@with_invocation
def backup(invocation: Invocation, name: str, no_wait: bool) -> None:
    """Take a base copy of a database now, beside those that Torpor takes by itself."""
    from torpor.cli import progress

    client = invocation.connect()
    answer = client.post(database_path(name, "backups"))
    if no_wait:
        invocation.emit(answer, f"job {answer['id']} takes a base copy of {name}")
        return
    done = progress.finish(invocation, client, answer)
    invocation.emit(client.get(f"/v1/jobs/{done.id}"), f"{name} has base copy {done.result.get('base', '?')}")


@click.command()
@click.argument("name")
@with_invocation
def backups(invocation: Invocation, name: str) -> None:
    """List the base copies of a database, oldest first."""
    client = invocation.connect()
    answer = client.get(database_path(name, "backups"))

    def words() -> str:
        bases = client.decode(BaseList, answer).bases
        if not bases:
            return f"no base copies yet: the first one is taken once {name} has been used, or by `torpor backup {name}`"
        rows = [[str(b.number), moment(b.at), b.lsn, text.size(b.size_bytes), text.size(b.stored_bytes)] for b in bases]
        return text.table(["NUMBER", "TAKEN", "POSITION", "SIZE", "STORED"], rows, frozenset({0, 3, 4}))

    invocation.emit(answer, words)


def lines(view: HistoryView, now: float) -> list[str]:
    """The whole page. Pure."""
    shown: list[str] = []
    for window in reversed(view.windows):
        label = "" if shown else "restorable"
        shown.append(_line(label, f"from {moment(window.from_at)} to {moment(window.to_at)}  ({window.from_lsn} to {window.to_lsn})"))
    if not shown:
        shown.append(_line("restorable", "nothing yet: the first base copy is taken once it has been used for a while"))
    return [
        *shown,
        *[_line(label, value) for label, value in state(view.shipping, now)],
        _line("store", text.clean(view.store)),
        _line("takes", f"{text.size(view.base_bytes)} for {view.bases} base copies, {text.size(view.log_bytes)} for the log"),
        _line("kept", kept(view.retention)),
    ]


def state(view: ShippingView, now: float) -> list[tuple[str, str]]:
    """How far the history is, in labelled lines. Pure."""
    if view.shipped_at is None:
        lines = [("history", "begins once it has been used for a while")]
    elif view.behind_bytes:
        lines = [("history", f"{text.size(view.behind_bytes)} behind, whole up to {text.duration(max(0.0, now - view.shipped_at))} ago")]
    else:
        lines = [("history", "nothing is behind")]
    if view.trouble:
        lines.append(("", f"not shipped: {text.clean(view.trouble, 200)}"))
    if view.broken:
        lines.append(("", f"the newest window begins anew: {text.clean(view.broken, 200)}"))
    return lines + last(view.drill, now)


def kept(view: RetentionView) -> str:
    """How much is kept, in a line. Pure."""
    days = f"{view.keep_s / _DAY_S:g} days{' (own)' if 'keep_s' in view.own else ''}"
    return f"any moment of the last {days}, {view.keep_bases} base copies at most{' (own)' if 'keep_bases' in view.own else ''}"


def moment(at: float) -> str:
    """A time that `--at` takes."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S+00")


def _line(label: str, value: str) -> str:
    return f"{label.ljust(_LABEL_WIDTH)}{value}"
