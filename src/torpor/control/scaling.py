"""Samples the awake computes, lets `autoscale` decide, sets the ceilings, and remembers why. Tells when the kernel ended a process.

Concurrency: one task for all. Each half second it looks at the awake computes, some at a time, so that nobody waits for it; a sleeper
costs nothing. State of a compute goes when it falls asleep; of the newest thousand that were scaled, the last decisions stay.
"""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from torpor.base.clock import Clock
from torpor.base.limits import CpuLoad, IdleMeter
from torpor.base.logs import get_logger
from torpor.base.tasks import TaskOwner
from torpor.compute.compute import Compute
from torpor.compute.shares import APART_CPUS, HOST_CPUS
from torpor.control.autoscale import (
    MANY_LOGINS_PER_S,
    Change,
    CpuSample,
    CpuScaler,
    DiskFairness,
    Fairness,
    MemorySample,
    MemoryScaler,
    is_at_work,
    login_interval_s,
    pace,
)
from torpor.model.names import DatabaseId
from torpor.model.size import Pace, ScaleReason
from torpor.model.sleep import Tier
from torpor.model.views import Decision

log = get_logger(__name__)

EVERY_S = 0.5
_MEMORY_EVERY_S = 1.0
_AT_ONCE = 16
KEPT_DECISIONS = 20
_KEPT_DATABASES = 1000
_OUT_OF_MEMORY_S = 30.0
_SATURATED = 0.6  # of the processors it may use; the rest goes to those whom it yields to
_LOGIN_CPU_S = 0.015  # the door, the kernel, the start of a backend


@dataclass(slots=True)
class Live:
    """What is known of one awake compute. `woke_at` tells one time of being awake from the next."""

    woke_at: float
    looked_at: float
    load: CpuLoad
    cpu: CpuScaler
    memory: MemoryScaler = field(default_factory=MemoryScaler)
    disk: DiskFairness = field(default_factory=DiskFairness)
    written_bytes: int = 0
    handed_over: int = 0
    logins_per_s: float = 0.0
    ran_out_at: float = float("-inf")
    yields: bool = False
    runs_apart: bool = False
    pinned: float | None = None
    """Processors that it gets for now whatever it needs."""
    memory_at: float = 0.0
    refaults: int | None = None
    killed: int | None = None

    @property
    def ran_out(self) -> bool:
        """Whether it ran out of memory lately."""
        return self.looked_at - self.ran_out_at < _OUT_OF_MEMORY_S

    def seen(self, logins_wait: bool) -> float:
        """Processors that it uses, what the kernel and the door do for it included.

        Who has just run out of memory keeps the kernel busy for itself: that counts as one more. So do logins that wait.
        """
        return self.cpu.use + self.logins_per_s * _LOGIN_CPU_S + (1.0 if self.ran_out or logins_wait else 0.0)

    def charged(self, logins_wait: bool) -> float:
        """`seen`, and what can't be seen: who writes much keeps the kernel busy, too, and on a part of the processors nobody shows how
        many it would take."""
        unseen = 1.0 if self.disk.yields and not (self.ran_out or logins_wait) else 0.0
        if self.runs_apart and self.cpu.use > _SATURATED * APART_CPUS:
            unseen += self.cpu.use * (HOST_CPUS / APART_CPUS - 1)
        return self.seen(logins_wait) + unseen

    @property
    def ceiling(self) -> float | None:
        """Processors that it may use now; None for all."""
        return self.cpu.ceiling if self.pinned is None else self.pinned

    @property
    def pace(self) -> Pace:
        """How fast it may run."""
        return pace(self.cpu.boosted, self.yields)


