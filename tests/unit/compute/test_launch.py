"""The command line that becomes PostgreSQL, run for real with a stand-in for PostgreSQL; and what PostgreSQL last said."""

import asyncio
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from torpor.base.cgroups import SignalTrees, Tree
from torpor.base.processes import start_ticks
from torpor.compute import logfile
from torpor.compute.configuration import ISOLATION
from torpor.compute.launch import Launch, LaunchPlan, command, spawn
from torpor.compute.logfile import keep_small, last_words
from torpor.model.errors import ComputeStartFailed, HostError
from torpor.model.sandbox import SandboxLevel

UID = 318_765


@pytest.fixture
def place() -> Iterator[Path]:
    """Where another user may go, too."""
    directory = Path(tempfile.mkdtemp(prefix="torpor-launch-", dir="/var/tmp"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory)


def gate(place: Path) -> str:
    """What a script waits with until the test has hold of it, and says so: one that is gone at once can't be started in order."""
    return f"until [ -e {place}/gate ]; do sleep 0.01; done"


def plan(place: Path, script: str = "exit 0") -> LaunchPlan:
    """A plan whose postgres is a shell script: it has the listener as descriptor 3, the promise as 4."""
    (place / "bin").mkdir()
    postgres = place / "bin/postgres"
    postgres.write_text(f"#!/bin/sh\n{script}\n")
    postgres.chmod(0o755)
    level = SandboxLevel.OWN_USER if os.geteuid() == 0 else SandboxLevel.NONE
    return LaunchPlan(place / "bin", place / "data", UID, place / "no.so", place / "conf", place / "log", level=level)


def test_isolation_is_given_where_alter_system_cant_reach(place: Path) -> None:
    line = command(plan(place))
    given = {line[n + 1] for n, part in enumerate(line) if part == "-c"}
    assert {f"{name}={value}" for name, value in ISOLATION.items()} <= given
    assert {
        f"config_file={place}/conf/postgresql.conf",
        f"hba_file={place}/conf/pg_hba.conf",
        f"ident_file={place}/conf/pg_ident.conf",
    } <= given
    assert line[line.index("-D") + 1] == str(place / "data")
    assert f"LD_PRELOAD={place}/no.so" in line


def test_as_root_privileges_are_dropped_before_postgresql(place: Path) -> None:
    line = command(replace(plan(place), level=SandboxLevel.OWN_USER))
    postgres = line.index(str(place / "bin/postgres"))
    for part in (f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"):
        assert line.index(part) < postgres
    # The library is loaded into PostgreSQL only: not into the programs that drop privileges.
    assert line.index("--bounding-set=-all") < line.index(f"LD_PRELOAD={place}/no.so") < postgres


def test_as_a_user_nothing_is_dropped(place: Path) -> None:
    line = command(replace(plan(place), level=SandboxLevel.NONE))
    assert not any("setpriv" in part or "unshare" in part for part in line)


def test_a_missing_tool_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path: None)
    with pytest.raises(HostError, match="package util-linux"):
        command(LaunchPlan(place, place, UID, place, place, place))


def is_inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


async def until(holds: Callable[[], bool]) -> None:
    """Until it holds; pytest's timeout bounds the wait."""

    def wait() -> None:
        while not holds():
            time.sleep(0.005)

    await asyncio.to_thread(wait)


async def end(launch: Launch, tree: Tree) -> None:
    launch.process.watch(lambda: None)
    tree.kill()
    assert await launch.process.wait(60)


@pytest.mark.parametrize("script", ["printf R >&4; exec sleep 60", "sleep 0.02; printf R >&4; exec sleep 60"])
async def test_ready_is_reported(place: Path, script: str) -> None:
    tree = SignalTrees().open("d")
    launch = spawn(plan(place, script), tree, place / "run/door.sock")
    try:
        assert await launch.wait_ready(10)
        assert launch.postmaster_pid == launch.process.pid
        assert tree.pids() == [launch.process.pid]
        assert stat.S_IMODE((place / "run").stat().st_mode) == 0o700
    finally:
        await end(launch, tree)
        launch.close()
        launch.close()


async def test_an_end_instead_of_ready(place: Path) -> None:
    tree = SignalTrees().open("d")
    launch = spawn(plan(place, "echo 'FATAL:  no such thing' >&2; sleep 0.2; exit 1"), tree, place / "run/door.sock")
    with pytest.raises(ComputeStartFailed):
        assert await launch.wait_ready(10)
    launch.close()
    await end(launch, tree)
    # The stand-in ran under its preload, about which the loader complains in the same log.
    assert "no such thing" in last_words(place / "log")
    assert stat.S_IMODE((place / "log").stat().st_mode) == 0o600


async def test_one_that_takes_long_can_be_waited_for_again(place: Path) -> None:
    tree = SignalTrees().open("d")
    launch = spawn(
        plan(place, "while [ ! -e go ]; do sleep 0.01; done; printf R >&4; exec sleep 60".replace("go", f"{place}/go")),
        tree,
        place / "run/s",
    )
    try:
        assert not await launch.wait_ready(0.01)
        assert not await launch.wait_ready(0.01)
        (place / "go").touch()
        assert await launch.wait_ready(10)
    finally:
        await end(launch, tree)
        launch.close()


async def test_it_is_put_into_its_tree_and_then_let_go(place: Path) -> None:
    entrances = [place / "a", place / "b"]
    tree = SignalTrees().open("d")
    launch = spawn(plan(place, "read x <&5; echo went $x >&2; printf R >&4; exec sleep 60"), tree, place / "run/door.sock")
    assert not await launch.wait_ready(0.05)
    await launch.enter(entrances)
    assert await launch.wait_ready(10)
    await end(launch, tree)
    assert [path.read_text() for path in entrances] == [str(launch.process.pid)] * 2
    assert "went G\n" in (place / "log").read_text()


class Procs:
    """A cgroup's file of processes, that remembers."""

    def __init__(self) -> None:
        self.entered: list[int] = []

    def write_text(self, text: str) -> None:
        """One process enters."""
        self.entered.append(int(text))


async def test_what_it_has_forked_meanwhile_is_put_into_the_tree_too(place: Path) -> None:
    procs, tree = Procs(), SignalTrees().open("d")
    launch = spawn(plan(place, "(sleep 60 & exec sleep 60) & exec sleep 60"), tree, place / "run/s")
    await until(lambda: len(tree.pids()) == 3)
    await launch.enter([cast(Path, procs)])
    assert sorted(procs.entered) == sorted(tree.pids())
    await end(launch, tree)
    launch.close()


async def test_one_that_ended_before_it_was_in_its_tree_is_not_let_go(place: Path) -> None:
    """Nothing that it has left behind begins, either."""
    tree = SignalTrees().open("d")
    script = f"(echo ended $(head -c 1 <&5 | wc -c) >&2) & {gate(place)}; exit 0"
    launch = spawn(plan(place, script), tree, place / "run/s")
    (place / "gate").touch()
    await until(lambda: start_ticks(launch.process.pid) is None)
    await launch.enter([])
    await until(lambda: "ended" in (place / "log").read_text())
    assert "ended 0" in (place / "log").read_text()
    await end(launch, tree)
    launch.close()


async def test_one_that_ended_before_it_could_enter(place: Path) -> None:
    tree = SignalTrees().open("d")
    launch = spawn(plan(place, f"{gate(place)}; exit 1"), tree, place / "run/door.sock")
    (place / "gate").touch()
    await end(launch, tree)
    await launch.enter([])
    with pytest.raises(ComputeStartFailed):
        assert await launch.wait_ready(10)


async def test_what_a_compute_gets_from_us(place: Path) -> None:
    """Its user, its descriptors, a clean environment, default signals: nothing more."""
    script = 'id -u; ls /proc/self/fd | tr "\\n" " "; echo; grep -E "SigIgn|SigBlk|NoNewPrivs|CapBnd" /proc/self/status; env; printf R >&4'
    tree = SignalTrees().open("d")
    launch = spawn(plan(place, script), tree, place / "run/door.sock")
    assert await launch.wait_ready(10)
    launch.close()
    await end(launch, tree)
    lines = [line for line in (place / "log").read_text().splitlines() if not line.startswith("ERROR: ld.so")]
    assert lines[0] == str(UID if os.geteuid() == 0 else os.geteuid())
    inherited = {name for name in os.listdir("/proc/self/fd") if name.isdecimal() and is_inheritable(int(name))}
    got = set(lines[1].split()) - inherited
    assert got >= {"3", "4", "5"}
    assert len(got - set("012345")) <= 2  # the script itself, and the directory that `ls` lists
    facts = dict(line.split(":\t") for line in lines[2:6])
    assert int(facts["SigBlk"], 16) == 0
    if os.geteuid() == 0:
        assert facts["NoNewPrivs"] == "1"
        assert int(facts["CapBnd"], 16) == 0
    environment = {line.partition("=")[0] for line in lines[6:]}
    assert environment <= {
        "PATH",
        "LANG",
        "TZ",
        "LD_PRELOAD",
        "TORPOR_LISTENER_FD",
        "TORPOR_READY_FD",
        "TORPOR_GO_FD",
        "PWD",
        "SHLVL",
        "_",
        "OLDPWD",
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it left no message"),
        ("\n\n", "it left no message"),
        ("a\nb\n", "b"),
        (
            '2026-01-01 UTC [1] FATAL:  could not open file "x"\n2026 UTC [1] LOG:  database system is shut down\n',
            'could not open file "x"',
        ),
        ("[1] FATAL:  first\n[1] PANIC:  second\n[1] HINT:  third\n", "second"),
        ("x" * 20000 + "\n[1] FATAL:  late\n", "late"),
        ("[1] FATAL:  far above\n" + "y" * 20000 + "\nlast\n", "last"),
        ("\xff\xfe FATAL:  bytes\n", "bytes"),
    ],
)
def test_last_words(tmp_path: Path, text: str, words: str) -> None:
    log = tmp_path / "log"
    log.write_bytes(text.encode("latin-1"))
    assert last_words(log) == words


