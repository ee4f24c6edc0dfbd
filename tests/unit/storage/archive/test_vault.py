"""Keys and seals: what opens, and that nothing else does."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torpor.model.errors import HistoryCorrupt, KeyFileUnusable
from torpor.model.names import DatabaseId
from torpor.storage.archive.vault import MasterKey, Vault

SHOP, OTHER = DatabaseId("d" + "a" * 12), DatabaseId("d" + "b" * 12)
KEY = bytes(range(32))


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=3000) | st.binary(max_size=40).map(lambda data: data * 500), st.text(max_size=40))
def test_what_was_sealed_opens(data: bytes, name: str) -> None:
    vault = Vault(KEY)
    sealed = vault.seal(name, data)
    assert vault.open(name, sealed) == data
    assert len(sealed) <= len(data) + 32


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=200), st.data())
def test_nothing_else_opens(data: bytes, choices: st.DataObject) -> None:
    vault = Vault(KEY)
    sealed = bytearray(vault.seal("a", data))
    place = choices.draw(st.integers(0, len(sealed) - 1))
    sealed[place] ^= 1 << choices.draw(st.integers(0, 7))
    with pytest.raises(HistoryCorrupt):
        vault.open("a", bytes(sealed))


@pytest.mark.parametrize("cut", [0, 3, 16, 20, -1])
def test_what_is_cut_doesnt_open(cut: int) -> None:
    with pytest.raises(HistoryCorrupt):
        Vault(KEY).open("a", Vault(KEY).seal("a", b"something")[:cut])


def test_objects_cant_be_exchanged() -> None:
    with pytest.raises(HistoryCorrupt):
        Vault(KEY).open("b", Vault(KEY).seal("a", b"x"))
    with pytest.raises(HistoryCorrupt):
        Vault(os.urandom(32)).open("a", Vault(KEY).seal("a", b"x"))


def test_a_seal_tells_nothing_of_the_content() -> None:
    text = b"the password of the shop" * 1000
    sealed = Vault(KEY).seal("a", text)
    assert b"shop" not in sealed
    assert sealed != Vault(KEY).seal("a", text)
    assert len(sealed) < 200


def test_digests_are_a_databases_own() -> None:
    one, other = Vault(KEY), Vault(os.urandom(32))
    assert one.digest(b"x") == one.digest(b"x") != one.digest(b"y")
    assert one.digest(b"x") != other.digest(b"x")
    assert len(one.digest(b"x")) == 64


def test_a_master_key_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    first = MasterKey.load_or_make(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert MasterKey.load_or_make(path).fingerprint == first.fingerprint
    assert [entry.name for entry in tmp_path.iterdir()] == ["master.key"]
    assert path.read_text().strip() not in repr(first)


def test_a_data_key_belongs_to_its_database(tmp_path: Path) -> None:
    master = MasterKey.load_or_make(tmp_path / "master.key")
    wrapped = master.new_data_key(SHOP)
    sealed = master.vault(SHOP, wrapped).seal("a", b"x")
    assert MasterKey.load_or_make(tmp_path / "master.key").vault(SHOP, wrapped).open("a", sealed) == b"x"
    for wrong in (wrapped[:-1], b"", wrapped[:3], bytes(63), master.new_data_key(OTHER)):
        with pytest.raises(KeyFileUnusable):
            master.vault(SHOP, wrong)
    with pytest.raises(KeyFileUnusable, match="put back the key file"):
        MasterKey.load_or_make(tmp_path / "another.key").vault(SHOP, wrapped)


def test_a_key_file_that_cant_be_used(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    for content in (b"", b"short", b"\xff" * 64, b"z" * 64):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(KeyFileUnusable):
            MasterKey.load_or_make(path)
    path.write_text("00" * 32)
    path.chmod(0o640)
    with pytest.raises(KeyFileUnusable, match="chmod 600"):
        MasterKey.load_or_make(path)
    with pytest.raises(KeyFileUnusable, match="No such file"):
        MasterKey.load_or_make(tmp_path / "nowhere" / "master.key")
