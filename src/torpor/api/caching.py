"""The operations on the cache of a database. Concurrency: as `operations`."""

from torpor.api import examples
from torpor.api.asgi import Answer, json_answer
from torpor.api.bodies import CacheBody, CacheRuleBody, PurgeBody
from torpor.api.calls import Call, Context, Operation
from torpor.model import errors
from torpor.model.cache import CacheStatus, PurgeBy, Purged
from torpor.model.workspace import AccessScope


async def show_cache(context: Context, call: Call) -> Answer:
    """What holds for the cache of the database, and how it is doing, up to a second ago. It has results of pooled clients only, of
    statements for which a client or a rule says how long they may be served."""
    return json_answer(context.services.caching.show(context.databases.get(call.name).id))


async def change_cache(context: Context, call: Call) -> Answer:
    """Whether committed writes drop what was read before. With it, nobody is given a result that is older than a write which was
    acknowledged, whoever wrote, and however: the writes of this database's tables are counted by PostgreSQL itself."""
    body: CacheBody = call.body
    return json_answer(context.services.caching.set_on_write(context.databases.get(call.name).id, body.on_write))


async def set_rule(context: Context, call: Call) -> Answer:
    """Has statements like this one (or those of a fingerprint) cached as if the words stood in front of them, unless a client says
    something else. Statements are alike when they differ in literals, white space, comments and case only."""
    body: CacheRuleBody = call.body
    return json_answer(context.services.caching.set_rule(context.databases.get(call.name).id, body.statement, body.words))


async def remove_rule(context: Context, call: Call) -> Answer:
    """Removes the rule of a fingerprint. What is cached by it is served as long as it was said to be."""
    return json_answer(context.services.caching.remove_rule(context.databases.get(call.name).id, call.path["fingerprint"]))


async def purge(context: Context, call: Call) -> Answer:
    """Drops results: by tag, by table (`schema.name`, or a name alone for one of `public`), by statement or its fingerprint, or all. When
    the answer comes none of them is served any more. It isn't counted against the rate of a key."""
    body: PurgeBody = call.body
    dropped = await context.services.caching.purge(context.databases.get(call.name).id, PurgeBy(body.by), body.values)
    context.note.detail = f"dropped={dropped}"
    return json_answer(Purged(dropped))


_PATH = "/v1/databases/{name}/cache"
OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "showCache", "GET", _PATH, "Show the cache of a database", show_cache, CacheStatus, examples.CACHE, scope=AccessScope.READ,
        refusals=(errors.DatabaseNotFound,),
    ),
    Operation(
        "changeCache", "PATCH", _PATH, "Say whether writes drop what is cached", change_cache, CacheStatus, examples.CACHE,
        body=CacheBody, body_example={"on_write": True}, scope=AccessScope.WRITE, action="cache.change", told=("on_write",),
        refusals=(errors.DatabaseNotFound,),
    ),
    Operation(
        "setCacheRule", "PUT", f"{_PATH}/rules", "Have statements cached", set_rule, CacheStatus, examples.CACHE, body=CacheRuleBody,
        body_example={"statement": "SELECT * FROM users WHERE id = 1", "words": "ttl=60 swr=300 tags=users"}, scope=AccessScope.WRITE,
        action="cache.rule.set", told=("words",), refusals=(errors.DatabaseNotFound, errors.Conflict),
    ),
    Operation(
        "removeCacheRule", "DELETE", f"{_PATH}/rules/{{fingerprint}}", "Remove a rule of the cache", remove_rule, CacheStatus,
        examples.CACHE, scope=AccessScope.WRITE, action="cache.rule.remove", refusals=(errors.DatabaseNotFound,),
    ),
    Operation(
        "purgeCache", "POST", f"{_PATH}/purge", "Drop what is cached", purge, Purged, Purged(12), body=PurgeBody,
        body_example={"by": "tag", "values": ["users"]}, scope=AccessScope.WRITE, action="cache.purge", told=("by", "values"),
        refusals=(errors.DatabaseNotFound,), is_free=True,
    ),
)  # fmt: skip
"""Part of the table in `operations`."""
