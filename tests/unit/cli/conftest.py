"""A running twin, a data directory that points to it, and a way to run command lines."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.twin import TOKEN, Rulers, Twin, serving
from torpor.cli.root import run


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.err)["error"]
        return value


Run = Callable[..., Result]


@pytest.fixture
def twin() -> Iterator[Twin]:
    twin = Twin()
    with serving(twin):
        yield twin


@pytest.fixture
def rulers(running: Twin, tmp_path: Path) -> Iterator[Rulers]:
    """Workspaces, keys and audit log of the running twin, in its data directory."""
    running.rulers = Rulers(tmp_path / "data")
    yield running.rulers
    running.rulers.catalog.close()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home without a running Torpor."""
    for name in ("TORPOR_API_URL", "TORPOR_API_TOKEN", "TORPOR_API_KEY", "TORPOR_CONFIG", "TORPOR_POSTGRES_HOME", "TORPOR_PG_BINDIR"):
        monkeypatch.delenv(name, raising=False)
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.setenv("TORPOR_DATA_DIR", str(data))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def torpor(home: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run one command line in this process."""

    def torpor(*arguments: str) -> Result:
        capfd.readouterr()
        code = run(arguments)
        out, err = capfd.readouterr()
        return Result(code, out, err)

    return torpor


@pytest.fixture
def running(home: Path, twin: Twin) -> Twin:
    """The twin, found through the data directory."""
    address = {"url": twin.url, "door": "127.0.0.1:7432", "pid": 1, "version": "0.1.0", "token_file": str(home / "data" / "token")}
    (home / "data" / "api.json").write_text(json.dumps(address))
    (home / "data" / "token").write_text(TOKEN + "\n")
    return twin
