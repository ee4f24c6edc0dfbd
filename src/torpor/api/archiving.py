"""The operation that sends a database to the lowest tier. It comes back by itself: at the next connection, or by waking it.

Concurrency: as `operations`.
"""

from torpor.api import examples
from torpor.api.asgi import Answer, json_answer
from torpor.api.calls import Call, Context, Operation
from torpor.model import errors
from torpor.model.jobs import JobView
from torpor.model.workspace import AccessScope


async def archive_database(context: Context, call: Call) -> Answer:
    """Sends a database's volume to the store of the history, compressed and encrypted, and removes it here once all of it was read back.
    Answers at once, with the job that does it. The database comes back by itself, with its next connection. Whoever wakes it before the
    job is done has it as ever, and the job fails."""
    id = context.databases.get(call.name).id
    return json_answer(context.services.archiving.archive(id, context.caller.actor), 202)


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "archiveDatabase", "POST", "/v1/databases/{name}/archive", "Archive a database", archive_database, JobView, examples.JOB, 202,
        scope=AccessScope.WRITE, action="database.archive",
        refusals=(errors.DatabaseNotFound, errors.Conflict, errors.TooManyJobs),
    ),
)  # fmt: skip
"""Part of the table in `operations`."""
