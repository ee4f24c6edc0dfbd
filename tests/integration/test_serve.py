"""`torpor serve` itself: how it refuses to start, how it greets, stops, and shares a host; and life without root."""

import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support.faults import eventually, in_thread, program, put_to_sleep, runs, stop_database
from tests.support.pace import in_time
from tests.support.server import MadeDatabase, Server
from torpor.base.cgroups import detect
from torpor.daemon.configuration import load
from torpor.daemon.directory import instance_name


@pytest.fixture
def directory() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="torpor-test-", dir="/var/tmp"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def resident() -> Iterator[Server]:
    """One that runs already."""
    with Server() as server:
        yield server


def connect(database: MadeDatabase) -> "psycopg.Connection[tuple[object, ...]]":
    return psycopg.connect(database.url, autocommit=True, connect_timeout=40)


def refusal(server: Server, **environment: str) -> tuple[int, str]:
    """Exit code and the one sentence of a `torpor serve` that must not start."""
    done = subprocess.run(server.command(), env=server.environment() | environment, capture_output=True, text=True, timeout=60)
    *logged, sentence = done.stderr.strip().splitlines()
    assert sentence.startswith("torpor: ")
    assert all("[info " in line for line in logged), done.stderr
    assert server.remains() == []
    assert_no_cgroup(server)
    return done.returncode, sentence


def assert_no_cgroup(server: Server) -> None:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if " - cgroup" in line:
            assert list(Path(line.split(" ")[4]).glob(f"{instance_name(server.data_dir)}*")) == []


class UserServer(Server):
    """A Torpor of an ordinary user, in a data directory and with a home of its own.

    It may read what its user may not, since neither this repository nor the interpreter need lie where others can read. `extra` are
    capabilities that it and all that it starts have beside.
    """

    def __init__(self, extra: str = "", **settings: object) -> None:
        self.user = pwd.getpwnam("nobody")
        self.extra = extra
        super().__init__()
        self.settings |= {"postgres_home": load({}, os.environ).postgres_home, **settings}
        os.chown(self.data_dir, self.user.pw_uid, self.user.pw_gid)

    def command(self) -> list[str]:
        capabilities = ",".join(f"+{name}" for name in ("dac_read_search", *self.extra.split()))
        drop = ["setpriv", f"--reuid={self.user.pw_uid}", f"--regid={self.user.pw_gid}", "--clear-groups"]
        return [*drop, f"--inh-caps=-all,{capabilities}", f"--ambient-caps=-all,{capabilities}", *super().command()]

    def environment(self) -> dict[str, str]:
        return super().environment() | {"HOME": str(self.data_dir)}


# -- refusing to start


