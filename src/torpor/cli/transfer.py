"""`torpor export` and `torpor import`: a database as a stream of bytes, out and in.

One thread pumps; bounded whatever the sizes: a few hundred kilobytes are held. An import is one transaction. A script's is committed by a
statement of ours, which psql is given when all of the dump is known to be there: whatever dies before leaves nothing. Ctrl-C ends
both: of an import nothing is left, and a file that an export was writing is removed.
"""

import contextlib
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO

import click

from torpor.cli import text
from torpor.cli.client import database_path
from torpor.cli.dumps import Complaint, Kind, Script, Truncated, complaint, kind_of
from torpor.cli.errors import CommandError, Exit
from torpor.cli.invocation import Invocation, with_invocation
from torpor.cli.pgtools import Running, Target, chunks, environment, split_password, target
from torpor.cli.progress import Meter
from torpor.model.exports import ExportFormat, ExportOptions

_NO_OWNERS = ("--no-owner", "--no-privileges")
_HINDRANCES = frozenset({"export_failed", "binaries_missing", "conflict"})
"""What keeps pg_dump here from making a dump, and Torpor not."""

_HEAD_BYTES = 512
_SOURCE_PATIENCE_S = "15"
_SOURCE_FACTS = "SELECT pg_catalog.current_setting('server_version_num'), pg_catalog.pg_database_size(pg_catalog.current_database())"


@click.command(name="export")
@click.argument("name")
@click.option(
    "--format", "kind", type=click.Choice(["plain", "custom"]), default="plain", show_default=True, help="SQL, or pg_dump's archive."
)
@click.option("--schema-only", is_flag=True, help="No rows.")
@click.option("--data-only", is_flag=True, help="Only rows.")
@click.option("--owners", is_flag=True, help="Also who owns what, and who may do what: for a target that has the same roles.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="A file instead of stdout; it appears when it is whole."
)
@with_invocation
def export(invocation: Invocation, name: str, kind: str, schema_only: bool, data_only: bool, owners: bool, output: Path | None) -> None:
    """Write all of a database to stdout: torpor export shop > dump.sql

    The dump is that of one moment, whatever goes on meanwhile. Roles aren't in it, so by default neither is who owns what: then
    `torpor import` puts it into any database.
    """
    if schema_only and data_only:
        raise CommandError("--schema-only and --data-only leave nothing", "give one of them", kind="usage", code=Exit.USAGE)
    if kind == "custom" and output is None and sys.stdout.isatty():
        raise CommandError("an archive isn't for terminals", "write it to a file: --output shop.dump", kind="usage", code=Exit.USAGE)
    if invocation.json and output is None:
        raise CommandError("with --json stdout isn't the dump's", "write it to a file: --output dump.sql", kind="usage", code=Exit.USAGE)
    options = ExportOptions(ExportFormat(kind), schema_only, data_only, owners)
    if output is None:
        sys.stdout.flush()
        size = _export(invocation, name, options, sys.stdout.buffer)
    else:
        with _appearing(output) as file:
            size = _export(invocation, name, options, file)
    if output is not None:
        invocation.emit({"database": name, "file": str(output), "bytes": size, "format": kind}, f"{output}: {text.size(size)}")
    else:
        invocation.hint(f"{name} is exported: {text.size(size)}")


def _export(invocation: Invocation, name: str, options: ExportOptions, out: IO[bytes]) -> int:
    """How many bytes went to `out`: by pg_dump here, which outlives a restart of Torpor, or by Torpor itself where that can't be."""
    client = invocation.connect()
    written = 0
    with Meter(invocation, f"export {name}") as meter:

        def take(piece: bytes) -> None:
            nonlocal written
            _write_all(out, piece)
            written += len(piece)
            meter.show(written)

        try:
            _dump(invocation, name, target(invocation, client, name), options, take)
            return written
        except CommandError as error:
            if written or error.shown_kind not in _HINDRANCES:
                raise
            invocation.hint(f"not by this machine's pg_dump ({text.clean(error.message)}), but by Torpor itself")
        try:
            for piece in client.download(database_path(name, "export"), asdict(options)):
                take(piece)
        except CommandError as error:
            if not written:
                raise
            hint = "what was written so far is not whole; Torpor's log tells why"
            raise CommandError(f"the export of {name} broke off", hint, kind="export_failed") from error
    return written


def _dump(invocation: Invocation, name: str, where: Target, options: ExportOptions, take: Callable[[bytes], None]) -> None:
    line = [*options.arguments(), "--no-password", f"--dbname={where.url}"]
    with Running(invocation, "pg_dump", where.major, line, where) as dump:
        for piece in chunks(dump.stdout):
            take(piece)
        if dump.wait() != 0:
            raise _failed(f"{name} could not be exported", complaint(dump.said), "what was written so far is not whole", "export_failed")
        warnings = dump.said
    if warnings and not invocation.json:
        click.echo("".join(f"{text.clean(one)}\n" for one in warnings.splitlines()), err=True, nl=False)


