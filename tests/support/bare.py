"""A PostgreSQL with Torpor's library and nothing else of Torpor: what the library says and counts can be seen from outside, quickly.

`Bare` is the server, with a door of the simplest kind; `Watcher` a connection of the pool's kind, that speaks the protocol itself.
Blocking. PostgreSQL runs as a user of its own when we are root.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg

from torpor.compute.binaries import Postgres
from torpor.compute.handover import hand_over
from torpor.native import LIBRARY
from torpor.pgwire.frames import frame
from torpor.pgwire.startup import StartupMessage

WORDS = 4096
UID = 65_534  # initdb wants one that has a name
POOLED = "-c torpor.pool=on"
_READY_S = 60.0
_FLUSH = b"H\0\0\0\4"


class Bare:
    """A running PostgreSQL. Use as a context manager."""

    def __init__(self, postgres: Postgres, **settings: str) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="torpor-bare-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else "/var/tmp"))
        self.place.chmod(0o711)
        self.data = self.place / "data"
        self.counters = self.place / "writes"
        self._postgres = postgres
        self.with_counters = True
        self._settings = {"fsync": "off", "max_prepared_transactions": "4", "wal_level": "logical", "autovacuum": "off", **settings}
        self._process: subprocess.Popen[bytes] | None = None
        self._door: socket.socket | None = None
        self._lines: list[int] = []

    def __enter__(self) -> "Bare":
        try:
            self._initialize()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.place, ignore_errors=True)

    def _initialize(self) -> None:
        self.counters.write_bytes(bytes(8 * WORDS))
        self.data.mkdir(mode=0o700)
        identity: dict[str, Any] = {}
        if os.geteuid() == 0:
            os.chown(self.data, UID, UID)
            identity = {"user": UID, "group": UID, "extra_groups": ()}
        line = [
            str(self._postgres.bindir / "initdb"),
            "-D",
            str(self.data),
            "-U",
            "postgres",
            "-A",
            "trust",
            "--no-sync",
            "--no-instructions",
        ]
        subprocess.run(line, check=True, capture_output=True, timeout=120, env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}, **identity)
        (self.data / "pg_hba.conf").write_text("local all all trust\nhost all all all trust\nhost replication all all trust\n")

    def start(self) -> None:
        """Until it is ready."""
        ready, ready_write = socket.socketpair()
        listener = socket.socket(socket.AF_UNIX)
        self._listener = self.place / "door.sock"
        self._listener.unlink(missing_ok=True)
        listener.bind(str(self._listener))
        listener.listen(64)
        counters = os.open(self.counters, os.O_RDWR)
        environment = {
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "LD_PRELOAD": str(LIBRARY),
            "TORPOR_LISTENER_FD": str(listener.fileno()),
            "TORPOR_READY_FD": str(ready_write.fileno()),
        }
        if self.with_counters:
            environment["TORPOR_WRITES_FD"] = str(counters)
        if os.geteuid() == 0:
            environment["TORPOR_UID"] = str(UID)
        given = {"listen_addresses": "", "unix_socket_directories": str(self.data), **self._settings}
        options = [part for name, value in given.items() for part in ("-c", f"{name}={value}")]
        with (self.place / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._postgres.bindir / "postgres", "-D", self.data, *options], env=environment, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, pass_fds=(listener.fileno(), ready_write.fileno(), counters), start_new_session=True,
            )  # fmt: skip
        listener.close()
        ready_write.close()
        os.close(counters)
        ready.settimeout(_READY_S)
        with ready:
            if ready.recv(1) != b"R":
                raise RuntimeError((self.place / "log").read_text())
        self._door = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, args=(self._door,), daemon=True).start()

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """End it."""
        if self._door is not None:
            with contextlib.suppress(OSError):
                self._door.shutdown(socket.SHUT_RDWR)
            self._door.close()
            self._door = None
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(60)
            self._process = None
        for fd in self._lines:
            os.close(fd)
        self._lines.clear()

    @property
    def pid(self) -> int:
        """The postmaster's."""
        assert self._process is not None
        return self._process.pid

    def _serve(self, door: socket.socket) -> None:
        """Hand over whoever comes."""
        while True:
            try:
                client, address = door.accept()
            except OSError:
                return
            with client, contextlib.suppress(Exception):
                length = client.recv(4, socket.MSG_WAITALL)
                rest = client.recv(struct.unpack("!I", length)[0] - 4, socket.MSG_WAITALL)
                self._lines.append(asyncio.run(hand_over(self._listener, client, (address[0], address[1]), length + rest)))

    def address(self, **parameters: str) -> dict[str, Any]:
        """How to connect to it, for psycopg."""
        assert self._door is not None
        given = {"host": "127.0.0.1", "port": self._door.getsockname()[1], "user": "postgres", "dbname": "postgres"}
        return {**given, "sslmode": "disable", "gssencmode": "disable", **parameters}

    def connect(self, autocommit: bool = True, **parameters: str) -> "psycopg.Connection[tuple[Any, ...]]":
        """An ordinary session."""
        return psycopg.connect(**self.address(**parameters), autocommit=autocommit)

    def words(self, *oids: int) -> tuple[int, ...]:
        """The epoch, and the words of these tables."""
        content = self.counters.read_bytes()
        return tuple(struct.unpack_from("=Q", content, 8 * (1 + oid % (WORDS - 1) if oid else 0))[0] for oid in (0, *oids))


