"""Every operation of the API, declared once: this table is routing, checking and documentation.

Concurrency: handlers run in the task of their request. A handler's docstring is the description in the OpenAPI document.
"""

from msgspec import UNSET

from torpor import __version__
from torpor.api import (
    access,
    archiving,
    branches,
    caching,
    drills,
    examples,
    exports,
    governance,
    history,
    jobs,
    recovery,
    tokens,
    upgrades,
)
from torpor.api.asgi import Answer, Stream, json_answer
from torpor.api.bodies import (
    AccessBody,
    AuditQuery,
    BranchBody,
    CreateBody,
    CreateKeyBody,
    CreateWorkspaceBody,
    DrainBody,
    ExportBody,
    ForceQuery,
    Health,
    JobsQuery,
    ListQuery,
    LogsQuery,
    ResetBody,
    SleepBody,
    UpdateBody,
    WakeAnswer,
    WakesAnswer,
    WakesQuery,
    WorkspacesQuery,
)
from torpor.api.calls import Call, Context, Operation, allowed_size
from torpor.api.logtail import Follower, tail
from torpor.api.ports import Drains
from torpor.base.telemetry import CONTENT_TYPE
from torpor.model import errors
from torpor.model.access_views import AccessView
from torpor.model.branches import Branched, BranchList
from torpor.model.drain import DrainView
from torpor.model.jobs import JobList, JobView
from torpor.model.sleep import Tier
from torpor.model.views import Created, Credentials, DatabaseDetail, DatabasePage, DatabaseView, HostView, SizeView
from torpor.model.workspace import AccessScope
from torpor.model.workspace_views import AuditPage, CreatedKey, KeyList, WorkspacePage, WorkspaceView

PLAIN_TEXT = "text/plain; charset=utf-8"


async def create_database(context: Context, call: Call) -> Answer:
    """Makes a database and answers with its URL and its owner's password, which is shown this once."""
    body: CreateBody = call.body
    owner = context.workspace(body.workspace)
    created = await context.databases.within(owner.id).create(
        body.name, body.major, body.overrides(), allowed_size(context, body.size_overrides()), body.superuser, body.pool_overrides()
    )
    context.note.target, context.note.workspace = created.database.name, owner.id
    return json_answer(created, 201, {"Location": f"/v1/databases/{created.database.name}"})


async def list_databases(context: Context, call: Call) -> Answer:
    """Databases in the order of their names. `next` is the name to continue `after`, null at the end."""
    query: ListQuery = call.query
    databases = context.databases if query.workspace is None else context.databases.within(context.workspace(query.workspace).id)
    return json_answer(databases.list(query.after, query.limit, query.tier, query.search))


async def show_database(context: Context, call: Call) -> Answer:
    """All about one database, with what woke it and what keeps it awake. Doesn't wake it."""
    return json_answer(await context.databases.detail(call.name))


async def update_database(context: Context, call: Call) -> Answer:
    """Changes the idle times, the time to live, the size and the pool of a database. Fields that are left out stay; null goes back to the
    daemon's setting, and to a life without end."""
    body: UpdateBody = call.body
    detail = await context.databases.detail(call.name)
    pool = None if body.pool is UNSET else body.pool.overrides(detail.pool_overrides)
    if body.ttl_s is not UNSET:
        context.services.branches.within(context.caller.workspace).set_life(call.name, body.ttl_s)
    if body.size is not UNSET:
        size = body.size.overrides((await context.databases.size(call.name)).overrides)
        await context.databases.resize(call.name, allowed_size(context, size))
    return json_answer(await context.databases.update(call.name, body.overrides(detail.overrides), pool))


async def show_size(context: Context, call: Call) -> Answer:
    """What a database may use of the host, what it may use now, and the last decisions with the figures they follow from."""
    return json_answer(await context.databases.size(call.name))


