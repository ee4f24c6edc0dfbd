"""`torpor drain`: durations, and what is shown of a drain."""

import pytest

from torpor.cli.drain import progress, seconds
from torpor.cli.errors import CommandError
from torpor.model.drain import DrainState, DrainView, RunningView


@pytest.mark.parametrize(("text", "expected"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5 h", 5400), ("2d", 172_800), ("0", 0)])
def test_durations(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "-1", "1w", "m", "1 m 2"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(CommandError, match="is no duration; write it as 90s, 10m or 1h"):
        seconds(text)


def test_progress_names_what_runs_and_nothing_moves_the_cursor() -> None:
    nasty = RunningView("shop", "app@10.0.0.7 \x1b[2J", "SELECT\npg_sleep(60) " + "x" * 200, "active", 1_800_000_000.0)
    view = DrainView(DrainState.DRAINING, "name", 1_800_000_000.0, 1_800_000_600.0, 2, 5, (nasty,) * 12)
    lines = progress(view, 1_800_000_000.0)
    assert lines[0] == "draining: 5 connections of 2 databases left; what runs has 10 m"
    assert lines[1].startswith("  shop  active since ")
    assert "\x1b" not in "".join(lines)
    assert len(lines[1]) < 140
    assert lines[-1] == "  and 2 more"
    assert len(lines) == 12
