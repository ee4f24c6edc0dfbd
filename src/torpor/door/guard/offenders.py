"""Who is refused most, and which of many refusals are worth a line in the log. Pure; bounded whatever comes.

A flood must cost neither memory nor disk: of many addresses only the heaviest are kept (the space-saving algorithm, on
counts that fade with a half-life of a minute), and of many alike lines only some are written, the next of which tells how many were not.
"""

import random
from collections import OrderedDict
from dataclasses import dataclass

_KEPT = 128
_LOOKED_AT = 8  # of them, for the lightest: all would cost more than the refusal itself
_HALF_LIFE_S = 60.0
_LINES_AT_ONCE = 20.0
_LINES_PER_S = 1.0
_ALL_LINES_AT_ONCE = 200.0
_ALL_LINES_PER_S = 50.0
_KEPT_BUDGETS = 1024


@dataclass(slots=True)
class Offender:
    """An address and one reason why it is refused. `count` is since it came among the heaviest; `target` is what it wanted last."""

    address: str
    reason: str
    target: str
    count: int
    last_at: float
    weight: float


class Offenders:
    """The heaviest of all whose clients were refused."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], Offender] = {}
        self._places: list[tuple[str, str]] = []
        self._chance = random.Random(0)  # noqa: S311  # decides which place a newcomer takes in a list for people

    def __repr__(self) -> str:
        return f"<Offenders {len(self._kept)}>"

    def note(self, address: str, reason: str, target: str, now: float) -> None:
        """One more refusal. A newcomer takes the place, and the weight, of the lightest of some."""
        found = self._kept.get((address, reason))
        if found is None:
            weight = 0.0
            if len(self._kept) < _KEPT:
                self._places.append((address, reason))
            else:
                some = (self._chance.randrange(_KEPT) for _ in range(_LOOKED_AT))
                weight, place = min((_faded(self._kept[self._places[place]], now), place) for place in some)
                del self._kept[self._places[place]]
                self._places[place] = (address, reason)
            found = self._kept[address, reason] = Offender(address, reason, target, 0, now, weight)
        found.weight = _faded(found, now) + 1
        found.count += 1
        found.last_at = now
        found.target = target

    def heaviest(self, limit: int, now: float) -> list[Offender]:
        """The heaviest first; those of whom nothing was heard for ten minutes are left out."""
        live = [one for one in self._kept.values() if now - one.last_at < 10 * _HALF_LIFE_S]
        return sorted(live, key=lambda one: (-_faded(one, now), one.address, one.reason))[:limit]


class LogBudget:
    """Which refusals get a line: 20 at once and one a second for an address, 200 and 50 in all."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, list[float]] = OrderedDict()
        self._all = [_ALL_LINES_AT_ONCE, 0.0]
        self._dropped = 0

    def line(self, address: str, now: float) -> int | None:
        """Whether to write a line now: None for no, else how many refusals (of all addresses) were not written since the last line."""
        own = self._kept.get(address)
        if own is None:
            if len(self._kept) >= _KEPT_BUDGETS:
                self._kept.popitem(last=False)
            own = self._kept[address] = [_LINES_AT_ONCE, now]
        self._kept.move_to_end(address)
        _refill(own, _LINES_PER_S, _LINES_AT_ONCE, now)
        _refill(self._all, _ALL_LINES_PER_S, _ALL_LINES_AT_ONCE, now)
        if own[0] < 1 or self._all[0] < 1:
            self._dropped += 1
            return None
        own[0] -= 1
        self._all[0] -= 1
        dropped, self._dropped = self._dropped, 0
        return dropped


def _faded(one: Offender, now: float) -> float:
    return float(one.weight * 0.5 ** ((now - one.last_at) / _HALF_LIFE_S))


def _refill(bucket: list[float], rate: float, capacity: float, now: float) -> None:
    bucket[0] = min(capacity, bucket[0] + max(0.0, now - bucket[1]) * rate)
    bucket[1] = now
