"""What counters say, whatever their file is made to hold."""

import os
import struct
from pathlib import Path

import pytest

from torpor.gateway.cache.writes import FILE_BYTES, WORDS, Writes, pick, word_of


@pytest.mark.parametrize("count", [0, 1, 4, 5, 40])
def test_read_and_pick_say_the_same(tmp_path: Path, count: int) -> None:
    path = tmp_path / "writes"
    path.write_bytes(struct.pack(f"={WORDS}Q", *range(WORDS)))
    writes = Writes(os.open(path, os.O_RDONLY))
    oids = [16_384 + 977 * number for number in range(count)]
    assert writes.read(oids) == pick(writes.snapshot(), oids) == (0, *(word_of(oid) for oid in oids))
    assert all(1 <= word_of(oid) < WORDS for oid in (0, 1, WORDS - 1, WORDS, 2**32 - 1))
    writes.close()
    writes.close()


@pytest.mark.parametrize("content", [b"", b"short", bytes(FILE_BYTES - 1)])
def test_what_cannot_be_read_is_like_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "writes"
    path.write_bytes(content)
    writes = Writes(os.open(path, os.O_RDONLY))
    far = [WORDS - 2]
    for oids in (far, far * 9):
        assert writes.read(oids) != writes.read(oids)
        assert pick(writes.snapshot(), oids) != writes.read(oids)
    writes.close()
    assert writes.read([1]) != writes.read([1])
