"""The operations on the past of databases: what can be restored, what it costs, how long it is kept, and base copies.

Concurrency: as `operations`. What asks the store may take as long as the store does.
"""

from msgspec import UNSET

from torpor.api import examples
from torpor.api.asgi import Answer, json_answer
from torpor.api.bodies import PastBranchBody, RestoreBody, RetentionBody, UndoBody
from torpor.api.calls import Call, Context, Operation, allowed_size
from torpor.api.ports import Histories, Restores, Rewinds
from torpor.model import errors
from torpor.model.branches import PastBranch
from torpor.model.history import Moment, read_moment
from torpor.model.history_views import BaseList, HistoryView, RetentionView
from torpor.model.jobs import JobView
from torpor.model.workspace import AccessScope

_DAY_S = 86_400.0


async def show_history(context: Context, call: Call) -> Answer:
    """To which moments a database can be brought back, how far behind its history is, and what it takes in the store."""
    id = context.databases.get(call.name).id
    return json_answer(await _histories(context).view(id))


async def change_history(context: Context, call: Call) -> Answer:
    """Changes how much of the past is kept. What is left out stays; null goes back to the daemon's setting. What isn't to be kept any more
    is removed within minutes, and can't be restored then."""
    body: RetentionBody = call.body
    histories, id = _histories(context), context.databases.get(call.name).id
    keep_s, keep_bases = histories.own_retention(id)
    if body.keep_days is not UNSET:
        keep_s = body.keep_days * _DAY_S if body.keep_days is not None else None
    if body.keep_bases is not UNSET:
        keep_bases = body.keep_bases
    return json_answer(histories.set_retention(id, keep_s, keep_bases))


async def list_bases(context: Context, call: Call) -> Answer:
    """The base copies of a database, oldest first. Any moment after one of them is restored from it, and the log after it."""
    id = context.databases.get(call.name).id
    return json_answer(await _histories(context).bases(id))


async def take_base(context: Context, call: Call) -> Answer:
    """Takes a base copy now, beside those that are taken unasked. Answers at once, with the job that does it. Wakes the database; nobody
    who uses it waits."""
    id = context.databases.get(call.name).id
    return json_answer(_histories(context).back_up(id, context.caller.actor), 202)


async def branch_past(context: Context, call: Call) -> Answer:
    """Makes a branch of a database as it was: at a time, at a position of its log, or right before a transaction. Answers at once, with the
    job that does it, and the owner's password, which is shown this once and works when the job is done."""
    body: PastBranchBody = call.body
    moment = read_moment(body.at, body.lsn, body.before_transaction)
    size = allowed_size(context, body.size_overrides())
    begun = _restores(context).branch(
        call.name, body.name, moment, body.keep_passwords, body.ttl_s, body.overrides(), size, context.caller.actor
    )
    if body.name is None:
        context.note.detail = f"name={begun.name}"
    return json_answer(begun, 202)


async def restore(context: Context, call: Call) -> Answer:
    """Brings a database back to what it was, in place: it keeps its URL, and its owner's password. What it is now stays as a branch, which
    the job's result names as `before`. Answers at once, with the job that does it; the database goes on until the last second of that."""
    body: RestoreBody = call.body
    moment = read_moment(body.at, body.lsn, body.before_transaction)
    if moment == Moment():
        raise errors.InvalidRequest("it isn't said where to go back to", "give one of at, lsn and before_transaction")
    return json_answer(await _rewinds(context).restore(call.name, moment, body.force, context.caller.actor), 202)


async def undo_restore(context: Context, call: Call) -> Answer:
    """Takes back the last restore in place: the database and the branch that was kept exchange what they are. Asked once more, the restore
    is done again."""
    body: UndoBody = call.body
    return json_answer(await _rewinds(context).undo(call.name, body.force, context.caller.actor), 202)


def _rewinds(context: Context) -> Rewinds:
    _histories(context)
    assert context.services.rewinds is not None
    return context.services.rewinds.within(context.caller.workspace)


def _restores(context: Context) -> Restores:
    _histories(context)
    assert context.services.restores is not None
    return context.services.restores.within(context.caller.workspace)


def _histories(context: Context) -> Histories:
    if context.services.histories is None:
        raise errors.Conflict("this Torpor keeps no history", "the setting history_store says where: a directory, or s3://bucket/prefix")
    return context.services.histories


_DATABASE = "/v1/databases/{name}"
_STORE = (errors.HistoryUnreachable, errors.HistoryRefused, errors.HistoryCorrupt)

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "showHistory", "GET", f"{_DATABASE}/history", "Show what can be restored", show_history, HistoryView, examples.HISTORY,
        scope=AccessScope.READ, refusals=(errors.DatabaseNotFound, errors.Conflict, *_STORE),
    ),
    Operation(
        "changeHistory", "PATCH", f"{_DATABASE}/history", "Change how much of the past is kept", change_history, RetentionView,
        examples.RETENTION, body=RetentionBody, body_example={"keep_days": 30}, scope=AccessScope.WRITE, action="database.history",
        told=("keep_days", "keep_bases"), refusals=(errors.DatabaseNotFound, errors.Conflict),
    ),
    Operation(
        "listBackups", "GET", f"{_DATABASE}/backups", "List base copies", list_bases, BaseList, examples.BASES,
        scope=AccessScope.READ, refusals=(errors.DatabaseNotFound, errors.Conflict, *_STORE),
    ),
    Operation(
        "createBackup", "POST", f"{_DATABASE}/backups", "Take a base copy", take_base, JobView, examples.JOB, 202,
        scope=AccessScope.WRITE, action="database.backup", refusals=(errors.DatabaseNotFound, errors.Conflict, errors.TooManyJobs),
    ),
    Operation(
        "createPastBranch", "POST", f"{_DATABASE}/branches/past", "Make a branch of the past", branch_past, PastBranch,
        examples.PAST_BRANCH, 202, body=PastBranchBody, body_example={"name": "shop-then", "at": 1795000000.0}, scope=AccessScope.WRITE,
        action="database.branch_past", told=("name", "at", "lsn", "before_transaction", "ttl_s", "keep_passwords", "size"),
        refusals=(errors.DatabaseNotFound, errors.InvalidName, errors.DatabaseExists, errors.Conflict, errors.TooManyJobs),
    ),
    Operation(
        "restoreDatabase", "POST", f"{_DATABASE}/restore", "Restore in place", restore, JobView, examples.JOB, 202,
        body=RestoreBody, body_example={"at": 1795000000.0}, scope=AccessScope.WRITE, action="database.restore",
        told=("at", "lsn", "before_transaction", "force"),
        refusals=(errors.DatabaseNotFound, errors.DatabaseInUse, errors.Conflict, errors.TooManyJobs),
    ),
    Operation(
        "undoRestore", "POST", f"{_DATABASE}/restore/undo", "Undo a restore", undo_restore, JobView, examples.JOB, 202,
        body=UndoBody, body_example={"force": False}, scope=AccessScope.WRITE, action="database.restore_undo", told=("force",),
        refusals=(errors.DatabaseNotFound, errors.DatabaseInUse, errors.Conflict, errors.TooManyJobs),
    ),
)  # fmt: skip
"""Part of the table in `operations`."""
