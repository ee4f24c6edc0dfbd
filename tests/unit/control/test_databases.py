"""The use cases: their checks, paging, and that nothing stays of what fails. Sleepers only pretend to run."""

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.support.fleet import House, Sleeper, make_database
from torpor.base.clock import SystemClock
from torpor.compute.compute import Compute
from torpor.compute.lifecycle import ComputeState
from torpor.control.databases import TICKET_TTL_S, Databases
from torpor.control.provisioning import Provisioner
from torpor.control.scaling import Scaling
from torpor.control.views import HostFacts, Viewer
from torpor.insights.wakes import WakeLog
from torpor.model.database import DatabaseState, Role
from torpor.model.errors import (
    Conflict,
    DatabaseExists,
    DatabaseInUse,
    DatabaseNotFound,
    InvalidName,
    InvalidRequest,
    PoolFull,
    TorporError,
    Unavailable,
)
from torpor.model.names import DatabaseId
from torpor.model.sleep import SleepOverrides, Tier
from torpor.model.traffic import Traffic
from torpor.pgwire.scram import make_verifier, parse_verifier

NONE = SleepOverrides()


class Desk:
    """The use cases around a house."""

    def __init__(self, house: House, public_host: str = "db.example") -> None:
        self.house = house
        self.forgotten: list[DatabaseId] = []
        self.warm: list[Compute] = []
        self.template_failure: Exception | None = None
        facts = HostFacts("1.0", "0.0.0.0:7432", public_host, 7432, "http://localhost:7480", str(house.root), 1.0, "cgroups", ())
        wakes = WakeLog(house.catalog.save_wakes, house.catalog.wakes, {})
        viewer = Viewer(
            lambda: facts,
            house.fleet,
            wakes,
            house.volumes,
            house.clock,
            lambda: house.memory,
            lambda id: Traffic(),
            lambda: self.warm,
            lambda id: "default",
            Scaling(lambda: house.fleet.in_tier(Tier.AWAKE), house.clock, house.tasks, 3.0),
        )
        self.provisioner = Provisioner(house.catalog, house.volumes, house.fleet, self._template, house.clock, 310_000)
        majors = {17: 0, 18: 0}
        self.databases = Databases(
            house.catalog,
            house.fleet,
            self.provisioner,
            viewer,
            18,
            lambda: majors,
            house.around.policy,
            house.around.size,
            self.forgotten.append,
        )

    async def _template(self, major: int) -> Path:
        if self.template_failure is not None:
            raise self.template_failure
        return self.house.root / "missing"

    def add(self, n: int) -> Sleeper:
        sleeper = self.house.add_sleeper(n)
        self.house.catalog.add_database(sleeper.database)
        return sleeper


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    house = House(tmp_path, SystemClock())
    yield Desk(house)
    await house.close()


@pytest.mark.parametrize("name", ["", "Shop", "1shop", "-", "shop-", "a" * 64, "shop.other", "postgres", "pg-x", "a b", "a\0", "ä"])
async def test_bad_names_are_refused(desk: Desk, name: str) -> None:
    with pytest.raises(InvalidName):
        await desk.databases.create(name, None, NONE)


async def test_majors_that_are_not_installed(desk: Desk) -> None:
    with pytest.raises(InvalidRequest, match="installed: 17, 18") as caught:
        await desk.databases.create("shop", 16, NONE)
    assert "torpor postgres install 16" in caught.value.hint


@pytest.mark.parametrize(
    "overrides",
    [
        SleepOverrides(freeze_after_s=0),
        SleepOverrides(page_after_s=-1.0),
        SleepOverrides(stop_after_s=1e12),
        SleepOverrides(freeze_after_s="often"),
        SleepOverrides(freeze_after_s=float("nan")),
    ],
)
async def test_idle_times_out_of_range(desk: Desk, overrides: SleepOverrides) -> None:
    desk.add(1)
    with pytest.raises(InvalidRequest):
        await desk.databases.create("shop", None, overrides)
    with pytest.raises(InvalidRequest):
        await desk.databases.update("db1", overrides)
    assert desk.house.fleet.compute("db1").database.overrides == NONE


async def test_a_name_that_is_taken(desk: Desk) -> None:
    desk.add(1)
    with pytest.raises(DatabaseExists):
        await desk.databases.create("db1", None, NONE)
    assert len(desk.house.catalog.databases()) == 1