async def delete_database(context: Context, call: Call) -> Answer:
    """Removes a database and its data for good. Refused while connections are open, unless forced. The keys that open its history are
    removed, here and in the store; where that doesn't answer, as soon as it does, and the audit log says so."""
    query: ForceQuery = call.query
    id = context.databases.get(call.name).id
    await context.databases.delete(call.name, query.force)
    if context.services.recovery is not None and not await context.services.recovery.keys_are_gone(id):
        context.note.detail = "the store still has its keys"
    return Answer(status=204)


async def sleep_database(context: Context, call: Call) -> Answer:
    """Puts a database to sleep now. Frozen and paged ones keep their connections open."""
    body: SleepBody = call.body
    id, histories = context.databases.get(call.name).id, context.services.histories
    if histories is not None:
        await histories.before_sleep(id)
    asleep = await context.databases.sleep(call.name, Tier(body.tier), body.force)
    if histories is not None:
        await histories.settle(id)
    return json_answer(asleep)


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
    leave = context.services.follow(context.caller)
    try:
        follower = await Follower.open(lambda: context.databases.log_file(call.name), query.lines)
    except BaseException:
        leave()
        raise

    def close() -> None:
        follower.close()
        leave()

    return Stream(follower.parts(context.stopping), PLAIN_TEXT, close)


async def show_host(context: Context, _call: Call) -> Answer:
    """The host at a glance: addresses, databases by tier, memory, and what it lacks."""
    return json_answer(context.databases.host())


async def show_metrics(context: Context, _call: Call) -> Answer:
    """Metrics in Prometheus' text format."""
    return Answer(context.render(), media=CONTENT_TYPE)


async def drain(context: Context, call: Call) -> Answer:
    """Ends Torpor without interrupting anybody: nobody is let in any more, sessions end when nothing runs in them, and Torpor ends after
    the last. New connections wait for the next Torpor to take over. What still runs after `timeout_s` is ended. Answers at once; asked
    again it changes the time. Meanwhile the API changes nothing else."""
    body: DrainBody = call.body
    return json_answer(_drains(context).drain(body.timeout_s))


async def show_drain(context: Context, _call: Call) -> Answer:
    """How far a drain is, and what it waits for."""
    return json_answer(_drains(context).drain_view())


def _drains(context: Context) -> Drains:
    if context.services.drains is None:
        raise errors.Conflict("this Torpor can't be drained")
    return context.services.drains


async def show_health(context: Context, _call: Call) -> Answer:
    """Whether Torpor serves. Needs no key."""
    if context.stopping.is_set():
        raise errors.ShuttingDown("Torpor is stopping")
    if context.services.is_draining:
        raise errors.ShuttingDown("Torpor is draining")
    return json_answer(Health("ok", __version__))


