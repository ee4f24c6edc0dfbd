"""The operations of major upgrades. Concurrency: as `operations`."""

from torpor.api import examples
from torpor.api.asgi import Answer, json_answer
from torpor.api.bodies import UndoBody, UpgradeBody
from torpor.api.calls import Call, Context, Operation
from torpor.api.ports import Upgrades
from torpor.model import errors
from torpor.model.jobs import JobView
from torpor.model.workspace import AccessScope


async def upgrade(context: Context, call: Call) -> Answer:
    """Upgrades a database to a newer PostgreSQL major. It is rehearsed on a copy first, while the database is used: copied, upgraded,
    compared, every row counted, started. Then the database is stopped for some seconds (`unavailable_s` in the job's result) and goes on as
    one of the new major, with its URL, roles, passwords and data. What it was stays as a branch, which the result names as `before`. With
    `check` it is only rehearsed. Answers at once, with the job that does it; what stands against an upgrade is that job's error."""
    body: UpgradeBody = call.body
    return json_answer(await _upgrades(context).upgrade(call.name, body.to, body.check, body.force, context.caller.actor), 202)


async def undo_upgrade(context: Context, call: Call) -> Answer:
    """Takes back the last upgrade: the database and the branch that was kept exchange what they are. What was written since the upgrade is
    in that branch then. Asked once more, the upgrade is done again."""
    body: UndoBody = call.body
    return json_answer(await _upgrades(context).undo(call.name, body.force, context.caller.actor), 202)


def _upgrades(context: Context) -> Upgrades:
    assert context.services.upgrades is not None
    return context.services.upgrades.within(context.caller.workspace)


_DATABASE = "/v1/databases/{name}"

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "upgradeDatabase", "POST", f"{_DATABASE}/upgrade", "Upgrade to a newer PostgreSQL", upgrade, JobView, examples.JOB, 202,
        body=UpgradeBody, body_example={"to": 18}, scope=AccessScope.WRITE, action="database.upgrade", told=("to", "check", "force"),
        refusals=(errors.DatabaseNotFound, errors.DatabaseInUse, errors.Conflict, errors.TooManyJobs),
    ),
    Operation(
        "undoUpgrade", "POST", f"{_DATABASE}/upgrade/undo", "Undo an upgrade", undo_upgrade, JobView, examples.JOB, 202,
        body=UndoBody, body_example={"force": False}, scope=AccessScope.WRITE, action="database.upgrade_undo", told=("force",),
        refusals=(errors.DatabaseNotFound, errors.DatabaseInUse, errors.Conflict, errors.TooManyJobs),
    ),
)  # fmt: skip
"""Part of the table in `operations`."""
