"""The operations on restore drills: what they found, and one to be done now.

Concurrency: as `operations`.
"""

from dataclasses import replace

from torpor.api import examples
from torpor.api.asgi import Answer, json_answer
from torpor.api.bodies import DrillsQuery
from torpor.api.calls import Call, Context, Operation
from torpor.api.ports import Drills
from torpor.model import errors
from torpor.model.drills import DrillList
from torpor.model.jobs import JobView
from torpor.model.workspace import AccessScope


async def list_drills(context: Context, call: Call) -> Answer:
    """The last restore drill on each database, the newest first: whether it could be brought back to a moment chosen by chance, and whether
    all that came of it is right. Databases of which nothing was tried yet aren't among them."""
    query: DrillsQuery = call.query
    within = context.caller.workspace if query.workspace is None else context.workspace(query.workspace).id
    found = _drills(context).all(within)
    wanted = tuple(drill for drill in found.drills if query.result is None or drill.result is query.result)
    return json_answer(replace(found, drills=wanted[: query.limit]))


async def show_drills(context: Context, call: Call) -> Answer:
    """The last restore drills on a database, the newest first. Those that weren't possible say nothing of it, and are tried again."""
    view = context.databases.get(call.name)
    return json_answer(_drills(context).of(view.id, view.name))


async def drill_database(context: Context, call: Call) -> Answer:
    """Restores a database to a moment chosen by chance, beside it, looks it through, and throws that away. Answers at once, with the job
    that does it: it is done if all is right, and fails with `drill_failed` or `drill_not_possible`. The database itself isn't touched, nor
    woken. It takes a small share of the machine, and so its time."""
    id = context.databases.get(call.name).id
    return json_answer(_drills(context).drill(id, context.caller.actor), 202)


def _drills(context: Context) -> Drills:
    if context.services.drills is None:
        raise errors.Conflict("this Torpor keeps no history", "the setting history_store says where: a directory, or s3://bucket/prefix")
    return context.services.drills


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "listDrills", "GET", "/v1/drills", "List restore drills", list_drills, DrillList, examples.DRILLS, query=DrillsQuery,
        scope=AccessScope.READ, refusals=(errors.Conflict, errors.WorkspaceNotFound),
    ),
    Operation(
        "showDrills", "GET", "/v1/databases/{name}/drills", "Show the restore drills on a database", show_drills, DrillList,
        examples.DRILLS, scope=AccessScope.READ, refusals=(errors.DatabaseNotFound, errors.Conflict),
    ),
    Operation(
        "drillDatabase", "POST", "/v1/databases/{name}/drills", "Verify that a database can be restored", drill_database, JobView,
        examples.JOB, 202, scope=AccessScope.WRITE, action="database.drill",
        refusals=(errors.DatabaseNotFound, errors.Conflict, errors.TooManyJobs),
    ),
)  # fmt: skip
"""Part of the table in `operations`."""
