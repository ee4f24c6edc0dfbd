"""What requests may hold: the fields of bodies and queries, with their limits. Unknown fields are refused. Pure."""

from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from torpor.model.drills import DrillResult
from torpor.model.errors import InvalidRequest
from torpor.model.exports import ExportFormat
from torpor.model.jobs import JobState
from torpor.model.pool import MAX_POOL_QUEUE, MAX_POOL_SIZE, NO_POOL_OVERRIDES, PoolMode, PoolOverrides
from torpor.model.size import NO_OVERRIDES, Size, SizeOverrides
from torpor.model.sleep import SleepOverrides, SleepPolicy, Tier
from torpor.model.views import WakeView

T = TypeVar("T", bound=msgspec.Struct)

MAX_PAGE = 1000
MAX_LOG_LINES = 10_000
_MAX_NUMBER = 2**53  # what JSON's readers keep exactly

Idle = Annotated[
    float | Literal["never"] | None, Meta(description='Seconds, "never", or null for the daemon\'s setting.', examples=[30, "never", None])
]
Name = Annotated[str, Meta(description="1 to 63 of a-z, 0-9 and '-', beginning with a letter, not ending in '-'.", examples=["shop"])]

WorkspaceName = Annotated[
    str, Meta(description="1 to 63 of a-z, 0-9 and '-', beginning with a letter, not ending in '-'.", examples=["acme"])
]

Number = Annotated[int, Meta(ge=0, le=_MAX_NUMBER)]


class NoQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No parameters."""


class ListQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which databases to list."""

    after: Annotated[str | None, Meta(description="Continue after this name: `next` of the page before.")] = None
    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE, description="How many at most.")] = 100
    tier: Annotated[Tier | None, Meta(description="Only those in this sleep tier.")] = None
    search: Annotated[str | None, Meta(description="Only those whose name holds this text.")] = None
    workspace: Annotated[str | None, Meta(description="Only those of this workspace.")] = None


class WorkspacesQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which workspaces to list."""

    after: Annotated[str | None, Meta(description="Continue after this name: `next` of the page before.")] = None
    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE, description="How many at most.")] = 100


class AuditQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which records of the audit log to show."""

    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE, description="How many at most.")] = 100
    before: Annotated[Number | None, Meta(description="Only smaller numbers, newest first: `next` of the page before.")] = None
    after: Annotated[Number | None, Meta(description="Only larger numbers, oldest first: to follow the log.")] = None
    workspace: Annotated[str | None, Meta(description="Only what concerns this workspace.")] = None
    action: Annotated[str | None, Meta(description="Only this action (`key.create`), or this kind (`key`).")] = None
    target: Annotated[str | None, Meta(description="Only what was done to this.")] = None
    actor: Annotated[str | None, Meta(description="Only what this one did: `host`, `torpor`, the id of a key, or its name.")] = None
    since: Annotated[float | None, Meta(description="Not before this time.")] = None
    until: Annotated[float | None, Meta(description="Before this time.")] = None
    outcomes: Annotated[bool, Meta(description="Leave out the records that only say that something was begun.")] = False


class JobsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which jobs to list."""

    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE, description="How many at most.")] = 100
    state: Annotated[JobState | None, Meta(description="Only those in this state.")] = None
    database: Annotated[str | None, Meta(description="Only those on the database that had this name when they began.")] = None
    workspace: Annotated[str | None, Meta(description="Only those of this workspace.")] = None


class DrillsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which restore drills to list."""

    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE, description="How many at most.")] = 100
    result: Annotated[DrillResult | None, Meta(description="Only those with this result.")] = None
    workspace: Annotated[str | None, Meta(description="Only those of this workspace.")] = None


class ForceQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether to go on although the database is in use."""

    force: Annotated[bool, Meta(description="Close open connections.")] = False


class WakesQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many wakes to show."""

    limit: Annotated[int, Meta(ge=1, le=100, description="How many at most; 100 are kept.")] = 20


class LogsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which part of the log to show."""

    lines: Annotated[int, Meta(ge=0, le=MAX_LOG_LINES, description="How many of the last lines.")] = 200
    follow: Annotated[bool, Meta(description="Stay connected and send what is written from now on.")] = False


class SizeBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a database may use. What is left out stays as it is; null is the daemon's setting."""

    min_cpu: Annotated[float | UnsetType | None, Meta(description="Processors kept for it.", examples=[0.5])] = UNSET
    max_cpu: Annotated[float | UnsetType | None, Meta(description="Processors that it may use at most.", examples=[2])] = UNSET
    min_memory_bytes: Annotated[int | UnsetType | None, Meta(description="Memory that it may keep when the host is short of it.")] = UNSET
    max_memory_bytes: Annotated[int | UnsetType | None, Meta(description="Memory at most, page cache and swap included.")] = UNSET
    connections: Annotated[int | UnsetType | None, Meta(description="Connections of clients at once.", examples=[100])] = UNSET
    disk_bytes: Annotated[int | UnsetType | None, Meta(description="What its volume may take.")] = UNSET

    def overrides(self, current: SizeOverrides) -> SizeOverrides:
        """`current` with these changes. Raises InvalidRequest for what is out of range whatever it is applied to."""
        given = {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not UNSET}
        changed = replace(current, **given)
        changed.apply(Size())
        return changed


class PoolBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who is pooled, and how many connections to PostgreSQL pooled clients share. What is left out stays as it is; null is the daemon's
    setting. It holds for new connections."""

    mode: Annotated[
        Literal["off", "auto"] | UnsetType | None,
        Meta(description="Who is pooled that doesn't say so himself: off (nobody), or auto (all, until they need a session)."),
    ] = UNSET
    size: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_POOL_SIZE)] | UnsetType | None, Meta(description="Connections that they share.", examples=[20])
    ] = UNSET
    role_size: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_POOL_SIZE)] | UnsetType | None,
        Meta(description="Of these, how many one role may have; 0: as many as there are."),
    ] = UNSET
    queue: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_POOL_QUEUE)] | UnsetType | None, Meta(description="Clients that may wait for one at once.")
    ] = UNSET

    def overrides(self, current: PoolOverrides) -> PoolOverrides:
        """`current` with these changes."""
        given = {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not UNSET}
        if given.get("mode") is not None:
            given["mode"] = PoolMode(given["mode"])
        return replace(current, **given)


class CreateBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A database to make. Everything may be left out."""

    name: Annotated[Name | None, Meta(description="Left out or null: a name is made up.")] = None
    major: Annotated[int | None, Meta(description="PostgreSQL major. Left out or null: the daemon's setting.", examples=[18])] = None
    freeze_after_s: Idle = None
    page_after_s: Idle = None
    stop_after_s: Idle = None
    workspace: Annotated[
        str | None, Meta(description="Who owns it. Left out or null: the workspace of the key, or `default`.", examples=["acme"])
    ] = None
    size: SizeBody | None = None
    superuser: Annotated[bool, Meta(description="Whether its owner is a real superuser, where the daemon allows that.")] = False
    pool: PoolBody | None = None

    def pool_overrides(self) -> PoolOverrides:
        """What it sets of the pool."""
        return self.pool.overrides(NO_POOL_OVERRIDES) if self.pool is not None else NO_POOL_OVERRIDES

    def size_overrides(self) -> SizeOverrides:
        """What it sets of the size."""
        return self.size.overrides(NO_OVERRIDES) if self.size is not None else NO_OVERRIDES

    def overrides(self) -> SleepOverrides:
        """The idle times that it sets."""
        return checked(SleepOverrides(self.freeze_after_s, self.page_after_s, self.stop_after_s))


class BranchBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A branch to make. Everything may be left out."""

    name: Annotated[Name | None, Meta(description="Left out or null: a name is made up.", examples=["shop-try"])] = None
    ttl_s: Annotated[
        float | None, Meta(description="Seconds until it is removed, whatever it holds. Left out or null: it stays.", examples=[172_800])
    ] = None
    keep_passwords: Annotated[
        bool, Meta(description="Whether all roles keep their passwords. Else the owner gets a new one, and no other role has any.")
    ] = False
    freeze_after_s: Idle = None
    page_after_s: Idle = None
    stop_after_s: Idle = None
    size: SizeBody | None = None

    def size_overrides(self) -> SizeOverrides:
        """What it sets of the size."""
        return self.size.overrides(NO_OVERRIDES) if self.size is not None else NO_OVERRIDES

    def overrides(self) -> SleepOverrides:
        """The idle times that it sets."""
        return checked(SleepOverrides(self.freeze_after_s, self.page_after_s, self.stop_after_s))


At = Annotated[
    float | None,
    Meta(description="As it was then: with all that was committed until then.", examples=[1795000000.0]),
]
Lsn = Annotated[str | None, Meta(description="As it was at this position of its log.", examples=["3/1F00A2B8"])]
BeforeTransaction = Annotated[
    Number | None, Meta(description="As it was right before this transaction was committed, by the number that pg_current_xact_id() gives.")
]


class PastBranchBody(BranchBody, frozen=True, forbid_unknown_fields=True):
    """A branch of the past to make. One of `at`, `lsn` and `before_transaction` at most; with none, of the newest that is kept."""

    at: At = None
    lsn: Lsn = None
    before_transaction: BeforeTransaction = None


class RestoreBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where to go back to: one of `at`, `lsn` and `before_transaction`."""

    at: At = None
    lsn: Lsn = None
    before_transaction: BeforeTransaction = None
    force: Annotated[bool, Meta(description="Also with open connections, which are closed.")] = False


class RecoverBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to bring back. One of `at`, `lsn` and `before_transaction` at most; with none, the newest that the store holds."""

    database: Annotated[str, Meta(description="The name that it had, or its id where several had that.", examples=["shop"], max_length=63)]
    name: Annotated[Name | None, Meta(description="What it is to be called. Left out or null: as before.")] = None
    at: At = None
    lsn: Lsn = None
    before_transaction: BeforeTransaction = None


class ForgetBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to forget."""

    database: Annotated[str, Meta(description="The name that it had, or its id where several had that.", examples=["shop"], max_length=63)]
    force: Annotated[bool, Meta(description="Also when something was written to its history minutes ago.")] = False


class UndoBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to undo a restore, or an upgrade."""

    force: Annotated[bool, Meta(description="Also with open connections, which are closed.")] = False


class UpgradeBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """To which major, and how."""

    to: Annotated[int, Meta(description="PostgreSQL major, newer than the database's.", examples=[18])]
    check: Annotated[bool, Meta(description="Only see on a copy whether it can be upgraded; nothing is changed.")] = False
    force: Annotated[bool, Meta(description="Also with open connections, which are closed.")] = False


class ResetBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to reset."""

    force: Annotated[bool, Meta(description="Also with open connections, which are closed.")] = False


class CreateWorkspaceBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A workspace to make."""

    name: WorkspaceName


class CreateKeyBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An API key to make."""

    name: Annotated[str, Meta(description="What it is for, in 1 to 80 visible characters.", examples=["ci"])]
    scope: Annotated[Literal["read", "write", "admin", "metrics"], Meta(description="What it allows.")] = "read"
    expires_in_s: Annotated[float | None, Meta(description="Seconds that it lives. Left out or null: until it is revoked.")] = None


class CacheBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What holds for the cache of a database."""

    on_write: Annotated[bool, Meta(description="Whether a committed write drops what was read from the tables that it wrote to.")]


class CacheRuleBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How statements of a kind are cached."""

    statement: Annotated[
        str, Meta(description="One of these statements, or their fingerprint.", examples=["SELECT * FROM users WHERE id = 1"])
    ]
    words: Annotated[str, Meta(description="As in a comment in front of a statement.", examples=["ttl=60 swr=300 tags=users"])]


class PurgeBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which results are to be dropped."""

    by: Annotated[Literal["tag", "table", "statement", "all"], Meta(description="What they are found by.")]
    values: Annotated[
        tuple[str, ...], Meta(description="Tags, tables, or statements (or their fingerprints); none for all.", examples=[["users"]])
    ] = ()


class TokenBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which tokens (JSON Web Tokens) a database takes, instead of those of before."""

    issuer: Annotated[str, Meta(description="What a token's `iss` must be.", examples=["https://auth.example.com"])]
    roles: Annotated[tuple[str, ...], Meta(description="The roles that tokens may log in as. Superusers can't.", examples=[["web"]])]
    audience: Annotated[str | None, Meta(description="What a token's `aud` must be, or have. Left out or null: whatever it is.")] = None
    role_claim: Annotated[
        str | None, Meta(description="The claim that names the role. Left out or null: there is one role.", examples=["role"])
    ] = None
    jwks_url: Annotated[
        str | None,
        Meta(description="Where the issuer's key set (JWKS) is.", examples=["https://auth.example.com/.well-known/jwks.json"]),
    ] = None
    jwks: Annotated[str | None, Meta(description="Or the key set itself: JSON, of public keys.")] = None


class AccessBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Access lists that take the place of the present ones. Entries are addresses (203.0.113.7) or networks (203.0.113.0/24)."""

    allow: Annotated[tuple[str, ...], Meta(description="Only these may connect; empty: all may.", examples=[["203.0.113.0/24"]])] = ()
    deny: Annotated[tuple[str, ...], Meta(description="These may not connect, whatever is allowed.", examples=[["203.0.113.7"]])] = ()
    version: Annotated[str | None, Meta(description="Replace only the lists of this version. Left out or null: any.")] = None


class UpdateBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Idle times, time to live and parts of size and pool to change. What is left out stays as it is."""

    freeze_after_s: Idle | UnsetType = UNSET
    page_after_s: Idle | UnsetType = UNSET
    stop_after_s: Idle | UnsetType = UNSET
    ttl_s: Annotated[
        float | UnsetType | None,
        Meta(description="Seconds from now until it is removed, whatever it holds. Null: it stays.", examples=[172_800]),
    ] = UNSET
    size: SizeBody | UnsetType = UNSET
    pool: PoolBody | UnsetType = UNSET

    def overrides(self, current: SleepOverrides) -> SleepOverrides:
        """`current` with these changes."""
        return checked(
            SleepOverrides(
                current.freeze_after_s if self.freeze_after_s is UNSET else self.freeze_after_s,
                current.page_after_s if self.page_after_s is UNSET else self.page_after_s,
                current.stop_after_s if self.stop_after_s is UNSET else self.stop_after_s,
            )
        )


class RetentionBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much of the past is kept. What is left out stays as it is; null is the daemon's setting."""

    keep_days: Annotated[
        Annotated[float, Meta(ge=0, le=3650)] | UnsetType | None,
        Meta(description="Any moment of the last days can be restored.", examples=[30]),
    ] = UNSET
    keep_bases: Annotated[
        Annotated[int, Meta(ge=1, le=1000)] | UnsetType | None, Meta(description="Base copies at most, however far that reaches.")
    ] = UNSET


class SleepBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How deep to sleep."""

    tier: Annotated[Literal["frozen", "paged", "stopped"], Meta(description="How deep.")] = "frozen"
    force: Annotated[bool, Meta(description="Also while something runs; stopping then closes open connections.")] = False


class ExportBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an export holds, and how it is written."""

    format: Annotated[ExportFormat, Meta(description="SQL, or pg_dump's compressed archive.")] = ExportFormat.PLAIN
    schema_only: Annotated[bool, Meta(description="No rows.")] = False
    data_only: Annotated[bool, Meta(description="Only rows.")] = False
    owners: Annotated[bool, Meta(description="Also who owns what, and who may do what: for a target that has the same roles.")] = False


class DrainBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long a drain may take."""

    timeout_s: Annotated[
        Annotated[float, Meta(ge=0, le=30 * 86_400)] | None,
        Meta(description="Seconds until what still runs is ended. Left out or null: the daemon's setting.", examples=[600]),
    ] = None


class WakeAnswer(msgspec.Struct, frozen=True):
    """What the wake took. `wake` is null when the database was awake."""

    wake: WakeView | None


class WakesAnswer(msgspec.Struct, frozen=True):
    """Wakes, newest first."""

    wakes: tuple[WakeView, ...]


class Health(msgspec.Struct, frozen=True):
    """That Torpor answers, and which version it is."""

    status: Literal["ok"]
    version: str


def checked(overrides: SleepOverrides) -> SleepOverrides:
    """`overrides`, when they are in range whatever they are applied to. Raises InvalidRequest."""
    overrides.apply(SleepPolicy())
    return overrides


def read_body(raw: bytes, type: type[T]) -> T:
    """Decode a JSON body; none at all counts as {}. Raises InvalidRequest naming what is wrong and what is known."""
    try:
        return msgspec.json.decode(raw or b"{}", type=type)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the request body is not right: {_lower(error)}", _known(type)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest("the request body is not JSON", f"{_lower(error)}") from error


def read_query(pairs: list[tuple[str, str]], type: type[T]) -> T:
    """Decode a query. Raises InvalidRequest naming what is wrong and what is known."""
    values: dict[str, Any] = dict(pairs)
    if len(values) != len(pairs):
        raise InvalidRequest("a query parameter is given twice", _known(type))
    try:
        return msgspec.convert(values, type, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the query is not right: {_lower(error)}", _known(type)) from error


def _lower(error: Exception) -> str:
    text = str(error)
    return (text[:1].lower() + text[1:])[:300]


def _known(type: type[msgspec.Struct]) -> str:
    return f"known fields: {', '.join(type.__struct_fields__)}" if type.__struct_fields__ else "none is known here"
