"""A tenant who is a superuser and brings a C library along: compiled here, uploaded through SQL, loaded by PostgreSQL.

The scripts that it runs are described in attacks.c. The same code runs as a program on the host for the positive controls: what must fail
inside is seen to work outside. Blocking.
"""

import asyncio
import atexit
import ctypes
import errno
import functools
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from tests.support.server import MadeDatabase, Server
from torpor.compute.service import ServiceSession

SOURCE = Path(__file__).with_name("attacks.c")
LIBRARY = "/data/attacks.so"
_WARNINGS = ("-Wall", "-Wextra", "-Werror", "-O1")
_SYSCALLS = Path(f"/usr/include/{sysconfig.get_config_var('MULTIARCH') or 'x86_64-linux-gnu'}/asm/unistd_64.h")

Connection = psycopg.Connection[tuple[object, ...]]


@functools.cache
def library(major: int = 18) -> bytes:
    """The library for a PostgreSQL of that major."""
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "attacks.so"
        subprocess.run(["gcc", *_WARNINGS, "-fPIC", "-shared", f"-DMAJOR={major}", "-o", made, SOURCE], check=True)
        return made.read_bytes()


@functools.cache
def program() -> Path:
    """The same as a program, which every user may run."""
    directory = tempfile.TemporaryDirectory(prefix="torpor-attacks-", dir="/var/tmp")
    atexit.register(directory.cleanup)
    made = Path(directory.name) / "attacks"
    made.parent.chmod(0o755)
    subprocess.run(["gcc", *_WARNINGS, "-DPROGRAM", "-o", made, SOURCE], check=True)
    return made


@functools.cache
def numbers() -> dict[str, int]:
    """The system calls of this machine."""
    lines = (line.split() for line in _SYSCALLS.read_text().splitlines() if line.startswith("#define __NR_"))
    return {words[1].removeprefix("__NR_"): int(words[2]) for words in lines if words[2].isdecimal()}


@dataclass(frozen=True, slots=True)
class Buffer:
    """A buffer for the kernel to write into."""

    size: int


@dataclass(frozen=True, slots=True)
class Earlier:
    """The result of an earlier step."""

    step: int


Argument = int | str | bytes | Buffer | Earlier


def call(name: str | int, *arguments: Argument) -> str:
    """The step that makes a system call."""
    words = ["call", str(numbers()[name] if isinstance(name, str) else name)]
    for argument in arguments:
        match argument:
            case int():
                words.append(f"i:{argument & 0xFFFFFFFFFFFFFFFF}")
            case str():
                words.append(f"s:{argument}")
            case bytes():
                words.append(f"h:{argument.hex()}")
            case Buffer(size):
                words.append(f"b:{size}")
            case Earlier(step):
                words.append(f"r:{step}")
    return "\t".join(words)


def lease(path: str) -> list[str]:
    """The steps that take a lease on a file for as long as the backend lives: whoever opens it waits. The kernel's signal is one that
    PostgreSQL survives."""
    f_setlease, f_setsig, f_wrlck, sigurg = 1024, 10, 1, 23
    return [call("open", path, 2), call("fcntl", Earlier(0), f_setsig, sigurg), call("fcntl", Earlier(0), f_setlease, f_wrlck)]


def forked(*steps: str) -> str:
    """The step that runs others in a child."""
    return "\n".join(["fork", *steps, "end"])


