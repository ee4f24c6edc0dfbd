"""One database's compute: when it starts, freezes, wakes and stops. Exactly one Compute exists per database, also while it is stopped.

Concurrency: belongs to one event loop. A change of state that takes time is one task (`_moving`), and whoever wants the compute awake
waits for it: one wake serves all. While awake, one task (`_doze`) waits for idleness; asleep there is none. Waking from frozen is
synchronous, so that it can be done right in the callback that saw a byte arrive.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Coroutine
from pathlib import Path
from typing import Any

from torpor.base.cgroups import Usage
from torpor.base.logs import get_logger
from torpor.base.processes import ProcessHandle
from torpor.compute import logfile
from torpor.compute.handover import NotDelivered
from torpor.compute.idleness import only_recent, spell, usual_cause
from torpor.compute.lifecycle import TIERS, ComputeState, check_move, next_step
from torpor.compute.parting import ask_last
from torpor.compute.postmaster import Postmaster
from torpor.compute.service import WARM_DATABASE
from torpor.compute.sessions import Session
from torpor.compute.shares import Shares, connection_limit
from torpor.compute.starting import Steps, failure_of, plan_launch, start
from torpor.compute.surroundings import SleepListener, Surroundings
from torpor.compute.turnstile import Turnstile
from torpor.metering.traffic import Carrier, Traffic
from torpor.model.database import Database, Role, Step, Wake
from torpor.model.errors import Conflict, DatabaseInUse, DiskFull, ShuttingDown, StartTimeout, TorporError
from torpor.model.size import Size
from torpor.model.sleep import AwakeReason, SleepPolicy, SleepReason, Tier, WakeReason
from torpor.model.views import AwakeCause

log = get_logger(__name__)

_FAILURE_REMEMBERED_S = 3.0
_FREEZE_AGAIN_AFTER_S = (0.02, 0.05, 0.1, 0.2, 0.0)
_HAND_OVER_AGAIN_AFTER_S = (0.005, 0.05)
_LOOK_AGAIN_S = 0.01
_START_GRACE_S = 5.0
_FAREWELL_S = 3.0  # for PostgreSQL to end its sessions and to say its roles: a tenant may have seen to it that it never does
_CLIENT_LEFT_GRACE_S = 0.2  # after a client left a sleeper there is nothing to wait for but the end of its backend


class Compute:
    """The compute of one database."""

    def __init__(self, database: Database, around: Surroundings, listener: SleepListener) -> None:
        self.database = database
        self.state = ComputeState.STOPPED
        self.tier_since = around.clock.time()
        self.tier_reason: SleepReason | WakeReason | None = None
        self.last_activity: float | None = None  # monotonic
        self.broken = ""
        self.refusal: TorporError | None = None  # why it may not be started
        self.archived = False  # its volume is in the store
        self.handed_over = self.exports = 0  # sockets of clients, ever; dumps that Torpor itself makes now
        self._around = around
        self._listener = listener
        self.shares, self.turnstile = Shares(), Turnstile(around.clock)
        self._postmaster: Postmaster | None = None
        self._moving: asyncio.Task[None] | None = None
        self._moving_up = False  # what moves is a start
        self._dozing: asyncio.Task[None] | None = None
        self._holds = 0
        self._failed_at = float("-inf")
        self._failure: TorporError | None = None
        self._past_traffic, self._past_cpu_ns = Traffic(), 0
        self._last_causes: tuple[AwakeCause, ...] = ()
        self._last_wake: Wake | None = None
        self._removed = False
        self.moves = 0  # grows with each change after which its volume may be written: a copy is whole when it stayed the same

    def __repr__(self) -> str:
        return f"<Compute {self.database.label} {self.state} holds={self._holds} {self._postmaster!r}>"

    # -- looking

    @property
    def tier(self) -> Tier:
        """The tier that users are shown."""
        return Tier.ARCHIVED if self.archived and self.state is ComputeState.STOPPED else TIERS[self.state]

    @property
    def major(self) -> int:
        """PostgreSQL's major version."""
        return self.database.major

    @property
    def policy(self) -> SleepPolicy:
        """The idle times that apply: its own over the global ones."""
        return self.database.overrides.apply(self._around.policy)

    @property
    def size(self) -> Size:
        """What it may use: its own size over the global one."""
        return self.database.size.apply(self._around.size)

    @property
    def connection_limit(self) -> int:
        """How many connections clients may have open now. A higher number than PostgreSQL was started for waits for its next start."""
        runs_on = (lambda: self._around.volumes.data(self.database.id)) if self._postmaster is not None else None
        return connection_limit(self.size, self._around.size, runs_on)

    @property
    def is_being_woken(self) -> bool:
        """Whether it is on its way up already: a login more wakes nothing."""
        return self.is_moving and self._moving_up

    def sessions(self) -> list[Session]:
        """The live sessions of clients."""
        return list(self._postmaster.sessions) if self._postmaster else []

    @property
    def can_page(self) -> bool:
        """Whether this host can reclaim a sleeper's memory."""
        return self._around.trees.can_reclaim

    @property
    def connections(self) -> int:
        """Open sessions of clients."""
        return len(self._postmaster.sessions) if self._postmaster else 0

    async def lasting_connections(self) -> int:
        """Open sessions of clients, without those that are just ending: they are given a few seconds for it. Safe to cancel."""
        if self._postmaster is not None:
            await self._postmaster.sessions.wait_ending()
        return self.connections

    @property
    def is_moving(self) -> bool:
        """Whether a start, freeze, page-out or stop is under way."""
        return self._moving is not None and not self._moving.done()

    async def settled(self) -> None:
        """Until no freeze, page-out or stop is under way; a start isn't waited for. Safe to cancel."""
        if self.state in (ComputeState.FREEZING, ComputeState.STOPPING):
            await self._wait_moving()

    @property
    def log_file(self) -> Path:
        """PostgreSQL's own log."""
        return self._around.logs / f"{self.database.id}.log"

    def has_session(self, client_host: str, pid: int) -> bool:
        """Whether it is awake with a live session of that client and backend pid."""
        return self.tier is Tier.AWAKE and self._postmaster is not None and self._postmaster.sessions.has(client_host, pid)

    def usage(self) -> Usage:
        """What its processes have used since Torpor started, and hold now. Reads a few kernel files."""
        if self._postmaster is None:
            return Usage(self._past_cpu_ns, 0, 0)
        now = self._postmaster.tree.usage()
        return Usage(self._past_cpu_ns + now.cpu_ns, now.memory_bytes, now.swap_bytes)

    def traffic(self) -> Traffic:
        """Bytes of its clients since Torpor started."""
        return self._past_traffic + (self._postmaster.sessions.traffic() if self._postmaster else Traffic())

    def known_causes(self) -> tuple[AwakeCause, ...]:
        """What keeps it awake as far as is known without asking PostgreSQL."""
        if self.tier is not Tier.AWAKE:
            return ()
        return self._last_causes or (usual_cause(self.policy),)

    async def causes(self) -> tuple[AwakeCause, ...]:
        """What keeps it awake, asked of PostgreSQL now; empty when it is asleep. Never wakes it."""
        if self.state is not ComputeState.AWAKE or self._postmaster is None:
            return self.known_causes()
        try:
            return await self._postmaster.causes() or (usual_cause(self.policy),)
        except TorporError:  # it fell asleep or ended while it was asked
            return self.known_causes()

    def next_step(self) -> tuple[Tier, float] | None:
        """The next step down and in how many seconds from now it is due if nothing happens; None when none will come."""
        around = self._around
        idle_s = around.clock.monotonic() - (self.last_activity or around.clock.monotonic())
        asleep_s = around.clock.time() - self.tier_since
        return next_step(self.tier, self.policy, idle_s, asleep_s, around.trees.can_reclaim, bool(self.connections))

    # -- being used

    @contextlib.asynccontextmanager
    async def awake(self, reason: WakeReason, detail: str) -> AsyncIterator["Compute"]:
        """Wake it if need be, and keep it from sleeping while inside. Raises Unavailable errors."""
        self._holds += 1
        try:
            await self.wake(reason, detail)
            yield self
        finally:
            self._holds -= 1
            self._touch()

    async def wake(self, reason: WakeReason, detail: str) -> Wake | None:
        """Until it is awake; the wake that it took, None when it was awake already. One wake serves all who wait.

        Raises ComputeStartFailed with PostgreSQL's own words, or StartTimeout (the start goes on). Safe to cancel.
        """
        try:
            async with asyncio.timeout(self._around.start_timeout_s if self.is_moving or self.state is not ComputeState.AWAKE else None):
                return await self._wake(reason, detail)
        except TimeoutError:
            raise StartTimeout(
                f"database {self.database.label} is still starting (it may be recovering from a crash)", "try again in a moment"
            ) from None

    async def _wake(self, reason: WakeReason, detail: str) -> Wake | None:
        served: Wake | None = None
        while True:
            if self._removed:
                raise ShuttingDown(f"database {self.database.label} is being removed")
            if self._moving is not None and not self._moving.done():
                starting = self._moving_up
                await self._wait_moving()
                if starting and self._failure is not None and self.state is ComputeState.STOPPED:
                    raise self._failure
                served = self._last_wake if starting else None
                continue
            match self.state:
                case ComputeState.AWAKE:
                    return served
                case ComputeState.FROZEN | ComputeState.PAGED:
                    return self._thaw(reason, detail)
                case ComputeState.STOPPED:
                    if self.refusal is not None and not (self.exports and isinstance(self.refusal, DiskFull)):
                        raise self.refusal
                    if self._failure is not None and self._around.clock.monotonic() - self._failed_at < _FAILURE_REMEMBERED_S:
                        raise self._failure
                    self._failure = None
                    self._move(self._start(reason, detail), "start")
                case _:
                    raise AssertionError(f"{self!r} is moving without a task")

    async def hand_over(
        self, client: socket.socket, address: tuple[str, int], startup: bytes, carrier: Carrier | None = None, claims: bytes = b""
    ) -> Session:
        """Give a client's socket to PostgreSQL, which sees it come from `address` and reads `startup` first. Only within `awake`.

        The caller keeps and closes its own socket object. `carrier` counts the bytes where `client` isn't TCP itself; `claims` are those
        of the token by which it logged in. Raises ComputeLost.
        """
        if self.refusal is not None:  # it runs for an export
            raise self.refusal
        self.handed_over += 1
        for pause_s in _HAND_OVER_AGAIN_AFTER_S:
            self._touch()
            with contextlib.suppress(NotDelivered):
                return await self.live().hand_over(client, address, startup, carrier, claims)
            # It died a moment ago, and its end is noticed in the next: the client need not know.
            await self._around.clock.sleep(pause_s)
            await self.wake(WakeReason.CONNECTION, "again, PostgreSQL had died")
        return await self.live().hand_over(client, address, startup, carrier, claims)

    async def role(self, name: str) -> Role | None:
        """One role, asked of PostgreSQL. Only within `awake`. Raises ComputeLost."""
        return await (await self.live().service()).role(name)

    async def warm_up(self) -> None:
        """Make the first session of a cluster that is to be claimed as fast as later ones. Only within `awake`."""
        await self.live().warm_up(WARM_DATABASE)

    async def claim(self, name: str, verifier: Awaitable[str]) -> None:
        """Name a warm cluster for its user. Only within `awake`. The session is opened while the verifier is still being computed."""
        service = await self.live().service()
        await service.claim(name, await verifier, self.database.superuser)

    async def set_password(self, role: str, verifier: str) -> None:
        """Set a role's password by its verifier. Only within `awake`."""
        await (await self.live().service()).set_password(role, verifier)

    # -- going down

    async def sleep(self, tier: Tier, reason: SleepReason, force: bool = False) -> None:
        """Go down to `tier` now, whatever the idle times say; nothing happens when it is there or deeper.

        Raises Conflict while something runs (with `force` and STOPPED it is ended), DatabaseInUse for STOPPED with open connections that
        aren't just ending (unless `force`).
        """
        if tier is Tier.PAGED and not self._around.trees.can_reclaim:
            raise Conflict("this host can't page computes out", "use frozen or stopped; `torpor doctor` says what is missing")
        order = list(Tier)
        if force and tier is Tier.STOPPED:
            await self._give_up_start(_START_GRACE_S)
        await self._wait_moving()
        while order.index(self.tier) < order.index(tier):
            if tier is Tier.STOPPED:
                if not force and (connections := await self.lasting_connections()):
                    raise DatabaseInUse(
                        f"{connections} open connections would be lost if {self.database.label} were stopped",
                        "let it freeze instead (connections survive), or use force",
                    )
                if self.state is ComputeState.AWAKE and not force and (causes := await self.causes()) and not only_recent(causes):
                    raise Conflict(f"{self.database.label} is busy: {spell(causes)}", "wait for it, or use force")
                if (self.connections or self._holds) and not force:
                    await self._around.clock.sleep(_LOOK_AGAIN_S)  # somebody came while PostgreSQL was asked
                    await self._wait_moving()
                    continue
                await self.stop(reason)
            elif self.state is ComputeState.AWAKE:
                # PostgreSQL shows that a session waits for its client a moment after the client has its answer.
                for pause_s in _FREEZE_AGAIN_AFTER_S:
                    self._move(self._freeze(reason), "freeze")
                    await self._wait_moving()
                    if self.state is not ComputeState.AWAKE:
                        break
                    await self._around.clock.sleep(pause_s)
                    await self._wait_moving()
                    if self.state is not ComputeState.AWAKE:
                        break
                if self.state is ComputeState.AWAKE:
                    raise Conflict(
                        f"{self.database.label} is busy: {spell(self.known_causes())}", "it falls asleep by itself when that ends"
                    )
            elif self.state is ComputeState.FROZEN:
                self._move(self.page_out(reason), "page out")
                await self._wait_moving()
                if self.state is ComputeState.FROZEN:
                    raise Conflict(f"{self.database.label} could not be paged out", "the daemon's log says why")
            await self._wait_moving()

    async def page_out(self, reason: SleepReason) -> None:
        """Reclaim the memory of a frozen compute. A wake meanwhile wins."""
        if self.state is not ComputeState.FROZEN or self._postmaster is None:
            return
        if await self._postmaster.page_out(lambda: self.state is ComputeState.FROZEN):
            self._go(ComputeState.PAGED, reason, keep_since=True)

    async def stop(self, reason: SleepReason) -> None:
        """End PostgreSQL in order, with whatever sessions it has. Idempotent. A start that takes long is given up."""
        await self._give_up_start(_START_GRACE_S)
        await self._wait_moving()
        if self.state is not ComputeState.STOPPED:
            self._move(self._stop(reason), "stop")
            await self._wait_moving()

    async def discard(self) -> None:
        """End it for good, in no particular order: its database is being removed. Idempotent."""
        self._removed, self.moves = True, self.moves + 1
        await self.kill(SleepReason.API)
        logfile.remove(self.log_file)

    async def kill(self, reason: SleepReason) -> None:
        """End it within seconds, whatever it does: PostgreSQL recovers at its next start, so nothing committed is lost. Idempotent."""
        await self._give_up_start(0.0)
        if self.state is not ComputeState.STOPPED:
            if (before := self._moving) is not None:
                before.cancel()  # a stop waits much longer than a tenant may make anybody wait for this
            self._move(
                self._kill(before, reason), "kill"
            )  # at once, so that whoever waited for that one waits for this, and begins nothing
        await self._wait_moving()

    async def leave(self) -> None:
        """Let go of a running compute without touching it, for the next Torpor to adopt."""
        await self._end_dozing()
        if self._moving is not None and not self._moving.done():
            self._moving.cancel()
            await asyncio.gather(self._moving, return_exceptions=True)
        if self._postmaster is not None:
            self._postmaster.abandon()

    # -- coming from an earlier Torpor

    def adopt(self, process: ProcessHandle, door_port: int) -> None:
        """Take over the running postmaster of an earlier Torpor, in the tier in which it is."""
        postmaster = self._new_postmaster()
        self._postmaster = postmaster
        watchable = postmaster.adopt(process, door_port, self._exited, self._around.relayed)
        frozen = postmaster.tree.is_frozen()
        self.state = ComputeState.STOPPED
        self._go(ComputeState.STARTING, None)
        self._go(ComputeState.AWAKE, None)
        if frozen and not watchable:
            postmaster.tree.thaw()
        elif frozen:
            postmaster.asleep = True
            self._go(ComputeState.FREEZING, None)
            self._go(ComputeState.FROZEN, None)
            postmaster.sessions.watch()
            return
        self._begin_dozing()

    # -- inside

    def _new_postmaster(self) -> Postmaster:
        id = self.database.id
        tree = self.shares.open(self._around.trees.open(id), self.size)
        listener = self._around.run / id / "door.sock"
        return Postmaster(tree, listener, self._on_traffic, self._touch, self._around.census, self.major)

    def live(self) -> Postmaster:
        """The PostgreSQL that runs. Raises ComputeLost."""
        if self._postmaster is None:
            raise NotDelivered("PostgreSQL went away", "try again")
        return self._postmaster

    def _touch(self) -> None:
        self.last_activity = self._around.clock.monotonic()

    def _go(self, state: ComputeState, reason: SleepReason | WakeReason | None, keep_since: bool = False) -> None:
        check_move(self.state, state)
        before = self.tier
        self.state = state
        self.moves += state is not ComputeState.PAGED
        if self.tier is not before:
            self.tier_reason = reason
            if not keep_since:
                self.tier_since = self._around.clock.time()
            self._listener.tier_changed(self, before)

    def _move(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        self._moving, self._moving_up = self._around.tasks.spawn(coroutine, f"{name} {self.database.label}"), name == "start"

    async def _wait_moving(self) -> None:
        while self._moving is not None and not self._moving.done() and self._moving is not asyncio.current_task():
            await asyncio.wait([self._moving])

    async def _give_up_start(self, grace_s: float) -> None:
        """End a start that isn't done after a while: it may recover for an hour, or be made to wait for ever by what is in the volume."""
        if (start := self._moving) is not None and self.is_being_woken:
            await asyncio.wait([start], timeout=grace_s)
            start.cancel()
            await asyncio.wait([start])

    async def _start(self, reason: WakeReason, detail: str) -> None:
        around, clock = self._around, self._around.clock
        began_at, steps, tier = clock.time(), Steps(clock), self.tier
        async with contextlib.AsyncExitStack() as slot:
            await slot.enter_async_context(around.starts)
            steps.done("queue")
            self._go(ComputeState.STARTING, reason)
            try:
                if self.archived:
                    await around.bring_back(self.database, slot.aclose)
                    steps.done("fetch")
                plan = await plan_launch(self.database, self.size, around, self.log_file)
                postmaster = self._postmaster = self._new_postmaster()
                await start(postmaster, plan, self.database.id, around, slot, steps, self._exited)
            except BaseException as error:
                await self._start_failed(error)
                if isinstance(error, TorporError | OSError):
                    return
                raise
        self.broken = ""
        self._go(ComputeState.AWAKE, reason)
        self._begin_dozing()
        wake = Wake(self.database.id, began_at, reason, tier, detail, steps.elapsed_ms, steps.taken)
        self._last_wake = wake
        around.on_wake(wake)

    async def _start_failed(self, error: BaseException) -> None:
        if self._postmaster is not None:
            await self._postmaster.bury()
            self._postmaster = None
        self._around.catalog.forget_compute(self.database.id)
        self._go(ComputeState.STOPPED, SleepReason.CRASH)
        self._failure = failure_of(error, self.database.label, self.log_file)
        self._failed_at = self._around.clock.monotonic()
        self.broken = self._failure.message
        log.error("start failed", database=self.database.label, cause=self._failure.message)

    def _thaw(self, reason: WakeReason, detail: str) -> Wake:
        clock = self._around.clock
        began_at, began, tier = clock.time(), clock.monotonic(), self.tier
        postmaster = self.live()
        postmaster.thaw()
        elapsed_ms = (clock.monotonic() - began) * 1000
        self._go(ComputeState.AWAKE, reason)
        self._begin_dozing()
        wake = Wake(self.database.id, began_at, reason, tier, detail, elapsed_ms, (Step("thaw", elapsed_ms),))
        self._last_wake = wake
        self._around.on_wake(wake)
        return wake

    def _on_traffic(self, session: Session) -> None:
        if self.state not in (ComputeState.FROZEN, ComputeState.PAGED):
            return
        left = session.has_left()
        self._thaw(WakeReason.CLIENT_LEFT if left else WakeReason.TRAFFIC, session.client_host)
        if left and (after_s := self.policy.freeze_after_s) is not None:
            self.last_activity = self._around.clock.monotonic() - max(0.0, after_s - _CLIENT_LEFT_GRACE_S)

    def _begin_dozing(self) -> None:
        self._touch()
        self._last_causes = ()
        self._dozing = self._around.tasks.spawn(self._doze(), f"doze {self.database.label}")

    async def _end_dozing(self) -> None:
        if self._dozing is not None and self._dozing is not asyncio.current_task():
            self._dozing.cancel()
            await asyncio.gather(self._dozing, return_exceptions=True)

    async def _doze(self) -> None:
        """While awake: notice what happens at the price of two counters a session, and freeze when nothing has."""
        clock = self._around.clock
        seen: Traffic | None = None
        while self._dozing is asyncio.current_task():
            after_s = self.policy.freeze_after_s
            await clock.sleep(min(1.0, max(0.05, (after_s or 5.0) / 5)))
            await logfile.keep_small(self.log_file)
            await self._wait_moving()
            if self.state is not ComputeState.AWAKE or self._dozing is not asyncio.current_task():
                return
            now = self.live().sessions.traffic()
            if now != seen and seen is not None:
                self._touch()
                self._last_causes = ()
            seen = now
            idle_s = clock.monotonic() - (self.last_activity or 0.0)
            if after_s is not None and idle_s >= after_s and not self._holds:
                self._move(self._freeze(SleepReason.IDLE), "freeze")
                await self._wait_moving()

    async def _freeze(self, reason: SleepReason) -> None:
        """Freeze, or stay awake and know why."""
        if (postmaster := self._postmaster) is None:
            return  # it died in this very moment
        self._go(ComputeState.FREEZING, None)
        try:
            outcome = await postmaster.freeze_if_quiet(
                lambda: self._holds == 0 and self.state is ComputeState.FREEZING,
                lambda service: ask_last(self.database, service, self._around),
            )
        except BaseException as error:
            if self.state is ComputeState.FREEZING:
                self._go(ComputeState.AWAKE, None)
            if not isinstance(error, TorporError):
                raise
            self._last_causes = (AwakeCause(AwakeReason.RECENT, f"PostgreSQL did not say what it does: {error.message}"),)
            self._touch()
            return
        if self.state is not ComputeState.FREEZING:
            return  # it crashed
        self._last_causes = outcome.causes
        if outcome.causes:
            self._go(ComputeState.AWAKE, None)
            self._touch()
            return
        self._go(ComputeState.FROZEN, reason)
        self.shares.boost()
        postmaster.sessions.watch()

    async def _stop(self, reason: SleepReason) -> None:
        if (postmaster := self._postmaster) is None:
            return  # it died in this very moment
        quiet = self.state in (ComputeState.FROZEN, ComputeState.PAGED) and not self.connections
        if self.state in (ComputeState.FROZEN, ComputeState.PAGED):
            postmaster.thaw()  # only to end in order: no wake that anybody asked for
            self._go(ComputeState.AWAKE, None)
        await self._end_dozing()
        self._go(ComputeState.STOPPING, reason)
        if not quiet:  # roles may have changed since they were last saved
            try:
                async with asyncio.timeout(_FAREWELL_S):
                    service = await postmaster.service()
                    await service.end_clients()
                    await ask_last(self.database, service, self._around)
                    await postmaster.close_service()
            except (TorporError, TimeoutError) as error:
                log.warning("roles unknown at stop", database=self.database.label, cause=str(error) or "PostgreSQL doesn't answer")
                self._around.catalog.forget_roles(self.database.id)
        self._past_cpu_ns += postmaster.tree.usage().cpu_ns
        if not await postmaster.shut_down():
            log.warning("PostgreSQL had to be killed", database=self.database.label)
        self._gone(reason)

    async def _kill(self, before: "asyncio.Task[None] | None", reason: SleepReason) -> None:
        if before is not None:
            await asyncio.wait([before])
        await self._end_dozing()
        if (postmaster := self._postmaster) is not None:
            self._around.catalog.forget_roles(self.database.id)
            self._gone(reason)  # before the processes end: what is seen of their end is no crash
            await postmaster.end_at_once()

    def _exited(self) -> None:
        """The postmaster ended. Starting and stopping see to it themselves; else it crashed."""
        if self.state in (ComputeState.STARTING, ComputeState.STOPPING, ComputeState.STOPPED):
            return
        load, words = self.shares.memory_load(), logfile.last_words(self.log_file)
        killed = load.killed if load is not None else 0  # processes that the kernel ended for want of memory since it was started
        log.error("PostgreSQL died", database=self.database.label, tier=str(self.tier), words=words, out_of_memory=killed)
        self._around.catalog.forget_roles(self.database.id)  # whatever was changed since they were saved is unknown
        crashed = self.live()
        self._past_cpu_ns += crashed.tree.usage().cpu_ns
        self._gone(SleepReason.CRASH)
        self._move(crashed.bury(), "bury")

    def _gone(self, reason: SleepReason) -> None:
        postmaster = self.live()
        self._past_traffic += postmaster.sessions.traffic()
        postmaster.sessions.end_all()
        self._postmaster = None
        self.shares.close()
        self._around.catalog.forget_compute(self.database.id)
        self._go(ComputeState.STOPPED, reason)
