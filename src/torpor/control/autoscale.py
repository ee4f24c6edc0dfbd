"""Decides on the ceilings of one awake compute from samples of what it uses, and on who yields to whom. Pure: no clock, no files.

Processors: the ceiling is the larger of 4 x the average and 1.33 x the peak of the last five minutes, within the size. Use says nothing of
what is wanted by who is held back by the very ceiling: then it is quadrupled at once, and set to the maximum half a second later. Ceilings
are steps (four to a doubling), go up at once, and down only after a minute in which all of it asked for less: so they don't flap.

Memory: the working set of the last five minutes and a quarter more, within the size; more while dropped pages are read again.

Bounded: 30 + 30 small tuples for each compute, whatever happens.
"""

import math
from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from torpor.model.size import MIB, Pace, ScaleReason, Size

WINDOW_S = 300.0
_BUCKET_S = 10.0
_OF_AVERAGE, _OF_PEAK = 4.0, 1.33
_PEAK_OVER_S = 0.9  # a peak is what was used over about a second: shorter ones are noise of the measurement
_SATURATED_SHARE = 0.05  # of the time held back, or so near to the ceiling
_SATURATED_STEP = 4.0
_STEPS_TO_A_DOUBLING = 4
_DOWN_AFTER_S = 60.0
_DOWN_BELOW = 0.75  # smaller reductions aren't worth a change

_MEMORY_HEADROOM, _MEMORY_SPARE_BYTES = 1.25, 32 * MIB
_MEMORY_FULL, _MEMORY_GROWTH = 0.95, 1.5
_REFAULTS_PER_S = 256.0  # 1 MB a second is read again

_ACTIVE = 0.02
_YIELD_ABOVE, _YIELD_BELOW = 1.1, 0.8
_IDLE = 0.1  # of all processors: then whoever wants more can have it
_LEAST_S, _SHORTEST_HOLD_S, _LONGEST_HOLD_S = 2.0, 30.0, 600.0
_RELEASE_REMEMBERED_S = 15.0

MANY_LOGINS_PER_S = 20.0

_WRITES_MUCH, _WRITES_LITTLE = 24.0 * MIB, 6.0 * MIB  # a second: no small transactions come near the first
_DISK_HOLD_S = 20.0

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class CpuSample:
    """What was used of a processor (1 is one of them) over `elapsed_s` until `at`, and for which share of that it was held back."""

    at: float
    elapsed_s: float
    use: float
    withheld: float


@dataclass(frozen=True, slots=True)
class MemorySample:
    """Memory at a moment, and how many pages a second had to be read again since the last."""

    at: float
    used_bytes: int
    working_set_bytes: int
    refaults_per_s: float


@dataclass(frozen=True, slots=True)
class Change:
    """A ceiling that is to be set (None: no ceiling), why, and the figures that it follows from."""

    after: float | None
    reason: ScaleReason
    inputs: Mapping[str, float]


class _Window:
    """Averages and peaks of the last five minutes, in 30 buckets."""

    def __init__(self) -> None:
        self._buckets: deque[list[float]] = deque()  # [begin, seconds, sum of use x seconds, peak]

    def add(self, at: float, elapsed_s: float, value: float, peak: float) -> None:
        if not self._buckets or at - self._buckets[-1][0] >= _BUCKET_S:
            self._buckets.append([at, 0.0, 0.0, 0.0])
        last = self._buckets[-1]
        last[1] += elapsed_s
        last[2] += value * elapsed_s
        last[3] = max(last[3], peak)
        while self._buckets and self._buckets[0][0] <= at - WINDOW_S:
            self._buckets.popleft()

    @property
    def average(self) -> float:
        seconds = sum(bucket[1] for bucket in self._buckets)
        return sum(bucket[2] for bucket in self._buckets) / seconds if seconds else 0.0

    @property
    def peak(self) -> float:
        return max((bucket[3] for bucket in self._buckets), default=0.0)


