"""Long operations: each one task, with progress that others can look at and wait for.

A job is recorded in the audit log before it begins and when it has ended. Of one that was running when Torpor was killed the log
knows no end: the next Torpor shows it as interrupted (`recall`), and what it left is removed by whoever reconciles that kind of thing.

What a job does must be whole or not at all, whenever it is cancelled: it cleans up after itself before its CancelledError goes on. From
where it can't be taken back, it shields itself (`asyncio.shield`); one that comes to its end in spite of being cancelled is done.

Concurrency: on the loop; only `Progress` may be called from other threads, too. Whoever watches a job holds nothing but the version that
was seen last, so a slow watcher misses steps between, never the end, and costs no memory. Bounded: KEPT jobs that have ended,
RUNNING_AT_ONCE that run.
"""

import asyncio
import secrets
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from torpor.base.clock import Clock
from torpor.base.logs import get_logger
from torpor.base.tasks import TaskOwner
from torpor.control.audit import TORPOR, Audit
from torpor.control.claims import Claim
from torpor.model.audit import AuditRecord, AuditResult, clean
from torpor.model.database import Database
from torpor.model.errors import JobNotFound, ShuttingDown, TooManyJobs, TorporError
from torpor.model.jobs import JobError, JobId, JobState, JobView
from torpor.model.workspace import WorkspaceId

log = get_logger(__name__)

KEPT = 300
"""How many jobs that have ended are remembered, in all workspaces together."""

RUNNING_AT_ONCE = 100
RUNNING_AT_ONCE_IN_WORKSPACE = 20
_MAX_NOTE = 200
_LEAST_PAUSE_S = 0.2  # between two events for one watcher
_ACTION = "job."
_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
_CANCELLED = JobError("cancelled", "it was cancelled", "", "57014")
_INTERRUPTED = JobError("interrupted", "Torpor ended before it did", "ask for it again", "57P01")
_STATES = {_CANCELLED: JobState.CANCELLED, _INTERRUPTED: JobState.INTERRUPTED}
_RESULTS = {
    JobState.DONE: AuditResult.DONE,
    JobState.FAILED: AuditResult.FAILED,
    JobState.CANCELLED: AuditResult.REFUSED,
    JobState.INTERRUPTED: AuditResult.INTERRUPTED,
}


class Progress(Protocol):
    """How a job says how far it is; may be called as often as it likes, from any thread. `total` is None while nobody knows."""

    def __call__(self, done: int, total: int | None = None, unit: str = "", note: str = "") -> None:
        """`done` of `total` `unit`s; `note` says in some words what is going on. Never tell a secret, or what is in a database."""
        ...


Work = Callable[[Progress], Awaitable[Mapping[str, str] | None]]
"""Does a job. Its answer, some short texts by name, is the job's `result`; every reader of the workspace sees it."""


