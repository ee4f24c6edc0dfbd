"""The handlers of access lists. Concurrency: as `operations`."""

from torpor.api.asgi import Answer, json_answer
from torpor.api.bodies import AccessBody
from torpor.api.calls import Call, Context
from torpor.model.access import GLOBAL, ListScope, ScopeKey


async def show_global(context: Context, _call: Call) -> Answer:
    """The lists that hold for all databases: networks whose clients may connect, and those whose clients may not."""
    return json_answer(context.services.access.show(GLOBAL))


async def replace_global(context: Context, call: Call) -> Answer:
    """Replaces the lists that hold for all databases. In force at once; sessions that they forbid end within a second.

    Deny wins over allow. An allow list that isn't empty admits only who is in it. A client must pass the lists of all three scopes.
    """
    return await _replace(context, call, GLOBAL)


async def show_workspace(context: Context, call: Call) -> Answer:
    """The lists of a workspace: they hold for all its databases, beside the global ones."""
    return json_answer(context.services.access.show(_workspace(context, call)))


async def replace_workspace(context: Context, call: Call) -> Answer:
    """Replaces the lists of a workspace. In force at once; sessions that they forbid end within a second."""
    return await _replace(context, call, _workspace(context, call))


async def show_database(context: Context, call: Call) -> Answer:
    """The lists of a database: they hold beside those of its workspace and the global ones."""
    return json_answer(context.services.access.show(_database(context, call)))


async def replace_database(context: Context, call: Call) -> Answer:
    """Replaces the lists of a database. In force at once; sessions that they forbid end within a second."""
    return await _replace(context, call, _database(context, call))


async def _replace(context: Context, call: Call, key: ScopeKey) -> Answer:
    body: AccessBody = call.body
    view = await context.services.access.replace(key, body.allow, body.deny, body.version, context.caller.actor)
    context.note.detail = f"allow={len(view.allow)} deny={len(view.deny)} closed={view.closed} version={view.version}"
    return json_answer(view)


def _workspace(context: Context, call: Call) -> ScopeKey:
    return ListScope.WORKSPACE, context.workspace(call.path["workspace"]).id


def _database(context: Context, call: Call) -> ScopeKey:
    return ListScope.DATABASE, context.databases.get(call.name).id
