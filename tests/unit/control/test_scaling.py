"""The executor of the autoscaler on a scripted tree and virtual time: what it samples, sets, keeps and forgets."""

import os
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.support import virtual
from tests.support.fleet import House, Sleeper
from torpor.base.cgroups import SignalTree
from torpor.base.limits import CpuLoad, Limits, MemoryLoad
from torpor.compute.lifecycle import ComputeState
from torpor.compute.shares import APART_CPUS, apart
from torpor.control.scaling import EVERY_S, KEPT_DECISIONS, Scaling
from torpor.model.size import MIB, Pace, ScaleReason, SizeOverrides
from torpor.model.sleep import Tier


@dataclass
class ScriptedTree(SignalTree):
    """Uses as many processors as the test says, up to its ceiling."""

    wants: float = 0.0
    memory: MemoryLoad = field(default_factory=lambda: MemoryLoad(20 * MIB, 20 * MIB, 0, 0))
    limits: list[Limits] = field(default_factory=list)
    used_ns: int = 0
    written: int = 0
    throttled_ns: int = 0
    processes: list[int] = field(default_factory=list)

    def pids(self) -> list[int]:
        return self.processes

    def run(self, seconds: float) -> None:
        ceiling = self.limits[-1].cpu
        use = self.wants if ceiling is None else min(self.wants, ceiling)
        self.used_ns += int(use * seconds * 1e9)
        self.throttled_ns += int(seconds * 1e9) if use < self.wants else 0

    def limit(self, limits: Limits) -> None:
        self.limits.append(limits)

    def written_bytes(self) -> int:
        return self.written

    def cpu_load(self) -> CpuLoad:
        return CpuLoad(self.used_ns, self.throttled_ns)

    def memory_load(self) -> MemoryLoad:
        return self.memory


class Bench:
    """A house with scripted computes."""

    def __init__(self, root: Path) -> None:
        self.house = House(root)
        self.trees: dict[Sleeper, ScriptedTree] = {}
        self.scaling = Scaling(
            lambda: self.house.fleet.in_tier(Tier.AWAKE), self.house.clock, self.house.tasks, boost_s=2.0, cpus=2.0, idle=self._idle
        )

    def _idle(self) -> float:
        return max(0.0, 2.0 - sum(tree.wants for tree in self.trees.values()))

    def wake(self, n: int, size: SizeOverrides | None = None) -> tuple[Sleeper, ScriptedTree]:
        sleeper = self.house.add_sleeper(n)
        sleeper.database = replace(sleeper.database, size=size or SizeOverrides())
        tree = ScriptedTree()
        sleeper.shares.open(tree, sleeper.size)
        self.trees[sleeper] = tree
        sleeper.rouse()
        return sleeper, tree

    async def pass_by(self, seconds: float) -> None:
        for _ in range(round(seconds / EVERY_S)):
            await self.house.clock.sleep(EVERY_S)
            for tree in self.trees.values():
                tree.run(EVERY_S)
            await self.scaling.look()


def pace_of(bench: Bench, sleeper: Sleeper) -> str | None:
    live = bench.scaling.live(sleeper)
    return live.pace if live is not None else None


