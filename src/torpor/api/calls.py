"""What an operation is, what its handler is given, and what the handlers of all requests share.

Concurrency: a Context belongs to one request. Services are shared by all; `stopping` ends what would go on for ever.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from torpor.api.asgi import MAX_BODY_BYTES, Answer, Stream
from torpor.api.bodies import NoQuery
from torpor.api.ports import (
    Access,
    Archiving,
    Audit,
    Branches,
    Caching,
    Databases,
    Drains,
    Drills,
    Histories,
    Jobs,
    Keys,
    Recovery,
    Restores,
    Rewinds,
    Tokens,
    Upgrades,
    Workspaces,
)
from torpor.model import errors
from torpor.model.drain import DrainState
from torpor.model.size import SizeOverrides
from torpor.model.workspace import DEFAULT_WORKSPACE, SELF, AccessScope, Caller, Workspace, WorkspaceId

READING_METHODS = ("GET", "HEAD")
MAX_FOLLOWERS = 100
MAX_FOLLOWERS_PER_KEY = 10


class Services:
    """The use cases, and what all requests share. `followers` counts open streams by who asked for them."""

    def __init__(
        self,
        databases: Databases,
        workspaces: Workspaces,
        keys: Keys,
        audit: Audit,
        render: Callable[[], bytes],
        drains: Drains | None = None,
        *,
        access: Access,
        tokens: Tokens,
        caching: Caching,
        jobs: Jobs,
        branches: Branches,
        archiving: Archiving,
        histories: Histories | None = None,
        restores: Restores | None = None,
        rewinds: Rewinds | None = None,
        upgrades: Upgrades | None = None,
        recovery: Recovery | None = None,
        drills: Drills | None = None,
    ) -> None:
        self.databases = databases
        self.workspaces = workspaces
        self.keys = keys
        self.audit = audit
        self.access = access
        self.tokens = tokens
        self.caching = caching
        self.jobs = jobs
        self.branches = branches
        self.histories = histories
        self.restores = restores
        self.rewinds = rewinds
        self.upgrades = upgrades
        self.recovery = recovery
        self.drills = drills
        self.archiving = archiving
        self.render = render
        self.drains = drains
        self.stopping = asyncio.Event()
        self.followers: Counter[str] = Counter()

    @property
    def is_draining(self) -> bool:
        """Whether Torpor ends when nothing runs any more."""
        return self.drains is not None and self.drains.drain_view().state is DrainState.DRAINING

    def follow(self, caller: Caller) -> Callable[[], None]:
        """Count one more endless stream of this caller; the answer, called once, ends that. Raises TooManyConnections."""
        who = caller.actor
        if self.followers.total() >= MAX_FOLLOWERS or (caller.key is not None and self.followers[who] >= MAX_FOLLOWERS_PER_KEY):
            raise errors.TooManyConnections(
                f"{self.followers[who]} logs and jobs are being followed already, {self.followers.total()} in all", "end one of them"
            )
        self.followers[who] += 1

        def leave() -> None:
            self.followers[who] -= 1
            if not self.followers[who]:
                del self.followers[who]

        return leave


@dataclass(slots=True)
class Note:
    """What the audit log will say of a call. A handler corrects it when it knows better, for instance the name that was made up."""

    target: str = ""
    workspace: WorkspaceId | None = None
    detail: str = ""


class Context:
    """What a handler works with, in the name of one caller. `databases` are those that the caller may know of, and no others."""

    def __init__(self, services: Services, caller: Caller) -> None:
        self.services = services
        self.caller = caller
        self.databases = services.databases.within(caller.workspace)
        self.note = Note()

    @property
    def render(self) -> Callable[[], bytes]:
        """The metrics."""
        return self.services.render

    @property
    def stopping(self) -> asyncio.Event:
        """Set when Torpor stops."""
        return self.services.stopping

    def workspace(self, name: str | None) -> Workspace:
        """The workspace that a request names, or means when it names none or `self`: the key's own, else the default one.

        Raises WorkspaceNotFound, also for one that isn't the caller's.
        """
        if name is None or name == SELF:
            return self.services.workspaces.by_id(self.caller.workspace or DEFAULT_WORKSPACE)
        return self.services.workspaces.find(name, self.caller.workspace)


def allowed_size(context: Context, size: SizeOverrides) -> SizeOverrides:
    """Whoever holds a key may make databases smaller than usual. More of the host is for the host to give."""
    if context.caller.key is not None and (field := size.beyond(context.databases.usual_size())):
        raise errors.Forbidden(f"{field} above the usual size needs the host's own token", "ask whoever runs this Torpor")
    return size


@dataclass(frozen=True, slots=True)
class Call:
    """A checked request. `query` and `body` are of the types that the operation declares, `path` has the names in the path."""

    path: Mapping[str, str]
    query: Any
    body: Any

    @property
    def name(self) -> str:
        """The name of the database in the path."""
        return self.path.get("name", "")


@dataclass(frozen=True, slots=True)
class Operation:
    """One method on one path.

    `scope` is what the caller's key must allow; None is for everybody, without a key. `action` is the name in the audit log of what
    changes something, and `told` the fields of query and body that the log shows (never a secret). `refusals` lists what can be refused
    beside what every operation refuses. What `is_free` doesn't count against the rate of a key.
    """

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
    action: str = ""
    told: tuple[str, ...] = ()
    max_body_bytes: int = MAX_BODY_BYTES
    is_free: bool = False
    scope: AccessScope | None = field(kw_only=True)

    def __post_init__(self) -> None:
        if bool(self.action) == (self.method in READING_METHODS):
            raise ValueError(f"{self.id}: what changes something, and nothing else, has an action for the audit log")
        if self.scope is None and self.action:
            raise ValueError(f"{self.id}: strangers change nothing")

    @property
    def cost(self) -> float:
        """How many requests it counts as: a change costs more than a look."""
        return 0.0 if self.is_free else 5.0 if self.action else 1.0
