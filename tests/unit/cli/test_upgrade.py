"""`torpor upgrade` against the twin: what it asks, what it prints, what it refuses."""

from dataclasses import replace

from tests.unit.cli.conftest import Run
from tests.unit.cli.test_history import RUNNING, ends
from tests.unit.cli.twin import Twin, view
from torpor.cli.upgrade import words
from torpor.model.jobs import JobState

DONE = replace(RUNNING, state=JobState.DONE, ended_at=RUNNING.began_at + 12)


def test_upgrade_and_undo(torpor: Run, running: Twin) -> None:
    running.add(view("shop"))
    ends(running, **{"from": "17", "to": "18", "before": "shop-before-18", "unavailable_s": "5.2"})
    result = torpor("upgrade", "shop", "--to", "18", "--force")
    assert result.code == 0
    assert "upgraded from PostgreSQL 17 to 18; it was away for 5.2 s, and what it was is in shop-before-18" in result.out
    assert "to undo it: torpor upgrade shop --undo" in result.err
    assert running.requests[0] == ("POST", "/v1/databases/shop/upgrade", {}, {"to": 18, "check": False, "force": True})
    ends(running, before="shop-before-18")
    assert "shop is what it was before the upgrade" in torpor("upgrade", "shop", "--undo", "--force").out
    for wrong in ([], ["--undo", "--to", "18"], ["--undo", "--check"], ["--check"], ["--to", "new"]):
        assert torpor("upgrade", "shop", *wrong).code == 2
    assert torpor("upgrade", "nothing", "--to", "18", "--check").code == 1


def test_a_check_changes_nothing_and_asks_nobody(torpor: Run, running: Twin) -> None:
    running.add(view("shop"))
    ends(running, **{"from": "17", "to": "18"})
    result = torpor("upgrade", "shop", "--to", "18", "--check")
    assert result.code == 0
    assert "shop can be upgraded from PostgreSQL 17 to 18" in result.out
    assert running.requests[0][3] == {"to": 18, "check": True, "force": False}
    assert torpor("upgrade", "shop", "--to", "18", "--check", "--json").json["state"] == "done"


def test_what_is_to_be_known_of_it() -> None:
    told = {"from": "16", "to": "18", "settings_left_out": "old_snapshot_threshold", "slots_left_out": "cdc", "extensions": "none for it"}
    shown = words("shop", replace(DONE, result=told), check=True, undo=False)
    assert shown.splitlines() == [
        "shop can be upgraded from PostgreSQL 16 to 18: its copy was, in 12 s",
        "  settings that the new major doesn't have: old_snapshot_threshold",
        "  extensions that stay at their version: none for it",
        "  replication slots that aren't taken over: cdc",
    ]
