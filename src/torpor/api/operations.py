"""Every operation of the API, declared once: this table is routing, checking and documentation.

Concurrency: handlers run in the task of their request. A handler's docstring is the description in the OpenAPI document.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from torpor import __version__
from torpor.api import examples
from torpor.api.asgi import Answer, Stream, json_answer
from torpor.api.bodies import (
    CreateBody,
    ForceQuery,
    Health,
    ListQuery,
    LogsQuery,
    NoQuery,
    SleepBody,
    UpdateBody,
    WakeAnswer,
    WakesAnswer,
    WakesQuery,
)
from torpor.api.logtail import Follower, tail
from torpor.api.ports import Databases
from torpor.base.telemetry import CONTENT_TYPE
from torpor.model import errors
from torpor.model.sleep import Tier
from torpor.model.views import Created, Credentials, DatabaseDetail, DatabasePage, DatabaseView, HostView

PLAIN_TEXT = "text/plain; charset=utf-8"
MAX_FOLLOWERS = 100


class Context:
    """What handlers work with. `stopping` ends what would go on for ever."""

    def __init__(self, databases: Databases, render: Callable[[], bytes]) -> None:
        self.databases = databases
        self.render = render
        self.stopping = asyncio.Event()
        self.followers = 0


@dataclass(frozen=True, slots=True)
class Call:
    """A checked request. `query` and `body` are of the types that the operation declares."""

    name: str
    query: Any
    body: Any


@dataclass(frozen=True, slots=True)
class Operation:
    """One method on one path. `refusals` lists what can be refused beside what every operation refuses."""

    id: str
    method: str
    path: str
    summary: str
    handle: Callable[[Context, Call], Awaitable[Answer | Stream]]
    result: type | None = None
    example: object = None
    status: int = 200
    media: str = "application/json"
    query: type[msgspec.Struct] = NoQuery
    body: type[msgspec.Struct] | None = None
    body_example: object = None
    refusals: tuple[type[errors.TorporError], ...] = ()
    open: bool = False


async def create_database(context: Context, call: Call) -> Answer:
    """Makes a database and answers with its URL and its owner's password, which is shown this once."""
    body: CreateBody = call.body
    created = await context.databases.create(body.name, body.major, body.overrides())
    return json_answer(created, 201, {"Location": f"/v1/databases/{created.database.name}"})


async def list_databases(context: Context, call: Call) -> Answer:
    """Databases in the order of their names. `next` is the name to continue `after`, null at the end."""
    query: ListQuery = call.query
    return json_answer(context.databases.list(query.after, query.limit, query.tier, query.search))


async def show_database(context: Context, call: Call) -> Answer:
    """All about one database, with what woke it and what keeps it awake. Doesn't wake it."""
    return json_answer(await context.databases.detail(call.name))


async def update_database(context: Context, call: Call) -> Answer:
    """Changes the idle times of a database. Fields that are left out stay; null goes back to the daemon's setting."""
    body: UpdateBody = call.body
    current = (await context.databases.detail(call.name)).overrides
    return json_answer(await context.databases.update(call.name, body.overrides(current)))


async def delete_database(context: Context, call: Call) -> Answer:
    """Removes a database and its data for good. Refused while connections are open, unless forced."""
    query: ForceQuery = call.query
    await context.databases.delete(call.name, query.force)
    return Answer(status=204)


async def sleep_database(context: Context, call: Call) -> Answer:
    """Puts a database to sleep now. Frozen and paged ones keep their connections open."""
    body: SleepBody = call.body
    return json_answer(await context.databases.sleep(call.name, Tier(body.tier), body.force))


async def wake_database(context: Context, call: Call) -> Answer:
    """Wakes a database and answers when it is awake, with the time of each step."""
    return json_answer(WakeAnswer(await context.databases.wake(call.name)))


async def reset_password(context: Context, call: Call) -> Answer:
    """Gives the owner a new password, shown this once. Open connections stay."""
    return json_answer(await context.databases.reset_password(call.name))


async def issue_ticket(context: Context, call: Call) -> Answer:
    """A password of short life for the owner, beside the lasting one: for tools on this machine."""
    return json_answer(await context.databases.ticket(call.name), 201)


async def list_wakes(context: Context, call: Call) -> Answer:
    """The newest wakes of a database: when, why, from which tier, how long each step took."""
    query: WakesQuery = call.query
    return json_answer(WakesAnswer(context.databases.wakes(call.name, query.limit)))


