"""`torpor job`, waiting for a job, and how far something is shown to be."""

import re
from dataclasses import replace

import pytest

from tests.unit.cli.conftest import Run
from tests.unit.cli.twin import NOW, Twin
from torpor.cli import progress
from torpor.cli.progress import Meter, Rate, describe, events, line
from torpor.model.jobs import JobError, JobId, JobState, JobView

RUNS = JobView(JobId("jabc"), "restore", "shop", JobState.RUNNING, NOW, None, 1 << 20, 4 << 20, "bytes", "reading\x1b[2J")
DONE = replace(RUNS, state=JobState.DONE, ended_at=NOW + 12, done=4 << 20, result={"database": "shop-then"})
FAILED = replace(RUNS, state=JobState.FAILED, ended_at=NOW + 1, error=JobError("pool_full", "no room\x1b", "make some", "53100"))


def test_a_line_tells_what_is_known() -> None:
    assert line("copy", 0, None, "", "", None) == "copy"
    assert line("copy", 1 << 20, 4 << 20, "bytes", "reading", 1 << 20) == "copy: 25 %, 1.0 MB of 4.0 MB, 1.0 MB/s, 3 s left, reading"
    assert line("copy", 5 << 20, None, "bytes", "", None) == "copy: 5.0 MB"
    assert line("copy", 3, 7, "objects", "", 1.0) == "copy: 42 %, 3 of 7 objects, 4 s left"
    assert line("copy", 9, 4, "", "", 1.0) == "copy: 100 %, 9 of 4"
    assert "\x1b" not in line("a\x1b[2Jb", 1, None, "", "\x1b]0;x\x07", None)


def test_the_rate_is_that_of_the_last_seconds() -> None:
    rate = Rate()
    assert rate.per_s is None
    for second in range(100):
        rate.note(second, 0 if second < 80 else (second - 80) * 50)
    assert rate.per_s == 50
    rate.note(101, 3)  # it began anew
    assert rate.per_s is None


def test_elsewhere_than_on_a_terminal_lines_are_few(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0

    class Plain:
        json = False

    with Meter(Plain(), "export shop", lambda: now) as meter:  # type: ignore[arg-type]  # all that it asks
        for second in range(60):
            now = float(second)
            meter.show(second << 20)
        meter.show(60 << 20, note="the end")
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 6 and told[-1] == "export shop: 60 MB, 1.0 MB/s, the end"


def test_a_terminal_sees_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torpor.cli.progress.sys.stderr.isatty", lambda: True)
    now = 0.0

    class Plain:
        json = False

    with Meter(Plain(), "export shop", lambda: now) as meter:  # type: ignore[arg-type]
        for tenth in range(30):
            now = tenth / 20
            meter.show(tenth << 20)
    written = capsys.readouterr().err
    assert "\n" not in written and 10 < written.count("\r\x1b[K") < 20
    assert written.endswith("\r\x1b[K")


def test_events_are_read_whatever_the_pieces() -> None:
    stream = b'retry: 1\n\n: still here\n\nevent: job\nid: 3\ndata: {"a": "\xe2\x82\xac"}\n\nevent: job\ndata: {"a": 2}\n\n'
    for size in (1, 2, 7, 1000):
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        assert [one["a"] for one in events(pieces)] == ["€", 2]


def test_list_show_and_cancel(torpor: Run, running: Twin) -> None:
    assert "no jobs" in torpor("job", "ls").err
    running.jobs = {"jabc": [RUNS], "jdef": [replace(DONE, id=JobId("jdef"))], "jghi": [replace(FAILED, id=JobId("jghi"))]}
    rows = [re.split(r"\s{2,}", one) for one in torpor("job", "ls").out.splitlines()]
    assert rows[1][:4] == ["jabc", "restore", "shop", "running"] and rows[1][-1] == "25 %"
    assert "no room" in rows[3][-1]
    assert torpor("job", "ls", "--json").json["jobs"][1]["result"] == {"database": "shop-then"}
    assert "25 %" in torpor("job", "show", "jabc").out
    assert "database: shop-then" in torpor("job", "show", "jdef").out
    assert torpor("job", "show", "jghi").out.endswith("no room; make some\n")
    assert torpor("job", "cancel", "jabc").out.startswith("jabc  restore shop: cancelled")
    missing = torpor("job", "show", "../../etc", "--json")
    assert (missing.code, missing.error["kind"]) == (1, "job_not_found")


def test_waiting(torpor: Run, running: Twin) -> None:
    running.jobs["jabc"] = [RUNS, replace(RUNS, done=2 << 20, note="replaying"), DONE]
    waited = torpor("job", "wait", "jabc")
    assert (waited.code, waited.out.splitlines()[0]) == (0, "jabc  restore shop: done, 12 s")
    assert "restore shop: 50 %, 2.0 MB of 4.0 MB, replaying" in waited.err
    assert torpor("job", "wait", "jabc", "--json").json["state"] == "done"


def test_waiting_for_what_fails(torpor: Run, running: Twin) -> None:
    running.jobs["jabc"] = [RUNS, FAILED]
    waited = torpor("job", "wait", "jabc")
    assert (waited.code, waited.err.splitlines()[-1]) == (1, "torpor: restore shop: no room; make some")
    assert torpor("job", "wait", "jabc", "--json").error["sqlstate"] == "53100"


def test_a_stream_that_breaks_off_is_taken_up_again(torpor: Run, running: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("torpor.cli.progress.time.sleep", waits.append)
    running.jobs["jabc"] = [RUNS, *(replace(RUNS, done=number) for number in range(8)), DONE]
    running.steps_a_stream = 2
    assert torpor("job", "wait", "jabc").code == 0
    assert len(waits) == 8
    running.jobs["jabc"], running.steps_a_stream = [RUNS, RUNS], 0
    assert torpor("job", "wait", "jabc").code == 1


def test_ctrl_c_leaves_the_job_and_says_so(torpor: Run, running: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    running.jobs["jabc"] = [RUNS, DONE]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(progress.Meter, "show", interrupt)
    left = torpor("job", "wait", "jabc")
    assert left.code == 130
    assert "the job goes on" in left.err and "torpor job cancel jabc" in left.err


def test_a_description_holds_no_control_characters() -> None:
    assert "\x1b" not in describe(RUNS, NOW) + describe(FAILED, NOW)