def test_last_words_of_one_that_never_spoke(tmp_path: Path) -> None:
    assert last_words(tmp_path / "missing") == "it left no message"


async def test_a_log_that_grew_is_cut_and_its_end_kept_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logfile, "_LIMIT_BYTES", 100)
    log = tmp_path / "d.log"
    with log.open("ab") as postgres:  # it goes on appending to the file it has open
        postgres.write(b"a" * 100)
        postgres.flush()
        await keep_small(log)
        assert log.stat().st_size == 100
        postgres.write(b"b")
        postgres.flush()
        await keep_small(log)
        assert log.read_bytes() == b""
        assert (tmp_path / "d.log.1").read_bytes() == b"a" * 99 + b"b"
        postgres.write(b"c" * 101)
        postgres.flush()
        await keep_small(log)
    assert (tmp_path / "d.log.1").read_bytes() == b"c" * 100
    assert sorted(os.listdir(tmp_path)) == ["d.log", "d.log.1"]
    logfile.remove(log)
    logfile.remove(log)
    assert os.listdir(tmp_path) == []
    await keep_small(log)


async def test_a_log_of_holes_costs_no_memory(tmp_path: Path) -> None:
    """A tenant can make its log look as large as the file system allows."""
    log = tmp_path / "d.log"
    log.write_bytes(b"FATAL:  early\n")
    os.truncate(log, 1 << 40)
    assert last_words(log)
    await keep_small(log)
    assert log.stat().st_size == 0
    assert (tmp_path / "d.log.1").stat().st_size == 8 << 20