class Watcher:
    """A connection of the pool's kind. Use as a context manager."""

    def __init__(self, bare: Bare, user: str = "postgres") -> None:
        address = bare.address()
        self._socket = socket.create_connection((address["host"], address["port"]), 60)
        self._stream = self._socket.makefile("rb")
        self.said: dict[str, str] = {}
        self._socket.sendall(StartupMessage({"user": user, "database": "postgres", "options": POOLED}).encode())
        self._hear()

    def __enter__(self) -> "Watcher":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._socket.close()

    def simple(self, statement: str, flushes: int = 2) -> tuple[str, set[str]]:
        """The verdict on a statement ("" when there is none, "!" and the code after an error) and the names of what it read."""
        self._socket.sendall(_FLUSH * flushes + frame(b"Q", statement.encode() + b"\0"))
        return self._hear()

    def prepared(self, statement: str, *values: str, flushes: int = 2, name: str = "") -> tuple[str, set[str]]:
        """The same by the extended protocol, as one unit."""
        given = name.encode() + b"\0"
        body = struct.pack("!H", len(values)) + b"".join(struct.pack("!I", len(v)) + v.encode() for v in values)
        parse = frame(b"P", given + statement.encode() + b"\0\0\0") if statement else b""
        unit = parse + frame(b"B", b"\0" + given + b"\0\0" + body + b"\0\0") + frame(b"D", b"P\0") + frame(b"E", b"\0\0\0\0\0")
        self._socket.sendall(_FLUSH * flushes + unit + frame(b"S"))
        return self._hear()

    def skipping(self, first: str, statement: str) -> tuple[str, set[str]]:
        """Two statements in a packet, of which only the second is watched."""
        self._socket.sendall(_FLUSH * 4 + frame(b"Q", first.encode() + b"\0") + frame(b"Q", statement.encode() + b"\0"))
        assert self._hear() == ("", set())
        return self._hear()

    def _hear(self) -> tuple[str, set[str]]:
        verdict, reads, order = "", set[str](), []
        while True:
            tag, length = self._stream.read(1), struct.unpack("!I", self._stream.read(4))[0]
            body = self._stream.read(length - 4)
            order.append(tag)
            if tag == b"S":
                name, value, _ = body.decode().split("\0")
                if name == "torpor.reads":
                    reads.add(value.split(" ", 1)[1])
                elif name == "torpor.watched":
                    verdict = value
                else:
                    self.said[name] = value
            elif tag == b"E":
                code = next(field[1:] for field in body.decode().split("\0") if field.startswith("C"))
                verdict = f"!{code}"
            elif tag == b"Z":
                told = reads or (verdict and not verdict.startswith("!"))
                assert not told or order[-2] == b"S", "what was watched is said directly before ReadyForQuery"
                return verdict, reads


def oids(session: "psycopg.Connection[tuple[Any, ...]]", *names: str) -> Sequence[int]:
    """The oids of tables."""
    rows = [session.execute("SELECT %s::regclass::oid::int8", (name,)).fetchone() for name in names]
    return [int(row[0]) for row in rows if row is not None]
