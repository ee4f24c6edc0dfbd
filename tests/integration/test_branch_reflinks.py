"""Branches of an awake database on a pool with reflinks, where they cost it no checkpoint: whole, with exactly what was acknowledged."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.branching import acknowledged, branch, branch_and_check, check_prefix, connect, load, volume
from tests.support.faults import assert_nothing_half_made
from tests.support.pools import server_on
from tests.support.processes import postmaster_of

pytestmark = [pytest.mark.integration, pytest.mark.root]

_ROUNDS = 2
_AT_ONCE = 3
# Who writes more than that since the last checkpoint gets one first, and whoever copies meanwhile begins again, in backup mode.
_WAYS = """
import torpor.compute.snapshot as s
s._MOST_LOG_BYTES = 1 << 20
was = s._as_after_a_crash
async def told(*arguments):
    taken = await was(*arguments)
    print('WAY', 'as after a crash' if taken else 'in backup mode', flush=True)
    return taken
s._as_after_a_crash = told
"""


def in_haste(data: Path) -> bool:
    """What the processes of a compute see in their page (`storage/haste.py`)."""
    process = Path(f"/proc/{postmaster_of(data)}")
    page = next(line for line in (process / "maps").read_text().splitlines() if "torpor-haste" in line)
    with (process / "mem").open("rb") as memory:
        memory.seek(int(page.partition("-")[0], 16))
        return memory.read(1) != b"\0"


def test_every_branch_under_load_holds_a_prefix() -> None:
    """Nothing is as before the settling once it is there: PostgreSQL syncs again."""
    with server_on("xfs", 3000, freeze_after_s=60, page_after_s="never", stop_after_s="never") as torpor:
        torpor.stop()
        torpor.prelude = f"exec({_WAYS!r}); "
        torpor.start()
        shop = torpor.create("shop")
        with connect(shop.url) as connection:
            connection.execute("CREATE TABLE quiet AS SELECT 1")
        made = branch(torpor, "shop")
        assert "WAY as after a crash" in torpor.log
        assert not in_haste(volume(torpor, made) / "data")
        with load(shop) as inserters, ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda number: branch_and_check(torpor, shop, inserters, number == 3), range(_ROUNDS * _AT_ONCE)))
        with connect(shop.url) as connection:
            check_prefix(connection, acknowledged(inserters), acknowledged(inserters))
        assert_nothing_half_made(torpor)
        assert "Traceback" not in torpor.log, torpor.log[-6000:]
