"""The audit log: append-only, chained, bounded, crash-safe."""

import asyncio
import gzip
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.base.clock import SystemClock
from torpor.catalog.audit import AuditRecords
from torpor.catalog.catalog import Catalog
from torpor.control import audit as module
from torpor.control.audit import Audit
from torpor.model.audit import GENESIS, Anchor, AuditFilter, AuditRecord, AuditResult, ChainBroken, clean, seal, verify
from torpor.model.errors import InvalidRequest, PoolFull
from torpor.model.workspace import WorkspaceId

ALL = AuditFilter()
ACME = WorkspaceId("wacmeacmeacme")
BEGINNING = Anchor(0, GENESIS)


class Ledger:
    """An audit log whose catalog can be opened again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.open()

    def open(self) -> None:
        self.catalog = Catalog.open(self.directory / "catalog.sqlite")
        self.records = AuditRecords(self.catalog.connection)
        self.audit = Audit(self.records, SystemClock(), self.directory / "audit")

    def again(self) -> None:
        self.catalog.close()
        self.open()

    def fill(self, count: int, workspace: WorkspaceId | None = None) -> None:
        with self.catalog.transaction():
            for number in range(count):
                self.audit.record("host", "database.create", f"db{number}", workspace=workspace)

    def all(self) -> list[AuditRecord]:
        found: list[AuditRecord] = []
        after: int | None = 0
        while after is not None:
            page = self.audit.page(ALL, 1000, after=after)
            found += page.records
            after = page.next
        return found


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path)
    yield ledger
    ledger.catalog.close()


# -- the chain


def chain(count: int) -> list[AuditRecord]:
    records: list[AuditRecord] = []
    anchor = BEGINNING
    for number in range(count):
        record = seal(
            anchor, at=number + 0.125, actor="host", actor_name="", address="", action="x", target=f"t{number}", workspace=None,
            result=AuditResult.DONE, detail="", begun=None,
        )  # fmt: skip
        records.append(record)
        anchor = Anchor(record.number, record.hash)
    return records


CHAIN = chain(12)


@given(st.data())
def test_any_change_is_found(data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(CHAIN) - 1))
    name = data.draw(st.sampled_from(sorted(asdict(CHAIN[0]))))
    value: object = data.draw(st.one_of(st.text(max_size=5), st.integers(0, 99), st.none(), st.floats(allow_nan=False)))
    if value == getattr(CHAIN[position], name):
        return
    changed = [*CHAIN]
    changed[position] = replace(CHAIN[position], **{name: value})  # type: ignore[arg-type]  # whatever somebody writes there
    with pytest.raises(ChainBroken):
        verify(changed, BEGINNING)


@given(st.lists(st.integers(0, len(CHAIN) - 1), max_size=14))
def test_any_other_order_is_found(order: list[int]) -> None:
    chosen = [CHAIN[position] for position in order]
    if order == list(range(len(order))):
        assert verify(chosen, BEGINNING).number == len(order)
        return
    with pytest.raises(ChainBroken):
        verify(chosen, BEGINNING)


def test_a_chain_goes_on_from_an_anchor() -> None:
    middle = verify(CHAIN[:5], BEGINNING)
    assert verify(CHAIN[5:], middle) == verify(CHAIN, BEGINNING)
    with pytest.raises(ChainBroken):
        verify(CHAIN[5:], Anchor(5, GENESIS))


@given(st.text(max_size=300), st.integers(2, 200))
def test_texts_are_cleaned(text: str, limit: int) -> None:
    shown = clean(text, limit)
    assert len(shown) <= limit and shown.isprintable()


# -- writing


def test_records_outlive_a_restart_and_chain(ledger: Ledger) -> None:
    ledger.audit.record("host", "database.create", "shop", workspace=ACME, address="::1", detail="x")
    ledger.again()
    ledger.audit.record("kabc", "key.revoke", "kdef", actor_name="ci", result=AuditResult.REFUSED)
    records = ledger.all()
    assert [record.number for record in records] == [1, 2]
    assert verify(records, BEGINNING) == ledger.records.head()


def test_what_strangers_choose_is_made_fit_to_be_read(ledger: Ledger) -> None:
    ledger.audit.record("host", "database.delete", "\x1b[2J\u202e\ud800" + "x" * 5000, detail="\r\n" * 5000, address="\0")
    (record,) = ledger.all()
    assert record.target.startswith("?[2J??") and len(record.target) <= 120
    assert record.detail.isprintable() and len(record.detail) <= 1000 and record.address == "?"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET actor = 'nobody'",
        "UPDATE audit SET number = number + 10",
        "DELETE FROM audit",
        "DELETE FROM audit WHERE number = 1",
        "INSERT OR REPLACE INTO audit SELECT * FROM audit WHERE number = 2",
        "REPLACE INTO audit SELECT number, at, 'x', '', '', '', '', NULL, 'done', '', NULL, previous, hash FROM audit",
        "INSERT INTO audit SELECT 99, at, 'x', '', '', '', '', NULL, 'done', '', NULL, previous, hash FROM audit LIMIT 1",
        "UPDATE OR REPLACE audit SET number = 2 WHERE number = 3",
        "UPDATE audit_anchor SET number = 3",
        "UPDATE audit_anchor SET number = 3, hash = 'x'",
        "UPDATE audit_anchor SET number = -1",
        "DELETE FROM audit_anchor",
        "INSERT OR REPLACE INTO audit_anchor (only, number, hash) VALUES (1, 3, 'x')",
    ],
)
def test_the_table_itself_is_append_only(ledger: Ledger, statement: str) -> None:
    ledger.fill(3)
    before = ledger.all()
    with pytest.raises(apsw.Error):
        ledger.catalog.connection.execute(statement)
    assert ledger.all() == before


def test_a_full_disk_refuses(ledger: Ledger) -> None:
    pages = ledger.catalog.connection.pragma("page_count")
    ledger.catalog.connection.pragma("max_page_count", pages)
    with pytest.raises(PoolFull):
        for _ in range(1000):
            ledger.audit.record("host", "database.create", "x" * 120, detail="y" * 1000)
    count = len(ledger.all())
    ledger.catalog.connection.pragma("max_page_count", pages + 1000)
    assert ledger.audit.record("host", "database.create", "x") == count + 1
    verify(ledger.all(), BEGINNING)


def test_what_a_transaction_takes_back_leaves_no_gap(ledger: Ledger) -> None:
    ledger.fill(2)
    with pytest.raises(ZeroDivisionError), ledger.catalog.transaction():
        ledger.audit.record("host", "x", "y")
        raise ZeroDivisionError
    ledger.fill(1)
    assert verify(ledger.all(), BEGINNING).number == 3


def test_what_was_under_way_is_settled_by_the_next_start(ledger: Ledger) -> None:
    first = ledger.audit.record("kabc", "database.create", "a", workspace=ACME, result=AuditResult.BEGUN, actor_name="ci", address="::1")
    second = ledger.audit.record("host", "database.delete", "b", result=AuditResult.BEGUN)
    ledger.audit.record("host", "database.delete", "b", begun=second)
    ledger.again()
    assert ledger.audit.settle() == 1
    assert ledger.audit.settle() == 0
    last = ledger.all()[-1]
    assert (last.begun, last.result, last.actor, last.workspace, last.address) == (first, AuditResult.INTERRUPTED, "kabc", ACME, "::1")


def test_a_full_disk_keeps_nobody_from_starting(ledger: Ledger) -> None:
    ledger.audit.record("host", "database.delete", "b", result=AuditResult.BEGUN)
    ledger.catalog.connection.pragma("query_only", True)
    assert ledger.audit.settle() == 0
    ledger.catalog.connection.pragma("query_only", False)
    assert ledger.audit.settle() == 1


_WRITER = """
import sys
from pathlib import Path
from torpor.base.clock import SystemClock
from torpor.catalog.audit import AuditRecords
from torpor.catalog.catalog import Catalog
from torpor.control.audit import Audit
from torpor.model.audit import AuditResult
catalog = Catalog.open(Path(sys.argv[1]) / "catalog.sqlite")
audit = Audit(AuditRecords(catalog.connection), SystemClock(), Path(sys.argv[1]) / "audit")
audit.settle()
while True:
    begun = audit.record("host", "database.create", "x" * 100, result=AuditResult.BEGUN)
    print(begun, flush=True)
    print(audit.record("host", "database.create", "x" * 100, begun=begun), flush=True)
