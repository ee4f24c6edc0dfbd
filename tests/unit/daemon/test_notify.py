"""Words to systemd."""

import os
import socket
from pathlib import Path

import pytest

from torpor.daemon.notify import notify, ready


@pytest.mark.parametrize("kind", ["a path", "an abstract name"])
def test_words_arrive(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = str(tmp_path / "notify") if kind == "a path" else f"@torpor-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0", 1) if name[0] == "@" else name)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        ready()
        assert manager.recv(1000).decode().splitlines() == ["READY=1", f"MAINPID={os.getpid()}", "STATUS=serving"]


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "vsock:2:1"])
def test_nobody_listens(address: str) -> None:
    notify("READY=1", environ={"NOTIFY_SOCKET": address})
