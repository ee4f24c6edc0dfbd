"""Finding the API, and what is said when that fails."""

import json
import os
import socket
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Run
from tests.unit.cli.twin import TOKEN, Twin, view
from torpor.cli.client import Address, Client, find_api
from torpor.cli.errors import CommandError


def test_nothing_runs(torpor: Run, home: Path) -> None:
    result = torpor("ls")
    assert result.code == 3
    assert (
        result.err
        == f"torpor: Torpor isn't running (there is no {home}/data/api.json); start it with `torpor serve --data-dir {home}/data`\n"
    )


def test_it_ran_once(torpor: Run, home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    (home / "data" / "api.json").write_text(json.dumps({"url": f"http://127.0.0.1:{port}"}))
    (home / "data" / "token").write_text(TOKEN)
    result = torpor("ls", "--json")
    assert result.code == 3
    assert result.error["kind"] == "unreachable"
    assert "isn't running" in result.error["message"]
    assert "torpor serve" in result.error["hint"]


def test_the_data_directory_as_a_flag(torpor: Run, running: Twin, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORPOR_DATA_DIR", "/nowhere")
    assert torpor("ls", "--data-dir", str(home / "data")).code == 0


def test_the_environment_overrides(torpor: Run, running: Twin, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "data" / "api.json").unlink()
    monkeypatch.setenv("TORPOR_API_URL", running.url + "/")
    assert torpor("ls").code == 0  # the token is found in the data directory
    (home / "data" / "token").unlink()
    assert torpor("ls").code == 4
    monkeypatch.setenv("TORPOR_API_TOKEN", TOKEN)
    assert torpor("ls").code == 0
    monkeypatch.setenv("TORPOR_API_URL", "ftp://x")
    assert torpor("ls").code == 2


def test_a_wrong_token(torpor: Run, running: Twin, home: Path) -> None:
    (home / "data" / "token").write_text("another")
    result = torpor("ls", "--json")
    assert result.code == 4
    assert result.error["sqlstate"] == "28000"


def test_a_token_of_somebody_else(torpor: Run, running: Twin, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_text

    def forbidden(path: Path) -> str:
        if path.name == "token":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_text", forbidden)
    monkeypatch.setattr("torpor.cli.client._user_name", lambda uid: "ann" if uid == os.geteuid() else "bob")
    result = torpor("ls")
    assert result.code == 4
    assert f"{home}/data/token belongs to" in result.err
    assert "sudo" in result.err


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"url": '])
def test_a_damaged_address(torpor: Run, home: Path, text: str) -> None:
    (home / "data" / "api.json").write_text(text)
    result = torpor("ls")
    assert result.code == 3
    assert "restart Torpor" in result.err


def test_a_user_without_a_torpor_of_their_own_finds_the_machines(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = home / "machine"
    machine.mkdir()
    (machine / "api.json").write_text(json.dumps({"url": "http://127.0.0.1:1"}))
    (machine / "token").write_text(TOKEN)
    monkeypatch.setattr("torpor.cli.client.SYSTEM_DATA_DIR", machine)
    monkeypatch.setattr("torpor.cli.client.default_data_dir", lambda environ: home / "none")
    assert find_api(None, {}) == Address("http://127.0.0.1:1", TOKEN, str(machine / "api.json"), str(machine / "token"))


def test_something_else_listens(torpor: Run, running: Twin) -> None:
    running.log = b"<html>"
    running.add(view("shop"))
    client = Client(Address(running.url, TOKEN, "test"))
    with pytest.raises(CommandError, match="didn't answer in JSON"):
        client.get("/v1/databases/shop/logs")
    client.close()


def test_an_answer_of_another_shape(torpor: Run, running: Twin) -> None:
    client = Client(Address(running.url, TOKEN, "test"))
    with pytest.raises(CommandError, match="wasn't understood"):
        client.fetch(Address, "/v1/host")
    client.close()


def test_a_kept_connection_that_was_closed_is_opened_again_for_reading_only(running: Twin) -> None:
    client = Client(Address(running.url, TOKEN, "test"))
    client.get("/v1/host")
    assert client._connection is not None
    client._connection.sock.shutdown(socket.SHUT_RDWR)
    client.get("/v1/host")
    client._connection.sock.shutdown(socket.SHUT_RDWR)
    with pytest.raises(CommandError, match="without an answer"):
        client.post("/v1/databases", {"name": "twice"})
    assert running.databases == {}
    client.close()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["nonsense"], "nonsense"),
        (["show"], "NAME"),
        (["show", "shop", "--bad"], "--bad"),
        (["sleep", "shop", "--tier", "awake"], "frozen"),
        (["create", "--freeze-after", "soon"], "never"),
        (["host", "nonsense"], "nonsense"),
        (["host", "setup", "--pool-size", "big"], "20G"),
    ],
)
def test_usage_errors(torpor: Run, arguments: list[str], word: str) -> None:
    result = torpor(*arguments)
    assert (result.code, result.out) == (2, "")
    assert word in result.err
    assert "--help" in result.err
    assert torpor(*arguments, "--json").error["kind"] == "usage"


@pytest.mark.parametrize("name", ["Shop", "a/b", "", "postgres", "x" * 64])
def test_impossible_names_are_refused_before_anything_is_sent(torpor: Run, running: Twin, name: str) -> None:
    result = torpor("show", name, "--json")
    assert (result.code, result.error["kind"]) == (1, "invalid_name")
    assert running.requests == []
