"""`torpor export` where this machine has no pg_dump: Torpor itself makes the dump. And what is refused before anything is asked."""

from pathlib import Path

import pytest

from tests.unit.cli.conftest import Run
from tests.unit.cli.twin import Twin, view
from torpor.model.errors import Conflict, DumpFailed, TorporError


@pytest.fixture
def bare(running: Twin, home: Path, monkeypatch: pytest.MonkeyPatch) -> Twin:
    """A Torpor on a machine without any PostgreSQL."""
    running.add(view("shop"))
    monkeypatch.setenv("TORPOR_POSTGRES_HOME", str(home / "none"))
    monkeypatch.setenv("PATH", str(home / "none"))
    return running


def test_torpor_itself_exports(torpor: Run, bare: Twin, home: Path) -> None:
    done = torpor("export", "shop")
    assert (done.code, done.out) == (0, "a dump, format=plain")
    assert "there is no pg_dump on this machine" in done.err
    path = home / "shop.dump"
    assert torpor("export", "shop", "--format", "custom", "--schema-only", "--owners", "-o", str(path), "--json").json["bytes"] == 21
    assert path.read_text() == "a dump, format=custom"
    assert bare.requests[-1][3] == {"format": "custom", "schema_only": True, "data_only": False, "owners": True}


def test_its_refusal_is_told(torpor: Run, bare: Twin, home: Path) -> None:
    refusals: dict[str, TorporError] = {"tickets": Conflict("no password", "give one"), "export": DumpFailed("a page is broken", "look")}

    def refuse(method: str, path: str) -> None:
        for verb, error in refusals.items():
            if path.endswith(verb):
                raise error

    bare.hook = refuse
    done = torpor("export", "shop", "-o", str(home / "shop.sql"), "--json")
    assert (done.code, done.error["kind"], done.error["message"]) == (1, "dump_failed", "a page is broken")
    assert not list(home.glob("*.sql"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", "shop", "--schema-only", "--data-only"),
        ("export", "shop", "--format", "directory"),
        ("export", "shop", "--json"),
        ("export",),
        ("import",),
        ("import", "shop", "https://example.org/x.sql"),
        ("diff", "shop"),
    ],
)
def test_wrong_command_lines_ask_nothing(torpor: Run, bare: Twin, arguments: tuple[str, ...]) -> None:
    assert torpor(*arguments).code == 2
    assert bare.requests == []


def test_others_need_the_programs(torpor: Run, bare: Twin, home: Path) -> None:
    dump = home / "dump.sql"
    dump.write_text("SELECT 1;")
    bare.add(view("other"))
    assert torpor("import", "shop", str(dump), "--json").error["kind"] == "binaries_missing"
    missing = torpor("diff", "shop", "other", "--json")
    assert (missing.code, missing.error["kind"]) == (2, "binaries_missing")
    assert torpor("diff", "shop", "nobody").code == 2
