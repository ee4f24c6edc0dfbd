"""PostgreSQL's own client programs, run for somebody: how they are told where to go, what they complain of, and that they end.

A password never is an argument: every user of the machine can read those. What a program says is kept up to a limit and cleaned, since
the server that it speaks to may be hostile. Threads: one for each program's complaints.
"""

import contextlib
import os
import re
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO
from urllib.parse import unquote, urlsplit, urlunsplit

from torpor.cli.binaries import program
from torpor.cli.client import Client, database_path
from torpor.cli.errors import CommandError
from torpor.cli.invocation import Invocation
from torpor.cli.passwords import with_login
from torpor.model.views import Credentials, DatabaseDetail

MISLEADING = ("PGHOSTADDR", "PGSERVICE", "PGSERVICEFILE", "PGREQUIREAUTH", "PGCHANNELBINDING", "PGTARGETSESSIONATTRS")
"""Variables that would send a program somewhere else than its URL says."""

_KEPT_BYTES = 4096
_LINES_BEFORE, _LINES_AFTER, _LINE_BYTES = 100, 40, 4000
_IS_ERROR = re.compile(r"(?:ERROR|FATAL|PANIC|error):")
_END_PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class Target:
    """A database that a program can be sent to: a URL without its password, and the environment with it."""

    url: str
    environment: Mapping[str, str]
    major: int


def target(invocation: Invocation, client: Client, name: str) -> Target:
    """A database of Torpor's, with a password that is good for a minute's logins. Raises CommandError."""
    major = client.fetch(DatabaseDetail, database_path(name)).database.major
    ticket = client.decode(Credentials, client.post(database_path(name, "tickets")))
    return Target(with_login(ticket.url, ticket.role, None), environment(ticket.password), major)


def environment(password: str | None) -> dict[str, str]:
    """What a program that speaks to a server gets: this process's, without what would mislead it."""
    kept = {key: value for key, value in os.environ.items() if key not in (*MISLEADING, "PGOPTIONS", "PGDATABASE")}
    # Their words are read here, so they have to be English.
    return (
        kept | {"LC_ALL": "C.UTF-8", "LANGUAGE": "C", "PGCLIENTENCODING": "UTF8"} | ({} if password is None else {"PGPASSWORD": password})
    )


def split_password(url: str) -> tuple[str, str | None]:
    """A URL without its password, and the password. Raises CommandError for what is no URL of a server."""
    try:
        parts = urlsplit(url)
        login, at, host = parts.netloc.rpartition("@")
        user, colon, password = login.partition(":")
    except ValueError as error:
        raise _no_url() from error
    if parts.scheme not in ("postgresql", "postgres"):
        raise _no_url()
    if "\0" in url:
        raise _no_url()
    return urlunsplit(parts._replace(netloc=f"{user}{at}{host}")), unquote(password) if colon else None


def _no_url() -> CommandError:
    return CommandError("that is no URL of a PostgreSQL server", "give postgresql://user:password@host:5432/database", kind="usage", code=2)


class Running:
    """A program that runs; a context manager that ends it, whatever happens."""

    def __init__(self, invocation: Invocation, name: str, major: int, arguments: Sequence[str], where: Target, reads: bool = False) -> None:
        """Start it. Raises CommandError.

        One that `reads` its `stdin` has its output kept here, the last of it. Its complaints are collected meanwhile.
        """
        self.name = name
        path = program(invocation, name, major)
        try:
            # A group of its own: Ctrl-C is for us, who then end it in order.
            self.process: subprocess.Popen[bytes] = subprocess.Popen(
                [path, *arguments],
                env=dict(where.environment),
                stdin=subprocess.PIPE if reads else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                process_group=0,
            )
        except OSError as error:
            raise CommandError(f"{path} can't be run: {error.strerror}", f"`torpor postgres install {major}` mends it") from error
        self._said, self._wrote = Complaints(), bytearray()
        self._listeners = [threading.Thread(target=_listen, args=(self.process.stderr, self._said.add), daemon=True)]
        if reads:
            self._listeners.append(threading.Thread(target=_listen, args=(self.process.stdout, self._keep), daemon=True))
        for listener in self._listeners:
            listener.start()

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    @property
    def stdin(self) -> IO[bytes]:
        """Where it reads."""
        assert self.process.stdin is not None
        return self.process.stdin

    @property
    def stdout(self) -> IO[bytes]:
        """What it writes."""
        assert self.process.stdout is not None
        return self.process.stdout

    def kill(self) -> None:
        """End it at once: what it was doing in a transaction is undone. Idempotent."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(_END_PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.process.send_signal(signal.SIGKILL)
                self.process.wait()
        self._join()

    def wait(self) -> int:
        """Its exit code, and all of its complaints are there."""
        code = self.process.wait()
        self._join()
        return code

    @property
    def said(self) -> str:
        """What it has complained of so far."""
        return str(self._said)

    @property
    def wrote(self) -> bytes:
        """The last of what it wrote, where that is kept."""
        return bytes(self._wrote)

    def _keep(self, part: bytes) -> None:
        self._wrote += part
        del self._wrote[:-_KEPT_BYTES]

    def _join(self) -> None:
        for listener in self._listeners:
            listener.join(_END_PATIENCE_S)


class Complaints:
    """Lines that a program wrote: the last ones before its first error, and some after it. Bounded, however many and however long."""

    def __init__(self) -> None:
        self._before: deque[str] = deque(maxlen=_LINES_BEFORE)
        self._after: list[str] = []
        self._rest = b""

    def add(self, part: bytes) -> None:
        """What it wrote; ends anywhere."""
        *lines, rest = (self._rest + part).split(b"\n")
        for line in lines:
            text = line[:_LINE_BYTES].decode("utf-8", "replace")
            if self._after or _IS_ERROR.search(text):
                if len(self._after) < _LINES_AFTER:
                    self._after.append(text)
            else:
                self._before.append(text)
        self._rest = rest[:_LINE_BYTES]

    def __str__(self) -> str:
        return "\n".join([*self._before, *self._after, self._rest.decode("utf-8", "replace")]).strip("\n")


def _listen(stream: IO[bytes], take: Callable[[bytes], None]) -> None:
    with contextlib.suppress(OSError, ValueError):
        while part := stream.read(65536):
            take(part)


def chunks(stream: IO[bytes], size: int = 256 * 1024) -> Iterator[bytes]:
    """What comes, as it comes, at most `size` bytes at a time."""
    fd = stream.fileno()
    while part := os.read(fd, size):
        yield part
