"""Handlers for jobs: long operations, how far they are, and their end.

Concurrency: a stream of events holds nothing but what its client is being sent, so one that reads slowly is sent the newest state, not
all of them. Streams are counted with the other endless ones.
"""

import asyncio
from collections.abc import AsyncGenerator

import msgspec

from torpor.api.asgi import Answer, Stream, json_answer
from torpor.api.bodies import JobsQuery
from torpor.api.calls import Call, Context
from torpor.model.jobs import JobList, JobView

EVENTS = "text/event-stream; charset=utf-8"
KEEP_ALIVE_S = 15.0
"""How often a stream says something, or proxies take it for dead."""

_RETRY = b"retry: 2000\n\n"
_STILL_HERE = b": still here\n\n"
_JSON = msgspec.json.Encoder()


async def list_jobs(context: Context, call: Call) -> Answer:
    """Long operations, the newest first: those that run, and the last hundreds that have ended."""
    query: JobsQuery = call.query
    within = context.caller.workspace if query.workspace is None else context.workspace(query.workspace).id
    jobs = context.services.jobs.list(within, query.database)
    wanted = tuple(job for job in jobs if query.state is None or job.state is query.state)
    return json_answer(JobList(wanted[: query.limit]))


async def show_job(context: Context, call: Call) -> Answer:
    """How far a long operation is, or what became of it."""
    return json_answer(context.services.jobs.get(call.path["job"], context.caller.workspace))


async def cancel_job(context: Context, call: Call) -> Answer:
    """Stops a long operation, and answers when it has cleaned up after itself, or after 10 s. One that has ended stays as it is."""
    id, within, jobs = call.path["job"], context.caller.workspace, context.services.jobs
    found = jobs.get(id, within)
    context.note.workspace, context.note.detail = jobs.workspace_of(id, within), f"{found.kind} {found.database}"
    return json_answer(await jobs.cancel(id, within))


async def follow_job(context: Context, call: Call) -> Stream:
    """Server-sent events: the state now, then each change (at most five a second), the last of them the end. Each is called `job`, and its
    data is what showing the job answers."""
    id, within, jobs = call.path["job"], context.caller.workspace, context.services.jobs
    jobs.get(id, within)
    leave = context.services.follow(context.caller)
    return Stream(_events(jobs.events(id, within), context.stopping), EVENTS, leave)


async def _events(views: AsyncGenerator[JobView, None], stopping: asyncio.Event) -> AsyncGenerator[bytes, None]:
    """The stream's bytes. It ends with the job, or with Torpor: whoever asks the next Torpor is told what became of the job."""
    yield _RETRY
    ending = asyncio.ensure_future(stopping.wait())
    coming = asyncio.ensure_future(anext(views))
    try:
        while True:
            await asyncio.wait((coming, ending), timeout=KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED)
            if coming.done():
                view = coming.result()
                yield b"event: job\nid: %d\ndata: %s\n\n" % (view.version, _JSON.encode(view))
                if view.state.is_final:
                    return
                coming = asyncio.ensure_future(anext(views))
            elif ending.done():
                return
            else:
                yield _STILL_HERE
    finally:
        ending.cancel()
        coming.cancel()
        await asyncio.gather(ending, coming, return_exceptions=True)
        await views.aclose()  # not before nothing runs in it any more
