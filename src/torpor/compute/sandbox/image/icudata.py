"""Trims libicudata, by far the largest library, to what its users in the image can ask for. Pure.

ICU's data is one table of named items inside of a shared library that has nothing else. Debian's libxml2 brings it along (31 MB) for its
converters between encodings (5 MB); a PostgreSQL with ICU also collates, but formats no dates, currencies or units. Items that are kept
are kept byte by byte, so whoever finds one finds what ICU's makers put there. A file that isn't laid out as expected stays as it is.
"""

import re
import struct
from enum import StrEnum

from torpor.compute.sandbox.image import elf

_MAGIC = b"CmnD"
_MAGIC_AT = 12
_INDEX_ENTRY = struct.Struct("<II")
_ALIGNMENT = 16
_PAGE = 1 << 16  # the largest of AArch64, so that any kernel can map what comes behind


class IcuUse(StrEnum):
    """Who uses ICU in the image, and so what is kept."""

    CONVERTERS = "converters"  # libxml2 only: converters between encodings
    COLLATION = "collation"  # PostgreSQL itself: all but the names of currencies, units, zones, languages, regions, and text breaking


_KEPT = {
    IcuUse.CONVERTERS: re.compile(r"[^/]+/[^/]+\.cnv|[^/]+/cnvalias\.icu"),
    IcuUse.COLLATION: re.compile(r"[^/]+/(?!(zone|unit|curr|lang|region|translit|rbnf|brkitr)/).+"),
}


def trim(content: bytes, use: IcuUse) -> bytes:
    """The library with only the items that this use needs; unchanged when it is laid out otherwise."""
    segments = elf.loaded_segments(content)
    start = content.find(_MAGIC, 0, 1 << 20) - _MAGIC_AT
    holder = next((segment for segment in segments if segment.offset <= start < segment.offset + segment.size), None)
    # The table must be what its segment begins with, for nothing else may lie behind it that somebody needs.
    if start < 0 or holder is None or start != holder.offset:
        return content
    try:
        table = _trim_table(content[start : start + holder.size], _KEPT[use])
    except (struct.error, ValueError, UnicodeDecodeError):
        return content
    return elf.with_smaller_segment(content, holder, table, _PAGE)


def _trim_table(table: bytes, kept: re.Pattern[str]) -> bytes:
    (header_size,) = struct.unpack_from("<H", table)
    (count,) = struct.unpack_from("<I", table, header_size)
    places = [_INDEX_ENTRY.unpack_from(table, header_size + 4 + index * _INDEX_ENTRY.size) for index in range(count)]
    names = [table[header_size + name : table.index(b"\0", header_size + name)] for name, _ in places]
    ends = [*(data for _, data in places[1:]), len(table) - header_size]
    items = [
        (name, table[header_size + data : header_size + end])
        for name, (_, data), end in zip(names, places, ends, strict=True)
        if kept.fullmatch(name.decode())
    ]
    index, strings, data = bytearray(), bytearray(), bytearray()
    strings_at = 4 + len(items) * _INDEX_ENTRY.size
    data_at = _aligned(strings_at + sum(len(name) + 1 for name, _ in items))
    for name, item in items:
        index += _INDEX_ENTRY.pack(strings_at + len(strings), data_at + len(data))
        strings += name + b"\0"
        data += item.ljust(_aligned(len(item)), b"\0")
    head = struct.pack("<I", len(items)) + index + strings
    return table[:header_size] + head.ljust(data_at, b"\0") + data


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