class _Down:
    """Lets a wish for less through when it has been there for a minute, and then the largest of what was wished meanwhile."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._most = 0.0

    def wish(self, at: float, wanted: float, now: float) -> float | None:
        if wanted > now * _DOWN_BELOW:
            self._since = None
            return None
        if self._since is None:
            self._since, self._most = at, wanted
        self._most = max(self._most, wanted)
        if at - self._since < _DOWN_AFTER_S:
            return None
        self._since = None
        return self._most


class CpuScaler:
    """The ceiling of one compute's processor time. `boost_s`: how long after the first sample there is none."""

    def __init__(self, at: float, boost_s: float, reason: ScaleReason = ScaleReason.WOKE) -> None:
        self.ceiling: float | None = None
        self._boosted_until = at + boost_s
        self._window = _Window()
        self._recent: deque[CpuSample] = deque(maxlen=2)
        self._saturated = 0
        self._down = _Down()
        self._first = reason

    @property
    def boosted(self) -> bool:
        """Whether it has the full processor because it woke a moment ago."""
        return self.ceiling is None

    @property
    def average(self) -> float:
        """Processors used, on average of the last five minutes (or since the wake)."""
        return self._window.average

    @property
    def peak(self) -> float:
        """The most that was used over a second in them."""
        return self._window.peak

    @property
    def use(self) -> float:
        """What is used now, over about a second."""
        seconds = sum(sample.elapsed_s for sample in self._recent)
        return sum(sample.use * sample.elapsed_s for sample in self._recent) / seconds if seconds else 0.0

    def decide(self, sample: CpuSample, size: Size) -> Change | None:
        """Take in a sample; the new ceiling, None to leave it as it is."""
        self._recent.append(sample)
        enough = sum(each.elapsed_s for each in self._recent) >= _PEAK_OVER_S
        self._window.add(sample.at, sample.elapsed_s, sample.use, self.use if enough else 0.0)
        if sample.at < self._boosted_until:
            return None
        wanted = self._wanted(size)
        if self.ceiling is None:
            return self._change(wanted, ScaleReason.BOOST_OVER, sample)
        if not size.min_cpu <= self.ceiling <= size.max_cpu:
            return self._change(min(max(self.ceiling, wanted), size.max_cpu), ScaleReason.RESIZED, sample)
        if sample.withheld > _SATURATED_SHARE or sample.use > self.ceiling * (1 - _SATURATED_SHARE):
            self._saturated += 1
            if self.ceiling >= size.max_cpu:
                return None
            # How much it wants can't be seen while it is held back.
            step = size.max_cpu if self._saturated > 1 else min(size.max_cpu, _step_up(self.ceiling * _SATURATED_STEP))
            return self._change(max(step, wanted), ScaleReason.SATURATED, sample)
        self._saturated = 0
        if wanted > self.ceiling:
            return self._change(wanted, ScaleReason.DEMAND, sample)
        lower = self._down.wish(sample.at, wanted, self.ceiling)
        return self._change(lower, ScaleReason.QUIET, sample) if lower is not None else None

    def _wanted(self, size: Size) -> float:
        wanted = _step_up(max(_OF_AVERAGE * self.average, _OF_PEAK * self.peak))
        return min(max(wanted, size.min_cpu), size.max_cpu)

    def _change(self, ceiling: float, reason: ScaleReason, sample: CpuSample) -> Change:
        self.ceiling = ceiling
        inputs = {"average": self.average, "peak": self.peak, "use": sample.use, "withheld": sample.withheld}
        return Change(ceiling, reason, {name: round(value, 3) for name, value in inputs.items()})


class MemoryScaler:
    """Up to where one compute's memory is left alone. Above it the kernel takes pages of it first; the maximum of its size is hard."""

    def __init__(self) -> None:
        self.ceiling: float | None = None
        self._window = _Window()
        self._down = _Down()

    def decide(self, sample: MemorySample, size: Size) -> Change | None:
        """Take in a sample; the new ceiling in bytes, None to leave it as it is."""
        self._window.add(sample.at, 1.0, sample.working_set_bytes, sample.working_set_bytes)
        wanted = _step_up((self._window.peak * _MEMORY_HEADROOM + _MEMORY_SPARE_BYTES) / MIB) * MIB
        wanted = float(int(min(max(wanted, size.min_memory_bytes), size.max_memory_bytes)))
        if self.ceiling is None or wanted > self.ceiling:
            return self._change(wanted, ScaleReason.WORKING_SET, sample)
        if not size.min_memory_bytes <= self.ceiling <= size.max_memory_bytes:
            return self._change(wanted, ScaleReason.RESIZED, sample)
        if sample.refaults_per_s > _REFAULTS_PER_S and sample.used_bytes > self.ceiling * _MEMORY_FULL:
            if self.ceiling >= size.max_memory_bytes:
                return None
            more = min(_step_up(self.ceiling / MIB * _MEMORY_GROWTH) * MIB, size.max_memory_bytes)
            return self._change(float(int(more)), ScaleReason.SHORT, sample)
        if sample.refaults_per_s > _REFAULTS_PER_S:
            return None
        lower = self._down.wish(sample.at, wanted, self.ceiling)
        return self._change(lower, ScaleReason.QUIET, sample) if lower is not None else None

    def _change(self, ceiling: float, reason: ScaleReason, sample: MemorySample) -> Change:
        self.ceiling = ceiling
        peak = round(self._window.peak)
        inputs = {
            "used_bytes": sample.used_bytes,
            "working_set_bytes": sample.working_set_bytes,
            "peak_bytes": peak,
            "refaults_per_s": round(sample.refaults_per_s),
        }
        return Change(self.ceiling, reason, inputs)


