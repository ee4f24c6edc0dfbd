"""The audit log: who did what to what, from where, with which key, and what became of it. Append-only.

A change is recorded twice: before it is made (`begun`), and when it is known what became of it. So nothing is ever done unrecorded: what
can't be recorded, since the disk is full, isn't done. After a crash in between, the next start adds that it was `interrupted`.

Concurrency: `record` is a plain call on the loop, durable when it returns. `keep_bounded` is one endless task: above KEPT records it
moves the oldest to a compressed file, whole and synced before they leave the table; the chain of hashes goes on from the anchor. A file
belongs to the host's admin, who keeps it or not; one older than `keep_files_s` is removed, if that is set.
"""

import asyncio
import gzip
import json
import os
import re
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path

from torpor.base.clock import Clock
from torpor.base.files import sync_directory
from torpor.base.logs import get_logger
from torpor.catalog.audit import AuditRecords
from torpor.model.audit import MAX_DETAIL, MAX_TARGET, Anchor, AuditFilter, AuditRecord, AuditResult, clean, seal
from torpor.model.errors import InvalidRequest, TorporError
from torpor.model.workspace import WorkspaceId
from torpor.model.workspace_views import AuditPage

log = get_logger(__name__)

KEPT = 100_000
"""How many records stay in the catalog, where the API finds them: about 25 MB."""

CHUNK = 5_000
"""How many records go to one file."""

MAX_PAGE = 1000
WINDOW = 10_000
"""How many records one page looks at, at most; then its caller goes on from `next`."""

_SLICE = 500
_LOOK_EVERY_S = 60.0
_FILE = re.compile(r"audit-\d{12}-\d{12}\.jsonl\.gz")
TORPOR = "torpor"
"""The actor of what Torpor does by itself."""