def play(tmp_path: Path, scene: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        try:
            await scene(bench)
        finally:
            await bench.house.close()

    virtual.run(main())


def test_a_wake_is_boosted_then_held_then_let_go_in_a_spike(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        sleeper, tree = bench.wake(1, SizeOverrides(max_cpu=1.5))
        assert tree.limits == [Limits(None, 100, False, 1024 * MIB, None, 164)]
        await bench.pass_by(2)
        assert pace_of(bench, sleeper) == Pace.BOOSTED
        await bench.pass_by(60)
        assert pace_of(bench, sleeper) == Pace.NORMAL
        assert tree.limits[-1].cpu == 0.25
        tree.wants = 5.0
        await bench.pass_by(1.5)
        assert tree.limits[-1].cpu == 1.5
        reasons = [decision.reason for decision in bench.scaling.decisions(sleeper.database.id) if decision.kind == "processor"]
        assert reasons == [ScaleReason.SATURATED, ScaleReason.SATURATED, ScaleReason.BOOST_OVER]

    play(tmp_path, scene)


def test_a_sleeper_is_forgotten_and_its_next_wake_is_boosted_anew(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        sleeper, tree = bench.wake(1)
        await bench.pass_by(10)
        sleeper.shares.boost()  # as a real one does when it freezes
        sleeper.freeze()
        assert bench.scaling.live(sleeper) is None
        await bench.pass_by(1)
        assert "0 awake" in repr(bench.scaling)
        assert bench.scaling.decisions(sleeper.database.id)
        written = len(tree.limits)
        assert tree.limits[-1].cpu is None
        sleeper.rouse()
        await bench.pass_by(2)
        assert all(limits.cpu is None for limits in tree.limits[written:])
        bench.scaling.forget(sleeper.database.id)
        assert not bench.scaling.decisions(sleeper.database.id)

    play(tmp_path, scene)


def test_the_greedy_one_yields_while_it_is(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        greedy, tree = bench.wake(1)
        _, quiet_tree = bench.wake(2)
        tree.wants, quiet_tree.wants = 1.6, 0.4
        await bench.pass_by(2)
        assert tree.limits[-1].cpu_yields
        assert not quiet_tree.limits[-1].cpu_yields
        tree.wants = 0.2
        await bench.pass_by(3)
        assert not tree.limits[-1].cpu_yields
        paces = [(each.reason, each.pace) for each in bench.scaling.decisions(greedy.database.id) if each.kind == "pace"]
        assert [reason for reason, _ in paces] == [ScaleReason.FAIR, ScaleReason.UNFAIR]

    play(tmp_path, scene)


def test_what_the_kernel_ended_is_told(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        sleeper, tree = bench.wake(1)
        tree.memory = MemoryLoad(20 * MIB, 20 * MIB, 0, 7)  # of before
        await bench.pass_by(2)
        assert bench.scaling.killed == 0
        tree.memory = MemoryLoad(20 * MIB, 20 * MIB, 0, 9)
        await bench.pass_by(2)
        assert bench.scaling.killed == 2
        newest = bench.scaling.decisions(sleeper.database.id)[0]
        assert (newest.reason, newest.inputs["killed"]) == (ScaleReason.OUT_OF_MEMORY, 2)

    play(tmp_path, scene)


def test_memory_above_a_limit_that_could_not_be_lowered_is_tried_again(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        sleeper, tree = bench.wake(1)
        await bench.pass_by(1)
        sleeper.database = replace(sleeper.database, size=SizeOverrides(max_memory_bytes=64 * MIB))
        tree.memory = MemoryLoad(80 * MIB, 80 * MIB, 0, 0)
        await bench.pass_by(2)
        assert tree.limits[-1].memory_bytes == 64 * MIB

    play(tmp_path, scene)


def test_what_is_kept_is_bounded(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        sleeper, tree = bench.wake(1)
        for _ in range(60):
            tree.wants = 1.9 - tree.wants
            await bench.pass_by(70)
        assert len(bench.scaling.decisions(sleeper.database.id)) <= KEPT_DECISIONS

    play(tmp_path, scene)


def test_one_that_crashed_is_no_longer_sampled(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        sleeper, _ = bench.wake(1)
        await bench.pass_by(2)
        sleeper.shares.close()
        bench.house.show(sleeper, ComputeState.STOPPED)
        await bench.pass_by(2)
        assert bench.scaling.live(sleeper) is None

    play(tmp_path, scene)


async def storm(bench: Bench, written: int = 0) -> tuple[Sleeper, ScriptedTree, Sleeper, ScriptedTree]:
    """One with many logins for four seconds, and one that works beside it, and writes."""
    stormy, tree = bench.wake(1)
    neighbour, other = bench.wake(2)
    tree.wants, other.wants = 0.5, 0.7
    for _ in range(8):
        stormy.handed_over += 40
        other.written += written
        await bench.pass_by(0.5)
    return stormy, tree, neighbour, other


def test_logins_are_charged_to_whom_they_are_for(tmp_path: Path) -> None:
    """A backend's start, and what the door does for it, cost more than the compute is seen to use."""

    async def scene(bench: Bench) -> None:
        _stormy, tree, _, other = await storm(bench)
        assert tree.limits[-1].cpu_yields
        assert not other.limits[-1].cpu_yields
        await bench.pass_by(4)
        assert not tree.limits[-1].cpu_yields

    play(tmp_path, scene)


def test_who_writes_much_comes_last_at_the_disk_and_at_the_processors(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        writer, tree = bench.wake(1)
        _, other = bench.wake(2)
        tree.wants, other.wants = 0.4, 0.7
        for _ in range(6):
            tree.written += 50 * MIB
            await bench.pass_by(0.5)
        assert (tree.limits[-1].disk_yields, tree.limits[-1].cpu_yields) == (True, True)
        assert (other.limits[-1].disk_yields, other.limits[-1].cpu_yields) == (False, False)
        await bench.pass_by(25)
        assert (tree.limits[-1].disk_yields, tree.limits[-1].cpu_yields) == (False, False)
        assert [each.reason for each in bench.scaling.decisions(writer.database.id) if each.kind == "disk"] == ["fair", "unfair"]

    play(tmp_path, scene)


def test_who_yields_runs_apart_while_others_are_awake(tmp_path: Path) -> None:
    """Held to half of the processors it can use no more than its fair share, and yet would take more."""
    everywhere = os.sched_getaffinity(0)

    with subprocess.Popen(["sleep", "600"]) as process:

        async def scene(bench: Bench) -> None:
            _, tree = bench.wake(1)
            tree.wants, tree.processes = 2.0, [process.pid]
            await bench.pass_by(3)
            assert tree.limits[-1].cpu_yields
            assert os.sched_getaffinity(process.pid) == everywhere
            neighbour, _ = bench.wake(2)
            await bench.pass_by(0.5)
            assert os.sched_getaffinity(process.pid) == apart(frozenset(everywhere))
            tree.wants = float(APART_CPUS)
            await bench.pass_by(60)
            assert tree.limits[-1].cpu_yields
            assert os.sched_getaffinity(process.pid) == apart(frozenset(everywhere))
            bench.house.show(neighbour, ComputeState.FROZEN)
            await bench.pass_by(0.5)
            assert os.sched_getaffinity(process.pid) == everywhere

        try:
            play(tmp_path, scene)
        finally:
            process.kill()


def test_who_ran_out_of_memory_yields_for_a_while(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        _, tree = bench.wake(1)
        _, other = bench.wake(2)
        tree.wants, other.wants = 0.3, 0.7
        await bench.pass_by(3)
        tree.memory = MemoryLoad(20 * MIB, 20 * MIB, 0, 1)
        await bench.pass_by(3)
        assert tree.limits[-1].cpu_yields
        await bench.pass_by(35)
        assert not tree.limits[-1].cpu_yields

    play(tmp_path, scene)


def test_logins_of_the_greedy_take_turns_while_a_neighbour_is_at_work(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        stormy, tree, _, other = await storm(bench)
        assert stormy.turnstile.interval_s == 1 / 20
        # Those that wait show that it still wants as much, although it does little now.
        tree.wants, stormy.turnstile.waiting = 0.1, 7
        await bench.pass_by(10)
        assert tree.limits[-1].cpu_yields
        assert stormy.turnstile.interval_s == 1 / 20
        other.wants = 0.0
        await bench.pass_by(2)
        assert stormy.turnstile.interval_s == 0
        other.wants = 0.7
        await bench.pass_by(2)
        assert stormy.turnstile.interval_s == 1 / 20
        bench.house.show(stormy, ComputeState.FROZEN)
        await bench.pass_by(1)
        assert stormy.turnstile.interval_s == 0

    play(tmp_path, scene)


def test_a_neighbour_that_yields_for_its_writes_is_a_neighbour(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        stormy, tree, writer, other = await storm(bench, written=50 * MIB)
        assert tree.limits[-1].cpu_yields
        assert other.limits[-1].cpu_yields
        stormy.turnstile.waiting = 7
        await bench.pass_by(0.5)
        assert [bench.scaling.live(each).runs_apart for each in (stormy, writer)] == [True, False]  # type: ignore[union-attr]
        assert (stormy.turnstile.interval_s, writer.turnstile.interval_s) == (1 / 20, 0)

    play(tmp_path, scene)


def test_who_ran_out_of_memory_is_kept_at_its_minimum_beside_others(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        hog, tree = bench.wake(1)
        _, other = bench.wake(2)
        tree.wants, other.wants = 0.8, 0.7
        await bench.pass_by(6)
        before = tree.limits[-1].cpu
        tree.memory = MemoryLoad(20 * MIB, 20 * MIB, 0, 1)
        await bench.pass_by(3)
        assert tree.limits[-1].cpu == hog.size.min_cpu != before
        live = bench.scaling.live(hog)
        assert live is not None
        assert live.ceiling == hog.size.min_cpu
        assert ScaleReason.OUT_OF_MEMORY in [each.reason for each in bench.scaling.decisions(hog.database.id) if each.kind == "pace"]
        other.wants = 0.0
        await bench.pass_by(2)
        assert tree.limits[-1].cpu != hog.size.min_cpu
        await bench.pass_by(40)
        assert live.pinned is None

    play(tmp_path, scene)


@pytest.mark.parametrize(("processors", "kept"), [({0}, set()), ({4, 5}, {4}), ({0, 1, 2, 3}, {0}), (set(range(8)), {0, 1})])
def test_a_quarter_of_the_processors_is_kept_for_those_who_do_not_yield(processors: set[int], kept: set[int]) -> None:
    assert apart(frozenset(processors)) == processors - kept
