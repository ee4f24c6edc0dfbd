"""doctor, host, postgres and demo: what works without a running Torpor, and cleaning up whatever goes wrong."""

import fcntl
import os
import signal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.unit.cli.conftest import Run
from tests.unit.cli.twin import Twin
from torpor.base.host import record
from torpor.base.host.findings import Status
from torpor.cli import doctor as doctor_module
from torpor.cli import host as host_module
from torpor.cli.invocation import Invocation


@pytest.fixture
def no_postgres(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORPOR_POSTGRES_HOME", str(home / "nothing"))


@pytest.mark.usefixtures("no_postgres")
def test_doctor_fails_for_what_is_essential_only(torpor: Run, home: Path) -> None:
    result = torpor("doctor", "--json")
    assert result.code == 1
    lacking = [finding["name"] for finding in result.json["findings"] if finding["essential"] and finding["status"] == "lack"]
    assert lacking == ["PostgreSQL"]
    assert not result.json["ok"]
    text = torpor("doctor")
    assert text.code == 1
    assert "torpor postgres install" in text.out
    assert os.listdir(home / "data") == []


@pytest.mark.usefixtures("no_postgres")
def test_doctor_says_what_the_missing_library_costs(home: Path) -> None:
    findings = {finding.name: finding for finding in doctor_module.own_findings(Invocation(False, None), home / "libtorpor.so")}
    assert findings["socket library"].status is Status.WARN
    assert findings["TLS"].status is Status.LACK
    assert "libssl-dev" in findings["TLS"].remedy
    assert findings["Torpor"].status is Status.OK
    assert "torpor serve" in findings["Torpor"].remedy


@pytest.mark.parametrize("verb", ["setup", "lock", "undo"])
def test_host_changes_need_root(torpor: Run, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    result = torpor("host", verb)
    assert result.code == 1
    assert result.err == f"torpor: `torpor host {verb}` changes the host and needs root; run `sudo torpor host {verb}`\n"


def test_host_setup_can_be_tried_dry(torpor: Run, home: Path) -> None:
    result = torpor("host", "setup", "--dry-run", "--skip-packages", "--no-zram", "--json")
    steps = {step["name"]: step["state"] for step in result.json["steps"]}
    assert steps["packages"] == "skipped"
    assert steps["zram swap"] == "skipped"
    assert os.listdir(home / "data") == []


@pytest.mark.parametrize("verb", ["lock", "undo"])
def test_the_pool_isnt_taken_away_under_a_running_torpor(torpor: Run, home: Path, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setattr(host_module, "_require_root", lambda verb: None)
    record.save(home / "data", record.Record(pool_made=True))
    with (home / "data" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = torpor("host", verb, "--json")
    assert result.code == 1
    assert result.error["kind"] == "already_running"


def test_only_an_encrypted_pool_can_be_locked(torpor: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "_require_root", lambda verb: None)
    result = torpor("host", "lock", "--json")
    assert result.code == 1
    (step,) = result.json["steps"]
    assert step["text"] == "there is no encrypted pool here; `torpor host setup --encrypt-pool` makes one"


@pytest.mark.usefixtures("no_postgres")
def test_postgres_ls_and_install_of_an_unknown_major(torpor: Run) -> None:
    assert torpor("postgres", "ls", "--json").json["installed"] == []
    assert torpor("postgres", "ls").out == "none is installed\n"
    assert torpor("postgres", "install", "3").code == 14


def test_demo_removes_its_database_when_it_cant_go_on(torpor: Run, running: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise psycopg.OperationalError("no\x1b[2J route")

    monkeypatch.setattr(psycopg, "connect", refuse)
    result = torpor("demo", "--keep", "--yes")
    assert result.code == 1
    assert "no[2J route" in result.err
    assert [method for method, *_ in running.requests] == ["POST", "DELETE"]
    assert running.databases == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_removes_its_database_when_it_is_interrupted(
    torpor: Run, running: Twin, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(psycopg, "connect", lambda *arguments, **options: os.kill(os.getpid(), number))
    assert torpor("demo", "--json").code == 130
    assert running.databases == {}


def test_demo_doesnt_complain_of_a_database_that_is_gone(torpor: Run, running: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    def vanish(*arguments: Any, **options: Any) -> None:
        running.databases.clear()
        raise KeyboardInterrupt

    monkeypatch.setattr(psycopg, "connect", vanish)
    result = torpor("demo", "--json")
    assert (result.code, result.err.strip()) == (130, "")
    assert running.requests[-1][0] == "DELETE"
