"""What sizes may be, and how a database's own goes over the daemon's."""

import pytest

from torpor.model.errors import InvalidRequest
from torpor.model.size import GIB, MIB, Size, SizeOverrides

USUAL = Size()


def test_own_values_go_over_the_usual_ones() -> None:
    assert SizeOverrides().apply(USUAL) is USUAL
    own = SizeOverrides(0.5, 4.0, 256 * MIB, 2 * GIB, 500, GIB).apply(USUAL)
    assert own == Size(0.5, 4.0, 256 * MIB, 2 * GIB, 500, GIB)
    assert own.processes == 564


@pytest.mark.parametrize(
    ("own", "cpu"), [(SizeOverrides(max_cpu=0.1), (0.1, 0.1)), (SizeOverrides(min_cpu=3), (3, 3)), (SizeOverrides(max_cpu=1), (0.25, 1))]
)
def test_the_inherited_end_of_a_range_gives_way(own: SizeOverrides, cpu: tuple[float, float]) -> None:
    size = own.apply(USUAL)
    assert (size.min_cpu, size.max_cpu) == cpu


@pytest.mark.parametrize(
    ("own", "named"),
    [
        (SizeOverrides(min_cpu=2, max_cpu=1), "min_cpu (2) is more than max_cpu (1)"),
        (SizeOverrides(max_cpu=0.01), "max_cpu must be between 0.05 and 1024, not 0.01"),
        (SizeOverrides(max_cpu=float("nan")), "max_cpu"),
        (SizeOverrides(max_memory_bytes=1000), "max_memory_bytes must be between 67108864 and"),
        (SizeOverrides(min_memory_bytes=2 * GIB, max_memory_bytes=GIB), "min_memory_bytes"),
        (SizeOverrides(connections=2), "connections must be between 5 and 10000, not 2"),
        (SizeOverrides(disk_bytes=1), "disk_bytes"),
    ],
)
def test_what_can_not_be_is_named(own: SizeOverrides, named: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        own.apply(USUAL)
    assert named in refusal.value.message
