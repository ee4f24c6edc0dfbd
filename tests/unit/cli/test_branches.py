"""The commands of branches against the twin: what they ask, what they print where, and how they end."""

import json
from pathlib import Path

from tests.unit.cli.conftest import Run
from tests.unit.cli.twin import Twin, view


def test_a_branch_prints_its_url_alone_on_stdout(torpor: Run, running: Twin, home: Path) -> None:
    running.add(view("shop"))
    result = torpor("branch", "shop", "shop-try", "--ttl", "2d")
    assert result.code == 0
    assert result.out == "postgresql://owner:s%2Fe%20c%401@127.0.0.1:7432/shop-try\n"
    assert "shop-try is a branch of shop, made in 112 ms; it is removed in 2 d" in result.err or "1 d 23 h" in result.err
    assert running.requests == [("POST", "/v1/databases/shop/branches", {}, {"name": "shop-try", "ttl_s": 172_800})]
    assert torpor("url", "shop-try").out == result.out


def test_a_branch_has_a_size_and_a_sleep_of_its_own(torpor: Run, running: Twin) -> None:
    running.add(view("shop"))
    torpor("branch", "shop", "--freeze-after", "2.5", "--stop-after", "never", "--cpu", "0.5:2")
    sent = running.requests[0][3]
    assert sent == {"freeze_after_s": 2.5, "stop_after_s": "never", "size": {"min_cpu": 0.5, "max_cpu": 2.0}}


def test_with_the_passwords_kept_the_parents_is_known(torpor: Run, running: Twin) -> None:
    torpor("create", "shop")
    result = torpor("branch", "shop", "shop-try", "--keep-passwords")
    assert result.out == "postgresql://shop-try:s%2Fe%20c%401@127.0.0.1:7432/shop-try\n"
    assert torpor("url", "shop-try").out == result.out
    running.add(view("elsewhere", number=7))
    assert torpor("branch", "elsewhere", "try", "--keep-passwords").out == "postgresql://owner@127.0.0.1:7432/try\n"


def test_branches_are_listed(torpor: Run, running: Twin) -> None:
    running.add(view("shop"))
    empty = torpor("branches", "shop")
    assert (empty.code, empty.out.strip()) == (0, "")
    assert "torpor branch shop" in empty.err
    torpor("branch", "shop", "shop-try", "--ttl", "1h")
    torpor("branch", "shop", "stays")
    head, first, second = torpor("branches", "shop").out.splitlines()
    assert head.split() == ["NAME", "TIER", "AS-OF", "EXPIRES", "CONNS"]
    assert first.startswith("shop-try")
    assert " in " in first
    assert "never" in second
    assert [one["name"] for one in torpor("branches", "shop", "--json").json["branches"]] == ["shop-try", "stays"]


def test_lineage_is_shown(torpor: Run, running: Twin) -> None:
    running.add(view("shop"))
    assert "BRANCH-OF" not in torpor("ls").out
    assert "branch of" not in torpor("show", "shop").out
    torpor("branch", "shop", "shop-try", "--ttl", "1h")
    listed = torpor("ls").out.splitlines()
    assert [line.split()[-1] for line in listed] == ["BRANCH-OF", "-", "shop"]
    shown = next(line for line in torpor("show", "shop-try").out.splitlines() if line.startswith("branch of"))
    assert "shop, as of " in shown
    assert "it is removed in " in shown


def test_reset(torpor: Run, running: Twin) -> None:
    running.add(view("shop"))
    torpor("branch", "shop", "shop-try")
    result = torpor("reset", "shop-try", "--force")
    assert result.out == "shop-try is what shop is now\n"
    assert running.requests[-1] == ("POST", "/v1/databases/shop-try/reset", {}, {"force": True})


def test_what_is_no_branch_is_not_reset(torpor: Run, running: Twin) -> None:
    running.add(view("shop"))
    result = torpor("reset", "shop")
    assert result.code == 1
    assert "is no branch" in result.err
    assert json.loads(torpor("reset", "shop", "--json").err)["error"]["kind"] == "conflict"
