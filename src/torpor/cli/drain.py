"""`torpor drain`: ends the running Torpor when nothing runs in it any more, and shows what it waits for.

One thread, which asks twice a second. Torpor's end is seen by its API being gone; a next Torpor that took over, by its name.
"""

import re
import time

import click

from torpor.cli import text
from torpor.cli.errors import CommandError, Exit
from torpor.cli.invocation import Invocation, with_invocation
from torpor.model.drain import DrainState, DrainView

_LOOK_S = 0.5
_SHOWN = 10
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@click.command()
@click.option("--timeout", metavar="DURATION", help="When what still runs is ended: 90s, 10m, 1h [default: drain_timeout_s].")
@click.option("--no-wait", is_flag=True, help="Return at once.")
@with_invocation
def drain(invocation: Invocation, timeout: str | None, no_wait: bool) -> None:
    """End Torpor when nothing runs any more: no new sessions, statements and transactions may finish.

    New connections wait meanwhile. A `torpor serve` that is started before the end takes them over; else they are refused then.
    """
    timeout_s = None if timeout is None else seconds(timeout)
    client = invocation.connect()
    answer = client.post("/v1/drain", {"timeout_s": timeout_s})
    began = client.decode(DrainView, answer)
    view = began
    shown: list[str] = []
    while not no_wait and view.state is DrainState.DRAINING and view.torpor == began.torpor:
        if invocation.json:
            invocation.emit(answer, "")
        elif (lines := progress(view, time.time()))[1:] != shown[1:] or not shown:
            shown = lines
            click.echo("\n".join(lines), err=True)
        time.sleep(_LOOK_S)
        try:
            answer = client.get("/v1/drain")
        except CommandError as error:
            if error.code != Exit.UNREACHABLE and error.shown_kind != "shutting_down":
                raise
            invocation.emit({"state": "ended"}, "drained: Torpor has ended")
            return
        view = client.decode(DrainView, answer)
    if no_wait:
        invocation.emit(answer, "draining")
    else:
        invocation.emit(answer, "the next Torpor has taken over")


def seconds(duration: str) -> float:
    """A duration as people write it. Raises CommandError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", duration.strip())
    if match is None:
        raise CommandError(f"{duration[:40]!r} is no duration", "write it as 90s, 10m or 1h", kind="usage", code=Exit.USAGE)
    return float(match[1]) * _UNITS[match[2]]


def progress(view: DrainView, now: float) -> list[str]:
    """What a drain waits for. Pure."""
    left = text.duration(max(0.0, (view.deadline_at or now) - now))
    lines = [f"draining: {view.connections} connections of {view.computes} databases left; what runs has {left}"]
    for one in view.running[:_SHOWN]:
        began = time.strftime("%H:%M:%S", time.localtime(one.since))
        who, what = text.clean(one.session, 40), text.clean(one.statement, 60)
        lines.append(f"  {text.clean(one.database)}  {one.state} since {began}  {who}  {what}")
    if len(view.running) > _SHOWN:
        lines.append(f"  and {len(view.running) - _SHOWN} more")
    return lines
