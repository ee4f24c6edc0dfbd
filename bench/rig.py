"""What benchmarks run on: a real Torpor on an XFS pool of its own, zram swap, a thin client, and the same PostgreSQL without Torpor.

Everything is taken down at the end, also after Ctrl-C or a failure: processes first, then mounts, swap, shared memory and files.
Blocking; called from one thread unless said otherwise.
"""

import contextlib
import hashlib
import hmac
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode

from psycopg import pq

from tests.support.server import MadeDatabase, Server
from torpor.base.cgroups import detect
from torpor.base.host import poolkey
from torpor.base.host.facts import probe_zram
from torpor.base.host.machine import HostActionFailed, Machine
from torpor.base.host.pool import ensure_pool_mounted, make_pool
from torpor.base.host.zram import add_zram, remove_zram
from torpor.compute import binaries
from torpor.compute.binaries import Postgres
from torpor.daemon.configuration import load
from torpor.daemon.directory import instance_name
from torpor.pgwire.scram import parse_verifier

GIB = 1 << 30
QUERY = "SELECT note FROM visits WHERE id = 42"
FILL = (
    "CREATE TABLE visits AS SELECT id, md5(id::text) AS note FROM generate_series(1, 10000) AS id;"
    "ALTER TABLE visits ADD PRIMARY KEY (id); ANALYZE visits"
)
_UIDS = range(700_000, 800_000)  # of computes of benchmarks: what they leave can be told from everybody else's
_PATIENCE_S = 60.0


def plain(url: str) -> str:
    """The URL without what it says about encryption."""
    return url.partition("?")[0]


def say(text: str) -> None:
    """Tell what is being done now."""
    print(f"  … {text}", file=sys.stderr, flush=True)


def elapsed_ms(action: Callable[[], object]) -> float:
    """How long `action` takes."""
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1000


class BenchServer(Server):
    """A Torpor whose end is quick: everything is killed, then its pool is unmounted as a whole."""

    def destroy(self) -> None:
        """Kill, unmount, remove. Whatever state it is in."""
        with contextlib.suppress(Exception):
            if self.process is not None and self.process.poll() is None:
                self.kill()
        trees = detect(instance_name(self.data_dir))
        for name in trees.names():
            with contextlib.suppress(OSError):
                trees.open(name).kill()
        deadline = time.monotonic() + 10
        while (left := self.remains()) and time.monotonic() < deadline:
            for pid in left:  # a bare PostgreSQL isn't in the trees
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        if os.path.ismount(self.data_dir / "volumes"):
            subprocess.run(["umount", "-l", str(self.data_dir / "volumes")], check=False)
        super().destroy()
        shutil.rmtree(self.data_dir, ignore_errors=True)
        for segment in Path("/dev/shm").glob("PostgreSQL.*"):
            with contextlib.suppress(FileNotFoundError):
                if segment.lstat().st_uid in _UIDS:
                    segment.unlink()

    def pool_used_bytes(self) -> int:
        """What is taken of the pool."""
        os.sync()
        now = os.statvfs(self.data_dir / "volumes")
        return (now.f_blocks - now.f_bfree) * now.f_frsize

    def lay_down(self, name: str, tier: str) -> None:
        """Bring a database down to `tier`; waits while something keeps it awake, such as an autovacuum worker."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                self.sleep(name, tier, force=tier == "stopped")
            except HTTPError as error:
                with error:
                    words = error.read().decode()
                if error.code != 409 or time.monotonic() > deadline:
                    raise RuntimeError(f"{name} does not go to {tier}: {words}") from error
                time.sleep(0.05)
            else:
                return

    def keyed(self, database: MadeDatabase, url: str | None = None) -> str:
        """The URL (of Torpor's, or of a Bare one) with SCRAM keys in it, as libpq 18 takes them: 4,096 rounds of hashing saved.

        The hashing is the client's own work, the same whoever it connects to, and on a busy host more than everything else.
        """
        if self.tier(database.name) == "awake":
            self.lay_down(database.name, "frozen")  # that is when the roles are saved
        verifier = parse_verifier(self.verifier(database))
        assert verifier is not None
        salted = hashlib.pbkdf2_hmac("sha256", database.password.encode(), verifier.salt, verifier.iterations)
        keys = {f"scram_{side.lower()}_key": hmac.digest(salted, f"{side} Key".encode(), "sha256") for side in ("Client", "Server")}
        return f"{plain(url or database.url)}?{urlencode({name: b64encode(key).decode() for name, key in keys.items()})}"

    def verifier(self, database: MadeDatabase) -> str:
        """What PostgreSQL keeps of the owner's password, as saved when the database last fell asleep."""
        with contextlib.closing(sqlite3.connect(f"file:{self.data_dir}/catalog.sqlite?mode=ro", uri=True)) as catalog:
            query = "SELECT verifier FROM roles WHERE database_id = ? AND name = ?"
            return str(catalog.execute(query, (database.id, database.name)).fetchone()[0])

    def wait_alone(self, name: str) -> None:
        """Until the database's last session has ended: a client that leaves a sleeper wakes it."""
        deadline = time.monotonic() + _PATIENCE_S
        while self.view(name)["database"]["connections"]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} still has sessions")
            time.sleep(0.002)

    def bare(self, database: MadeDatabase, tcp: bool = True, tls: tuple[Path, Path] | None = None) -> "Bare":
        """The database's cluster without Torpor; the database must be stopped. `tls` is a certificate and its key."""
        return Bare(self, database, tcp, tls)


