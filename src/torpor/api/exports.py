"""The handler for exports: a dump as the body of the answer, sent as it is made.

Concurrency: a slow reader holds up pg_dump, and nothing else. An export that fails in its middle cuts the connection, so that nobody takes
it for whole; it ends when its client leaves, or when Torpor stops.
"""

from torpor.api.asgi import Stream
from torpor.api.bodies import ExportBody
from torpor.api.calls import Call, Context
from torpor.model.errors import InvalidRequest
from torpor.model.exports import ExportOptions

MEDIA = "application/octet-stream"


async def export_database(context: Context, call: Call) -> Stream:
    """Answers with all of the database, as it is at one moment: SQL, or pg_dump's archive. Works also where the owner's own programs are
    kept out: with a full disk, without a free connection, with rows that the owner may not read. An answer that breaks off isn't whole."""
    body: ExportBody = call.body
    if body.schema_only and body.data_only:
        raise InvalidRequest("schema_only and data_only leave nothing", "give one of them")
    export = await context.databases.export(call.name, ExportOptions(body.format, body.schema_only, body.data_only, body.owners))
    return Stream(export.parts(), MEDIA, export.close)
