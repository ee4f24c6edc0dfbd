"""The operations on databases that are in the store and not here: those of a machine that was lost. For the host's admin alone.

Concurrency: as `operations`. What asks the store may take as long as the store does.
"""

from torpor.api import examples
from torpor.api.asgi import Answer, json_answer
from torpor.api.bodies import ForgetBody, RecoverBody, WorkspacesQuery
from torpor.api.calls import Call, Context, Operation
from torpor.api.ports import Recovery
from torpor.model import errors
from torpor.model.history import read_moment
from torpor.model.recovery_views import RecoverableList, Recovering
from torpor.model.workspace import AccessScope


async def list_recoverable(context: Context, call: Call) -> Answer:
    """The databases that the store holds and that aren't here, in the order of their names, with what they can be brought back to. `next`
    is where to continue `after`, null at the end."""
    query: WorkspacesQuery = call.query
    return json_answer(await _recovery(context).list(query.after, query.limit))


async def recover_database(context: Context, call: Call) -> Answer:
    """Brings a database of a lost machine back from the store: a new one, made of what that one was, with its roles and their passwords,
    its settings and its access lists, in its workspace, which is made when it isn't there. Answers at once, with the job that does it.
    What is in the store stays as it is."""
    body: RecoverBody = call.body
    context.note.target = body.database
    moment = read_moment(body.at, body.lsn, body.before_transaction)
    begun = await _recovery(context).recover(body.database, body.name, moment, context.caller.actor)
    return json_answer(begun, 202)


async def forget_database(context: Context, call: Call) -> Answer:
    """Removes all that the store holds of a database that isn't here, for good: its keys at once, the rest within minutes. Refused when
    something was written to it minutes ago, as another Torpor may still run it, unless forced."""
    body: ForgetBody = call.body
    context.note.target = body.database
    await _recovery(context).forget(body.database, body.force)
    return Answer(status=204)


def _recovery(context: Context) -> Recovery:
    if context.services.recovery is None:
        raise errors.Conflict("this Torpor has no store", "the setting history_store says where: a directory, or s3://bucket/prefix")
    return context.services.recovery


_STORE = (errors.HistoryUnreachable, errors.HistoryRefused)

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "listRecoverable", "GET", "/v1/recovery", "List what can be recovered", list_recoverable, RecoverableList, examples.RECOVERABLES,
        query=WorkspacesQuery, scope=AccessScope.HOST, refusals=(errors.Conflict, *_STORE),
    ),
    Operation(
        "recoverDatabase", "POST", "/v1/recovery", "Recover a database", recover_database, Recovering, examples.RECOVERING, 202,
        body=RecoverBody, body_example={"database": "shop"}, scope=AccessScope.HOST, action="database.recover",
        told=("name", "at", "lsn", "before_transaction"),
        refusals=(
            errors.DatabaseNotFound, errors.InvalidName, errors.DatabaseExists, errors.Conflict, errors.TooManyJobs, errors.HistoryCorrupt,
            *_STORE,
        ),
    ),
    Operation(
        "forgetDatabase", "POST", "/v1/recovery/forget", "Forget what the store holds", forget_database, status=204,
        body=ForgetBody, body_example={"database": "shop"}, scope=AccessScope.HOST, action="database.forget", told=("force",),
        refusals=(errors.DatabaseNotFound, errors.Conflict, *_STORE),
    ),
)  # fmt: skip
"""Part of the table in `operations`."""
