"""`torpor audit`: who did what to what, from where, with which key; and whether the log is what was written.

`verify` trusts neither Torpor nor its catalog: it fetches the records and makes every hash of the chain anew.
"""

import gzip
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from torpor.cli import text
from torpor.cli.client import Client
from torpor.cli.errors import CommandError
from torpor.cli.invocation import Invocation, with_invocation
from torpor.model.audit import Anchor, AuditRecord, ChainBroken, verify

_PAGE_SIZE = 1000
_FOLLOW_EVERY_S = 1.0


@click.group(invoke_without_command=True)
@click.option("-f", "--follow", is_flag=True, help="Go on printing what is added, until Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(0, 100_000), default=50, show_default=True, help="The newest so many records.")
@click.option("--workspace", help="Only what concerns this workspace.")
@click.option("--action", help="Only this action (key.create), or this kind (key).")
@click.option("--target", help="Only what was done to this.")
@click.option("--actor", help="Only what this one did: host, torpor, the id of a key, or its name.")
@click.option("--begun", is_flag=True, help="Also the records that only say that something was about to be done.")
@with_invocation
def audit(
    invocation: Invocation,
    follow: bool,
    lines: int,
    workspace: str | None,
    action: str | None,
    target: str | None,
    actor: str | None,
    begun: bool,
) -> None:
    """Print the audit log, oldest first. With --json each record is a JSON object on a line of its own."""
    if click.get_current_context().invoked_subcommand is not None:
        return
    client = invocation.connect()
    wanted = {"workspace": workspace, "action": action, "target": target, "actor": actor, "outcomes": None if begun else "true"}
    newest = _newest(client, lines, wanted)
    for record in newest:
        _print(invocation, record)
    if not follow:
        if not newest:
            invocation.hint("nothing is recorded" + (" that fits" if any((workspace, action, target, actor)) else " yet"))
        return
    last = newest[-1]["number"] if newest else 0
    try:
        while True:
            answer = client.get("/v1/audit", after=last, limit=_PAGE_SIZE, **wanted)
            for record in answer["records"]:
                _print(invocation, record)
                last = record["number"]
            if answer["next"] is None:
                time.sleep(_FOLLOW_EVERY_S)
            else:
                last = max(last, answer["next"])
    except KeyboardInterrupt:
        return


@audit.command(name="verify")
@click.option("--noted", metavar="NUMBER:HASH", help="What an earlier verify printed: that record must still be the same.")
@click.option("--file", "files", multiple=True, type=click.Path(path_type=Path), help="A file that older records were moved to.")
@with_invocation
def verify_(invocation: Invocation, noted: str | None, files: tuple[Path, ...]) -> None:
    """Check that no record was changed, removed or put in between. Needs the host's token.

    Records that were moved to files are checked too, where the data directory can be read, or with --file. Whoever can write to the
    catalog can remake the whole chain: note what this prints on another machine, and give it back with --noted.
    """
    client = invocation.connect()
    known = _parse_noted(noted)
    seen: dict[int, str] = {}
    paths = sorted(files or invocation.data_dir.glob("audit/audit-*.jsonl.gz"))
    try:
        moved = [record for path in paths for record in _read_file(path)]
        first = client.get("/v1/audit", after=0, limit=1)
        if first["anchor"] is None:
            raise CommandError(
                "only the host's token can verify the audit log", "an API key sees its workspace's part of it", kind="forbidden"
            )
        anchor = Anchor(**first["anchor"])
        if moved:
            start = Anchor(moved[0].number - 1, moved[0].previous)
            end = verify(_noting(iter(moved), known, seen), start)
            # A crash between the file and the catalog leaves the newest records in both.
            if end.number < anchor.number or (end.number == anchor.number and end != anchor):
                raise ChainBroken(f"the files end with record {end.number}, but the catalog begins after {anchor.number}")
        else:
            start = anchor
        head = verify(_noting(_all(client, anchor.number), known, seen), anchor)
    except ChainBroken as error:
        raise CommandError(
            f"the audit log was tampered with: {error}", "keep the data directory as it is and compare it with a copy", kind="audit_broken"
        ) from error
    if known is not None and known.number > head.number:
        raise CommandError(f"record {known.number} was noted, but the log ends with {head.number}", "it was cut off", kind="audit_broken")
    if known is not None and known.number in seen and seen[known.number] != known.hash:
        raise CommandError(f"record {known.number} is not the one that was noted", "the log was written anew", kind="audit_broken")
    count, mark = head.number - start.number, f"{head.number}:{head.hash}"
    words = [f"{count} records, {start.number + 1} to {head.number}, are as they were written" if count else "nothing is recorded yet"]
    if start.number:
        words.append(f"records up to {start.number} were moved to files that aren't here")
    if known is not None and known.number not in seen and known.number != start.number:
        words.append(f"record {known.number}, which was noted, is in a file that isn't here")
    value = {"first": start.number + 1, "last": head.number, "head": mark}
    invocation.emit(value, "\n".join([*words, f"note this elsewhere: {mark}"]))


def _newest(client: Client, count: int, wanted: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    before: int | None = None
    while len(found) < count:
        answer = client.get("/v1/audit", before=before, limit=min(count - len(found), _PAGE_SIZE), **wanted)
        found += answer["records"]
        before = answer["next"]
        if before is None:
            break
    return found[::-1]


def _all(client: Client, after: int) -> Iterator[AuditRecord]:
    while True:
        answer = client.get("/v1/audit", after=after, limit=_PAGE_SIZE)
        yield from (AuditRecord(**record) for record in answer["records"])
        if answer["next"] is None:
            return
        after = answer["next"]


def _read_file(path: Path) -> list[AuditRecord]:
    try:
        with gzip.open(path, "rt") as lines:
            return [AuditRecord(**json.loads(line)) for line in lines]
    except (OSError, EOFError, ValueError, TypeError) as error:
        raise ChainBroken(f"{path} can't be read as records: {error}") from error


def _noting(records: Iterator[AuditRecord], known: Anchor | None, seen: dict[int, str]) -> Iterator[AuditRecord]:
    for record in records:
        if known is not None and record.number == known.number:
            seen[record.number] = record.hash
        yield record


def _parse_noted(noted: str | None) -> Anchor | None:
    if noted is None:
        return None
    number, _, hash = noted.partition(":")
    if not number.isdigit() or len(hash) != 64:
        raise CommandError(f"{noted[:80]!r} is not what `torpor audit verify` prints", "give NUMBER:HASH", kind="usage", code=2)
    return Anchor(int(number), hash)


def _print(invocation: Invocation, record: dict[str, Any]) -> None:
    sys.stdout.write((json.dumps(record) if invocation.json else line(record)) + "\n")
    sys.stdout.flush()


def line(record: dict[str, Any]) -> str:
    """One record for people. Pure but for the time zone."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record["at"]))
    who = f"{record['actor']} ({record['actor_name']})" if record["actor_name"] else record["actor"]
    where = f"from {record['address']}" if record["address"] else ""
    parts = [at, who, record["action"], record["target"], record["result"], where, record["detail"]]
    return "  ".join(text.clean(str(part)) for part in parts if part)