@pytest.mark.parametrize("failure", [None, PoolFull("full")])
async def test_a_create_that_fails_leaves_nothing(desk: Desk, failure: TorporError | None) -> None:
    desk.template_failure = failure
    with pytest.raises(Unavailable):
        await desk.databases.create("shop", None, NONE)
    assert desk.house.catalog.databases() == []
    assert os.listdir(desk.house.volumes.root) == []
    assert desk.house.fleet.find("shop") is None
    assert not desk.provisioner.is_busy()


async def test_paging_shows_each_once_in_order(desk: Desk) -> None:
    for n in range(250):
        desk.house.add_sleeper(n)
    seen: list[str] = []
    after, pages = None, 0
    while True:
        page = desk.databases.list(after, 40, None, None)
        seen += [view.name for view in page.databases]
        pages += 1
        if page.next is None:
            break
        after = page.next
    assert seen == sorted(f"db{n}" for n in range(250))
    assert pages == 7
    assert desk.databases.list("zzz", 10, None, None).databases == ()
    assert desk.databases.list(None, 250, None, None).next is None


async def test_a_page_can_be_narrowed(desk: Desk) -> None:
    for n in range(20):
        sleeper = desk.house.add_sleeper(n)
        if n % 5 == 0:
            sleeper.freeze()
    warm = Sleeper(replace(desk.house.add_sleeper(99).database, name=None, state=DatabaseState.WARM), desk.house)
    warm.freeze()
    frozen = desk.databases.list(None, 100, Tier.FROZEN, None)
    assert [view.name for view in frozen.databases] == ["db0", "db10", "db15", "db5"], "warm ones are nobody's"
    assert [view.name for view in desk.databases.list(None, 2, Tier.FROZEN, "5").databases] == ["db15", "db5"]
    assert [view.name for view in desk.databases.list("db18", 100, None, "1").databases] == ["db19"]


@pytest.mark.parametrize("limit", [0, -1, 1001])
async def test_page_sizes_are_limited(desk: Desk, limit: int) -> None:
    with pytest.raises(InvalidRequest, match="limit"):
        desk.databases.list(None, limit, None, None)


async def test_what_does_not_exist(desk: Desk) -> None:
    databases = desk.databases
    for call in (databases.get, databases.log_file, lambda name: databases.wakes(name, 5)):
        with pytest.raises(DatabaseNotFound, match="nope"):
            call("nope")
    for coroutine in (
        databases.detail("nope"),
        databases.update("nope", NONE),
        databases.delete("nope", True),
        databases.sleep("nope", None, False),
        databases.wake("nope"),
        databases.reset_password("nope"),
        databases.ticket("nope"),
    ):
        with pytest.raises(DatabaseNotFound, match="nope"):
            await coroutine


async def test_new_idle_times_are_kept(desk: Desk) -> None:
    desk.add(1)
    detail = await desk.databases.update("db1", SleepOverrides(freeze_after_s=60, stop_after_s="never"))
    assert (detail.policy.freeze_after_s, detail.policy.page_after_s, detail.policy.stop_after_s) == (60, 30, None)
    assert desk.house.catalog.databases()[0].overrides == detail.overrides
    detail = await desk.databases.update("db1", NONE)
    assert detail.policy == desk.house.around.policy


async def test_delete(desk: Desk) -> None:
    sleeper = desk.add(1)
    (desk.house.volumes.data(sleeper.database.id)).mkdir(parents=True)
    sleeper.open_connections = 2
    with pytest.raises(DatabaseInUse, match="2 open connections"):
        await desk.databases.delete("db1", force=False)
    assert desk.house.fleet.find("db1") is not None
    await desk.databases.delete("db1", force=True)
    assert desk.house.fleet.find("db1") is None
    assert desk.house.catalog.databases() == []
    assert desk.house.volumes.ids() == set()
    assert desk.forgotten == [sleeper.database.id]
    with pytest.raises(DatabaseNotFound):
        await desk.databases.delete("db1", force=True)


async def test_sessions_that_are_just_ending_are_in_nobodys_way(desk: Desk) -> None:
    for n in (1, 2):
        sleeper = desk.add(n)
        sleeper.freeze()
        sleeper.open_connections = 2
        sleeper.while_ending = partial(setattr, sleeper, "open_connections", 0)
    await desk.databases.delete("db1", force=False)
    assert desk.house.fleet.find("db1") is None
    assert (await desk.databases.sleep("db2", Tier.STOPPED, False)).tier is Tier.STOPPED