@dataclass(slots=True)
class _Yielding:
    since: float
    hold_s: float


class Fairness(Generic[K]):
    """Who uses more than a fair share of the processors, and so yields to who doesn't.

    A fair share is the minimum's part of all minimums. One that is alone shares with one that isn't there yet: whoever wakes next to it
    finds it yielding already. Nobody begins to yield who uses no more than its minimum.

    Who yields on a busy host uses little because it yields, so that alone ends nothing: processors must be idle as well. Or some time must
    have passed: then it is tried, and tried ever more rarely when it was wrong.
    """

    def __init__(self, cpus: float) -> None:
        self._cpus = cpus
        self._now: dict[K, _Yielding] = {}
        self._released: dict[K, _Yielding] = {}

    def decide(self, at: float, uses: Mapping[K, tuple[float, float]], idle: float) -> set[K]:
        """Who yields from now on. `uses`: what each of the awake uses, and its minimum; `idle`: how many processors had nothing to do."""
        active = {key: (use, minimum) for key, (use, minimum) in uses.items() if is_at_work(use)}
        total = sum(minimum for _, minimum in active.values()) * (2 if len(active) == 1 else 1)
        before, self._now = self._now, {}
        self._released = {key: value for key, value in self._released.items() if key in uses and at - value.since < _RELEASE_REMEMBERED_S}
        for key, (use, minimum) in uses.items():
            fair = max(minimum, self._cpus * minimum / total) if key in active else math.inf
            if (yields := before.get(key)) is None:
                if use > fair * _YIELD_ABOVE:
                    wrong = self._released.pop(key, None)
                    self._now[key] = _Yielding(at, min(wrong.hold_s * 2, _LONGEST_HOLD_S) if wrong is not None else _SHORTEST_HOLD_S)
            elif use > fair * _YIELD_BELOW or at - yields.since < _LEAST_S:
                self._now[key] = yields
            elif idle < _IDLE * self._cpus:
                if at - yields.since < yields.hold_s:
                    self._now[key] = yields
                else:
                    self._released[key] = _Yielding(at, yields.hold_s)
        return set(self._now)


class DiskFairness:
    """Whether one compute writes so much that its disk access should come after everybody else's.

    Who comes last writes less: so it ends only after some time below the lower line.
    """

    def __init__(self) -> None:
        self.yields = False
        self._quiet_since: float | None = None

    def decide(self, at: float, written_per_s: float) -> bool:
        """Take in what was written since the last sample; whether that changed anything."""
        if not self.yields:
            self.yields = written_per_s > _WRITES_MUCH
            self._quiet_since = None
            return self.yields
        if written_per_s > _WRITES_LITTLE:
            self._quiet_since = None
        elif self._quiet_since is None:
            self._quiet_since = at
        elif at - self._quiet_since >= _DISK_HOLD_S:
            self.yields = False
            return True
        return False


def is_at_work(use: float) -> bool:
    """Whether who uses that much of a processor would notice a neighbour."""
    return use > _ACTIVE


def login_interval_s(stormy: int) -> float:
    """How far apart the logins of each of those begin who take more than their share with many logins, so that all together are few."""
    return stormy / MANY_LOGINS_PER_S


def pace(boosted: bool, yields: bool) -> Pace:
    """How fast it may run, in a word."""
    return Pace.YIELDING if yields else Pace.BOOSTED if boosted else Pace.NORMAL


def _step_up(value: float) -> float:
    """The next of four steps to a doubling: small changes of load change nothing."""
    if value <= 0:
        return 0.0
    return float(2.0 ** (math.ceil(math.log2(value) * _STEPS_TO_A_DOUBLING - 1e-9) / _STEPS_TO_A_DOUBLING))