@click.command(name="import")
@click.argument("name")
@click.argument("source", default="-")
@click.option("--owners", is_flag=True, help="Also who owns what, and who may do what, from an archive or a URL; the roles must be there.")
@with_invocation
def import_(invocation: Invocation, name: str, source: str, owners: bool) -> None:
    """Put a dump into a database, all of it or nothing: torpor import shop < dump.sql

    SOURCE is a file, - for stdin, or the URL of a database on another server, which is dumped and read in one go. SQL and the archives of
    pg_dump (custom, tar) are told apart by how they begin. A script's backslash commands are refused: they could run programs here.
    """
    if source.startswith(("postgresql:", "postgres:")):
        url, password = split_password(source)
        size = _import_url(invocation, name, Target(url, environment(password), 0), owners)
    elif source == "-":
        size = _import_stream(invocation, name, sys.stdin.buffer, "stdin", None, owners)
    elif "://" in source:
        raise CommandError(
            "only databases are imported from URLs", "give postgresql://…, a file, or - for stdin", kind="usage", code=Exit.USAGE
        )
    else:
        try:
            with open(source, "rb", buffering=0) as file:
                total = os.fstat(file.fileno()).st_size
                size = _import_stream(invocation, name, file, source, total or None, owners)
        except OSError as error:
            raise CommandError(
                f"{source} can't be read: {error.strerror}", "give a file, - for stdin, or a URL", kind="unreadable"
            ) from error
    invocation.emit({"database": name, "bytes": size}, f"{name}: {text.size(size)} are imported")


def _import_stream(invocation: Invocation, name: str, stream: IO[bytes], called: str, total: int | None, owners: bool) -> int:
    if stream.isatty():
        raise CommandError("nothing is redirected to stdin", f"torpor import {name} < dump.sql", kind="usage", code=Exit.USAGE)
    pieces = chunks(stream)
    head = b""
    while len(head) < _HEAD_BYTES and (piece := next(pieces, b"")):
        head += piece
    kind = kind_of(head)
    if kind is Kind.EMPTY:
        raise CommandError(f"{text.clean(called)} is empty", "nothing was imported", kind="empty_dump")
    if kind is Kind.GZIP:
        raise CommandError(
            f"{text.clean(called)} is compressed by gzip", f"zcat dump.sql.gz | torpor import {name}", kind="compressed_dump"
        )
    client = invocation.connect()
    where = target(invocation, client, name)
    client.close()

    def whole() -> Iterator[bytes]:
        yield head
        yield from pieces

    with Meter(invocation, f"import {name}") as meter:
        if kind is Kind.ARCHIVE:
            return _restore(invocation, name, where, whole(), total, owners, meter)
        return _play(invocation, name, where, whole(), total, meter)


def _import_url(invocation: Invocation, name: str, source: Target, owners: bool) -> int:
    client = invocation.connect()
    where = target(invocation, client, name)
    major, expected = _ask_source(invocation, source, where.major)
    source = replace(source, major=max(major, where.major))
    line = ["--format=plain", "--no-password", *(() if owners else _NO_OWNERS), f"--dbname={source.url}"]
    invocation.hint(f"the source is PostgreSQL {major}, {text.size(expected)} on its disk; {name} is PostgreSQL {where.major}")
    where = target(invocation, client, name)  # asking took its time, and tickets don't live long
    client.close()
    with (
        Meter(invocation, f"import {name}") as meter,
        Running(invocation, "pg_dump", source.major, line, source) as dump,
    ):

        def pieces() -> Iterator[bytes]:
            yield from chunks(dump.stdout)
            if dump.wait() != 0:
                raise _failed("the source could not be dumped", complaint(dump.said), _nothing_left(name), "source_failed")

        return _play(invocation, name, where, pieces(), None, meter)


def _ask_source(invocation: Invocation, source: Target, major: int) -> tuple[int, int]:
    """Its major, and its size on its own disk. Raises CommandError, which tells a wrong address from a wrong password."""
    told = replace(source, environment={"PGCONNECT_TIMEOUT": _SOURCE_PATIENCE_S, **source.environment})
    line = [
        "--no-psqlrc",
        "--no-password",
        "--tuples-only",
        "--no-align",
        "--field-separator= ",
        "--command",
        _SOURCE_FACTS,
        "--dbname",
        source.url,
    ]
    with Running(invocation, "psql", major, line, told) as asked:
        answer = b"".join(chunks(asked.stdout))[:200]
        if asked.wait() != 0:
            raise _failed(
                "the source can't be reached", complaint(asked.said), "check host, port, user, password and database", "source_failed"
            )
    try:
        version, size = answer.split()
        return int(version) // 10_000, int(size)
    except ValueError as error:
        raise CommandError("the source didn't say its version", "is it a PostgreSQL server?", kind="source_failed") from error


