"""The commands of restore drills against the twin, and what the doctor says of them."""

from dataclasses import replace
from pathlib import Path

from tests.unit.cli.conftest import Run
from tests.unit.cli.test_history import RUNNING, ends
from tests.unit.cli.twin import NOW, Twin, view
from torpor.api import examples
from torpor.base.host.findings import Status
from torpor.cli import doctor
from torpor.cli.drills import last, lines
from torpor.cli.invocation import Invocation
from torpor.model.drills import DrillCause, DrillList, DrillResult

PASSED = examples.DRILLS.drills[0]
FAILED = replace(
    PASSED, result=DrillResult.FAILED, cause=DrillCause.LOG_GAP, detail="the log is missing\x1b[2J from 0/A on", hint="take a new base"
)


def test_the_page() -> None:
    shown = lines(replace(examples.DRILLS, drills=(FAILED, PASSED), failing=1), PASSED.ended_at + 60)
    assert shown[0].split() == ["DATABASE", "RESULT", "AGE", "RESTORED", "TO", "FOUND"]
    assert "FAILED" in shown[1] and "the log is missing" in shown[1] and "\x1b" not in shown[1]
    assert "passed" in shown[2] and "3917204 rows in 214 tables" in shown[2]
    assert shown[4] == "1 FAILING, 1 verified, 0 not yet; one is begun every 1 h"
    assert shown[5] == "shop: take a new base"
    assert lines(DrillList((), None, 0, 0, 2), NOW) == ["0 verified, 2 not yet; none is begun by itself"]


def test_beside_the_history() -> None:
    assert last(None, NOW) == [("verified", "not yet")]
    assert last(PASSED, PASSED.ended_at + 7200) == [("verified", f"2 h ago, restored to {PASSED.moment}")]
    (label, words), (_, hint) = last(FAILED, FAILED.ended_at)
    assert label == "verified" and "FAILED: the log is missing" in words and hint == "take a new base"


def test_asked_for(torpor: Run, running: Twin) -> None:
    running.add(view("shop"))
    assert "one is begun every 1 h" in torpor("drills").out
    assert torpor("drills", "shop", "--json").json["drills"][0]["result"] == "passed"
    torpor("drills", "--result", "failed", "-n", "5")
    assert running.requests[-1][1:3] == ("/v1/drills", {"result": "failed", "limit": "5"})
    assert torpor("drills", "shop", "--result", "failed").code == 2
    ends(running, moment="the newest", rows="7", tables="2", checked="rows")
    assert "shop was restored to the newest, and all is right: 7 rows in 2 tables (rows)" in torpor("drill", "shop").out
    assert RUNNING.id in torpor("drill", "shop", "--no-wait").out


def found_by_doctor(drills: DrillList | None, running: Twin) -> tuple[Status, str] | None:
    if drills is not None:
        running.drills = drills
    named = {finding.name: finding for finding in doctor.own_findings(Invocation(False, None), Path("libtorpor.so"))}
    found = named.get("restore drills")
    return (found.status, f"{found.found} {found.remedy}") if found is not None else None


def test_the_doctor(torpor: Run, running: Twin) -> None:
    assert found_by_doctor(None, running) == (Status.OK, "1 databases verified, 0 not yet ")
    status, words = found_by_doctor(DrillList((FAILED,), 3600.0, 4, 1, 2), running) or (None, "")
    assert status is Status.LACK and "1 FAILED (shop: the log is missing" in words and "torpor drills --result failed" in words
    status, words = found_by_doctor(DrillList((), None, 0, 0, 3), running) or (None, "")
    assert status is Status.WARN and "drill_every_s" in words


def test_a_doctor_without_a_torpor(torpor: Run, home: Path) -> None:
    assert "restore drills" not in {finding.name for finding in doctor.own_findings(Invocation(False, None), home / "libtorpor.so")}