class Jobs:
    """All jobs of one Torpor."""

    def __init__(self, audit: Audit, clock: Clock) -> None:
        self._audit = audit
        self._clock = clock
        self._tasks = TaskOwner("jobs")
        self._jobs: dict[JobId, _Job] = {}  # oldest first
        self._stopping = False

    def __repr__(self) -> str:
        return f"<Jobs running={self.running} kept={len(self._jobs)}>"

    @property
    def running(self) -> int:
        """How many run."""
        return sum(not job.view.state.is_final for job in self._jobs.values())

    def start(self, kind: str, database: Database, work: Work, by: str = TORPOR, claim: Claim | None = None) -> JobView:
        """Begin `work` on `database`. `kind` is a verb (`branch`), `by` the actor for the audit log. `claim` is given back at its end, also
        when nothing was begun.

        Raises TooManyJobs, and what the audit log raises; then nothing was begun.
        """
        with ExitStack() as unless_begun:
            if claim is not None:
                unless_begun.callback(claim.release)
            if self._stopping:
                raise ShuttingDown("Torpor is stopping", "ask for it again when it runs")
            self._make_room(database.workspace)
            id, target = JobId("j" + "".join(secrets.choice(_LETTERS) for _ in range(12))), database.label
            begun = self._audit.record(by, _ACTION + kind, target, workspace=database.workspace, result=AuditResult.BEGUN, detail=id)
            view = JobView(id, kind, target, JobState.RUNNING, self._clock.time())
            job = self._jobs[id] = _Job(view, database.workspace, by, begun)
            job.task = self._tasks.spawn(self._run(job, work), f"{kind} {target}")
            job.task.add_done_callback(partial(self._ended, job))
            if claim is not None:
                job.task.add_done_callback(lambda _: claim.release())  # also of one that is cancelled before its first step
            unless_begun.pop_all()
        return job.view

    def list(self, within: WorkspaceId | None, database: str | None = None) -> tuple[JobView, ...]:
        """The jobs of a workspace (None: of all), the newest first; with `database` those on the database of that name."""
        found = [job.view for job in self._jobs.values() if job.is_within(within)]
        return tuple(view for view in reversed(found) if database is None or view.database == database)

    def get(self, id: str, within: WorkspaceId | None) -> JobView:
        """One job. Raises JobNotFound, also for one of another workspace."""
        return self._find(id, within).view

    def workspace_of(self, id: str, within: WorkspaceId | None) -> WorkspaceId | None:
        """To which workspace a job belongs. Raises JobNotFound."""
        return self._find(id, within).workspace

    async def cancel(self, id: str, within: WorkspaceId | None, patience_s: float = 10.0) -> JobView:
        """Stop a job, and wait until it has cleaned up, for `patience_s` at most. One that has ended stays as it is. Raises JobNotFound."""
        job = self._find(id, within)
        if job.task is not None and not job.view.state.is_final:
            if not job.view.cancelling:  # once: a second one would end the cleaning up
                job.change(cancelling=True)
                job.task.cancel()
            await asyncio.wait((job.task,), timeout=patience_s)
        return job.view

    async def wait(self, id: str, within: WorkspaceId | None = None) -> JobView:
        """What became of a job, once it has ended. Raises JobNotFound. Safe to cancel: the job goes on."""
        job = self._find(id, within)
        while not job.view.state.is_final:
            await job.changed.wait()
        return job.view

    async def events(self, id: str, within: WorkspaceId | None) -> AsyncGenerator[JobView, None]:
        """How it is now, then each change (at most five a second, the newest each time), the last of them its end."""
        job = self._find(id, within)
        while True:
            view, changed = job.view, job.changed
            yield view
            if view.state.is_final:
                return
            await changed.wait()
            if not job.view.state.is_final:
                await self._clock.sleep(_LEAST_PAUSE_S)

    def recall(self, unfinished: Iterable[AuditRecord]) -> int:
        """Once at start, before the audit log is settled: remember the jobs that the last Torpor didn't finish. How many."""
        recalled = 0
        for record in unfinished:
            if not record.action.startswith(_ACTION):
                continue
            id, kind = JobId(record.detail), record.action.removeprefix(_ACTION)
            view = JobView(id, kind, record.target, JobState.INTERRUPTED, record.at, self._clock.time(), error=_INTERRUPTED)
            self._jobs[id] = _Job(view, record.workspace, record.actor, record.number)
            recalled += 1
        self._forget_oldest()
        return recalled

    async def stop(self) -> None:
        """Cut off what runs; it cleans up first. Idempotent."""
        self._stopping = True
        await self._tasks.stop()

    async def _run(self, job: "_Job", work: Work) -> Mapping[str, str] | JobError | None:
        try:
            return await work(job.progress)
        except TorporError as error:
            return JobError(error.kind, error.message, error.hint, error.sqlstate)
        except Exception:
            log.exception("a job failed unexpectedly", job=job.view.id, kind=job.view.kind, database=job.view.database)
            return JobError("internal_error", "something unexpected went wrong inside Torpor", "its log tells what", "XX000")

    def _ended(self, job: "_Job", task: "asyncio.Task[Mapping[str, str] | JobError | None]") -> None:
        """What became of it; called also when it was cancelled before its first step."""
        view, at = job.view, self._clock.time()
        outcome = (_CANCELLED if view.cancelling else _INTERRUPTED) if task.cancelled() else task.result()
        if isinstance(outcome, JobError):
            state = _STATES.get(outcome, JobState.FAILED)
            job.change(state=state, error=outcome, ended_at=at, cancelling=False)
        else:
            state = JobState.DONE
            done = view.done if view.total is None else view.total
            job.change(state=state, result=dict(outcome or {}), done=done, ended_at=at, cancelling=False)
        log.info("job ended", job=view.id, kind=view.kind, database=view.database, state=state)
        try:
            self._audit.record(
                job.by,
                _ACTION + view.kind,
                view.database,
                workspace=job.workspace,
                result=_RESULTS[state],
                detail=f"{view.id}; {outcome.kind}" if isinstance(outcome, JobError) else view.id,
                begun=job.begun,
            )
        except TorporError as error:
            log.error("the end of a job is missing in the audit log", job=view.id, cause=error.message)
        self._forget_oldest()

    def _make_room(self, workspace: WorkspaceId | None) -> None:
        running = Counter(job.workspace for job in self._jobs.values() if not job.view.state.is_final)
        if running.total() >= RUNNING_AT_ONCE or running[workspace] >= RUNNING_AT_ONCE_IN_WORKSPACE:
            raise TooManyJobs(f"{running[workspace]} jobs of this workspace run already", "wait for one, or cancel one: `torpor job ls`")

    def _forget_oldest(self) -> None:
        ended = [id for id, job in self._jobs.items() if job.view.state.is_final]
        for id in ended[: max(0, len(ended) - KEPT)]:
            del self._jobs[id]

    def _find(self, id: str, within: WorkspaceId | None) -> "_Job":
        job = self._jobs.get(JobId(id))
        if job is None or not job.is_within(within):
            raise JobNotFound("there is no job of that id", f"`torpor job ls` lists them; the last {KEPT} are remembered")
        return job


class _Job:
    """One job, and who waits for it to change."""

    def __init__(self, view: JobView, workspace: WorkspaceId | None, by: str, begun: int) -> None:
        self.view = view
        self.workspace = workspace
        self.by = by
        self.begun = begun
        self.task: asyncio.Task[Mapping[str, str] | JobError | None] | None = None
        self.changed = asyncio.Event()
        """Set at the next change, once; then there is another."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def is_within(self, workspace: WorkspaceId | None) -> bool:
        """Whether who sees that workspace only (None: everything) may know of it."""
        return workspace is None or workspace == self.workspace

    def progress(self, done: int, total: int | None = None, unit: str = "", note: str = "") -> None:
        """See Progress."""
        if threading.get_ident() != self._thread:
            self._loop.call_soon_threadsafe(self.progress, done, total, unit, note)
        elif not self.view.state.is_final:  # a thread may be late
            self.change(done=int(done), total=None if total is None else int(total), unit=unit, note=clean(note, _MAX_NOTE))

    def change(self, **fields: Any) -> None:
        """Take on new values, and tell who waits."""
        self.view = replace(self.view, version=self.view.version + 1, **fields)
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()