def _play(invocation: Invocation, name: str, where: Target, pieces: Iterable[bytes], total: int | None, meter: Meter) -> int:
    """A script, through a psql that obeys nothing but SQL. How many bytes it had."""
    script, size, fed = Script(f"k{secrets.token_hex(16)}"), 0, True
    line = ["--no-psqlrc", "--quiet", "--no-password", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"]
    line += ["--set=VERBOSITY=verbose", "--set=ECHO=errors", "--file=-", f"--dbname={where.url}"]
    with Running(invocation, "psql", where.major, line, where, reads=True) as psql:
        for piece in pieces:
            size += len(piece)
            if not (fed := _feed(psql, script.feed(piece))):
                break
            meter.show(size, total)
        if fed:
            try:
                fed = _feed(psql, script.end())
            except Truncated as error:
                raise CommandError(str(error), _nothing_left(name), kind="truncated_dump") from error
        meter.show(size, total, note="the last statements")
        with contextlib.suppress(OSError):
            psql.stdin.close()
        if psql.wait() != 0 or not fed:
            raise _import_failed(name, psql.said, script.lines_before)
        if not script.is_acknowledged(psql.wrote):
            raise CommandError("the dump ends in the middle of a statement, or of rows", _nothing_left(name), kind="truncated_dump")
        said = psql.said
    if "25001" in said or "25P01" in said:  # BEGIN or COMMIT in the script
        invocation.hint("the dump has transactions of its own: what they committed would have stayed, had it failed")
    return size


def _restore(
    invocation: Invocation, name: str, where: Target, pieces: Iterable[bytes], total: int | None, owners: bool, meter: Meter
) -> int:
    """An archive. How many bytes it had. pg_restore itself finds out when one is cut off."""
    size = 0
    line = ["--no-password", "--single-transaction", "--exit-on-error", *(() if owners else _NO_OWNERS), f"--dbname={where.url}"]
    with Running(invocation, "pg_restore", where.major, line, where, reads=True) as restore:
        for piece in pieces:
            size += len(piece)
            if not _feed(restore, piece):
                break
            meter.show(size, total)
        with contextlib.suppress(OSError):
            restore.stdin.close()
        if restore.wait() != 0:
            raise _import_failed(name, restore.said, 0)
    return size


def _feed(program: Running, piece: bytes) -> bool:
    """Whether it took it; False when it has ended, and says why."""
    try:
        _write_all(program.stdin, piece)
    except BrokenPipeError:
        return False
    return True


def _write_all(out: IO[bytes], piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[out.write(view) :]


def _import_failed(name: str, said: str, lines_before: int) -> CommandError:
    if "\\restrict" in said and "invalid command" in said:
        hint = "install a newer one: `torpor postgres install 18`"
        return CommandError("the psql on this machine is too old to read a dump without obeying it", hint, kind="psql_too_old")
    found = complaint(said, lines_before)
    if found.message.endswith('at or near "COMMIT"'):  # ours, or the dump's own after something that is just as incomplete
        found = replace(found, message=f"{found.message}, so the statement before isn't ended by a semicolon")
    if "backslash commands are restricted" in found.message or found.message.startswith("\\unrestrict"):
        found = replace(found, message="a backslash command, which only psql itself obeys", hint="")
        return _failed(f"nothing was imported into {name}", found, f"if you trust the script: torpor psql {name} -f FILE", "import_failed")
    return _failed(f"nothing was imported into {name}", found, _nothing_left(name), "import_failed")


def _nothing_left(name: str) -> str:
    return f"{name} is as it was before"


def _failed(what: str, found: Complaint, hint: str, kind: str) -> CommandError:
    advice = "; ".join(part for part in (found.hint, hint) if part)
    return CommandError(f"{what}: {found}", advice, kind=kind, sqlstate=found.sqlstate)


@contextlib.contextmanager
def _appearing(path: Path) -> Iterator[IO[bytes]]:
    """A file that is there when it is whole, and not before. Readable by its owner only. Raises CommandError."""
    made = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        file = os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb", buffering=0)
    except OSError as error:
        raise CommandError(f"{path} can't be written: {error.strerror}", "choose another place", kind="unwritable") from error
    try:
        with file:
            yield file
            os.fsync(file.fileno())
        made.replace(path)
    except OSError as error:
        raise CommandError(f"{path} can't be written: {error.strerror}", "make room, or choose another place", kind="unwritable") from error
    finally:
        made.unlink(missing_ok=True)
