"""An in-memory twin of the HTTP API: real sockets, no PostgreSQL. It answers with the views of the model, encoded field by field."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from torpor.api import examples
from torpor.api.bodies import PoolBody
from torpor.api.faults import TooManyRequests
from torpor.base.clock import SystemClock
from torpor.catalog.audit import AuditRecords
from torpor.catalog.catalog import Catalog
from torpor.catalog.workspaces import WorkspaceRecords
from torpor.control.audit import Audit
from torpor.control.keys import KeyRing
from torpor.control.workspaces import Workspaces
from torpor.model.audit import AuditFilter
from torpor.model.branches import Branched, BranchList, PastBranch
from torpor.model.cache import NO_CACHE, CacheRule, CacheStatus, Purged
from torpor.model.drills import DrillList
from torpor.model.errors import Conflict, DatabaseExists, DatabaseInUse, DatabaseNotFound, JobNotFound, TorporError, Unauthorized
from torpor.model.fingerprint import fingerprint
from torpor.model.history_views import BaseList, HistoryView, RetentionView
from torpor.model.jobs import JobId, JobList, JobState, JobView
from torpor.model.names import DatabaseId
from torpor.model.pool import NO_POOL_OVERRIDES, PoolOverrides, PoolPolicy
from torpor.model.recovery_views import RecoverableList, Recovering
from torpor.model.size import GIB, MIB, Pace, ScaleReason, Size, SizeOverrides
from torpor.model.sleep import AwakeReason, SleepOverrides, SleepPolicy, SleepReason, Tier, WakeReason
from torpor.model.views import (
    AwakeCause,
    Created,
    Credentials,
    DatabaseDetail,
    DatabasePage,
    DatabaseView,
    Decision,
    HostView,
    NextStep,
    SizeView,
    StepView,
    WakeView,
)
from torpor.model.workspace import AccessScope, Caller

TOKEN = "token-for-tests"
NOW = 1_800_000_000.0
WAKE = WakeView(NOW, WakeReason.TRAFFIC, Tier.FROZEN, "10.0.0.7 as app", 4.25, (StepView("thaw", 0.75), StepView("ready", 3.5)))


DECISION = Decision(NOW - 5, "processor", 0.25, 1.0, ScaleReason.SATURATED, Pace.NORMAL, {"average": 0.11, "withheld": 0.61})
SIZE = SizeView(
    Size(0.25, 2.0, 128 * MIB, GIB, 100, 10 * GIB),
    SizeOverrides(max_cpu=2.0),
    Pace.YIELDING,
    1.0,
    cpu_use=0.42,
    memory_ceiling_bytes=152 * MIB,
    memory_bytes=61 * MIB,
    disk_bytes=25 * MIB,
    connections=2,
    connection_limit=80,
    held={"processor": "cgroups v2"},
    decisions=(DECISION,),
)


def view(name: str, tier: Tier = Tier.AWAKE, number: int = 0) -> DatabaseView:
    """A database as lists show it."""
    return DatabaseView(
        id=DatabaseId(f"d{number:012d}".replace("0", "a").replace("1", "b").replace("8", "h").replace("9", "i")),
        name=name,
        major=18,
        url=f"postgresql://owner@127.0.0.1:7432/{name}",
        tier=tier,
        tier_since=NOW,
        tier_reason=WakeReason.TRAFFIC if tier is Tier.AWAKE else SleepReason.IDLE,
        created_at=NOW - 86400,
        connections=2,
        cpu_ms=1234.5,
        memory_bytes=0 if tier is Tier.STOPPED else 17 << 20,
        swap_bytes=3 << 20,
        ingress_bytes=1000,
        egress_bytes=5000,
        wakes=7,
        last_wake=WAKE,
        awake_because=(AwakeCause(AwakeReason.STATEMENT, "pid 42: select \x1b[2Jpg_sleep(60)"),) if tier is Tier.AWAKE else (),
    )


@dataclass
class Twin:
    """The databases, what was asked, and what to answer."""

    databases: dict[str, DatabaseView] = field(default_factory=dict)
    overrides: dict[str, SleepOverrides] = field(default_factory=dict)
    pools: dict[str, PoolOverrides] = field(default_factory=dict)
    caches: dict[str, CacheStatus] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str], Any]] = field(default_factory=list)
    log: bytes = b"first line\nsecond \xe2\x82\xac line\n"
    passwords: int = 0
    size: SizeView = SIZE
    rulers: "Rulers | None" = None
    # How a job goes on, by its id; a stream of events breaks off after so many.
    jobs: dict[str, list[JobView]] = field(default_factory=dict)
    steps_a_stream: int = 100
    history: HistoryView = examples.HISTORY
    bases: BaseList = examples.BASES
    drills: DrillList = examples.DRILLS
    recoverable: RecoverableList = examples.RECOVERABLES
    # How many requests are still refused since they come too early.
    early: int = 0
    # Called with each request before it is answered; may raise a TorporError.
    hook: Callable[[str, str], None] = lambda method, path: None
    url: str = ""

    def add(self, *views: DatabaseView) -> None:
        for one in views:
            self.databases[one.name] = one

    def handle(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        self.requests.append((method, path, query, body))
        self.hook(method, path)
        if path.startswith(("/v1/workspaces", "/v1/audit")):
            assert self.rulers is not None
            return self.rulers.handle(method, path, query, body)
        if path.startswith("/v1/jobs"):
            return 200, self._job(method, path.removeprefix("/v1/jobs").strip("/"))
        if path == "/v1/drills":
            return 200, self.drills
        if path.startswith("/v1/recovery"):
            return self._recovery(method, path.removeprefix("/v1/recovery"), query, body)
        if path == "/v1/host":
            return 200, self._host()
        if path == "/v1/databases":
            return (201, self._create(body)) if method == "POST" else (200, self._list(query))
        _, _, _, name, *rest = [unquote(part) for part in path.split("/")]
        if name not in self.databases:
            raise DatabaseNotFound(f"there is no database {name!r}", "`torpor ls` lists them")
        if rest and rest[0] == "cache":
            return 200, self._cache(method, name, rest[1:], body)
        return self._one(method, name, rest[0] if rest else "", query, body)

    def _cache(self, method: str, name: str, rest: list[str], body: Any) -> Any:
        status = self.caches.get(name, CacheStatus(False, (), NO_CACHE))
        match method, rest:
            case "PATCH", []:
                status = replace(status, on_write=body["on_write"])
            case "PUT", ["rules"]:
                rule = CacheRule(fingerprint(body["statement"].encode()), body["words"], body["statement"])
                status = replace(status, rules=(*status.rules, rule))
            case "DELETE", ["rules", digits]:
                status = replace(status, rules=tuple(rule for rule in status.rules if rule.fingerprint != digits))
            case "POST", ["purge"]:
                return Purged(7)
        self.caches[name] = status
        return status

    def _recovery(self, method: str, rest: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        if rest:
            return 204, None
        if method == "GET":
            return 200, self.recoverable if "after" not in query else replace(self.recoverable, databases=(), next=None)
        wanted = [one for one in self.recoverable.databases if body["database"] in (one.name, one.id)]
        if not wanted:
            raise DatabaseNotFound(f"the store holds no database {body['database']!r}", "`torpor recover` lists what it holds")
        made = view(body.get("name") or wanted[0].name, number=len(self.databases))
        if made.name in self.databases:
            raise DatabaseExists(f"database {made.name!r} exists already", "call it something else")
        self.add(made)
        job = JobView(JobId("j" + made.id[1:]), "recover", made.name, JobState.RUNNING, NOW)
        self.jobs.setdefault(job.id, [job, replace(job, state=JobState.DONE, result={"database": made.name, "from": wanted[0].id})])
        return 202, Recovering(job, made.name)

    def _job(self, method: str, rest: str) -> Any:
        if not rest:
            return JobList(tuple(steps[0] for steps in self.jobs.values()))
        id, _, verb = rest.partition("/")
        if id not in self.jobs:
            raise JobNotFound("there is no job of that id", "`torpor job ls` lists them")
        steps = self.jobs[id]
        if verb == "events":
            shown, self.jobs[id] = steps[: self.steps_a_stream], steps[max(0, min(self.steps_a_stream, len(steps)) - 1) :]
            return b"retry: 1\n\n" + b"".join(b"event: job\ndata: %s\n\n" % json.dumps(asdict(one)).encode() for one in shown)
        return replace(steps[0], state=JobState.CANCELLED) if method == "DELETE" else steps[0]

    def _one(self, method: str, name: str, verb: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        found = self.databases[name]
        match method, verb:
            case "GET", "":
                return 200, self._detail(name)
            case "PATCH", "":
                if "ttl_s" in body:
                    self.databases[name] = replace(found, expires_at=body["ttl_s"] and time.time() + body["ttl_s"])
                own = {key: value for key, value in body.items() if key not in ("size", "ttl_s", "pool")}
                self.pools[name] = PoolBody(**body.get("pool", {})).overrides(self.pools.get(name, NO_POOL_OVERRIDES))
                self.overrides[name] = replace(self.overrides.get(name, SleepOverrides()), **own)
                return 200, self._detail(name)
            case "DELETE", "":
                if found.connections and query.get("force") != "true":
                    raise DatabaseInUse(f"{name} has 2 open connections", "close them or use force")
                del self.databases[name]
                return 204, None
            case "POST", "sleep":
                if found.tier is Tier.AWAKE and not body["force"]:
                    raise Conflict(f"{name} is busy", "use force")
                self.databases[name] = replace(found, tier=Tier(body.get("tier", "frozen")))
                return 200, self.databases[name]
            case "POST", "wake":
                self.databases[name] = replace(found, tier=Tier.AWAKE)
                return 200, {"wake": None if found.tier is Tier.AWAKE else asdict(WAKE)}
            case "POST", "password" | "tickets":
                return 200, self._credentials(name)
            case "GET", "history":
                return 200, self.history
            case "PATCH", "history":
                return 200, RetentionView((body.get("keep_days") or 7) * 86_400.0, body.get("keep_bases") or 30, ("keep_s",))
            case "GET", "backups":
                return 200, self.bases
            case "GET", "drills":
                return 200, self.drills
            case "POST", "drills" | "backups" | "restore" | "upgrade" | "archive":
                (job, *_), *_ = self.jobs.values()
                return 202, job
            case "POST", "branches" if "at" in body or "lsn" in body:
                (job, *_), *_ = self.jobs.values()
                made = self._branch(found, body)
                return 202, PastBranch(job, made.database.name, made.credentials)
            case "POST", "branches":
                return 201, self._branch(found, body)
            case "GET", "branches":
                return 200, BranchList(tuple(one for one in self.databases.values() if one.parent == name))
            case "POST", "reset":
                if found.parent is None:
                    raise Conflict(f"database {name} is no branch", "only a branch can be reset to its parent")
                return 200, found
            case "POST", "export":
                return 200, b"a dump, format=" + body["format"].encode()
            case "GET", "size":
                return 200, self.size
            case "GET", "logs":
                return 200, self.log
        raise AssertionError((method, verb))

    def _credentials(self, name: str) -> Credentials:
        self.passwords += 1
        password = f"s/e c@{self.passwords}"
        return Credentials("owner", password, f"postgresql://owner:s%2Fe%20c%40{self.passwords}@127.0.0.1:7432/{name}")

    def _create(self, body: dict[str, Any]) -> Created:
        name = body.get("name") or "calm-heron"
        if name in self.databases:
            raise DatabaseExists(f"there is a database {name!r} already", "choose another name")
        self.add(view(name, number=len(self.databases)))
        self.overrides[name] = SleepOverrides(**{key: value for key, value in body.items() if key.endswith("_s")})
        return Created(self.databases[name], self._credentials(name), True, 12.5)

    def _branch(self, parent: DatabaseView, body: dict[str, Any]) -> Branched:
        name, ttl_s = body.get("name") or "calm-heron", body.get("ttl_s")
        made = replace(
            view(name, number=len(self.databases)), parent=parent.name, branched_at=NOW, expires_at=ttl_s and time.time() + ttl_s
        )
        self.add(made)
        return Branched(made, None if body.get("keep_passwords") else self._credentials(name), 112.4, ())

    def _list(self, query: dict[str, str]) -> DatabasePage:
        chosen = [
            one
            for name, one in sorted(self.databases.items())
            if name > query.get("after", "") and query.get("tier", one.tier) == one.tier and query.get("search", "") in name
        ]
        limit = int(query["limit"])
        return DatabasePage(tuple(chosen[:limit]), chosen[limit - 1].name if len(chosen) > limit else None)

    def _detail(self, name: str) -> DatabaseDetail:
        overrides = self.overrides.get(name, SleepOverrides())
        return DatabaseDetail(
            self.databases[name],
            overrides.apply(SleepPolicy()),
            overrides,
            NextStep(Tier.PAGED, NOW + 30),
            25 << 20,
            "/data/volumes/d1",
            "bubblewrap",
            NOW - 3,
            "",
            (WAKE,) * 12,
            self.size,
            lineage=(parent,) if (parent := self.databases[name].parent) is not None else (),
            pool_policy=self.pools.get(name, NO_POOL_OVERRIDES).apply(PoolPolicy()),
            pool_overrides=self.pools.get(name, NO_POOL_OVERRIDES),
        )

    def _host(self) -> HostView:
        tiers = {tier: sum(one.tier is tier for one in self.databases.values()) for tier in Tier}
        return HostView(
            "0.1.0", "127.0.0.1:7432", self.url, "/data", NOW - 60, len(self.databases), tiers, 4, 2, 8 << 30, 1 << 30, 1 << 20, "xfs"
        )


class Rulers:
    """The real workspaces, keys and audit log, on a catalog of their own."""

    def __init__(self, directory: Path) -> None:
        self.catalog = Catalog.open(directory / "catalog.sqlite")
        clock = SystemClock()
        records = WorkspaceRecords(self.catalog.connection)
        self.keys = KeyRing(records, clock)
        self.workspaces = Workspaces(records, clock, lambda _: 0, self.keys.count, self.keys.forget_workspace)
        self.audit = Audit(AuditRecords(self.catalog.connection), clock, directory / "audit")

    def handle(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        _, _, kind, *rest = [unquote(part) for part in path.split("/")]
        if kind == "audit":
            wanted = AuditFilter(None, query.get("action"), query.get("target"), query.get("actor"), outcomes="outcomes" in query)
            numbers = {name: int(query[name]) for name in ("before", "after") if name in query}
            return 200, self.audit.page(wanted, int(query["limit"]), **numbers)
        if not rest:
            return (201, self.workspaces.create(body["name"])) if method == "POST" else (200, self.workspaces.list(None, 500))
        workspace = self.workspaces.find("default" if rest[0] == "self" else rest[0])
        match method, rest[1:]:
            case "GET", []:
                return 200, self.workspaces.view(workspace)
            case "DELETE", []:
                self.workspaces.delete(workspace.name)
                return 204, None
            case "POST", ["keys"]:
                host = Caller(AccessScope.HOST, None)
                return 201, self.keys.create(workspace, body["name"], AccessScope(body["scope"]), body["expires_in_s"], host)
            case "GET", ["keys"]:
                return 200, self.keys.list(workspace)
            case "DELETE", ["keys", id]:
                self.keys.revoke(workspace, id)
                return 204, None
        raise AssertionError((method, path))


@contextmanager
def serving(twin: Twin) -> Iterator[str]:
    """Serve the twin on a free port; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            parts = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            try:
                if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    raise Unauthorized("the bearer token is wrong", "send the right one")
                if twin.early:
                    twin.early -= 1
                    raise TooManyRequests("too early", "wait", {"Retry-After": "1"})
                status, value = twin.handle(self.command, parts.path, query, body)
            except TorporError as error:
                status = error.http_status
                value = {"error": {"kind": error.kind, "message": error.message, "hint": error.hint, "sqlstate": error.sqlstate}}
            content = b"" if status == 204 else value if isinstance(value, bytes) else json.dumps(value, default=asdict).encode()
            self.send_response(status)
            if status == 429:
                self.send_header("Retry-After", "1")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        twin.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield twin.url
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
