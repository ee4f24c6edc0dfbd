"""The operations on tokens: by which JSON Web Tokens clients can log in to a database.

Concurrency: as `operations`.
"""

from torpor.api import examples
from torpor.api.asgi import Answer, json_answer
from torpor.api.bodies import TokenBody
from torpor.api.calls import Call, Context, Operation
from torpor.model import errors
from torpor.model.tokens import TokenView, token_rules
from torpor.model.workspace import AccessScope

_BODY_BYTES = 256 * 1024


async def show_tokens(context: Context, call: Call) -> Answer:
    """By which tokens clients can log in to the database; `rules` is null when by none."""
    return json_answer(context.services.tokens.show(context.databases.get(call.name).id))


async def replace_tokens(context: Context, call: Call) -> Answer:
    """Has the database take tokens (JSON Web Tokens) of this issuer, and no others: as `Authorization: Bearer` over HTTP, and as the
    password of encrypted connections of roles that have none. In force at once; if something else was in force, sessions that began by
    tokens end within a second. Keys are fetched from `jwks_url` now, and again when they have been rotated.

    In SQL the claims are `current_setting('torpor.jwt_claims')`, which no client can change."""
    body: TokenBody = call.body
    rules = token_rules(body.issuer, body.audience, body.role_claim, body.roles, body.jwks_url, body.jwks)
    view = await context.services.tokens.replace(context.databases.get(call.name).id, rules, context.caller.actor)
    context.note.detail = f"version={rules.version} closed={view.closed}"
    return json_answer(view)


async def remove_tokens(context: Context, call: Call) -> Answer:
    """Has the database take no tokens any more. Sessions that began by tokens end within a second."""
    view = await context.services.tokens.remove(context.databases.get(call.name).id, context.caller.actor)
    context.note.detail = f"closed={view.closed}"
    return json_answer(view)


_PATH = "/v1/databases/{name}/tokens"
_EXAMPLE = {
    "issuer": "https://auth.example.com",
    "audience": "shop",
    "role_claim": "role",
    "roles": ["web", "staff"],
    "jwks_url": "https://auth.example.com/.well-known/jwks.json",
}
OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "showTokens", "GET", _PATH, "Show which tokens a database takes", show_tokens, TokenView, examples.TOKENS,
        scope=AccessScope.READ, refusals=(errors.DatabaseNotFound,),
    ),
    Operation(
        "replaceTokens", "PUT", _PATH, "Have a database take tokens", replace_tokens, TokenView, examples.TOKENS, body=TokenBody,
        body_example=_EXAMPLE, max_body_bytes=_BODY_BYTES, scope=AccessScope.ADMIN, action="tokens.replace",
        told=("issuer", "audience", "role_claim", "roles", "jwks_url"), refusals=(errors.DatabaseNotFound,),
    ),
    Operation(
        "removeTokens", "DELETE", _PATH, "Have a database take no tokens", remove_tokens, TokenView, examples.TOKENS_NONE,
        scope=AccessScope.ADMIN, action="tokens.remove", refusals=(errors.DatabaseNotFound,),
    ),
)  # fmt: skip
"""Part of the table in `operations`."""
