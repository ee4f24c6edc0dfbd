"""A real Torpor for the tests that don't mind sharing one; those that kill it start their own."""

from collections.abc import Iterator

import pytest

from tests.support.attacks.kit import arm
from tests.support.attacks.stronghold import Stronghold, stronghold
from tests.support.attacks.watch import around_the_neighbour
from tests.support.faults import eventually, processes_of
from tests.support.server import MadeDatabase, Server
from torpor.base.processes import start_ticks


@pytest.fixture(scope="session")
def torpor() -> Iterator[Server]:
    """Shared by the tests of one worker. Databases freeze after a second and are never paged or stopped by themselves."""
    with Server(freeze_after_s=1, page_after_s="never", stop_after_s="never", warm_pool_size=2) as server:
        yield server
        assert "Traceback" not in server.log, server.log[-6000:]


@pytest.fixture(scope="session")
def escape() -> Iterator[Stronghold]:
    """Shared by the escape attempts of one worker."""
    with stronghold() as made:
        yield made


@pytest.fixture
def villain(escape: Stronghold) -> Iterator[MadeDatabase]:
    """A hostile database that is used up by one test: at its end it must go without a trace."""
    made = escape.server.create()
    arm(escape.server, made)
    yield made
    pids = processes_of(escape.server, made.id)
    with around_the_neighbour(escape):
        escape.server.call("DELETE", f"/v1/databases/{made.name}?force=true")
    eventually(lambda: all(start_ticks(pid) is None for pid in pids))
    assert not (escape.server.data_dir / "volumes" / made.id).exists()
    assert not (escape.server.data_dir / "run" / made.id).exists()
    assert not (escape.server.data_dir / "logs" / f"{made.id}.log").exists()
