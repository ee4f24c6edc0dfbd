"""The handlers of workspaces, API keys and the audit log. Concurrency: as `operations`."""

from torpor.api.asgi import Answer, Stream, json_answer
from torpor.api.bodies import AuditQuery, CreateKeyBody, CreateWorkspaceBody, WorkspacesQuery
from torpor.api.calls import Call, Context
from torpor.model.audit import AuditFilter
from torpor.model.workspace import AccessScope, Workspace


async def create_workspace(context: Context, call: Call) -> Answer:
    """Makes a workspace: it will own databases and API keys."""
    body: CreateWorkspaceBody = call.body
    view = context.services.workspaces.create(body.name)
    context.note.workspace = view.id
    return json_answer(view, 201, {"Location": f"/v1/workspaces/{view.name}"})


async def list_workspaces(context: Context, call: Call) -> Answer:
    """Workspaces in the order of their names. `next` is the name to continue `after`, null at the end."""
    query: WorkspacesQuery = call.query
    return json_answer(context.services.workspaces.list(query.after, query.limit))


async def show_workspace(context: Context, call: Call) -> Answer:
    """A workspace, and how many databases and keys it owns. A key sees its own only."""
    return json_answer(context.services.workspaces.view(_workspace(context, call)))


async def delete_workspace(context: Context, call: Call) -> Answer:
    """Removes a workspace that owns no databases. Its API keys end with it, at once."""
    context.services.workspaces.delete(_workspace(context, call).name)
    return Answer(status=204)


async def create_key(context: Context, call: Call) -> Answer:
    """Makes an API key and answers with its text, which is shown this once. `metrics` is given by the host's admin only."""
    body: CreateKeyBody = call.body
    workspace = _workspace(context, call)
    made = context.services.keys.create(workspace, body.name, AccessScope(body.scope), body.expires_in_s, context.caller)
    context.note.target = made.key.id
    return json_answer(made, 201, {"Location": f"/v1/workspaces/{workspace.name}/keys/{made.key.id}"})


async def list_keys(context: Context, call: Call) -> Answer:
    """The API keys of a workspace, oldest first, with when each was used last (to ten minutes)."""
    return json_answer(context.services.keys.list(_workspace(context, call)))


async def revoke_key(context: Context, call: Call) -> Answer:
    """Ends an API key for ever, at once, with the logs that are being followed with it. A request that it began goes on."""
    revoked = context.services.keys.revoke(_workspace(context, call), call.path["key"])
    context.note.detail = f"name={revoked.name}"
    return Answer(status=204)


async def list_audit(context: Context, call: Call) -> Answer | Stream:
    """The audit log, newest first: who did what to what, from where, with which key, and what became of it. A key sees its workspace's.

    `next` goes on: as `before`, or, when `after` was given and the oldest come first, as `after`. A page may be empty and not the last.
    """
    query: AuditQuery = call.query
    workspace = context.workspace(query.workspace).id if query.workspace is not None else context.caller.workspace
    wanted = AuditFilter(workspace, query.action, query.target, query.actor, query.since, query.until, query.outcomes)
    return json_answer(context.services.audit.page(wanted, query.limit, query.before, query.after))


def _workspace(context: Context, call: Call) -> Workspace:
    return context.workspace(call.path["workspace"])
