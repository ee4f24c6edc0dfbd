"""Log lines as an operator and a log collector get them."""

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from torpor.base import logs

HOSTILE = "shop\n2026-01-01T00:00:00Z [info] forged\x1b[2J\u202e\x9b\x00"
ISO_UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z")


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    logs._configure("console")


def test_json_lines_carry_time_level_logger_and_values(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    logs.get_logger("torpor.door").info("client refused", name=HOSTILE, count=3, steps=["a", "b"], gone=None)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    line = json.loads(err)
    assert ISO_UTC.fullmatch(line.pop("timestamp"))
    assert line == {
        "event": "client refused",
        "level": "info",
        "logger": "torpor.door",
        "name": HOSTILE,
        "count": 3,
        "steps": ["a", "b"],
        "gone": None,
    }
    assert err.isascii()


def test_console_values_cannot_forge_lines_or_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("console")
    logs.get_logger("door").warning(f"event {HOSTILE}", name=HOSTILE, nested={"x": HOSTILE}, raw=HOSTILE.encode())
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.rstrip("\n").isprintable()
    assert ISO_UTC.match(err)
    assert "[warning" in err and "door" in err and r"\x1b[2J\u202e\x9b\x00" in err


def test_exceptions_are_indented_and_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("console")
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logs.get_logger("door").exception("it broke")
    first, *others = capsys.readouterr().err.splitlines()
    assert "it broke" in first and "[error" in first
    assert any("ValueError: shop" in line for line in others)
    assert all(not line or line.startswith("    ") for line in others)
    assert all(line.isprintable() for line in others)


def test_exceptions_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    try:
        raise ValueError("boom")
    except ValueError:
        logs.get_logger("door").exception("it broke")
    assert json.loads(capsys.readouterr().err)["exception"].endswith("ValueError: boom")


def test_debug_is_quiet_and_bind_adds_values(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    log = logs.get_logger("x")
    log.debug("nothing")
    log.bind(database="shop").info("something")
    assert json.loads(capsys.readouterr().err)["database"] == "shop"


def test_what_cannot_be_encoded_is_shown_by_repr(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    logs.get_logger("x").info("odd", value={1, 2}, lone="\ud800")
    assert json.loads(capsys.readouterr().err)["value"] == "{1, 2}"


def test_a_lone_surrogate_does_not_break_the_console(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("console")
    logs.get_logger("x").info("odd", lone="\ud800")
    assert r"lone=\ud800" in capsys.readouterr().err


def test_warnings_of_other_libraries_come_through_once(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    logs.configure("json")
    logging.getLogger("asyncio").info("chatter")
    logging.getLogger("asyncio").warning("slow %s", "callback")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "slow callback"
    assert json.loads(line)["logger"] == "asyncio"


def test_a_lost_terminal_never_raises() -> None:
    script = "import sys; from torpor.base.logs import *; configure('json'); get_logger('x').info('lost'); sys.stdout.write('went on')"
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run([sys.executable, "-c", script], stderr=write, stdout=subprocess.PIPE, timeout=60, check=False)
    finally:
        os.close(write)
    assert done.stdout == b"went on"


def test_importing_does_not_pull_in_rich() -> None:
    script = "import sys; import torpor.base.logs; assert not [m for m in sys.modules if m.startswith('rich')]; import rich.console"
    subprocess.run([sys.executable, "-c", script], timeout=60, check=True)
