"""Operations on one database at the same time: each is done or clearly refused, and nothing is lost or left behind.

`make soak` does so with every pair of them (`bench/at_once.py`).
"""

import itertools
from collections.abc import Iterator

import pytest

from tests.support.at_once import OPERATIONS, check, run, subject
from tests.support.branching import connect
from tests.support.histories import server_with_history
from tests.support.server import Server

pytestmark = [pytest.mark.fault]

_OTHERS = [name for name in OPERATIONS if name != "rm"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with server_with_history(freeze_after_s=60, page_after_s="never", stop_after_s="never") as (server, _):
        shop = server.create("shop")
        with connect(shop.url) as connection:
            connection.execute("CREATE TABLE things AS SELECT n, 'parent' AS what FROM generate_series(1, 5) AS n")
        yield server


@pytest.mark.parametrize(
    ("names", "apart_s"),
    [(_OTHERS, 0.0), (_OTHERS[::-1], 0.03), ([*_OTHERS, "rm"], 0.05), (["archive", "branch", "archive", "backup", "size", "rm"], 0.2)],
    ids=["all", "all the other way round", "and a removal", "around an archive"],
)
def test_at_once(server: Server, names: list[str], apart_s: float) -> None:
    one = subject(server, "shop")
    run(one, names, apart_s)
    print(sorted(one.done), one.refused)
    check(one, {"shop"})


def test_pairs(server: Server) -> None:
    """Those that have a volume in hand, two by two and each with itself."""
    for pair in itertools.combinations_with_replacement(("reset", "archive", "restore"), 2):
        one = subject(server, "shop")
        run(one, pair, 0.0)
        assert one.done, one.refused
        check(one, {"shop"})