@pytest.mark.parametrize("which", ["door", "api"])
def test_port_taken(directory: Path, which: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        code, sentence = refusal(Server(directory, **{f"{which}_port": port}))
    assert code == 11
    assert f"127.0.0.1:{port}" in sentence
    assert f"{which}_port" in sentence


def test_data_directory_that_is_a_file(directory: Path) -> None:
    (directory / "file").touch()
    server = Server(directory)
    server.data_dir = directory / "file" / "below"
    code, sentence = refusal(server)
    assert code == 12
    assert str(server.data_dir) in sentence


@pytest.mark.root
def test_data_directory_that_computes_cannot_enter(directory: Path) -> None:
    closed = directory / "closed"
    closed.mkdir(mode=0o700)
    server = Server(directory)
    server.data_dir = closed / "data"
    code, sentence = refusal(server)
    assert code == 12
    assert f"chmod o+x {closed}" in sentence


@pytest.mark.root
def test_data_directory_of_somebody_else() -> None:
    server = UserServer()
    try:
        os.chown(server.data_dir, 0, 0)
        code, sentence = refusal(server)
        assert code == 12
        assert "Permission denied" in sentence
    finally:
        server.destroy()


def test_another_torpor_on_the_same_directory(resident: Server) -> None:
    second = Server(resident.data_dir)
    second.settings |= {"door_port": 0, "api_port": 0}
    done = subprocess.run(second.command(), env=second.environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 13
    assert done.stderr.startswith(f"torpor: another Torpor runs on {resident.data_dir}; ")
    assert resident.call("GET", "/v1/host")["version"]  # which is none the worse


def test_missing_binaries(directory: Path) -> None:
    code, sentence = refusal(Server(directory, postgres_home=directory / "empty"))
    assert code == 14
    assert "torpor postgres install 18" in sentence


def test_corrupt_catalog(directory: Path) -> None:
    (directory / "catalog.sqlite").write_bytes(b"no database " * 1000)
    code, sentence = refusal(Server(directory))
    assert code == 15
    assert "catalog.sqlite" in sentence


def test_bad_settings(directory: Path) -> None:
    code, sentence = refusal(Server(directory, freeze_after_s=-1))
    assert (code, "freeze_after_s" in sentence, "--freeze-after-s" in sentence) == (16, True, True)
    code, sentence = refusal(Server(directory), TORPOR_MAX_LOGINS="many")
    assert (code, "max_logins" in sentence, "TORPOR_MAX_LOGINS" in sentence) == (16, True, True)
    (directory / "torpor.toml").write_text("freez_after_s = 3\n")
    code, sentence = refusal(Server(directory))
    assert (code, "did you mean freeze_after_s?" in sentence, "torpor.toml" in sentence) == (16, True, True)


# -- starting and stopping


def assert_nothing_is_left(server: Server) -> None:
    assert server.remains() == []
    assert list((server.data_dir / "run").iterdir()) == []
    assert not (server.data_dir / "api.json").exists()
    assert_no_cgroup(server)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_leaves_nothing_and_starting_again_is_quick(number: signal.Signals) -> None:
    with Server(warm_pool_size=1) as server:
        databases = [server.create() for _ in range(3)]
        with connect(databases[0]) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS x")
            put_to_sleep(server, databases[1])
            stop_database(server, databases[2])
            assert server.stop(number) == 0
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
        assert_nothing_is_left(server)
        # In order: the next start of none of them is a recovery.
        for database in databases:
            control = subprocess.run(
                [program("pg_controldata"), str(server.data_dir / "volumes" / database.id / "data")], capture_output=True, text=True
            )
            assert re.search(r"Database cluster state: +shut down$", control.stdout, re.MULTILINE)
        times = []
        for _ in range(3):  # the best of three: other tests use this machine, too
            began = time.monotonic()
            server.start()
            times.append(time.monotonic() - began)
            if in_time(times[-1], 2):
                break
            assert server.stop(number) == 0
        assert in_time(min(times), 2)
        with connect(databases[0]) as connection:
            assert connection.execute("SELECT x FROM kept").fetchone() == (1,)
        assert "Traceback" not in server.log


def test_greeting(resident: Server) -> None:
    greeting = resident.log[resident.log.index("Torpor serves PostgreSQL 18") :]
    assert f"127.0.0.1:{resident.door_port}" in greeting
    assert f"{resident.api_url}/docs" in greeting
    assert f"create shop --data-dir {resident.data_dir}\n" in greeting


def test_two_side_by_side(resident: Server) -> None:
    """Neither the one's names nor its end concern the other."""
    mine = resident.create("side-by-side")
    with Server() as other, connect(mine) as connection:
        theirs = other.create("side-by-side")
        with connect(theirs) as elsewhere:
            elsewhere.execute("CREATE TABLE theirs (x int)")
        assert connection.execute("SELECT to_regclass('theirs')").fetchone() == (None,)
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(mine.url_as(mine.name, theirs.password))
        other.call("DELETE", "/v1/databases/side-by-side?force=true")
        other.create("again")
        assert other.stop() == 0
        # Parallel workers need the shared memory that the other could have taken for its own.
        connection.execute("SET debug_parallel_query = on")
        assert connection.execute("SELECT count(*) FROM pg_class").fetchone() is not None
        with connect(mine) as second:
            assert second.execute("SELECT 1").fetchone() == (1,)
    resident.call("DELETE", "/v1/databases/side-by-side?force=true")


# -- majors


def test_two_majors_side_by_side(resident: Server) -> None:
    older, newer = resident.create(major=17), resident.create(major=18)
    for database, major in ((older, 17), (newer, 18)):
        stop_database(resident, database)
        with psycopg.connect(database.url, autocommit=True, max_protocol_version="3.2") as connection:
            assert connection.info.server_version // 10000 == major
            # 17 speaks 3.0 only, and the door knows before PostgreSQL is asked.
            assert connection.pgconn.full_protocol_version == (30002 if major == 18 else 30000)
            runner, failures = in_thread(lambda c=connection: c.execute("SELECT pg_sleep(20)"))  # type: ignore[misc]
            eventually(lambda d=database: runs(resident, d, "pg_sleep"))  # type: ignore[misc]
            connection.cancel_safe()
            runner.join(40)
            assert isinstance(failures[0], psycopg.errors.QueryCanceled)
        assert resident.view(database.name)["database"]["major"] == major
    status, error = resident.refusal("POST", "/v1/databases", {"major": 12})
    assert (status, "PostgreSQL 12 is not installed" in error["message"]) == (400, True)
    for database in (older, newer):
        resident.call("DELETE", f"/v1/databases/{database.name}?force=true")


def test_postgresql_of_the_system(directory: Path) -> None:
    """Of the distribution where it has one, else of another directory than usual."""
    own = sorted(path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "postgres").exists() and (path / "initdb").exists())
    bindir = own[-1] if own else Path(program("postgres", 17)).parent
    said = subprocess.run([str(bindir / "postgres"), "--version"], capture_output=True, text=True).stdout
    major = int(re.findall(r"(\d+)", said)[0])
    with Server(postgres_home=directory / "empty", pg_bindir=bindir, postgres_major=major) as server:
        database = server.create()
        with connect(database) as connection:
            assert connection.info.server_version // 10000 == major
            put_to_sleep(server, database)
            assert connection.execute("SELECT 1").fetchone() == (1,)


# -- without root


@pytest.mark.root
def test_life_of_an_ordinary_user() -> None:
    """Everything but paging: the host lets it have no cgroups, so computes are stopped by signals."""
    server = UserServer(freeze_after_s=1, stop_after_s="never")
    with server:
        database = server.create()
        with connect(database) as connection:
            connection.execute("CREATE TEMP TABLE kept AS SELECT 7 AS x")
            postmaster = server.postmaster(database)
            assert Path(f"/proc/{postmaster}").stat().st_uid == server.user.pw_uid
            server.wait_tier(database.name, "frozen")
            if detect_as_user(server).startswith("stop signals"):
                assert all(state_of(pid) == "T" for pid in server.remains())
            assert connection.execute("SELECT x FROM kept").fetchone() == (7,)
            server.wait_tier(database.name, "frozen")
            server.kill()
            server.start()
            assert server.tier(database.name) == "frozen"
            assert connection.execute("SELECT x FROM kept").fetchone() == (7,)
            assert server.view(database.name)["database"]["connections"] == 1
        stop_database(server, database)
        connect(database).close()
        assert server.stop() == 0
        assert_nothing_is_left(server)
        assert "Traceback" not in server.log, server.log[-4000:]


@pytest.mark.root
def test_adopted_connections_that_cannot_be_watched_keep_awake() -> None:
    """Where the kernel forbids looking into the backends, here because they have a capability that the next Torpor has not."""
    server = UserServer("net_bind_service", freeze_after_s=0.5, stop_after_s="never")
    server.allow_only("none")  # a sandbox has no capabilities
    with server:
        database = server.create()
        with connect(database) as connection:
            connection.execute("CREATE TEMP TABLE kept AS SELECT 7 AS x")
            server.wait_tier(database.name, "frozen")
            server.kill()
            server.extra = ""
            server.start()
            # It was frozen and nobody would see what its client sends: it runs again.
            assert connection.execute("SELECT x FROM kept").fetchone() == (7,)
            eventually(lambda: {c["reason"] for c in server.view(database.name)["database"]["awake_because"]} == {"unwatched"})
            time.sleep(1.5)
            assert server.tier(database.name) == "awake"
        server.wait_tier(database.name, "frozen")
        with connect(database) as connection:
            server.wait_tier(database.name, "frozen")
            assert connection.execute("SELECT 1").fetchone() == (1,)
        assert "Traceback" not in server.log, server.log[-4000:]


def detect_as_user(server: Server) -> str:
    """What the server says of its trees."""
    view = server.call("GET", "/v1/databases?limit=1")["databases"][0]
    return str(server.view(view["name"])["sandbox"].partition(", ")[2]) or detect("none").description


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("seed", range(2))
def test_stopping_while_the_warm_pool_fills(seed: int) -> None:
    with Server(warm_pool_size=4) as server:
        eventually(server.remains)
        time.sleep(random.Random(seed).uniform(0, 0.6))
        assert server.stop() == 0
        assert_nothing_is_left(server)
        volumes = [path.name for path in (server.data_dir / "volumes").iterdir() if path.name.startswith(".making")]
        assert volumes == []
        server.start()
        with connect(server.create()) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
