"""When a volume counts as full, and how soon it is looked at again."""

import pytest

from torpor.control.disk import Fullness, fullness, look_again_in
from torpor.model.size import GIB, MIB

SIZE = 10 * GIB


@pytest.mark.parametrize(
    ("used", "before", "after"),
    [
        (0, Fullness.ROOM, Fullness.ROOM),
        (SIZE - 1, Fullness.ROOM, Fullness.ROOM),
        (SIZE, Fullness.ROOM, Fullness.FULL),
        (SIZE - 1, Fullness.FULL, Fullness.FULL),  # ends clearly below only
        (int(SIZE * 0.94), Fullness.FULL, Fullness.ROOM),
        (int(SIZE * 1.1), Fullness.FULL, Fullness.FULL),
        (int(SIZE * 1.1) + 65 * MIB, Fullness.FULL, Fullness.OVER),
        (int(SIZE * 1.1), Fullness.OVER, Fullness.FULL),
        (int(SIZE * 1.25) + 257 * MIB, Fullness.OVER, Fullness.WAY_OVER),
    ],
)
def test_fullness(used: int, before: Fullness, after: Fullness) -> None:
    assert fullness(used, SIZE, before) is after


def test_what_the_kernel_holds_may_have_a_log_beyond_its_size() -> None:
    assert fullness(SIZE + GIB, SIZE, is_held=True) is Fullness.FULL
    assert fullness(int(SIZE * 1.15) + GIB, SIZE, is_held=True) is Fullness.OVER
    assert fullness(SIZE * 2, SIZE, is_held=True) is Fullness.WAY_OVER


def test_the_next_look_comes_before_it_could_be_full() -> None:
    assert look_again_in(0, SIZE) == 15
    assert look_again_in(SIZE - GIB, SIZE) == pytest.approx(5.12)
    assert look_again_in(SIZE, SIZE) == look_again_in(2 * SIZE, SIZE) == 1