@contextlib.contextmanager
def running(pool_gib: int = 20, encrypted: bool = False, **settings: object) -> Iterator[BenchServer]:
    """A Torpor on an XFS pool (a sparse loop file), encrypted or not. Exits with one sentence where that can't be had."""
    need_root()
    data_dir = Path(tempfile.mkdtemp(prefix="torpor-bench-", dir="/var/tmp"))
    said: dict[str, Any] = {"uid_base": _UIDS.start, **settings}
    server = BenchServer(data_dir, on_disk=True, **said)
    try:
        try:
            make_pool(data_dir, pool_gib * GIB, Machine(), key=poolkey.make(data_dir / poolkey.KEY_NAME) if encrypted else None)
            ensure_pool_mounted(data_dir)
        except HostActionFailed as error:
            raise SystemExit(f"bench: this host has no reflink pool to measure on: {error}") from error
        server.start()
        yield server
    finally:
        server.destroy()


class Zram:
    """Compressed swap, added when asked for, removed at the end. Enter it before the Torpor, so that it outlives its computes."""

    def __init__(self) -> None:
        self._added: list[Callable[[], None]] = []

    def __enter__(self) -> "Zram":
        return self

    def __exit__(self, *_: object) -> None:
        for remove in self._added:
            remove()

    def add(self, gib: int) -> None:
        """Add a device of `gib` GiB."""
        machine = Machine()
        try:
            zram = add_zram(gib * GIB, probe_zram(machine).free_device, machine)
        except HostActionFailed as error:
            raise SystemExit(f"bench: this host has no zram swap to measure with: {error}") from error
        self._added.append(lambda: remove_zram(zram, machine))


def need_root() -> None:
    """Exit with one sentence when we aren't root."""
    if os.geteuid() != 0:
        raise SystemExit("bench: the benchmarks need root: they mount a pool, add zram swap and start computes as users of their own")


def postgres() -> Postgres:
    """The PostgreSQL that new databases get."""
    settings = load({}, os.environ)
    return binaries.find(Path(settings.postgres_home), settings.pg_bindir)[settings.postgres_major]


class Client:
    """One connection of libpq with nothing of a driver above it, so that Python's own cost stays below 0.1 ms."""

    def __init__(self, url: str) -> None:
        """Raises RuntimeError with libpq's words."""
        self._connection = pq.PGconn.connect(url.encode())
        if self._connection.status != pq.ConnStatus.OK:
            words = self._connection.error_message.decode(errors="replace")
            self._connection.finish()
            raise RuntimeError(words.strip())

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, sql: str = QUERY) -> str | None:
        """Run statements; the first value of the last one."""
        answer = self._connection.exec_(sql.encode())
        if answer.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
            raise RuntimeError(answer.error_message.decode(errors="replace").strip())
        value = answer.get_value(0, 0) if answer.ntuples else None
        return None if value is None else value.decode()

    def close(self) -> None:
        """End the session."""
        self._connection.finish()


def first_row(url: str, sql: str = QUERY) -> float:
    """A new connection until its first row, in ms; its end isn't counted."""
    began = time.perf_counter()
    client = Client(url)
    try:
        assert client.ask(sql) is not None
        return (time.perf_counter() - began) * 1000
    finally:
        client.close()


class Bare:
    """The cluster of a stopped database under the same binaries, user and configuration, but without Torpor and its library.

    Clients come over TCP with their password (checked by PostgreSQL), or over its own Unix socket without.
    """

    def __init__(self, server: BenchServer, database: MadeDatabase, tcp: bool, tls: tuple[Path, Path] | None) -> None:
        data = server.data_dir / "volumes" / database.id / "data"
        self._uid = data.stat().st_uid
        self._place = server.data_dir / f"bare-{database.id}"
        self._place.mkdir(exist_ok=True)
        os.chown(self._place, self._uid, self._uid)
        hba = self._place / "hba.conf"
        hba.write_text("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
        hba.chmod(0o644)
        major = (data / "PG_VERSION").read_text().strip()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        options: dict[str, object] = {
            "listen_addresses": "127.0.0.1" if tcp else "",
            "port": self.port,
            "unix_socket_directories": self._place,
            "logging_collector": "off",
            "config_file": server.data_dir / "conf" / major / "postgresql.conf",
            "hba_file": hba,
            "ident_file": server.data_dir / "conf" / major / "pg_ident.conf",
        }
        if tls is not None:
            for source, option in zip(tls, ("ssl_cert_file", "ssl_key_file"), strict=True):
                copy = self._place / source.name
                shutil.copy(source, copy)
                os.chown(copy, self._uid, self._uid)
                copy.chmod(0o600)
                options[option] = copy
            options["ssl"] = "on"
        self._command = [str(postgres().bindir / "postgres"), "-D", str(data)]
        self._command += [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        self._process: subprocess.Popen[bytes] | None = None
        self.socket_url = f"postgresql://{database.name}@/{database.name}?host={self._place}&port={self.port}"
        self.url = f"postgresql://{database.name}:{database.password}@127.0.0.1:{self.port}/{database.name}"

    def __enter__(self) -> "Bare":
        self.start()
        self.wait_ready()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it; it isn't ready yet. May be called from any thread."""
        with (self._place / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TZ": "UTC"},
                user=self._uid,
                group=self._uid,
                extra_groups=[],
                start_new_session=True,
            )

    def wait_ready(self, look_every_s: float = 0.001) -> None:
        """Until it answers on its Unix socket."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                Client(self.socket_url).close()
            except RuntimeError as error:
                assert self._process is not None
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{error}: {(self._place / 'log').read_text()[-2000:]}") from error
                time.sleep(look_every_s)
            else:
                return

    def stop(self) -> None:
        """A fast shutdown. Idempotent."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(_PATIENCE_S)
            finally:
                if self._process.poll() is None:
                    self._process.kill()
                    self._process.wait()
            self._process = None