_DATABASES = "/v1/databases"
_DATABASE = "/v1/databases/{name}"
_WORKSPACES = "/v1/workspaces"
_WORKSPACE = "/v1/workspaces/{workspace}"
_KEYS = "/v1/workspaces/{workspace}/keys"
_JOBS = "/v1/jobs"
_JOB = "/v1/jobs/{job}"
_ACCESS_BODY_BYTES = 2 << 20  # MAX_ENTRIES networks
_ACCESS_EXAMPLE = {"allow": ["203.0.113.0/24"], "deny": ["203.0.113.7"]}
_WAKING = (errors.DatabaseNotFound, errors.ComputeStartFailed, errors.ComputeLost, errors.StartTimeout, errors.ShuttingDown)
_IDLE = ("freeze_after_s", "page_after_s", "stop_after_s")
_READ, _WRITE, _ADMIN, _METRICS, _HOST = AccessScope.READ, AccessScope.WRITE, AccessScope.ADMIN, AccessScope.METRICS, AccessScope.HOST

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "createDatabase", "POST", _DATABASES, "Make a database", create_database, Created, examples.CREATED, 201,
        body=CreateBody, body_example={"name": "shop", "freeze_after_s": 30}, scope=_WRITE,
        action="database.create", told=("name", "major", "workspace", *_IDLE, "size", "superuser", "pool"),
        refusals=(
            errors.InvalidName, errors.DatabaseExists, errors.WorkspaceNotFound, errors.PoolFull, errors.ComputeStartFailed,
            errors.ShuttingDown,
        ),
    ),
    Operation(
        "listDatabases", "GET", _DATABASES, "List databases", list_databases, DatabasePage, examples.PAGE, query=ListQuery, scope=_READ,
        refusals=(errors.WorkspaceNotFound,),
    ),
    Operation(
        "showDatabase", "GET", _DATABASE, "Show a database", show_database, DatabaseDetail, examples.DETAIL, scope=_READ,
        refusals=(errors.DatabaseNotFound,),
    ),
    Operation(
        "updateDatabase", "PATCH", _DATABASE, "Change idle times, time to live, size and pool", update_database, DatabaseDetail,
        examples.DETAIL, body=UpdateBody, body_example={"freeze_after_s": 30, "stop_after_s": "never"}, scope=_WRITE,
        action="database.update", told=(*_IDLE, "ttl_s", "size", "pool"),
        refusals=(errors.DatabaseNotFound,),
    ),
    Operation(
        "showSize", "GET", f"{_DATABASE}/size", "Show the size of a database, and why", show_size, SizeView, examples.SIZE, scope=_READ,
        refusals=(errors.DatabaseNotFound,),
    ),
    Operation(
        "deleteDatabase", "DELETE", _DATABASE, "Remove a database", delete_database, status=204, query=ForceQuery,
        scope=_WRITE, action="database.delete", told=("force",),
        refusals=(errors.DatabaseNotFound, errors.DatabaseInUse, errors.Conflict),
    ),
    Operation(
        "createBranch", "POST", f"{_DATABASE}/branches", "Make a branch", branches.create_branch, Branched, examples.BRANCHED, 201,
        body=BranchBody, body_example={"name": "shop-try", "ttl_s": 172_800}, scope=_WRITE,
        action="database.branch", told=("name", "ttl_s", "keep_passwords", *_IDLE, "size"),
        refusals=(
            errors.DatabaseNotFound, errors.InvalidName, errors.DatabaseExists, errors.Conflict, errors.PoolFull, errors.ComputeStartFailed,
            errors.ComputeLost, errors.ShuttingDown,
        ),
    ),
    Operation(
        "listBranches", "GET", f"{_DATABASE}/branches", "List the branches of a database", branches.list_branches, BranchList,
        examples.BRANCHES, scope=_READ, refusals=(errors.DatabaseNotFound,),
    ),
    Operation(
        "resetBranch", "POST", f"{_DATABASE}/reset", "Reset a branch to its parent", branches.reset_branch, DatabaseView, examples.RESET,
        body=ResetBody, body_example={"force": False}, scope=_WRITE, action="database.reset", told=("force",),
        refusals=(errors.DatabaseInUse, errors.Conflict, errors.PoolFull, *_WAKING),
    ),
    *archiving.OPERATIONS,
    *history.OPERATIONS,
    *upgrades.OPERATIONS,
    *drills.OPERATIONS,
    *tokens.OPERATIONS,
    *caching.OPERATIONS,
    *recovery.OPERATIONS,
    Operation(
        "sleepDatabase", "POST", f"{_DATABASE}/sleep", "Put a database to sleep", sleep_database, DatabaseView, examples.DATABASE,
        body=SleepBody, body_example={"tier": "stopped"}, scope=_WRITE, action="database.sleep", told=("tier", "force"),
        refusals=(errors.DatabaseNotFound, errors.DatabaseInUse, errors.Conflict),
    ),
    Operation(
        "wakeDatabase", "POST", f"{_DATABASE}/wake", "Wake a database", wake_database, WakeAnswer, WakeAnswer(examples.WAKE),
        scope=_WRITE, action="database.wake", refusals=_WAKING,
    ),
    Operation(
        "resetPassword", "POST", f"{_DATABASE}/password", "Reset the owner's password", reset_password, Credentials, examples.CREDENTIALS,
        scope=_WRITE, action="database.password", refusals=_WAKING,
    ),
    Operation(
        "issueTicket", "POST", f"{_DATABASE}/tickets", "Issue a password of short life", issue_ticket, Credentials, examples.TICKET, 201,
        scope=_WRITE, action="database.ticket", refusals=_WAKING,
    ),
    Operation(
        "exportDatabase", "POST", f"{_DATABASE}/export", "Export a database", exports.export_database, str, media=exports.MEDIA,
        body=ExportBody, body_example={"format": "custom"}, scope=_WRITE, action="database.export",
        told=("format", "schema_only", "data_only", "owners"), refusals=(*_WAKING, errors.TooManyJobs, errors.DumpFailed, errors.DiskFull),
    ),
    Operation(
        "listWakes", "GET", f"{_DATABASE}/wakes", "List wakes", list_wakes, WakesAnswer, WakesAnswer((examples.WAKE,)), query=WakesQuery,
        scope=_READ, refusals=(errors.DatabaseNotFound,),
    ),
    Operation(
        "showLogs", "GET", f"{_DATABASE}/logs", "Show or follow PostgreSQL's log", show_logs, str, media=PLAIN_TEXT, query=LogsQuery,
        scope=_WRITE, refusals=(errors.DatabaseNotFound, errors.TooManyConnections),
    ),
    Operation(
        "createWorkspace", "POST", _WORKSPACES, "Make a workspace", governance.create_workspace, WorkspaceView, examples.WORKSPACE, 201,
        body=CreateWorkspaceBody, body_example={"name": "acme"}, scope=_HOST, action="workspace.create",
        refusals=(errors.InvalidName, errors.WorkspaceExists, errors.Conflict),
    ),
    Operation(
        "listWorkspaces", "GET", _WORKSPACES, "List workspaces", governance.list_workspaces, WorkspacePage,
        WorkspacePage((examples.WORKSPACE,), None), query=WorkspacesQuery, scope=_HOST,
    ),
    Operation(
        "showWorkspace", "GET", _WORKSPACE, "Show a workspace", governance.show_workspace, WorkspaceView, examples.WORKSPACE, scope=_READ,
        refusals=(errors.WorkspaceNotFound,),
    ),
    Operation(
        "deleteWorkspace", "DELETE", _WORKSPACE, "Remove an empty workspace", governance.delete_workspace, status=204, scope=_HOST,
        action="workspace.delete", refusals=(errors.WorkspaceNotFound, errors.WorkspaceInUse, errors.Conflict),
    ),
    Operation(
        "createKey", "POST", _KEYS, "Make an API key", governance.create_key, CreatedKey, CreatedKey(examples.KEY, examples.KEY_TEXT), 201,
        body=CreateKeyBody, body_example={"name": "ci", "scope": "write", "expires_in_s": 7_776_000}, scope=_ADMIN,
        action="key.create", told=("name", "scope", "expires_in_s"),
        refusals=(errors.WorkspaceNotFound, errors.InvalidName, errors.Conflict),
    ),
    Operation(
        "listKeys", "GET", _KEYS, "List API keys", governance.list_keys, KeyList, KeyList((examples.KEY,)), scope=_ADMIN,
        refusals=(errors.WorkspaceNotFound,),
    ),
    Operation(
        "revokeKey", "DELETE", f"{_KEYS}/{{key}}", "Revoke an API key", governance.revoke_key, status=204, scope=_ADMIN,
        action="key.revoke", refusals=(errors.WorkspaceNotFound, errors.KeyNotFound),
    ),
    Operation(
        "listAudit", "GET", "/v1/audit", "Show the audit log", governance.list_audit, AuditPage, examples.AUDIT, query=AuditQuery,
        scope=_ADMIN, refusals=(errors.WorkspaceNotFound,),
    ),
    Operation(
        "listJobs", "GET", _JOBS, "List jobs", jobs.list_jobs, JobList, JobList((examples.JOB,)), query=JobsQuery, scope=_READ,
        refusals=(errors.WorkspaceNotFound,),
    ),
    Operation(
        "showJob", "GET", _JOB, "Show a job", jobs.show_job, JobView, examples.JOB, scope=_READ, refusals=(errors.JobNotFound,),
    ),
    Operation(
        "followJob", "GET", f"{_JOB}/events", "Follow a job", jobs.follow_job, str, media=jobs.EVENTS, scope=_READ,
        refusals=(errors.JobNotFound, errors.TooManyConnections),
    ),
    Operation(
        "cancelJob", "DELETE", _JOB, "Cancel a job", jobs.cancel_job, JobView, examples.JOB, scope=_WRITE, action="job.cancel",
        refusals=(errors.JobNotFound,),
    ),
    Operation("showHost", "GET", "/v1/host", "Show the host", show_host, HostView, examples.HOST, scope=_HOST),
    Operation(
        "drain", "POST", "/v1/drain", "Drain", drain, DrainView, examples.DRAIN, body=DrainBody, body_example={"timeout_s": 600},
        scope=_HOST, action="host.drain", told=("timeout_s",), refusals=(errors.Conflict,),
    ),
    Operation(
        "showDrain", "GET", "/v1/drain", "Show the drain", show_drain, DrainView, examples.DRAIN, scope=_HOST, refusals=(errors.Conflict,),
    ),
    Operation("showMetrics", "GET", "/metrics", "Show metrics", show_metrics, str, media=CONTENT_TYPE, scope=_METRICS),
    Operation(
        "showHealth", "GET", "/healthz", "Show health", show_health, Health, Health("ok", __version__),
        refusals=(errors.ShuttingDown,), scope=None,
    ),
    Operation(
        "showAccess", "GET", "/v1/access", "Show the global access lists", access.show_global, AccessView, examples.ACCESS, scope=_HOST,
    ),
    Operation(
        "replaceAccess", "PUT", "/v1/access", "Replace the global access lists", access.replace_global, AccessView, examples.ACCESS,
        body=AccessBody, body_example=_ACCESS_EXAMPLE, max_body_bytes=_ACCESS_BODY_BYTES, action="access.replace",
        refusals=(errors.Conflict,), scope=_HOST,
    ),
    Operation(
        "showWorkspaceAccess", "GET", f"{_WORKSPACE}/access", "Show a workspace's access lists", access.show_workspace, AccessView,
        examples.ACCESS, refusals=(errors.WorkspaceNotFound,), scope=_READ,
    ),
    Operation(
        "replaceWorkspaceAccess", "PUT", f"{_WORKSPACE}/access", "Replace a workspace's access lists", access.replace_workspace, AccessView,
        examples.ACCESS, body=AccessBody, body_example=_ACCESS_EXAMPLE, max_body_bytes=_ACCESS_BODY_BYTES, action="access.replace",
        refusals=(errors.WorkspaceNotFound, errors.Conflict), scope=_ADMIN,
    ),
    Operation(
        "showDatabaseAccess", "GET", f"{_DATABASE}/access", "Show a database's access lists", access.show_database, AccessView,
        examples.ACCESS, refusals=(errors.DatabaseNotFound,), scope=_READ,
    ),
    Operation(
        "replaceDatabaseAccess", "PUT", f"{_DATABASE}/access", "Replace a database's access lists", access.replace_database, AccessView,
        examples.ACCESS, body=AccessBody, body_example=_ACCESS_EXAMPLE, max_body_bytes=_ACCESS_BODY_BYTES, action="access.replace",
        refusals=(errors.DatabaseNotFound, errors.Conflict), scope=_ADMIN,
    ),
)  # fmt: skip
