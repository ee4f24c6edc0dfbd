"""Loads for the autoscaler: how many processors (and how much memory) a database would use if nothing held it back, half second by half
second; a simulation of a compute under them; and scores."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torpor.control.autoscale import Change, CpuSample, CpuScaler
from torpor.model.size import Size

STEP_S = 0.5
RECORDED = Path(__file__).with_name("recorded")


@dataclass(frozen=True, slots=True)
class Score:
    """How well ceilings fitted a load: which share of the work wanted was held back, how much more than used was set aside on average,
    how often the ceiling changed an hour, and for how long at most the load was held back in one go."""

    withheld: float
    spare: float
    changes_per_hour: float
    longest_withheld_s: float


def simulate(load: Sequence[float], size: Size, boost_s: float = 3.0) -> tuple[Score, list[tuple[float, Change]]]:
    """Run a load. Work that is held back is not done later: the score counts it as lost."""
    scaler, changes = CpuScaler(0.0, boost_s), []
    wanted_sum = withheld_sum = spare_sum = longest = current = 0.0
    for number, wanted in enumerate(load):
        at = (number + 1) * STEP_S
        ceiling = scaler.ceiling
        used = wanted if ceiling is None else min(wanted, ceiling)
        wanted_sum += wanted
        withheld_sum += wanted - used
        spare_sum += (size.max_cpu if ceiling is None else ceiling) - used
        current = current + STEP_S if used < wanted * 0.9 and used < size.max_cpu * 0.99 else 0.0
        longest = max(longest, current)
        change = scaler.decide(CpuSample(at, STEP_S, used, min(1.0, (wanted - used) / wanted) if wanted > used else 0.0), size)
        if change is not None:
            changes.append((at, change))
    hours = len(load) * STEP_S / 3600
    return Score(withheld_sum / max(wanted_sum, 1e-9), spare_sum / len(load), len(changes) / hours, longest), changes


def steady(use: float, minutes: float = 60, seed: int = 1) -> list[float]:
    """The same all the time, with the noise that real loads have."""
    chance = random.Random(seed)
    return [max(0.0, chance.gauss(use, use * 0.15)) for _ in range(int(minutes * 60 / STEP_S))]


def spiky(base: float, spike: float, every_s: float, length_s: float, minutes: float = 60) -> list[float]:
    """Little, and much of a sudden."""
    return [spike if (n * STEP_S) % every_s < length_s else base for n in range(int(minutes * 60 / STEP_S))]


def diurnal(peak: float, minutes: float = 24 * 60, seed: int = 2) -> list[float]:
    """A day: quiet at night, most in the afternoon, each request for itself."""
    chance = random.Random(seed)
    count = int(minutes * 60 / STEP_S)
    shape = [max(0.02, 0.5 - 0.5 * math.cos(2 * math.pi * n / count)) for n in range(count)]
    return [max(0.0, chance.gauss(peak * part, peak * part * 0.3)) for part in shape]


def random_walk(limit: float, minutes: float = 60, seed: int = 3) -> list[float]:
    """Jumps to anywhere at any time."""
    chance, value, result = random.Random(seed), 0.0, []
    for _ in range(int(minutes * 60 / STEP_S)):
        if chance.random() < 0.02:
            value = chance.random() ** 3 * limit
        result.append(max(0.0, value + chance.gauss(0, 0.02)))
    return result


def recorded(name: str) -> list[float]:
    """What was measured of a real PostgreSQL under a load without a ceiling; one figure a line, comments begin with #."""
    return [float(line) for line in (RECORDED / f"{name}.txt").read_text().splitlines() if line and not line.startswith("#")]
