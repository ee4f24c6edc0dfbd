"""Moments of the past as people type them: `--at '2026-11-20 14:03:00+00'`, `--at '10 minutes ago'`, `--lsn`, `--before-transaction`.

Pure, but for `Moment`, which asks what time it is.
"""

import functools
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {
    "s": 1,
    "sec": 1,
    "second": 1,
    "m": 60,
    "min": 60,
    "minute": 60,
    "h": 3600,
    "hour": 3600,
    "d": 86_400,
    "day": 86_400,
    "week": 604_800,
}
_AGO = re.compile(r"(?:(\d+(?:\.\d+)?)|an?)\s*([a-z]+?)s?\s+ago")


def parse_at(text: str, now: float) -> float:
    """Seconds since the epoch. A time without a zone is taken for UTC, which is what databases show. Raises ValueError."""
    words = " ".join(text.split()).lower()
    if words == "now":
        return now
    if match := _AGO.fullmatch(words):
        unit = _UNITS.get(match[2] or "")
        if unit is None:
            raise ValueError(f"{match[2]!r} is none of seconds, minutes, hours, days, weeks")
        return now - timedelta(seconds=float(match[1] or 1) * unit).total_seconds()
    try:
        at = datetime.fromisoformat(_zone(" ".join(text.split())))
    except ValueError:
        raise ValueError(f"{text!r} is no time: give '2026-11-20 14:03:00+00', or '10 minutes ago'") from None
    return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()


def _zone(text: str) -> str:
    """PostgreSQL writes whole hours of a zone without minutes."""
    return re.sub(r"(:\d\d(?:\.\d+)?)\s*([+-]\d\d)$", r"\1\2:00", text.removesuffix(" UTC").replace(" +", "+"))


class Moment(click.ParamType[float]):
    """A moment of the past, as seconds since the epoch."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """A time, or how long ago."""
        import time

        if isinstance(value, float):
            return value
        try:
            return parse_at(str(value), time.time())
        except (ValueError, OverflowError) as error:
            self.fail(str(error), param, ctx)


def with_moment(command: F) -> F:
    """The options that say which moment, as `at`, `lsn` and `before_transaction`."""

    @click.option("--at", type=Moment(), help="As it was then: '2026-11-20 14:03:00+00' (UTC unless it says otherwise), '10 minutes ago'.")
    @click.option("--lsn", help="As it was at this position of its log.")
    @click.option("--before-transaction", type=int, help="As it was right before this transaction was committed.")
    @functools.wraps(command)
    def with_options(*args: Any, **kwargs: Any) -> Any:
        return command(*args, **kwargs)

    return with_options  # type: ignore[return-value]  # click keeps the signature


def moment_body(at: float | None, lsn: str | None, before_transaction: int | None) -> dict[str, Any]:
    """What a request says of it. Empty for the present."""
    given = {"at": at, "lsn": lsn, "before_transaction": before_transaction}
    return {key: value for key, value in given.items() if value is not None}