async def show_logs(context: Context, call: Call) -> Answer | Stream:
    """The last lines of PostgreSQL's own log; with `follow` also what is written from then on, until the client disconnects."""
    query: LogsQuery = call.query
    path = context.databases.log_file(call.name)
    if not query.follow:
        return Answer(await tail(path, query.lines), media=PLAIN_TEXT)
    if context.followers >= MAX_FOLLOWERS:
        raise errors.TooManyConnections(f"{MAX_FOLLOWERS} logs are being followed already", "end one of them")
    context.followers += 1
    try:
        follower = await Follower.open(lambda: context.databases.log_file(call.name), query.lines)
    except BaseException:
        context.followers -= 1
        raise

    def close() -> None:
        follower.close()
        context.followers -= 1

    return Stream(follower.parts(context.stopping), PLAIN_TEXT, close)


async def show_host(context: Context, _call: Call) -> Answer:
    """The host at a glance: addresses, databases by tier, memory, and what it lacks."""
    return json_answer(context.databases.host())


async def show_metrics(context: Context, _call: Call) -> Answer:
    """Metrics in Prometheus' text format."""
    return Answer(context.render(), media=CONTENT_TYPE)


async def show_health(context: Context, _call: Call) -> Answer:
    """Whether Torpor serves. Needs no token."""
    if context.stopping.is_set():
        raise errors.ShuttingDown("Torpor is stopping")
    return json_answer(Health("ok", __version__))


_DATABASES = "/v1/databases"
_DATABASE = "/v1/databases/{name}"
_WAKING = (errors.DatabaseNotFound, errors.ComputeStartFailed, errors.ComputeLost, errors.StartTimeout, errors.ShuttingDown)

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "createDatabase", "POST", _DATABASES, "Make a database", create_database, Created, examples.CREATED, 201,
        body=CreateBody, body_example={"name": "shop", "freeze_after_s": 30},
        refusals=(errors.InvalidName, errors.DatabaseExists, errors.PoolFull, errors.ComputeStartFailed, errors.ShuttingDown),
    ),
    Operation("listDatabases", "GET", _DATABASES, "List databases", list_databases, DatabasePage, examples.PAGE, query=ListQuery),
    Operation(
        "showDatabase", "GET", _DATABASE, "Show a database", show_database, DatabaseDetail, examples.DETAIL,
        refusals=(errors.DatabaseNotFound,),
    ),
    Operation(
        "updateDatabase", "PATCH", _DATABASE, "Change idle times", update_database, DatabaseDetail, examples.DETAIL,
        body=UpdateBody, body_example={"freeze_after_s": 30, "stop_after_s": "never"}, refusals=(errors.DatabaseNotFound,),
    ),
    Operation(
        "deleteDatabase", "DELETE", _DATABASE, "Remove a database", delete_database, status=204, query=ForceQuery,
        refusals=(errors.DatabaseNotFound, errors.DatabaseInUse, errors.Conflict),
    ),
    Operation(
        "sleepDatabase", "POST", f"{_DATABASE}/sleep", "Put a database to sleep", sleep_database, DatabaseView, examples.DATABASE,
        body=SleepBody, body_example={"tier": "stopped"}, refusals=(errors.DatabaseNotFound, errors.DatabaseInUse, errors.Conflict),
    ),
    Operation(
        "wakeDatabase", "POST", f"{_DATABASE}/wake", "Wake a database", wake_database, WakeAnswer, WakeAnswer(examples.WAKE),
        refusals=_WAKING,
    ),
    Operation(
        "resetPassword", "POST", f"{_DATABASE}/password", "Reset the owner's password", reset_password, Credentials, examples.CREDENTIALS,
        refusals=_WAKING,
    ),
    Operation(
        "issueTicket", "POST", f"{_DATABASE}/tickets", "Issue a password of short life", issue_ticket, Credentials, examples.TICKET, 201,
        refusals=_WAKING,
    ),
    Operation(
        "listWakes", "GET", f"{_DATABASE}/wakes", "List wakes", list_wakes, WakesAnswer, WakesAnswer((examples.WAKE,)), query=WakesQuery,
        refusals=(errors.DatabaseNotFound,),
    ),
    Operation(
        "showLogs", "GET", f"{_DATABASE}/logs", "Show or follow PostgreSQL's log", show_logs, str, media=PLAIN_TEXT, query=LogsQuery,
        refusals=(errors.DatabaseNotFound, errors.TooManyConnections),
    ),
    Operation("showHost", "GET", "/v1/host", "Show the host", show_host, HostView, examples.HOST),
    Operation("showMetrics", "GET", "/metrics", "Show metrics", show_metrics, str, media=CONTENT_TYPE),
    Operation(
        "showHealth", "GET", "/healthz", "Show health", show_health, Health, Health("ok", __version__),
        refusals=(errors.ShuttingDown,), open=True,
    ),
)  # fmt: skip