def step(name: str, *arguments: int | str) -> str:
    """One of the steps that attacks.c has by name."""
    return "\t".join([name, *(str(argument) for argument in arguments)])


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a system call came to."""

    result: int
    code: int
    buffers: tuple[bytes, ...] = field(default=())

    @property
    def succeeded(self) -> bool:
        """Whether the kernel did it."""
        return self.result >= 0

    @property
    def error(self) -> str:
        """The name of the error, such as EPERM; empty when there was none."""
        return "" if self.succeeded else errno.errorcode.get(self.code, str(self.code))


def outcome(line: str) -> Outcome:
    """Read the answer of a `call`."""
    result, code, *buffers = line.split()
    return Outcome(int(result), int(code), tuple(bytes.fromhex(text) for text in buffers))


class Attacker:
    """A superuser's connection to its own database, with the library loaded. Use as a context manager."""

    def __init__(self, server: Server, database: MadeDatabase) -> None:
        self.server, self.database = server, database
        self.connection: Connection = psycopg.connect(database.url, autocommit=True, connect_timeout=40)

    def __enter__(self) -> "Attacker":
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def run(self, *steps: str) -> list[str]:
        """Run steps inside of this session's backend; a line of answer for each (more for those that fork)."""
        row = self.connection.execute("SELECT attack(%s)", ["\n".join(steps)]).fetchone()
        assert row is not None
        return str(row[0]).removesuffix("\n").split("\n")

    def call(self, name: str | int, *arguments: Argument) -> Outcome:
        """One system call inside."""
        return outcome(self.run(call(name, *arguments))[0])

    def read(self, path: str, size: int = 512) -> Outcome:
        """Open a file and read from it; what failed first, or what was read."""
        opened, got, _ = self.run(call("open", path, 0), call("read", Earlier(0), Buffer(size), size), call("close", Earlier(0)))
        return outcome(got) if outcome(opened).succeeded else outcome(opened)

    def sql(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        """A statement's rows."""
        cursor = self.connection.execute(statement.encode(), values or None)
        return cursor.fetchall() if cursor.description else []

    def refused(self, statement: str) -> str:
        """A statement that must fail: what PostgreSQL says."""
        try:
            self.connection.execute(statement.encode())
        except psycopg.Error as error:
            return str(error)
        raise AssertionError(f"it succeeded: {statement}")


def on_host(*steps: str, uid: int | None = None) -> list[str]:
    """Run steps on the host, as whoever runs the tests or as another user without privileges."""
    as_user = {} if uid is None else {"user": uid, "group": uid, "extra_groups": []}
    done = subprocess.run([program(), "\n".join(steps)], capture_output=True, text=True, timeout=60, cwd="/", **as_user)  # type: ignore[call-overload]
    assert done.returncode == 0, done
    return str(done.stdout).removesuffix("\n").split("\n")


def call_on_host(name: str | int, *arguments: Argument, uid: int | None = None) -> Outcome:
    """One system call on the host."""
    return outcome(on_host(call(name, *arguments), uid=uid)[0])


def make_superuser(server: Server, database: MadeDatabase) -> None:
    """Make the owner of a database that runs a superuser, by Torpor's own role."""

    async def make() -> None:
        session = await ServiceSession.open(server.data_dir / "run" / database.id / "door.sock")
        await session.query(f'ALTER ROLE "{database.name}" SUPERUSER')
        await session.close()

    asyncio.run(make())


def upload(connection: Connection, content: bytes, path: str) -> None:
    """Bring a file into the compute, as a tenant does: as a large object, exported into its volume."""
    row = connection.execute("SELECT lo_from_bytea(0, %s)", [content]).fetchone()
    assert row is not None
    connection.execute("SELECT lo_export(%s, %s), lo_unlink(%s)", [row[0], path, row[0]])


def arm(server: Server, database: MadeDatabase) -> None:
    """Make a database hostile: its owner a superuser, with the library as the function `attack(text)`."""
    make_superuser(server, database)
    with psycopg.connect(database.url, autocommit=True, connect_timeout=40) as connection:
        upload(connection, library(), LIBRARY)
        connection.execute(f"CREATE FUNCTION attack(text) RETURNS text AS '{LIBRARY}' LANGUAGE C STRICT")


def hostile(server: Server, name: str | None = None, **settings: object) -> MadeDatabase:
    """A new database that is armed."""
    made = server.create(name, **settings)
    arm(server, made)
    return made


def attackers(server: Server, databases: Sequence[MadeDatabase]) -> list[Attacker]:
    """A session in each."""
    return [Attacker(server, database) for database in databases]


def kernel_has(name: str) -> bool:
    """Whether this kernel knows the system call at all: where it doesn't, a refusal proves nothing."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(numbers()[name], -1, -1, -1, -1, -1, -1)
    return ctypes.get_errno() != errno.ENOSYS
