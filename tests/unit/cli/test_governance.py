"""`torpor workspace`, `torpor key` and `torpor audit`, against the real use cases."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Run
from tests.unit.cli.twin import TOKEN, Rulers, Twin, view
from torpor.cli.audit import line
from torpor.model.audit import AuditResult


def fill(rulers: Rulers, count: int) -> None:
    with rulers.catalog.transaction():
        for number in range(count):
            rulers.audit.record("host", "database.create", f"db{number}", detail="x", address="127.0.0.1")


def test_workspaces(torpor: Run, rulers: Rulers) -> None:
    assert torpor("workspace", "create", "acme").out == "acme is made\n"
    lines = torpor("workspace", "ls").out.splitlines()
    assert [one.split()[:3] for one in lines] == [["NAME", "DATABASES", "KEYS"], ["acme", "0", "0"], ["default", "0", "0"]]
    assert torpor("workspace", "show", "acme").out.startswith("acme  made")
    assert torpor("workspace", "show", "self", "--json").json["name"] == "default"
    assert torpor("workspace", "rm", "acme").out == "acme is removed\n"
    assert torpor("workspace", "show", "acme").code == 1
    for wrong in ("self", "A", "a/b", ""):
        assert torpor("workspace", "create", wrong).code == 1


def test_a_key_is_printed_alone_and_once(torpor: Run, rulers: Rulers) -> None:
    torpor("workspace", "create", "acme")
    made = torpor("key", "create", "--workspace", "acme", "--scope", "write", "--name", "ci", "--expires", "90d")
    assert made.code == 0
    assert made.out.startswith("torpor_k1_k") and made.out.count("\n") == 1
    assert "write in the workspace acme, for 90 d" in made.err
    secret = made.out.strip().rpartition("_")[2]
    assert secret not in made.err
    listed = torpor("key", "ls", "--workspace", "acme")
    assert listed.out.splitlines()[1].split()[1:3] == ["ci", "write"]
    assert secret not in listed.out + torpor("key", "ls", "--workspace", "acme", "--json").out
    assert rulers.keys.recognise(made.out.strip().encode(), "") is not None
    id = made.out.strip().split("_")[2]
    assert torpor("key", "revoke", made.out.strip(), "--workspace", "acme").out == f"{id} is revoked\n"
    assert rulers.keys.recognise(made.out.strip().encode(), "") is None
    assert "no keys" in torpor("key", "ls", "--workspace", "acme").err
    assert torpor("key", "revoke", id).code == 1


@pytest.mark.parametrize("time", ["90", "soon", "-1d", "1mo", ""])
def test_times_need_a_unit(torpor: Run, rulers: Rulers, time: str) -> None:
    assert torpor("key", "create", "--name", "x", "--expires", time).code == 2


def test_the_key_comes_from_the_environment(torpor: Run, running: Twin, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running.add(view("shop"))
    (home / "data" / "token").unlink()
    monkeypatch.setenv("TORPOR_API_KEY", TOKEN)
    assert torpor("ls").code == 0
    (home / "data" / "api.json").unlink()
    monkeypatch.setenv("TORPOR_API_URL", running.url)
    monkeypatch.setenv("TORPOR_API_TOKEN", "not this one")
    assert torpor("ls").code == 0
    monkeypatch.setenv("TORPOR_API_KEY", "torpor_k1_wrong")
    refused = torpor("ls")
    assert refused.code == 4
    assert "TORPOR_API_KEY" in refused.err and "torpor_k1_wrong" not in refused.err


def test_workspaces_of_databases(torpor: Run, running: Twin) -> None:
    torpor("create", "shop", "--workspace", "acme")
    assert running.requests[-1][3] == {"name": "shop", "workspace": "acme"}
    torpor("ls", "--workspace", "acme")
    assert running.requests[-1][2]["workspace"] == "acme"
    assert "workspace    default" in torpor("show", "shop").out


def test_a_request_that_came_too_early_is_repeated(torpor: Run, running: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("torpor.cli.client.time.sleep", waits.append)
    running.early = 2
    assert torpor("ls").code == 0
    assert waits == [1, 1]
    running.early = 100
    assert torpor("ls").code == 1


def test_audit(torpor: Run, rulers: Rulers) -> None:
    assert "nothing is recorded yet" in torpor("audit").err
    begun = rulers.audit.record("host", "key.create", "ci", result=AuditResult.BEGUN)
    rulers.audit.record("kabc", "key.create", "x\x1b[2J", actor_name="ci", address="192.0.2.1", detail="scope=write", begun=begun)
    shown = torpor("audit").out
    assert shown.count("\n") == 1
    assert "kabc (ci)  key.create  x?[2J  done  from 192.0.2.1  scope=write" in shown
    assert torpor("audit", "--begun").out.count("\n") == 2
    assert json.loads(torpor("audit", "--json").out)["begun"] == begun
    assert torpor("audit", "--action", "database").out == ""
    fill(rulers, 60)
    assert torpor("audit", "--action", "database", "-n", "5").out.count("\n") == 5
    assert [one.split()[4] for one in torpor("audit", "-n", "2").out.splitlines()] == ["db58", "db59"]


def test_follow(torpor: Run, rulers: Rulers, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(rulers, 3)
    turns = 0

    def wait(seconds: float) -> None:
        nonlocal turns
        turns += 1
        if turns == 3:
            raise KeyboardInterrupt
        rulers.audit.record("host", "key.revoke", f"k{turns}")

    monkeypatch.setattr("torpor.cli.audit.time.sleep", wait)
    result = torpor("audit", "--follow", "-n", "1")
    assert (result.code, [line.split()[4] for line in result.out.splitlines()]) == (0, ["db2", "k1", "k2"])


def test_verify(torpor: Run, rulers: Rulers, home: Path) -> None:
    fill(rulers, 1100)
    good = torpor("audit", "verify", "--json").json
    assert (good["first"], good["last"]) == (1, 1100)
    fill(rulers, 10)
    assert torpor("audit", "verify", "--noted", good["head"]).code == 0
    assert torpor("audit", "verify", "--noted", "7:" + "0" * 64).code == 1
    assert torpor("audit", "verify", "--noted", "9999:" + "0" * 64).code == 1
    assert torpor("audit", "verify", "--noted", "what").code == 2
    asyncio.run(rulers.audit.archive(800))
    asyncio.run(rulers.audit.archive(200))
    whole = torpor("audit", "verify", "--json", "--noted", good["head"]).json
    assert (whole["first"], whole["last"]) == (1, 1110)
    files = sorted((home / "data" / "audit").iterdir())
    kept = files[0].read_bytes()
    files[0].unlink()
    assert torpor("audit", "verify", "--json").json["first"] == 801
    files[0].write_bytes(kept[:1000])
    assert "tampered with" in torpor("audit", "verify").err
    files[0].write_bytes(kept)
    files[1].unlink()
    assert torpor("audit", "verify").code == 1


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE audit SET actor = 'nobody' WHERE number = 3", "record 3 was changed"),
        ("UPDATE audit SET result = 'nonsense' WHERE number = 3", "record 3 was changed"),
        ("DELETE FROM audit WHERE number = 3", "record 3 is missing"),
        ("DELETE FROM audit WHERE number = 1", "record 1 is missing"),
        ("UPDATE audit SET hash = previous WHERE number = 5", "record 5 was changed"),
    ],
)
def test_tampering_is_found(torpor: Run, rulers: Rulers, statement: str, says: str) -> None:
    fill(rulers, 5)
    for trigger in ("audit_unchanged", "audit_kept"):
        rulers.catalog.connection.execute(f"DROP TRIGGER {trigger}")
    rulers.catalog.connection.execute(statement)
    result = torpor("audit", "verify", "--json")
    assert result.error["kind"] == "audit_broken"
    assert says in result.error["message"]


def test_a_line_shows_no_control_characters() -> None:
    record = {"at": 1.0, "actor": "host", "actor_name": "", "action": "a", "target": "\x1b]0;x\x07", "result": "done", "address": ""}
    assert "\x1b" not in line({**record, "detail": "\r\n"})