async def test_a_delete_that_waited_takes_no_other_database(desk: Desk) -> None:
    """While sessions ended, somebody else deleted it, and gave the name to another."""
    old = desk.add(1)

    def replace_it() -> None:
        desk.house.catalog.remove_database(old.database.id)
        desk.house.fleet.remove(old.database.id)
        Sleeper(replace(make_database(2), name="db1"), desk.house)

    old.while_ending = replace_it
    with pytest.raises(DatabaseNotFound):
        await desk.databases.delete("db1", force=False)
    assert desk.databases.get("db1").tier is Tier.STOPPED


async def test_going_to_sleep(desk: Desk) -> None:
    sleeper = desk.add(1)
    sleeper.freeze()
    with pytest.raises(InvalidRequest, match="no sleep tier"):
        await desk.databases.sleep("db1", Tier.AWAKE, False)
    assert (await desk.databases.sleep("db1", Tier.FROZEN, False)).tier is Tier.FROZEN
    assert (await desk.databases.sleep("db1", None, False)).tier is Tier.PAGED
    assert (await desk.databases.sleep("db1", Tier.FROZEN, False)).tier is Tier.PAGED, "it is deeper already"
    sleeper.open_connections = 1
    with pytest.raises(DatabaseInUse):
        await desk.databases.sleep("db1", Tier.STOPPED, False)
    sleeper.open_connections = 0
    assert (await desk.databases.sleep("db1", Tier.STOPPED, False)).tier is Tier.STOPPED


async def test_a_host_that_cant_page(tmp_path: Path) -> None:
    house = House(tmp_path, SystemClock(), can_reclaim=False)
    desk = Desk(house)
    desk.add(1).freeze()
    with pytest.raises(Conflict, match="can't page"):
        await desk.databases.sleep("db1", Tier.PAGED, False)
    assert (await desk.databases.sleep("db1", None, False)).tier is Tier.FROZEN
    await house.close()


async def test_a_ticket_wakes_nothing_and_ends(desk: Desk) -> None:
    sleeper = desk.add(1)
    desk.house.catalog.save_roles(sleeper.database.id, [Role("db1", make_verifier("lasting"), True)])
    ticket = await desk.databases.ticket("db1")
    assert ticket.role == "db1"
    assert ticket.url == f"postgresql://db1:{ticket.password}@db.example:7432/db1"
    assert ticket.expires_at == pytest.approx(desk.house.clock.time() + TICKET_TTL_S, abs=5)
    assert sleeper.state is ComputeState.STOPPED
    role = await desk.house.fleet.role(sleeper.database, "db1")
    assert role is not None
    assert role.verifier is not None
    (accepted,) = role.tickets
    lasting, brief = parse_verifier(role.verifier), parse_verifier(accepted)
    assert lasting is not None
    assert brief is not None
    assert (brief.salt, brief.iterations) == (lasting.salt, lasting.iterations)
    assert accepted == make_verifier(ticket.password, lasting.salt, lasting.iterations)


@pytest.mark.parametrize("verifier", [None, "md5" + "0" * 32])
async def test_no_ticket_without_a_scram_password(desk: Desk, verifier: str | None) -> None:
    sleeper = desk.add(1)
    desk.house.catalog.save_roles(sleeper.database.id, [Role("db1", verifier, True)])
    with pytest.raises(Conflict, match="no SCRAM password"):
        await desk.databases.ticket("db1")


async def test_an_ipv6_host_in_urls(tmp_path: Path) -> None:
    house = House(tmp_path, SystemClock())
    desk = Desk(house, "2001:db8::1")
    desk.add(1)
    assert desk.databases.get("db1").url == "postgresql://db1@[2001:db8::1]:7432/db1"
    await house.close()


async def test_the_host_at_a_glance(desk: Desk) -> None:
    for n in range(3):
        desk.add(n)
    sleeper = desk.add(3)
    sleeper.open_connections = 4
    sleeper.freeze()
    desk.warm.append(Sleeper(replace(make_database(5), name=None, state=DatabaseState.WARM), desk.house))
    desk.house.show(desk.warm[0], ComputeState.FROZEN)
    host = desk.databases.host()
    assert (host.databases, host.connections, host.warm) == (4, 4, 1)
    assert (host.tiers[Tier.FROZEN], host.tiers[Tier.STOPPED]) == (1, 3), "warm ones are nobody's"
    assert host.pool == desk.house.volumes.description