"""


@pytest.mark.fault
def test_kill_9_between_and_inside_writes_loses_nothing_that_was_told(ledger: Ledger) -> None:
    ledger.catalog.close()
    told = 0
    for attempt in range(6):
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(ledger.directory)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.013 * attempt)
        os.kill(writer.pid, signal.SIGKILL)
        numbers = [int(line) for line in writer.stdout.read().splitlines() if line]
        writer.stdout.close()
        writer.wait()
        told = max([told, *numbers])
    ledger.open()
    ledger.audit.settle()
    records = ledger.all()
    assert verify(records, BEGINNING).number >= told > 0
    settled = {record.begun for record in records if record.begun is not None}
    assert settled == {record.number for record in records if record.result is AuditResult.BEGUN}
    assert sum(record.result is AuditResult.INTERRUPTED for record in records) <= 6


# -- reading


def test_pages_go_back_and_forth(ledger: Ledger) -> None:
    ledger.fill(25)
    newest = ledger.audit.page(ALL, 10)
    assert [record.number for record in newest.records] == list(range(25, 15, -1))
    older = ledger.audit.page(ALL, 20, before=newest.next)
    assert ([record.number for record in older.records], older.next) == (list(range(15, 0, -1)), None)
    assert [record.number for record in ledger.audit.page(ALL, 10, after=20).records] == [21, 22, 23, 24, 25]
    assert ledger.audit.page(ALL, 10, after=25) == replace(newest, records=(), next=None)
    for limit, before, after in ((0, None, None), (1001, None, None), (1, 1, 1)):
        with pytest.raises(InvalidRequest):
            ledger.audit.page(ALL, limit, before, after)


def test_filters(ledger: Ledger) -> None:
    ledger.audit.record("host", "key.create", "a", result=AuditResult.BEGUN)
    ledger.audit.record("kabc", "key.revoke", "b", actor_name="ci", workspace=ACME)
    ledger.audit.record("kabc", "keys", "c")
    ledger.audit.record("host", "database.create", "%")

    def targets(wanted: AuditFilter) -> list[str]:
        return [record.target for record in ledger.audit.page(wanted, 100, after=0).records]

    assert targets(AuditFilter(action="key")) == ["a", "b"]
    assert targets(AuditFilter(action="key.create")) == ["a"]
    assert targets(AuditFilter(action="%")) == []
    assert targets(AuditFilter(target="%")) == ["%"]
    assert targets(AuditFilter(actor="ci")) == ["b"] == targets(AuditFilter(workspace=ACME))
    assert targets(AuditFilter(actor="kabc")) == ["b", "c"]
    assert targets(AuditFilter(outcomes=True)) == ["b", "c", "%"]
    assert targets(AuditFilter(since=time.time() + 10)) == [] == targets(AuditFilter(until=time.time() - 10))


def test_a_page_looks_at_a_bounded_number_of_records(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW", 10)
    ledger.fill(3, ACME)
    ledger.fill(40)
    found: list[AuditRecord] = []
    before, pages = None, 0
    while True:
        page = ledger.audit.page(AuditFilter(ACME), 100, before=before)
        found += page.records
        pages += 1
        if (before := page.next) is None:
            break
    assert ([record.number for record in found], pages) == ([3, 2, 1], 5)
    after: int | None = 0
    upward: list[int] = []
    while after is not None:
        page = ledger.audit.page(AuditFilter(target="db39"), 1, after=after)
        upward += [record.number for record in page.records]
        after = page.next
    assert upward == [43]


def test_those_who_see_one_workspace_see_no_hashes(ledger: Ledger) -> None:
    ledger.fill(1, ACME)
    ledger.fill(1)
    page = ledger.audit.page(AuditFilter(ACME), 10)
    assert (page.anchor, page.head, len(page.records)) == (None, None, 1)
    assert page.records[0].hash == page.records[0].previous == ""


# -- files


def test_old_records_go_to_a_file_and_the_chain_goes_on(ledger: Ledger) -> None:
    ledger.fill(1300)
    whole = ledger.all()
    path = asyncio.run(ledger.audit.archive(1000))
    assert path is not None and stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    moved = [AuditRecord(**json.loads(line)) for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert [asdict(record) for record in moved] == [asdict(record) for record in whole[:1000]]
    ledger.again()
    assert ledger.all() == whole[1000:]
    anchor = verify(moved, BEGINNING)
    assert anchor == ledger.records.anchor()
    ledger.fill(1)
    assert verify(ledger.all(), anchor).number == 1301
    assert ledger.audit.page(ALL, 1000, before=1005).next is None
    assert asyncio.run(ledger.audit.archive(10_000)) is not None
    assert asyncio.run(ledger.audit.archive(10)) is None
    assert ledger.audit.record("host", "x", "y") == 1302


def test_a_crash_between_file_and_catalog_is_done_again(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.fill(20)

    def crash(anchor: Anchor) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ledger.records, "move_anchor", crash)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(ledger.audit.archive(10))
    ledger.again()
    assert len(ledger.all()) == 20
    asyncio.run(ledger.audit.archive(10))
    assert [path.name for path in (ledger.directory / "audit").iterdir()] == ["audit-000000000001-000000000010.jsonl.gz"]
    assert [record.number for record in ledger.all()] == list(range(11, 21))


def test_the_catalog_stays_bounded(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 100)
    monkeypatch.setattr(module, "CHUNK", 10)
    monkeypatch.setattr(module, "_LOOK_EVERY_S", 0)
    ledger.fill(137)

    async def main() -> None:
        task = asyncio.create_task(ledger.audit.keep_bounded())
        async with asyncio.timeout(30):
            while len(ledger.all()) >= 110:  # noqa: ASYNC110  # nobody else tells
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.02)
        task.cancel()

    asyncio.run(main())
    assert len(ledger.all()) == 107
    assert len(list((ledger.directory / "audit").iterdir())) == 3


def test_files_are_kept_until_they_are_too_old_and_nothing_else_is_touched(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_EVERY_S", 0)
    ledger.fill(30)
    old, young = (asyncio.run(ledger.audit.archive(10)) for _ in range(2))
    assert old is not None and young is not None
    notes = old.with_name("notes.txt")
    notes.touch()
    for path in (old, notes):
        os.utime(path, (1, 1))

    async def look(audit: Audit, until: Callable[[], bool]) -> None:
        task = asyncio.create_task(audit.keep_bounded())
        async with asyncio.timeout(30):
            while not until():  # noqa: ASYNC110  # nobody else tells
                await asyncio.sleep(0.01)
        task.cancel()

    rounds = iter(range(10))
    asyncio.run(look(ledger.audit, lambda: next(rounds) == 9))
    assert old.exists(), "by default nothing is removed"
    keeping = Audit(ledger.records, SystemClock(), old.parent, keep_files_s=86_400)
    asyncio.run(look(keeping, lambda: len(ledger.all()) == 11))
    assert [path.exists() for path in (old, young, notes)] == [False, True, True]
    assert (ledger.all()[-1].action, ledger.all()[-1].target) == ("audit.file_removed", old.name)
    assert verify(ledger.all(), ledger.records.anchor()).number == 31, "the chain doesn't need them"
