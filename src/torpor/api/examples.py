"""Example values for the documentation: the same nouns that the API answers with. Pure."""

from dataclasses import replace

from torpor.model.access_views import AccessView
from torpor.model.audit import GENESIS, Anchor, AuditResult, seal
from torpor.model.branches import Branched, BranchList, PastBranch
from torpor.model.cache import CacheRule, CacheStatus, CacheView
from torpor.model.drain import DrainState, DrainView, RunningView
from torpor.model.drills import DrillList, DrillResult, DrillView
from torpor.model.history_views import BaseList, BaseView, HistoryView, RetentionView, ShippingView, WindowView
from torpor.model.jobs import JobId, JobState, JobView
from torpor.model.names import DatabaseId
from torpor.model.pool import PoolMode, PoolOverrides, PoolPolicy
from torpor.model.recovery_views import RecoverableList, RecoverableView, Recovering
from torpor.model.size import GIB, MIB, Pace, ScaleReason, Size, SizeOverrides
from torpor.model.sleep import SleepOverrides, SleepPolicy, Tier, WakeReason
from torpor.model.tokens import TokenRulesView, TokenView
from torpor.model.views import (
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
from torpor.model.workspace import AccessScope, KeyId, WorkspaceId
from torpor.model.workspace_views import AuditPage, KeyView, WorkspaceView

_AT = 1_795_000_000.0

WAKE = WakeView(_AT, WakeReason.CONNECTION, Tier.FROZEN, "shop from 127.0.0.1", 1.4, (StepView("thaw", 0.9), StepView("hand over", 0.5)))
DATABASE = DatabaseView(
    id=DatabaseId("dk3v5q2mzab7w"),
    name="shop",
    major=18,
    url="postgresql://shop@127.0.0.1:7432/shop",
    tier=Tier.AWAKE,
    tier_since=_AT,
    tier_reason=WakeReason.CONNECTION,
    created_at=_AT - 3600,
    connections=1,
    cpu_ms=120.5,
    memory_bytes=18_000_000,
    swap_bytes=0,
    ingress_bytes=1200,
    egress_bytes=56_000,
    wakes=3,
    last_wake=WAKE,
    awake_because=(),
    pool_mode=PoolMode.AUTO,
)
PAGE = DatabasePage((DATABASE,), None)
DECISION = Decision(
    _AT - 5, "processor", 0.25, 1.0, ScaleReason.SATURATED, Pace.NORMAL, {"average": 0.11, "peak": 0.25, "use": 0.25, "withheld": 0.61}
)
SIZE = SizeView(
    size=Size(0.25, 2.0, 128 * MIB, GIB, 100, 10 * GIB),
    overrides=SizeOverrides(max_cpu=2.0),
    pace=Pace.NORMAL,
    cpu_ceiling=1.0,
    cpu_use=0.42,
    cpu_average=0.11,
    cpu_peak=0.48,
    memory_ceiling_bytes=152 * MIB,
    memory_bytes=61 * MIB,
    disk_bytes=1_900_000,
    connections=1,
    connection_limit=100,
    held={"processor": "cgroups hybrid", "memory": "cgroups hybrid", "processes": "cgroups hybrid", "disk": "watched"},
    decisions=(DECISION,),
)
DETAIL = DatabaseDetail(
    database=DATABASE,
    policy=SleepPolicy(30.0, 30.0, None),
    overrides=SleepOverrides(30.0, None, "never"),
    next_step=NextStep(Tier.FROZEN, _AT + 30),
    disk_bytes=1_900_000,
    volume="clone",
    sandbox="user",
    last_activity_at=_AT,
    broken="",
    recent_wakes=(WAKE,),
    size=SIZE,
    pool_policy=PoolPolicy(PoolMode.AUTO),
    pool_overrides=PoolOverrides(PoolMode.AUTO),
)
CREDENTIALS = Credentials("shop", "correct-horse-battery", "postgresql://shop:correct-horse-battery@127.0.0.1:7432/shop")
TICKET = Credentials("shop", "ticket-of-a-minute", "postgresql://shop:ticket-of-a-minute@127.0.0.1:7432/shop", _AT + 60)
CREATED = Created(DATABASE, CREDENTIALS, True, 21.7)
_BRANCH = replace(
    DATABASE, id=DatabaseId("dq7w3z5kxnabc"), name="shop-try", parent="shop", branched_at=_AT, expires_at=_AT + 172_800,
    url="postgresql://shop-try@127.0.0.1:7432/shop-try",
)  # fmt: skip
BRANCHED = Branched(
    _BRANCH,
    Credentials("shop-try", "correct-horse-battery", "postgresql://shop-try:correct-horse-battery@127.0.0.1:7432/shop-try"),
    112.4,
    (StepView("recorded", 0.8), StepView("copied", 61.2), StepView("started", 43.0), StepView("named", 6.9), StepView("ready", 0.5)),
)
BRANCHES = BranchList((_BRANCH,))
RESET = _BRANCH
DRAIN = DrainView(
    DrainState.DRAINING, "5f0c9d7e21b3a846", 1781950000.0, 1781950600.0, 1, 1,
    (RunningView("shop", "shop@10.0.0.7 report", "SELECT sum(amount) FROM orders", "active", 1781949995.5),),
)  # fmt: skip
JOB = JobView(
    JobId("jk3v5q2mzab7w"), "restore", "shop", JobState.RUNNING, _AT - 12, None, 734_003_200, 1_073_741_824, "bytes", "reading the log",
    version=57,
)  # fmt: skip
PAST_BRANCH = PastBranch(
    replace(JOB, kind="branch", note="replaying"), "shop-then",
    Credentials("shop-then", "correct-horse-battery", "postgresql://shop-then:correct-horse-battery@127.0.0.1:7432/shop-then"),
)  # fmt: skip
RETENTION = RetentionView(30 * 86_400.0, 30, ("keep_s",))
HISTORY = HistoryView(
    store="s3://backups/torpor",
    windows=(WindowView(_AT - 6.5 * 86_400, _AT - 2, "0/C06028", "3/1F00A2B8"),),
    bases=8,
    base_bytes=412_000_000,
    log_bytes=1_930_000_000,
    shipping=ShippingView(_AT - 2, 16_384),
    retention=RETENTION,
)
RECOVERABLE = RecoverableView(
    "dk3v5q2mzab7w", "shop", "default", 18, _AT - 30 * 86_400, False, 1_073_741_824, _AT - 6.5 * 86_400, _AT - 2,
)  # fmt: skip
RECOVERABLES = RecoverableList((RECOVERABLE,), None, "s3://backups/torpor", "9f86d081884c7d65", 3, 0, 0)
RECOVERING = Recovering(replace(JOB, kind="recover", note="replaying"), "shop")
BASES = BaseList((BaseView(8, _AT - 7200, "3/1D002120", 1_073_741_824, 18_400_000),))
_DRILL = DrillView(
    "shop", DrillResult.PASSED, _AT - 5400, _AT - 5340, "2026-06-15 03:11:52.204117+00", 8, 1_073_741_824, 96_468_992, 214, 3_917_204,
    ("checksums", "amcheck", "rows"),
)  # fmt: skip
DRILLS = DrillList((_DRILL,), 3600.0, 1, 0, 0)
TOKENS = TokenView(
    TokenRulesView(
        "https://auth.example.com", "shop", "role", ("web", "staff"), "https://auth.example.com/.well-known/jwks.json", 2,
        "3c9909afec25354d",
    ),
)  # fmt: skip
TOKENS_NONE = TokenView(None, 3)
CACHE = CacheStatus(
    True,
    (CacheRule("5f2a9c1be07d4463", "ttl=60 swr=300 tags=users", "SELECT * FROM users WHERE id = 1"),),
    CacheView(12, 48_213, 90_211, 14, 133, {"not a read": 7}, 131, 3, 12),
)
ACCESS = AccessView(("203.0.113.0/24",), ("203.0.113.7",), "9f86d081884c7d65")
HOST = HostView(
    version="0.1.0",
    door="127.0.0.1:7432",
    api="http://127.0.0.1:7480",
    data_dir="/var/lib/torpor",
    started_at=_AT - 7200,
    databases=3,
    tiers={Tier.AWAKE: 1, Tier.STOPPED: 2},
    warm=4,
    connections=1,
    memory_total_bytes=8 << 30,
    memory_used_bytes=1 << 30,
    swap_used_bytes=0,
    pool="xfs with reflinks",
    lacks=(),
)
WORKSPACE = WorkspaceView(WorkspaceId("wk3v5q2mzab7w"), "acme", _AT - 86400, 3, 2)
KEY = KeyView(
    id=KeyId("kx4tq7m2abcd"),
    workspace="acme",
    name="ci",
    scope=AccessScope.WRITE,
    prefix="torpor_k1_kx4tq7m2abcd",
    created_at=_AT - 3600,
    created_by="host",
    expires_at=_AT + 7_776_000,
    expired=False,
    last_used_at=None,
)
KEY_TEXT = "torpor_k1_kx4tq7m2abcd_" + "a" * 52
_RECORD = seal(
    Anchor(0, GENESIS),
    at=_AT,
    actor="host",
    actor_name="",
    address="127.0.0.1",
    action="key.create",
    target="kx4tq7m2abcd",
    workspace=WORKSPACE.id,
    result=AuditResult.DONE,
    detail="name=ci, scope=write",
    begun=None,
)
AUDIT = AuditPage((_RECORD,), None, Anchor(0, GENESIS), Anchor(_RECORD.number, _RECORD.hash))
