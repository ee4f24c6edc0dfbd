"""What the audit log is told of requests that change something.

Concurrency: one `follow` a request; records are written on the loop, durably, before the handler begins and after it has ended.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress

from msgspec import UNSET, Struct, to_builtins

from torpor.api.calls import Call, Context, Operation
from torpor.api.ports import Audit
from torpor.api.rates import Buckets
from torpor.base.logs import get_logger
from torpor.model.audit import AuditResult
from torpor.model.errors import DatabaseNotFound, Refused, TorporError, WorkspaceNotFound
from torpor.model.workspace import WorkspaceId

log = get_logger(__name__)

REFUSALS_PER_S = 0.1
REFUSALS_AT_ONCE = 20.0
"""Records of what a key's scope didn't allow, for each key: one that asks in a loop must not fill the log."""

_MAX_COUNTED = 10_000


class Trail:
    """Writes to `audit`."""

    def __init__(self, audit: Audit, now: Callable[[], float]) -> None:
        self._audit = audit
        self._now = now
        self._refusals = Buckets(REFUSALS_PER_S, REFUSALS_AT_ONCE)
        self._unrecorded: dict[str, int] = {}

    def refuse(self, context: Context, operation: Operation, path: Mapping[str, str]) -> None:
        """Record that the scope of a key didn't allow something. The many of one key are counted, and told with the next one."""
        caller = context.caller
        if not self._refusals.take(caller.actor, self._now()).allowed:
            if len(self._unrecorded) < _MAX_COUNTED:
                self._unrecorded[caller.actor] = self._unrecorded.get(caller.actor, 0) + 1
            return
        more = self._unrecorded.pop(caller.actor, 0)
        detail = f"forbidden: needs {operation.scope}, has {caller.scope}" + (f" (and {more} more like this before)" if more else "")
        target = path.get("name") or path.get("key") or path.get("job") or path.get("workspace", "")
        self._record(context, operation, target, caller.workspace, AuditResult.REFUSED, detail, None)

    @asynccontextmanager
    async def follow(self, context: Context, operation: Operation, call: Call) -> AsyncIterator[None]:
        """Record that something is begun, and what became of it. Raises what the audit log raises; then nothing was begun.

        When the second record can't be written, the answer goes out all the same: what was done is recorded as begun.
        """
        note = context.note
        note.target = _target(call)
        note.workspace = _workspace(context, operation, call)
        told = _told(operation, call)
        begun = self._record(context, operation, note.target, note.workspace, AuditResult.BEGUN, told, None)
        result, cause = AuditResult.INTERRUPTED, ""
        try:
            yield
            result = AuditResult.DONE
        except TorporError as error:
            result = AuditResult.REFUSED if isinstance(error, Refused) else AuditResult.FAILED
            cause = error.kind
            raise
        except Exception:
            result, cause = AuditResult.FAILED, "internal_error"
            raise
        finally:
            detail = "; ".join(part for part in (cause, told, note.detail) if part)
            try:
                self._record(context, operation, note.target, note.workspace, result, detail, begun)
            except TorporError as error:
                log.error("the outcome is missing in the audit log", action=operation.action, begun=begun, cause=error.message)

    def _record(
        self,
        context: Context,
        operation: Operation,
        target: str,
        workspace: WorkspaceId | None,
        result: AuditResult,
        detail: str,
        begun: int | None,
    ) -> int:
        caller = context.caller
        return self._audit.record(
            caller.actor,
            operation.action,
            target,
            workspace=workspace,
            actor_name=caller.name,
            address=caller.address,
            result=result,
            detail=detail,
            begun=begun,
        )


def _target(call: Call) -> str:
    return call.name or call.path.get("key") or call.path.get("job") or getattr(call.body, "name", None) or call.path.get("workspace", "")


def _workspace(context: Context, operation: Operation, call: Call) -> WorkspaceId | None:
    """Whom it concerns: the workspace of the key, else that of what is touched."""
    if context.caller.workspace is not None:
        return context.caller.workspace
    with suppress(DatabaseNotFound, WorkspaceNotFound):
        if call.name:
            return context.databases.workspace_of(call.name)
        if "workspace" in call.path:
            return context.workspace(call.path["workspace"]).id
        if "workspace" in operation.told:
            return context.workspace(call.body.workspace).id
    return None


def _told(operation: Operation, call: Call) -> str:
    parts = []
    for name in operation.told:
        value = getattr(call.body, name, None) if hasattr(call.body, name) else getattr(call.query, name, None)
        if value is not None and value is not UNSET and value is not False:
            shown = to_builtins(value) if isinstance(value, Struct) else value
            parts.append(f"{name}={shown}")
    return ", ".join(parts)
