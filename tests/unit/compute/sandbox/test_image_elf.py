"""Reading ELF files, taking away what is never loaded, and trimming ICU's data: on this host's own files and on hand-made ones."""

import os
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.compute.sandbox.image import elf
from torpor.compute.sandbox.image.icudata import IcuUse, trim

_SHELL = Path(os.path.realpath("/bin/sh"))
_HEAD = _SHELL.read_bytes()[:20_000]


def test_a_program_says_what_it_needs() -> None:
    found = elf.parse(_SHELL.read_bytes())
    assert found is not None
    assert "libc.so.6" in found.needed
    assert Path(found.interpreter).exists()
    assert not found.soname


def test_a_library_says_its_name() -> None:
    loader = elf.parse(_SHELL.read_bytes())
    assert loader is not None
    found = elf.parse(Path(loader.interpreter).read_bytes())
    assert found is not None
    assert found.soname == Path(loader.interpreter).name
    assert not found.needed


@pytest.mark.parametrize(
    "content", [b"", b"#!/bin/sh\n", b"\x7fELF", b"\x7fELF\x02\x01", b"\x7fELF\x02\x01" + bytes(200), b"\x7fELF\x01\x01" + bytes(200)]
)
def test_anything_else_is_none(content: bytes) -> None:
    assert elf.parse(content) is None
    assert elf.loaded_part(content) == content
    assert trim(content, IcuUse.CONVERTERS) == content


@given(st.data())
def test_damaged_files_are_no_trouble(data: st.DataObject) -> None:
    content = bytearray(_HEAD)
    for _ in range(data.draw(st.integers(1, 20))):
        content[data.draw(st.integers(0, 1200))] = data.draw(st.integers(0, 255))
    size = data.draw(st.integers(0, len(content)))
    elf.parse(bytes(content[:size]))
    elf.loaded_part(bytes(content[:size]))


def test_what_is_loaded_still_runs(tmp_path: Path) -> None:
    content = _SHELL.read_bytes()
    bare = elf.loaded_part(content + b"symbols that nobody reads" * 1000)
    assert len(bare) <= len(content)
    assert elf.loaded_part(bare) == bare
    assert elf.parse(bare) == elf.parse(content)
    program = tmp_path / "sh"
    program.write_bytes(bare)
    program.chmod(0o755)
    assert subprocess.run([program, "-c", "echo alive"], capture_output=True, text=True, check=True).stdout == "alive\n"


def _icu_table(items: Mapping[str, bytes]) -> bytes:
    header = struct.pack("<HBB", 32, 0xDA, 0x27) + bytes(8) + b"CmnD" + bytes(16)
    names_at = 4 + 8 * len(items)
    data_at = -(-(names_at + sum(len(name) + 1 for name in items)) // 16) * 16
    index, names, data = b"", b"", b""
    for name, item in items.items():
        index += struct.pack("<II", names_at + len(names), data_at + len(data))
        names += name.encode() + b"\0"
        data += item
    return header + (struct.pack("<I", len(items)) + index + names).ljust(data_at, b"\0") + data


def _library(table: bytes, tail: bytes) -> bytes:
    """Headers in one segment, the table in the next, and one behind it, as linkers lay out libicudata."""
    page = 0x1000
    after = 2 * page + -(-len(table) // page) * page
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 3, 62, 1, 0, 64, 0, 0, 64, 56, 3, 64, 0, 0)
    segments = b"".join(
        struct.pack("<IIQQQQQQ", 1, 4, offset, offset, offset, size, size, page)
        for offset, size in ((0, 64 + 3 * 56), (2 * page, len(table)), (after, len(tail)))
    )
    return ((header + segments).ljust(2 * page, b"\0") + table).ljust(after, b"\0") + tail


def _items(table: bytes) -> dict[str, bytes]:
    """As ICU would read them: each until the next begins."""
    (count,) = struct.unpack_from("<I", table, 32)
    places = [struct.unpack_from("<II", table, 36 + 8 * number) for number in range(count)]
    ends = [*(data for _, data in places[1:]), len(table) - 32]
    names = [table[32 + name : table.index(b"\0", 32 + name)].decode() for name, _ in places]
    return {name: table[32 + data : 32 + end] for name, (_, data), end in zip(names, places, ends, strict=True)}


_ITEMS = {
    "icudt72l/brkitr/thaidict.dict": b"d" * 400_000,
    "icudt72l/cnvalias.icu": b"alias" * 50,
    "icudt72l/coll/ucadata.icu": b"ucadata" * 999,
    "icudt72l/curr/de.res": b"Mark" * 30_000,
    "icudt72l/de.res": b"deutsch" * 77,
    "icudt72l/ibm-1047.cnv": b"ebcdic" * 1234,
}


@pytest.mark.parametrize(
    ("use", "kept"),
    [
        (IcuUse.CONVERTERS, ["icudt72l/cnvalias.icu", "icudt72l/ibm-1047.cnv"]),
        (IcuUse.COLLATION, ["icudt72l/cnvalias.icu", "icudt72l/coll/ucadata.icu", "icudt72l/de.res", "icudt72l/ibm-1047.cnv"]),
    ],
)
def test_icu_keeps_what_is_asked_for(use: IcuUse, kept: list[str]) -> None:
    items = {name: item.ljust(-(-len(item) // 16) * 16, b"\0") for name, item in _ITEMS.items()}
    before = _library(_icu_table(items), b"the last segment")
    after = trim(before, use)
    assert len(after) < len(before) - 400_000
    old, new = elf.loaded_segments(before), elf.loaded_segments(after)
    assert [segment.address for segment in new] == [segment.address for segment in old]
    # A page of memory shows the same bytes of the file as before only if both are shifted alike.
    assert all((segment.offset - segment.address) % 0x10000 == 0 for segment in new)
    assert after[new[2].offset :][: new[2].size] == b"the last segment"
    table = after[new[1].offset : new[1].offset + new[1].size]
    assert _items(table) == {name: items[name] for name in kept}


def test_a_library_laid_out_otherwise_stays_as_it_is() -> None:
    table = _icu_table(_ITEMS)
    for content in (
        _library(b"something before it" + table, b"tail"),
        _library(table[:100], b"tail"),
        _library(table.replace(b"\0icudt72l/de.res", b"\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), b"tail"),
        _library(table.replace(b"CmnD", b"Cmn?"), b"tail"),
    ):
        assert trim(content, IcuUse.CONVERTERS) == content
