"""Positions in PostgreSQL's write-ahead log, and the names of the files that they lie in. Pure."""

import re
from collections.abc import Iterator

PAGE_BYTES = 8192
"""Of the log; each begins with a header that says where it belongs."""

_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")
_LOWEST_SEGMENT, _HIGHEST_SEGMENT = 1 << 20, 1 << 30


def parse_lsn(text: str) -> int:
    """The position that PostgreSQL writes as `16/B374D848`. Raises ValueError."""
    if (match := _LSN.fullmatch(text.strip())) is None:
        raise ValueError(f"{text[:40]!r} is no position in the log: they look like 16/B374D848")
    return int(match[1], 16) << 32 | int(match[2], 16)


def format_lsn(lsn: int) -> str:
    """As PostgreSQL writes it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def is_segment_size(size: int) -> bool:
    """Whether a cluster can have files of the log of that size."""
    return _LOWEST_SEGMENT <= size <= _HIGHEST_SEGMENT and size & (size - 1) == 0


def segment_name(timeline: int, lsn: int, segment_bytes: int) -> str:
    """The file of pg_wal that holds the byte at `lsn`."""
    number, per_id = lsn // segment_bytes, (1 << 32) // segment_bytes
    return f"{timeline:08X}{number // per_id:08X}{number % per_id:08X}"


def pieces(start: int, end: int, segment_bytes: int) -> Iterator[tuple[int, int]]:
    """The stretch from `start` to `end`, cut where files begin: position and length of each piece."""
    while start < end:
        piece_end = min(end, (start // segment_bytes + 1) * segment_bytes)
        yield start, piece_end - start
        start = piece_end
