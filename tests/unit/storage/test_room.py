"""How full a pool is, how soon it is looked at again, and what one that is full gets. Pure."""

import pytest

from torpor.model.size import GIB, MIB
from torpor.storage.quotas import data_limit, stopping_point
from torpor.storage.room import PoolLevel, Room


@pytest.mark.parametrize(
    ("total", "kept"), [(MIB, MIB // 4), (300 * MIB, 64 * MIB), (20 * GIB, GIB), (100 * GIB, GIB), (10_000 * GIB, GIB)]
)
def test_how_much_is_kept_free(total: int, kept: int) -> None:
    assert Room(0, total).kept_bytes == pytest.approx(kept, rel=0.07)


@pytest.mark.parametrize(
    ("share", "before", "level"),
    [
        (1.01, PoolLevel.ROOM, PoolLevel.ROOM),
        (0.99, PoolLevel.ROOM, PoolLevel.LOW),
        (1.01, PoolLevel.LOW, PoolLevel.LOW),  # ends clearly above only
        (1.24, PoolLevel.OUT, PoolLevel.LOW),
        (1.26, PoolLevel.OUT, PoolLevel.ROOM),
        (0.49, PoolLevel.LOW, PoolLevel.SHORT),
        (0.24, PoolLevel.ROOM, PoolLevel.OUT),
        (0, PoolLevel.ROOM, PoolLevel.OUT),
    ],
)
def test_levels(share: float, before: PoolLevel, level: PoolLevel) -> None:
    kept = Room(0, 20 * GIB).kept_bytes
    assert Room(int(kept * share), 20 * GIB).level(before) is level


def test_the_next_look_comes_before_the_next_line_could_be_crossed() -> None:
    kept = Room(0, 20 * GIB).kept_bytes
    assert Room(20 * GIB, 20 * GIB).look_again_s == 1
    assert Room(kept + GIB // 2, 20 * GIB).look_again_s == pytest.approx(0.5)
    assert Room(kept + 1, 20 * GIB).look_again_s == 0.05
    assert Room(kept // 2 + GIB // 4, 20 * GIB).look_again_s == pytest.approx(0.25)
    assert Room(0, 20 * GIB).look_again_s == 1


SIZE = 64 * MIB


@pytest.mark.parametrize(
    ("used", "limit", "is_full", "wanted"),
    [
        (0, None, False, SIZE),
        (0, SIZE, True, SIZE),  # the log made it full: the data has room
        (SIZE, SIZE, True, SIZE + 16 * MIB),
        (SIZE - 1, SIZE, False, SIZE + 16 * MIB),  # it was not seen yet that it is full
        (SIZE + 2 * MIB, SIZE + 16 * MIB, True, SIZE + 16 * MIB),
        (SIZE + 16 * MIB, SIZE + 16 * MIB, True, SIZE + 32 * MIB),
        (SIZE * 10, SIZE + 16 * MIB, True, stopping_point(SIZE)),
        (10 * MIB, SIZE + 16 * MIB, False, SIZE),  # room again
        (10 * MIB, SIZE // 2, False, SIZE),  # grown
        (SIZE * 2, SIZE * 4, False, SIZE * 2 + 16 * MIB),  # made smaller than it is
    ],
)
def test_what_data_is_held_to(used: int, limit: int | None, is_full: bool, wanted: int) -> None:
    assert data_limit(SIZE, used, limit, is_full) == wanted