class Audit:
    """The audit log of one host. Files go to `directory`."""

    def __init__(self, records: AuditRecords, clock: Clock, directory: Path, keep_files_s: float | None = None) -> None:
        self._records = records
        self._clock = clock
        self._directory = directory
        self._keep_files_s = keep_files_s

    def __repr__(self) -> str:
        return f"<Audit {self._directory}>"

    def record(
        self,
        actor: str,
        action: str,
        target: str,
        *,
        workspace: WorkspaceId | None = None,
        actor_name: str = "",
        address: str = "",
        result: AuditResult = AuditResult.DONE,
        detail: str = "",
        begun: int | None = None,
    ) -> int:
        """Write a record; its number. Durable on return. Raises PoolFull and CatalogUnusable: then what it tells of must not be done.

        Control characters are taken out of all texts, long ones are cut. Never give it a secret.
        """
        at = round(self._clock.time(), 3)

        def make(previous: Anchor) -> AuditRecord:
            return seal(
                previous,
                at=at,
                actor=clean(actor, MAX_TARGET),
                actor_name=clean(actor_name, MAX_TARGET),
                address=clean(address, MAX_TARGET),
                action=clean(action, MAX_TARGET),
                target=clean(target, MAX_TARGET),
                workspace=workspace,
                result=result,
                detail=clean(detail, MAX_DETAIL),
                begun=begun,
            )

        return self._records.append(make).number

    def unfinished(self) -> list[AuditRecord]:
        """What was begun, and of which nothing else is known."""
        return self._records.unfinished()

    def settle(self) -> int:
        """Once at start: say of everything that was begun, and of which nothing else is known, that it was interrupted. How many.

        What a full disk keeps it from saying, the next start says.
        """
        unfinished, settled = self._records.unfinished(), 0
        try:
            for one in unfinished:
                self.record(
                    one.actor,
                    one.action,
                    one.target,
                    workspace=one.workspace,
                    actor_name=one.actor_name,
                    address=one.address,
                    result=AuditResult.INTERRUPTED,
                    detail="Torpor ended before it was known what became of it",
                    begun=one.number,
                )
                settled += 1
        except TorporError as error:
            log.warning("what was interrupted can't be told to the audit log yet", records=len(unfinished) - settled, cause=error.message)
        return settled

    def page(self, wanted: AuditFilter, limit: int, before: int | None = None, after: int | None = None) -> AuditPage:
        """Records, the newest first; with `after` those that follow that number, oldest first. A page may be empty and not the last.

        Bounded: looks at WINDOW records at most. Whoever sees one workspace only is shown no hashes, from which others could be guessed.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidRequest(f"limit must be between 1 and {MAX_PAGE}")
        if before is not None and after is not None:
            raise InvalidRequest("before and after don't go together", "before goes back in time, after goes forward")
        anchor, head = self._records.anchor(), self._records.head()
        following: int | None
        if after is not None:
            low = max(after, anchor.number) + 1
            high = min(low + WINDOW - 1, head.number)
            found = self._records.up(low, high, limit, wanted)
            following = found[-1].number if len(found) == limit else high
            following = None if following >= head.number else following
        else:
            high = head.number if before is None else min(before - 1, head.number)
            low = max(high - WINDOW + 1, anchor.number + 1)
            found = self._records.down(low, high, limit, wanted)
            following = found[-1].number if len(found) == limit else low
            following = None if following <= anchor.number + 1 else following
        if wanted.workspace is not None:
            return AuditPage(tuple(replace(record, previous="", hash="") for record in found), following, None, None)
        return AuditPage(tuple(found), following, anchor, head)

    async def keep_bounded(self) -> None:
        """Endless: move the oldest records to files while there are more than KEPT, and remove files that are too old."""
        while True:
            await self._clock.sleep(_LOOK_EVERY_S)
            try:
                while self._records.head().number - self._records.anchor().number >= KEPT + CHUNK:
                    await self.archive(CHUNK)
                if self._keep_files_s is not None:
                    for name in await asyncio.to_thread(_remove_older, self._directory, self._clock.time() - self._keep_files_s):
                        self.record(TORPOR, "audit.file_removed", name, detail="it is older than audit_keep_days")
            except (TorporError, OSError) as error:
                log.warning("old records of the audit log can't be moved to a file", cause=str(error))

    async def archive(self, count: int) -> Path | None:
        """Move the oldest records to a file of their own; None when there are none. A crash in between loses and doubles nothing."""
        anchor, records = self._records.anchor(), list[AuditRecord]()
        while len(records) < count:
            low = anchor.number + 1 + len(records)
            size = min(_SLICE, count - len(records))
            part = self._records.up(low, low + size - 1, size, AuditFilter())
            if not part:
                break
            records += part
            await asyncio.sleep(0)
        if not records:
            return None
        last = records[-1]
        path = self._directory / f"audit-{records[0].number:012d}-{last.number:012d}.jsonl.gz"
        await asyncio.to_thread(_write, path, records)
        self._records.move_anchor(Anchor(last.number, last.hash))
        log.info("old records of the audit log were moved to a file", file=str(path), records=len(records))
        return path


def _remove_older(directory: Path, than: float) -> list[str]:
    """Remove the files that were written before; their names."""
    paths = sorted(directory.iterdir()) if directory.is_dir() else []
    removed = [path for path in paths if _FILE.fullmatch(path.name) and path.stat().st_mtime < than]
    for path in removed:
        path.unlink()
    return [path.name for path in removed]


def _write(path: Path, records: Iterable[AuditRecord]) -> None:
    """The file appears whole and synced, or not at all."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    names = [field.name for field in fields(AuditRecord)]  # asdict takes ten times as long, since it copies deeply
    text = "".join(json.dumps({name: getattr(record, name) for name in names}, separators=(",", ":")) + "\n" for record in records)
    new = path.with_name(f"{path.name}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(gzip.compress(text.encode()))
        file.flush()
        os.fsync(descriptor)
    new.rename(path)
    sync_directory(path.parent)
