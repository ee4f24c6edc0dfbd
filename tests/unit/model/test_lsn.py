"""Positions in the log."""

import pytest

from torpor.model.lsn import format_lsn, is_segment_size, parse_lsn, pieces, segment_name

MB = 1 << 20


@pytest.mark.parametrize(
    ("text", "lsn"), [("0/0", 0), ("0/16B3748", 0x16B3748), ("16/B374D848", 0x16B374D848), ("ff/FFFFFFFF", 0xFFFFFFFFFF)]
)
def test_as_postgresql_writes_them(text: str, lsn: int) -> None:
    assert parse_lsn(text) == lsn
    assert parse_lsn(format_lsn(lsn)) == lsn


@pytest.mark.parametrize("text", ["", "0", "0/", "/0", "0/123456789", "0/0; DROP", "g/0", "-1/0", "0/16B3748\n0/0"])
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="position in the log"):
        parse_lsn(text)


def test_names_of_files() -> None:
    assert segment_name(1, 0x1700000, MB) == "000000010000000000000017"
    assert segment_name(1, 0x17FFFFF, MB) == "000000010000000000000017"
    assert segment_name(2, 0x1_0000_0000, MB) == "000000020000000100000000"
    assert segment_name(0xA, 0x3_FFF0_0000, MB) == "0000000A0000000300000FFF"
    assert segment_name(1, 0x3_FFF0_0000, 16 * MB) == "0000000100000003000000FF"


def test_a_stretch_is_cut_where_files_begin() -> None:
    assert list(pieces(10, 10, MB)) == []
    assert list(pieces(10, 20, MB)) == [(10, 10)]
    assert list(pieces(MB - 1, 2 * MB + 1, MB)) == [(MB - 1, 1), (MB, MB), (2 * MB, 1)]
    assert list(pieces(MB, 2 * MB, MB)) == [(MB, MB)]


def test_sizes_of_files() -> None:
    assert is_segment_size(MB) and is_segment_size(1 << 30)
    assert not any(is_segment_size(size) for size in (0, -MB, MB - 1, 3 * MB, 1 << 31))
