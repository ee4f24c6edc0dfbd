"""Which tokens databases take: keys that are kept, rotated and unreachable; roles; sessions that end with what they began by."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.tokens import ISSUER, Signer, key_set
from torpor.base.fetching import FetchFailed
from torpor.base.tasks import TaskOwner
from torpor.catalog.catalog import Catalog
from torpor.catalog.tokens import TokenRecords
from torpor.control.keysets import AGAIN_AFTER_S, FRESH_FOR_S, GOOD_FOR_S, KeySets
from torpor.control.tokens import TokenControl
from torpor.model.database import Database, DatabaseState
from torpor.model.errors import InvalidRequest, Unavailable, WrongToken
from torpor.model.names import DatabaseId
from torpor.model.tokens import TokenRules, token_rules

URL = "https://auth.example.com/keys"
SHOP = Database(DatabaseId("dshop"), "shop", DatabaseState.READY, 18, 1000, 0.0)
ONE, TWO = Signer("k1", "EdDSA"), Signer("k2", "EdDSA")


class Clock:
    """Turned by hand; the time of day is the true one, as tokens are made by that."""

    now = 100.0

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, delay_s: float) -> None:
        raise AssertionError


class Issuer:
    """What the URL answers."""

    def __init__(self) -> None:
        self.text = key_set(ONE)
        self.asked = 0
        self.is_down = False

    async def fetch(self, url: str, limit_bytes: int) -> bytes:
        self.asked += 1
        await asyncio.sleep(0)
        if self.is_down:
            raise FetchFailed("it is down")
        return self.text.encode()


class Ending:
    farewell = b""

    def dismiss(self, farewell: bytes) -> None:
        self.farewell = farewell

    def when_ended(self, callback: object) -> None:
        pass


async def test_keys_are_kept_and_rotated() -> None:
    clock, issuer, tasks = Clock(), Issuer(), TaskOwner("test")
    sets = KeySets(issuer.fetch, clock, tasks)
    found = await asyncio.gather(*(sets.keys(URL) for _ in range(5)))
    assert (issuer.asked, {keys[0].id for keys in found}) == (1, {"k1"})
    issuer.text = key_set(TWO)
    assert [key.id for key in await sets.changed(URL)] == ["k1"], "not so soon again"
    clock.now += AGAIN_AFTER_S
    assert [key.id for key in await sets.changed(URL)] == ["k2"]
    # After a while in the background.
    issuer.text = key_set(ONE)
    clock.now += FRESH_FOR_S + 1
    assert [key.id for key in await sets.keys(URL)] == ["k2"]
    while issuer.asked < 3 or (await sets.keys(URL))[0].id != "k1":  # noqa: ASYNC110  # it has no word for that
        await asyncio.sleep(0)
    # An issuer that can't be reached is missed after an hour.
    issuer.is_down = True
    clock.now += GOOD_FOR_S - 1
    assert await sets.keys(URL)
    await asyncio.sleep(0.01)
    clock.now += AGAIN_AFTER_S
    with pytest.raises(Unavailable, match="it is down"):
        await sets.keys(URL)
    asked = issuer.asked
    with pytest.raises(Unavailable, match="it is down"):
        await sets.keys(URL)
    assert issuer.asked == asked, "strangers can't make us hammer"
    await tasks.stop()


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = Catalog.open(tmp_path / "catalog.sqlite")
    catalog.add_database(SHOP)
    return catalog


def rules(
    jwks: str | None = None, url: str | None = None, claim: str | None = "role", roles: tuple[str, ...] = ("web", "staff")
) -> TokenRules:
    return token_rules(ISSUER, "shop", claim, roles, url, jwks)


async def test_a_token_is_the_way_in(catalog: Catalog) -> None:
    tasks = TaskOwner("test")
    records = TokenRecords(catalog.connection)
    control = TokenControl(records, lambda _id: None, KeySets(Issuer().fetch, Clock(), tasks), Clock(), tasks)
    with pytest.raises(WrongToken, match="takes no tokens"):
        await control.admit(SHOP, ONE.token())
    assert control.show(SHOP.id).rules is None
    await control.replace(SHOP.id, rules(key_set(ONE)), "me")
    admission = await control.admit(SHOP, ONE.token({"name": "Zoë"}))
    assert admission.role == "web"
    assert b'"name":"Zo\\u00eb"' in admission.claims
    assert control.takes(SHOP, "staff")
    assert not control.takes(SHOP, "shop")
    claims: dict[str, Any]
    for claims in ({"role": "shop"}, {"role": None}, {"role": ["web"]}, {"role": {}}):
        with pytest.raises(WrongToken, match="no role that is admitted"):
            await control.admit(SHOP, ONE.token(claims))
    with pytest.raises(WrongToken, match="longer than"):
        await control.admit(SHOP, ONE.token({"x": "\x01" * 3_000}))
    with pytest.raises(WrongToken, match="isn't registered"):
        await control.admit(SHOP, TWO.token())
    # Kept, and read again; one role needs no claim.
    again = TokenControl(records, lambda _id: None, KeySets(Issuer().fetch, Clock(), tasks), Clock(), tasks)
    assert (await again.admit(SHOP, ONE.token())).role == "web"
    ending = Ending()
    assert again.begun(SHOP, ending, admission)
    await again.replace(SHOP.id, rules(url=URL, claim=None, roles=("web",)), "me")
    assert not again.begun(SHOP, ending, admission), "other rules"
    assert (await again.admit(SHOP, ONE.token({"role": None}))).role == "web"
    lasting = await again.admit(SHOP, ONE.token())
    assert again.begun(SHOP, ending, replace(lasting, until=time.time() + 0.02))
    while not ending.farewell:  # noqa: ASYNC110  # as above
        await asyncio.sleep(0.01)
    assert b"has expired" in ending.farewell
    await again.remove(SHOP.id, "me")
    assert TokenRecords(catalog.connection).all() == {}
    await tasks.stop()


async def test_keys_that_can_not_be_used(catalog: Catalog) -> None:
    tasks, issuer = TaskOwner("test"), Issuer()
    control = TokenControl(TokenRecords(catalog.connection), lambda _id: None, KeySets(issuer.fetch, Clock(), tasks), Clock(), tasks)
    issuer.is_down = True
    for wrong in (rules("{}"), rules('{"keys": []}'), rules("\ud800"), rules(url=URL)):
        with pytest.raises(InvalidRequest, match="key"):
            await control.replace(SHOP.id, wrong, "me")
    assert control.show(SHOP.id).rules is None
    await tasks.stop()


def test_rules_that_are_none() -> None:
    for args, why in (
        (("", None, None, ("web",), URL, None), "issuer"),
        ((ISSUER, "\n", None, ("web",), URL, None), "audience"),
        ((ISSUER, None, "r", (), URL, None), "roles"),
        ((ISSUER, None, None, ("a", "b"), URL, None), "claim"),
        ((ISSUER, None, None, ("pg_monitor",), URL, None), "can't log in"),
        ((ISSUER, None, None, ("torpor",), URL, None), "can't log in"),
        ((ISSUER, None, None, ("x" * 64,), URL, None), "63 bytes"),
        ((ISSUER, None, None, ("web",), URL, "{}"), "keys"),
        ((ISSUER, None, None, ("web",), None, None), "keys"),
        ((ISSUER, None, None, ("web",), None, "x" * 70_000), "larger"),
    ):
        with pytest.raises(InvalidRequest, match=why):
            token_rules(*args)
