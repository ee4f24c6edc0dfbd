"""Receipts of requests with idempotency keys: they outlive whoever wrote them, are one at a time, and don't grow without end."""

import os
from pathlib import Path

import pytest

from torpor.gateway.http import receipts as module
from torpor.gateway.http.credentials import Target
from torpor.gateway.http.execution import Transaction
from torpor.gateway.http.failures import Failure
from torpor.gateway.http.receipts import Receipt, Receipts, fingerprint

SHOP, OTHER = Target("u", "p", "shop", "h"), Target("v", "p", "shop", "h")
RECEIPT = Receipt("asked", Transaction("77", "00000001"), b'{"rows":\n[]}')


@pytest.fixture
def receipts(tmp_path: Path) -> Receipts:
    made = Receipts(tmp_path / "receipts")
    made.load()
    return made


async def test_it_outlives_who_wrote_it(receipts: Receipts, tmp_path: Path) -> None:
    async with receipts.running(SHOP, "k") as name:
        assert await receipts.find(name) is None
        await receipts.keep(name, RECEIPT)
    (tmp_path / "receipts" / ".half").write_text("x")
    later = Receipts(tmp_path / "receipts")
    later.load()
    assert await later.find(name) == RECEIPT
    assert sorted(os.listdir(tmp_path / "receipts")) == [name]
    async with later.running(OTHER, "k") as others:
        assert others != name
        assert await later.find(others) is None
    await later.drop(name)
    await later.drop(name)
    assert os.listdir(tmp_path / "receipts") == []


async def test_of_two_at_a_time_the_second_is_refused(receipts: Receipts) -> None:
    async with receipts.running(SHOP, "k"):
        with pytest.raises(Failure, match="is running"):
            async with receipts.running(SHOP, "k"):
                pass
        async with receipts.running(OTHER, "k"):
            pass
    async with receipts.running(SHOP, "k"):
        pass


async def test_the_oldest_of_a_database_give_way(receipts: Receipts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "MOST_OF_ONE", 2)
    names = []
    for key in "abc":
        async with receipts.running(SHOP, key) as name:
            await receipts.keep(name, RECEIPT)
            names.append(name)
    assert [await receipts.find(name) for name in names] == [None, RECEIPT, RECEIPT]
    assert sorted(os.listdir(tmp_path / "receipts")) == sorted(names[1:])


async def test_a_directory_that_is_gone_is_told(receipts: Receipts, tmp_path: Path) -> None:
    (tmp_path / "receipts").rmdir()
    with pytest.raises(Failure, match="can't be recorded") as refused:
        await receipts.keep("x-y", RECEIPT)
    assert refused.value.status == 503


def test_what_a_request_is() -> None:
    plain = fingerprint(b"x", {"host": "a", "neon-array-mode": "true"})
    assert plain == fingerprint(b"x", {"host": "b", "neon-array-mode": "true"})
    assert plain != fingerprint(b"x", {"neon-array-mode": "false"})
    assert plain != fingerprint(b"y", {"neon-array-mode": "true"})
