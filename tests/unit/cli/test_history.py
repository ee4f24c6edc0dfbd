"""The commands of histories against the twin: what they ask, what they print, and how they end."""

from dataclasses import replace

from tests.unit.cli.conftest import Run
from tests.unit.cli.twin import NOW, Twin, view
from torpor.api import examples
from torpor.cli.history import lines
from torpor.model.history_views import BaseList, ShippingView
from torpor.model.jobs import JobId, JobState, JobView

RUNNING = JobView(JobId("jk3v5q2mzab7w"), "backup", "shop", JobState.RUNNING, NOW, None, 10, 20, "bytes", "storing")


def ends(twin: Twin, **result: str) -> None:
    twin.jobs[RUNNING.id] = [RUNNING, replace(RUNNING, state=JobState.DONE, done=20, result=result)]


def test_what_can_be_restored(torpor: Run, running: Twin) -> None:
    running.add(view("shop"))
    result = torpor("history", "shop")
    assert result.code == 0
    assert "restorable   from 2026-" in result.out
    assert "store        s3://backups/torpor" in result.out
    assert "any moment of the last 30 days (own), 30 base copies at most" in result.out
    assert torpor("history", "shop", "--json").json["bases"] == 8


def test_how_far_behind() -> None:
    behind = replace(examples.HISTORY, shipping=ShippingView(NOW - 3, 16_384, "the store is full", "its log was gone"))
    shown = "\n".join(lines(behind, NOW))
    assert "16 kB behind, whole up to 3 s ago" in shown
    assert "not shipped: the store is full" in shown
    assert "begins anew: its log was gone" in shown
    nothing = replace(examples.HISTORY, windows=(), shipping=ShippingView(None, 0))
    assert "nothing yet" in "\n".join(lines(nothing, NOW))


def test_how_much_is_kept(torpor: Run, running: Twin) -> None:
    running.add(view("shop"))
    assert "14 days (own), 30 base copies" in torpor("history", "shop", "--keep-days", "14").out
    torpor("history", "shop", "--keep-days", "default", "--keep-bases", "5")
    assert [request[3] for request in running.requests] == [{"keep_days": 14.0}, {"keep_days": None, "keep_bases": 5}]
    assert torpor("history", "shop", "--keep-days", "many").code == 2


def test_bases(torpor: Run, running: Twin) -> None:
    running.add(view("shop"))
    head, row = torpor("backups", "shop").out.splitlines()
    assert head.split() == ["NUMBER", "TAKEN", "POSITION", "SIZE", "STORED"]
    assert row.split()[0] == "8"
    running.bases = BaseList(())
    assert "no base copies yet" in torpor("backups", "shop").out
    ends(running, base="9")
    assert "shop has base copy" in torpor("backup", "shop").out
    assert RUNNING.id in torpor("backup", "shop", "--no-wait").out


def test_in_place(torpor: Run, running: Twin) -> None:
    running.add(view("shop"))
    ends(running, before="shop-before-20261122-140300")
    result = torpor("restore", "shop", "--at", "2026-11-20 14:03:00+00", "--force")
    assert result.code == 0
    assert "what it was until now is in shop-before-20261122-140300" in result.out
    assert "torpor restore shop --undo" in result.err
    assert running.requests[0] == ("POST", "/v1/databases/shop/restore", {}, {"force": True, "at": 1_795_183_380.0})
    ends(running, before="shop-before-20261122-140300")
    assert torpor("restore", "shop", "--undo", "--force").code == 0
    for wrong in (["--force"], ["--undo", "--at", "now", "--force"], ["--at", "yesterday", "--force"]):
        assert torpor("restore", "shop", *wrong).code == 2


def test_a_branch_of_the_past(torpor: Run, running: Twin) -> None:
    running.add(view("shop"))
    ends(running, database="shop-then")
    result = torpor("branch", "shop", "shop-then", "--lsn", "0/16B3748")
    assert result.out == "postgresql://owner:s%2Fe%20c%401@127.0.0.1:7432/shop-then\n"
    assert "shop-then is a branch of shop as it was" in result.err
    assert running.requests[0] == ("POST", "/v1/databases/shop/branches/past", {}, {"name": "shop-then", "lsn": "0/16B3748"})
    assert torpor("url", "shop-then").out == result.out
