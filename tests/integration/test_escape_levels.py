"""The attempts of test_escape_host.py and test_escape_calls.py at the weaker sandbox levels, those that are promised there, too."""

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from tests.integration import test_escape_calls as calls
from tests.integration import test_escape_host as host
from tests.integration.test_serve import UserServer
from tests.support.attacks.kit import Attacker, hostile
from tests.support.attacks.stronghold import Stronghold
from tests.support.server import Server

pytestmark = [pytest.mark.root]


@pytest.fixture(params=["no_user_namespace", "shared_user"], scope="module")
def weaker(request: pytest.FixtureRequest) -> Iterator[Stronghold]:
    """A Torpor on a host that gives no more than that level. Its owners are no superusers there, so they are made ones from outside."""
    settings: dict[str, Any] = {"freeze_after_s": 300, "page_after_s": "never", "stop_after_s": "never"}
    server = Server(**settings) if request.param == "no_user_namespace" else UserServer(**settings)
    server.allow_only(request.param)
    with server:
        neighbour = server.create("neighbour")
        with psycopg.connect(neighbour.url, autocommit=True) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
        made = Stronghold(server, hostile(server, "villain"), neighbour)
        assert server.view("villain")["sandbox"].startswith(request.param)
        yield made
        assert "Traceback" not in server.log, server.log[-6000:]


@pytest.mark.parametrize(
    "attempt",
    [
        host.test_files_of_the_host_are_not_there, host.test_links_in_the_volume_lead_nowhere_outside,
        host.test_no_network_is_there,
        host.test_sockets_of_the_host_cannot_be_connected_to, host.test_backend_has_nothing_but_its_own,
        host.test_other_processes_are_neither_seen_nor_reached,
    ],
)  # fmt: skip
def test_of_the_host(weaker: Stronghold, attempt: Callable[[Stronghold, Attacker], None]) -> None:
    with weaker.attacker() as attacker:
        attempt(weaker, attacker)


@pytest.mark.parametrize("path", ["/", "/usr/bin", "/conf", "/torpor"])
def test_nothing_outside_of_the_volume_can_be_written(weaker: Stronghold, path: str) -> None:
    with weaker.attacker() as attacker:
        host.test_nothing_outside_of_the_volume_can_be_written(attacker, path)


@pytest.mark.parametrize(
    "attempt",
    [
        calls.test_promised_refusals, calls.test_every_other_system_call_does_not_exist, calls.test_nobody_is_traced,
        calls.test_root_of_the_sandbox_cannot_be_remounted, calls.test_other_interfaces_of_the_kernel_end_the_process,
        calls.test_personality_stays, calls.test_terminal_input_cannot_be_forged, host.test_programs_with_the_set_user_bit_give_nothing,
        host.test_what_is_seen_is_postgresql_and_nothing_of_the_host,
    ],
)  # fmt: skip
def test_of_system_calls(weaker: Stronghold, attempt: Callable[[Attacker], None]) -> None:
    with weaker.attacker() as attacker:
        attempt(attacker)


@pytest.mark.parametrize("kind", sorted(calls.CLONE_NAMESPACES))
def test_no_new_namespaces(weaker: Stronghold, kind: str) -> None:
    with weaker.attacker() as attacker:
        calls.test_no_new_namespaces(attacker, kind)
