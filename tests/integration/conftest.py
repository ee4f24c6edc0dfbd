"""A real Torpor for the tests that don't mind sharing one; those that kill it start their own."""

from collections.abc import Iterator

import pytest

from tests.support.attacks.stronghold import Stronghold, stronghold
from tests.support.server import Server


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
