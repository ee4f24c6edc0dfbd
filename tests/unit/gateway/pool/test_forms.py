"""The pool's two forms: a compiled module is never older than its source, and both do the same."""

import importlib.util
import os
import select
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import torpor.gateway.pool
from torpor.gateway.pool import forms

PACKAGE = Path(torpor.gateway.pool.__file__).parent


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package of one module that is compiled, and that was just now."""
    (tmp_path / "one.py").write_text("ONE = 1\n")
    (tmp_path / "one.pxd").write_text("\n")
    (tmp_path / "other.py").write_text("OTHER = 1\n")
    (tmp_path / forms.COMPILED).mkdir()
    (tmp_path / forms.COMPILED / forms.STAMP).write_text(forms.stamp(tmp_path))
    return tmp_path


def test_the_compiled_form_is_taken_while_it_is_of_these_sources(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(forms.INTERPRETED, raising=False)
    assert forms.modules(package) == {"one": package / "one.py"}
    assert forms.compiled(package) == package / forms.COMPILED
    (package / "other.py").write_text("OTHER = 2\n")
    assert forms.compiled(package) is not None, "not compiled: it doesn't count"
    monkeypatch.setenv(forms.INTERPRETED, "1")
    assert forms.compiled(package) is None


@pytest.mark.parametrize("name", ["one.py", "one.pxd"])
def test_an_edited_source_wins(package: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(forms.INTERPRETED, raising=False)
    was = (package / name).read_text()
    (package / name).write_text(was + "# edited\n")
    assert forms.compiled(package) is None
    (package / name).write_text(was)
    assert forms.compiled(package) is not None


def test_without_a_compiled_form_there_is_the_interpreted_one(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(forms.INTERPRETED, raising=False)
    shutil.rmtree(package / forms.COMPILED)
    assert forms.compiled(package) is None


def test_the_interpreted_form_passes_the_same_tests() -> None:
    """Whichever form this run has (the compiled one where that can be made): the scripts of the engine pass on the interpreted one, too."""
    environment = {**os.environ, forms.INTERPRETED: "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    tests = ["test_engine.py", "test_engine_properties.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(Path(__file__).parent / name) for name in tests)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def _wires() -> Iterator[ModuleType]:
    """The system calls, interpreted, and compiled where that is."""
    spec = importlib.util.spec_from_file_location("interpreted_wire", PACKAGE / "wire.py")
    assert spec is not None and spec.loader is not None
    interpreted = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(interpreted)
    yield interpreted
    from torpor.gateway.pool import wire

    if not str(wire.__file__).endswith(".py"):
        yield wire


@pytest.mark.parametrize("wire", list(_wires()), ids=lambda wire: str(wire.__name__).rpartition(".")[2])
def test_the_wire(wire: ModuleType) -> None:
    left, right = socket.socketpair()
    with left, right, select.epoll() as epoll:
        left.setblocking(False)
        right.setblocking(False)
        epoll.register(right.fileno(), select.EPOLLIN)
        assert wire.wait(epoll, 0.0) == 0
        with pytest.raises(IndexError):
            wire.who(0)
        with pytest.raises(BlockingIOError):
            wire.receive(right.fileno())
        assert wire.send(left.fileno(), b"abc\0d") == 5
        assert wire.wait(epoll, -1.0) == 1
        assert (wire.who(0), wire.what(0)) == (right.fileno(), select.EPOLLIN)
        assert wire.receive(right.fileno()) == b"abc\0d"
        whole = bytes(1 << 20)
        sent = 0
        while taken := wire.send(left.fileno(), whole):
            sent += taken
        while sent:
            got = wire.receive(right.fileno())
            assert 0 < len(got) <= wire.READ_BYTES
            sent -= len(got)
        left.close()
        assert wire.receive(right.fileno()) == b""
        with pytest.raises(OSError):
            wire.send(right.fileno(), b"x" * 100)
            wire.send(right.fileno(), b"x" * 100)
        with pytest.raises(OSError):
            wire.receive(-1)
