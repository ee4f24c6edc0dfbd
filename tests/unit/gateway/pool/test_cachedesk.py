"""What Torpor says of the cache, at the worker's end; and the option that is none of PostgreSQL's."""

import os
from pathlib import Path

import pytest

from tests.support.pooling import House
from torpor.gateway.cache.writes import FILE_BYTES
from torpor.gateway.pool.cachedesk import CacheDesk, take_option
from torpor.gateway.pool.engine import Pool
from torpor.gateway.pool.messages import ToWorker
from torpor.gateway.pool.values import Limits


def test_what_is_said_before_a_database_has_a_pool_is_kept_for_it(tmp_path: Path) -> None:
    path = tmp_path / "writes"
    path.write_bytes(bytes(FILE_BYTES))
    house, desk = House(), CacheDesk(1 << 20)
    pool = Pool("shop", house, Limits(), lambda: 0.0, desk.store)
    first, second = (os.open(path, os.O_RDONLY) for _ in range(2))
    on = {"op": ToWorker.CACHE, "database": "d1", "rules": [["0123456789abcdef", "ttl=60"]], "on_write": True}
    assert desk.obey(on, -1) is None
    assert desk.obey({"op": ToWorker.WRITES, "database": "d1"}, first) is None
    assert desk.obey({"op": ToWorker.PURGE, "database": "d1", "ticket": 1, "by": "all", "values": []}, -1) == 0
    desk.add("d1", pool)
    assert pool.cares and pool.caching.on_write
    desk.obey({"op": ToWorker.WRITES, "database": "d1"}, second)
    with pytest.raises(OSError):
        os.fstat(first)
    assert desk.obey({"op": ToWorker.PURGE, "database": "d1", "ticket": 1, "by": "tag", "values": ["x"]}, -1) == 0
    desk.obey(on | {"rules": [], "on_write": False}, -1)
    assert not pool.cares and not pool.caching.on_write
    with pytest.raises(OSError):
        os.fstat(second)


def test_descriptors_are_closed_whatever_comes(tmp_path: Path) -> None:
    desk = CacheDesk(1 << 20)
    fds = [os.open(tmp_path, os.O_RDONLY) for _ in range(4)]
    desk.obey({"op": ToWorker.CACHE, "database": "d1", "rules": [], "on_write": True}, fds[0])
    desk.obey({"op": ToWorker.WRITES, "database": "d1"}, fds[1])
    desk.obey({"op": ToWorker.WRITES, "database": "d1"}, fds[2])
    desk.obey({"op": ToWorker.CACHE, "database": "d1", "rules": [], "on_write": False}, fds[3])
    for fd in fds:
        with pytest.raises(OSError):
            os.fstat(fd)


@pytest.mark.parametrize(
    ("options", "kept", "said"),
    [
        ("-c torpor.cache=ttl=60", "", "ttl=60"),
        (r"-c work_mem=3MB -c torpor.cache=ttl=60\ swr=5 -c geqo=off", "-c work_mem=3MB -c geqo=off", "ttl=60 swr=5"),
        ("-ctorpor.cache=ttl=1 --work_mem=3MB", "--work_mem=3MB", "ttl=1"),
        (r"--torpor.cache=a\\b -c x.y=a\ b", r"-c x.y=a\ b", r"a\b"),
        ("-c torpor.cached=1", "-c torpor.cached=1", None),
        ("-c x=torpor.cache=5", "-c x=torpor.cache=5", None),
        ("-c", "-c", None),
        ("", "", None),
    ],
)
def test_the_option_of_the_startup_message(options: str, kept: str, said: str | None) -> None:
    found, words = take_option([["options", options], ["search_path", "x"]])
    assert words == said
    assert dict(found).get("options", "") == kept
    assert dict(found)["search_path"] == "x"