class Scaling:
    """Keeps the ceilings of all awake computes right."""

    def __init__(
        self,
        awake: Callable[[], Iterable[Compute]],
        clock: Clock,
        tasks: TaskOwner,
        boost_s: float,
        cpus: float = HOST_CPUS,
        idle: Callable[[], float] | None = None,
    ) -> None:
        self._awake = awake
        self._clock = clock
        self._tasks = tasks
        self._boost_s = boost_s
        self._fairness: Fairness[Compute] = Fairness(cpus)
        self._idle = idle or IdleMeter(clock.monotonic)
        self._live: dict[Compute, Live] = {}
        self.decided: Counter[tuple[str, str]] = Counter()
        self.killed = 0
        self._taking_turns: set[Compute] = set()
        self._decisions: OrderedDict[DatabaseId, deque[Decision]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Scaling {len(self._live)} awake>"

    def start(self) -> None:
        """Begin to work."""
        self._tasks.spawn_endless(self._run, "scale")

    def live(self, compute: Compute) -> Live | None:
        """What is known of a compute that is awake; None while it sleeps, and in its first half second."""
        live = self._live.get(compute)
        return live if live is not None and compute.tier is Tier.AWAKE and live.woke_at == compute.tier_since else None

    def decisions(self, id: DatabaseId) -> Sequence[Decision]:
        """The last decisions on a database since Torpor started, newest first."""
        return tuple(reversed(self._decisions.get(id, ())))

    def forget(self, id: DatabaseId) -> None:
        """Drop what is remembered of a removed database. Idempotent."""
        self._decisions.pop(id, None)

    async def _run(self) -> None:
        while True:
            await self._clock.sleep(EVERY_S)
            await self.look()

    async def look(self) -> None:
        """One round."""
        awake = list(self._awake())
        for number, compute in enumerate(awake):
            if number % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
            self._sample(compute)
        kept = {compute: live for compute in awake if (live := self._live.get(compute)) is not None and compute.tier is Tier.AWAKE}
        self._live = kept
        uses = {compute: (live.charged(compute.turnstile.waiting > 0), compute.size.min_cpu) for compute, live in kept.items()}
        over = self._fairness.decide(self._clock.monotonic(), uses, self._idle())
        # Where all take more than their share, whoever takes least is the neighbour of the others; one alone has none.
        undisturbed = set(awake) - over or set(sorted(over, key=lambda compute: kept[compute].seen(compute.turnstile.waiting > 0))[:1])
        at_work = {compute for compute, live in kept.items() if is_at_work(live.cpu.use)}
        # Who is out of memory keeps the kernel busy, which gives way to nobody: the less it runs, the better for all others.
        out_of_memory = {compute for compute in over if kept[compute].ran_out}
        for compute, live in kept.items():
            self._give_pace(compute, live, compute in over, compute in out_of_memory and bool(at_work - out_of_memory))
            live.runs_apart = compute not in undisturbed
            compute.shares.run_apart(live.runs_apart)
        stormy = {compute for compute in over if compute.turnstile.waiting or kept[compute].logins_per_s > MANY_LOGINS_PER_S}
        self._give_turns(stormy if at_work - stormy else set())

    def _give_pace(self, compute: Compute, live: Live, yields: bool, at_minimum: bool) -> None:
        pinned = compute.size.min_cpu if at_minimum else None
        if (yields, pinned) == (live.yields, live.pinned):
            return
        before = live.ceiling
        live.yields, live.pinned = yields, pinned
        self._hold(compute, live)
        reason = ScaleReason.OUT_OF_MEMORY if pinned is not None else ScaleReason.UNFAIR if yields else ScaleReason.FAIR
        inputs = {"use": round(live.cpu.use, 3), "logins_per_s": round(live.logins_per_s, 1), "awake": float(len(self._live))}
        self._note(compute, live, "pace", before, Change(live.ceiling, reason, inputs))

    def _give_turns(self, taking: set[Compute]) -> None:
        """Have logins wait for their turn in these computes, and in no others."""
        for compute in self._taking_turns - taking:
            compute.turnstile.interval_s = 0.0
        for compute in taking:
            compute.turnstile.interval_s = login_interval_s(len(taking))
        self._taking_turns = taking

    def _sample(self, compute: Compute) -> None:
        load, now = compute.shares.cpu_load(), self._clock.monotonic()
        if load is None or compute.tier is not Tier.AWAKE:
            return
        live = self._live.get(compute)
        if live is None or live.woke_at != compute.tier_since:
            self._live[compute] = Live(compute.tier_since, now, load, CpuScaler(now, self._boost_s), memory_at=now)
            self._live[compute].written_bytes = compute.shares.written_bytes()
            self._live[compute].handed_over = compute.handed_over
            return
        elapsed_s = now - live.looked_at
        if elapsed_s <= 0:
            return
        use = max(0, load.used_ns - live.load.used_ns) / elapsed_s / 1e9
        withheld = max(0, load.throttled_ns - live.load.throttled_ns) / elapsed_s / 1e9
        live.logins_per_s = (live.logins_per_s + (compute.handed_over - live.handed_over) / elapsed_s) / 2
        live.load, live.looked_at, live.handed_over = load, now, compute.handed_over
        before = live.cpu.ceiling
        change = live.cpu.decide(CpuSample(now, elapsed_s, use, withheld), compute.size)
        if change is not None:
            self._hold(compute, live)
            self._note(compute, live, "processor", before, change)
        written = compute.shares.written_bytes()
        per_s, live.written_bytes = max(0, written - live.written_bytes) / elapsed_s, written
        if live.disk.decide(now, per_s):
            self._hold(compute, live)
            reason = ScaleReason.UNFAIR if live.disk.yields else ScaleReason.FAIR
            self._note(compute, live, "disk", None, Change(None, reason, {"written_per_s_bytes": round(per_s)}))
        if now - live.memory_at >= _MEMORY_EVERY_S:
            self._sample_memory(compute, live, now)

    def _sample_memory(self, compute: Compute, live: Live, now: float) -> None:
        load = compute.shares.memory_load()
        if load is None:
            return
        refaults = 0.0 if live.refaults is None else max(0, load.refaults - live.refaults) / (now - live.memory_at)
        killed = 0 if live.killed is None else load.killed - live.killed
        live.memory_at, live.refaults, live.killed = now, load.refaults, load.killed
        if load.used_bytes > compute.size.max_memory_bytes:  # a lower limit that the kernel could not hold at once
            self._tasks.spawn(compute.shares.resize(compute.size), f"resize {compute.database.label}")
        before = live.memory.ceiling
        change = live.memory.decide(MemorySample(now, load.used_bytes, load.working_set_bytes, refaults), compute.size)
        if change is not None:
            self._hold(compute, live)
            self._note(compute, live, "memory", before, change)
        if killed > 0:
            self.killed += killed
            live.ran_out_at = now
            limit = float(compute.size.max_memory_bytes)
            log.warning("out of memory", database=compute.database.label, killed=killed, limit_bytes=int(limit))
            change = Change(limit, ScaleReason.OUT_OF_MEMORY, {"killed": float(killed), "used_bytes": float(load.used_bytes)})
            self._note(compute, live, "memory", limit, change)

    def _hold(self, compute: Compute, live: Live) -> None:
        if compute.tier is Tier.AWAKE:  # falling asleep has lifted the ceilings, for a fast wake
            memory = live.memory.ceiling
            compute.shares.hold(live.ceiling, live.yields, None if memory is None else int(memory), live.disk.yields)

    def _note(self, compute: Compute, live: Live, kind: str, before: float | None, change: Change) -> None:
        id = compute.database.id
        kept = self._decisions.setdefault(id, deque(maxlen=KEPT_DECISIONS))
        self._decisions.move_to_end(id)
        self.decided[kind, str(change.reason)] += 1
        kept.append(Decision(self._clock.time(), kind, before, change.after, change.reason, live.pace, dict(change.inputs)))
        while len(self._decisions) > _KEPT_DATABASES:
            self._decisions.popitem(last=False)
