"""How far something is: a line that is drawn again on a terminal, plain lines elsewhere; and waiting for a job.

One thread. Whoever is asked to wait sees nothing at all with --json but the end. Ctrl-C leaves a job, which goes on; it says how to come
back to it and how to cancel it. What must end with its command (an export, an import) is ended by that command.
"""

import json
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any

from torpor.cli import text
from torpor.cli.client import Client
from torpor.cli.errors import CommandError, Exit
from torpor.cli.invocation import Invocation
from torpor.model.jobs import JobState, JobView

_DRAWN_EVERY_S = 0.1
_TOLD_EVERY_S = 10.0  # where nobody sees it move
_RATE_OVER_S = 10.0
_RECONNECTS = 5
_RECONNECT_AFTER_S = 1.0


class Rate:
    """How fast something has been growing over the last seconds. Pure; times are given."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, now: float, done: int) -> None:
        """That it was so far then. Going back begins anew. What follows at once on something else isn't kept: it stays small."""
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()
        if self._seen and now - self._seen[-1][0] < _DRAWN_EVERY_S:
            return
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[0][0] < now - _RATE_OVER_S:
            self._seen.popleft()

    @property
    def per_s(self) -> float | None:
        """How much a second; None while nobody knows."""
        if len(self._seen) < 2:
            return None
        return (self._seen[-1][1] - self._seen[0][1]) / (self._seen[-1][0] - self._seen[0][0])


def line(what: str, done: int, total: int | None, unit: str, note: str, per_s: float | None) -> str:
    """All of it on one line. Pure."""
    parts = []
    if total:
        parts.append(f"{min(100, done * 100 // total)} %")
    if unit == "bytes":
        parts.append(f"{text.size(done)} of {text.size(total)}" if total else text.size(done))
        if per_s:
            parts.append(f"{text.size(per_s)}/s")
    elif done or total:
        parts.append(f"{done} of {total} {unit}".rstrip() if total else f"{done} {unit}".rstrip())
    if total and per_s and done < total:
        parts.append(f"{text.duration((total - done) / per_s)} left")
    if note:
        parts.append(text.clean(note, 60))
    return f"{text.clean(what)}: {', '.join(parts)}" if parts else text.clean(what)


class Meter:
    """Shows how far something is, on stderr. Use as a context manager; at its end the line is wiped away."""

    def __init__(self, invocation: Invocation, what: str, now: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._now = now
        self._silent = invocation.json
        self._terminal = sys.stderr.isatty()
        self._rate = Rate()
        self._shown_at = now() if not self._terminal else float("-inf")
        self._shown_note = ""
        self._drawn = False

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def show(self, done: int, total: int | None = None, unit: str = "bytes", note: str = "") -> None:
        """That it is so far now. May be called as often as one likes."""
        now = self._now()
        news = bool(note) and note != self._shown_note
        self._rate.note(now, done)
        if self._silent or (now - self._shown_at < (_DRAWN_EVERY_S if self._terminal else _TOLD_EVERY_S) and not news):
            return
        self._shown_at, self._shown_note = now, note
        shown = line(self._what, done, total, unit, note, self._rate.per_s)
        if self._terminal:
            width = shutil.get_terminal_size().columns
            sys.stderr.write(f"\r\x1b[K{text.clean(shown, max(width - 1, 20))}")
            self._drawn = True
        else:
            sys.stderr.write(shown + "\n")
        sys.stderr.flush()


def finish(invocation: Invocation, client: Client, answer: Any) -> JobView:
    """Wait for the job that `answer` shows, and show how far it is. Its end when it was done; raises CommandError for every other end.

    Ctrl-C leaves it: the job goes on.
    """
    first = view = client.decode(JobView, answer)
    try:
        with Meter(invocation, f"{first.kind} {first.database}") as meter:
            for view in states(client, first):
                meter.show(view.done, view.total, view.unit, view.note)
    except KeyboardInterrupt:
        message = f"not waited for any longer: the job goes on ({view.kind} {view.database})"
        hint = f"`torpor job wait {view.id}` comes back to it, `torpor job cancel {view.id}` stops it"
        raise CommandError(message, hint, kind="left", code=Exit.INTERRUPTED) from None
    if view.state is JobState.DONE:
        return view
    error = view.error
    if error is None:
        raise CommandError(f"the job {view.id} is {view.state}", kind=str(view.state))
    raise CommandError(f"{view.kind} {view.database}: {text.clean(error.message)}", error.hint, kind=error.kind, sqlstate=error.sqlstate)


def states(client: Client, view: JobView) -> Iterator[JobView]:
    """A job as it is, then each change, the last its end. A broken connection is made anew: another Torpor may be taking over."""
    yield view
    left = _RECONNECTS
    while not view.state.is_final:
        try:
            for answer in events(client.stream(f"/v1/jobs/{view.id}/events")):
                view, left = client.decode(JobView, answer), _RECONNECTS
                yield view
        except CommandError as error:
            if error.code != Exit.UNREACHABLE or not left:
                raise
        if not view.state.is_final:
            if not left:
                raise CommandError(f"the API tells nothing more of the job {view.id}", f"`torpor job show {view.id}`", kind="unreachable")
            left -= 1
            time.sleep(_RECONNECT_AFTER_S)


def events(pieces: Iterable[bytes]) -> Iterator[Any]:
    """The data of server-sent events, decoded, out of pieces that end anywhere. Pure."""
    held = b""
    for piece in pieces:
        *whole, held = (held + piece).split(b"\n")
        for row in whole:
            if row.startswith(b"data: "):
                yield json.loads(row[6:])


def result(invocation: Invocation, view: JobView, words: str) -> None:
    """Print a job's end: all of it with --json, else `words` and how long it took."""
    invocation.emit(asdict(view), lambda: f"{words} in {text.duration((view.ended_at or view.began_at) - view.began_at)}")


def describe(view: JobView, now: float) -> str:
    """A job in some lines. Pure."""
    took = text.duration((view.ended_at or now) - view.began_at)
    lines = [f"{view.id}  {view.kind} {text.clean(view.database)}: {view.state}{', being cancelled' if view.cancelling else ''}, {took}"]
    if view.state is JobState.RUNNING:
        lines.append("  " + line("so far", view.done, view.total, view.unit, view.note, None))
    lines += [f"  {text.clean(name)}: {text.clean(value)}" for name, value in view.result.items()]
    if view.error is not None:
        lines.append(f"  {text.clean(view.error.message)}" + (f"; {text.clean(view.error.hint)}" if view.error.hint else ""))
    return "\n".join(lines)


__all__ = ("Meter", "Rate", "describe", "events", "finish", "line", "result", "states")
