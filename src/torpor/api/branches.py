"""The handlers of branches. Concurrency: as `operations`."""

from torpor.api.asgi import Answer, json_answer
from torpor.api.bodies import BranchBody, ResetBody
from torpor.api.calls import Call, Context, allowed_size


async def create_branch(context: Context, call: Call) -> Answer:
    """Makes a branch: a database of its own that begins as a copy of this one as it is now, and shares with it every byte that neither
    changes. This one goes on undisturbed, and sleeps on if it sleeps. Answers with the branch's URL and its owner's password, which is
    shown this once."""
    body: BranchBody = call.body
    branches = context.services.branches.within(context.caller.workspace)
    size = allowed_size(context, body.size_overrides())
    branched = await branches.branch(call.name, body.name, body.keep_passwords, body.ttl_s, body.overrides(), size)
    if body.name is None:
        context.note.detail = f"name={branched.database.name}"
    return json_answer(branched, 201, {"Location": f"/v1/databases/{branched.database.name}"})


async def list_branches(context: Context, call: Call) -> Answer:
    """The branches of a database, oldest first."""
    return json_answer(context.services.branches.within(context.caller.workspace).branches(call.name))


async def reset_branch(context: Context, call: Call) -> Answer:
    """Brings a branch back to what its parent is now: what was changed in it is lost, its owner keeps the password. Refused while
    connections are open, unless forced."""
    body: ResetBody = call.body
    return json_answer(await context.services.branches.within(context.caller.workspace).reset(call.name, body.force))
