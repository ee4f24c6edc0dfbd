"""Just enough of the ELF format: what a program or library needs to be loaded, and the part of it that is loaded. Pure.

Files are only read, never run. 64-bit little-endian, which x86-64 and AArch64 are; anything else counts as no ELF file.
"""

import mmap
import struct
from dataclasses import dataclass

Bytes = bytes | mmap.mmap

MAGIC = b"\x7fELF"
_IDENT = MAGIC + b"\x02\x01"  # 64 bit, little-endian
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_DYNAMIC = struct.Struct("<qQ")
_SECTION_TABLE = struct.Struct("<Q")  # at 0x28 of the header
_SECTION_COUNTS = struct.Struct("<HHH")  # at 0x3A

_LOAD, _DYNAMIC_SEGMENT, _INTERPRETER = 1, 2, 3
_NEEDED, _STRTAB, _SONAME, _RPATH, _RUNPATH = 1, 5, 14, 15, 29


@dataclass(frozen=True, slots=True)
class Elf:
    """What the dynamic loader would do for a file. `search` is its own list of directories, `$ORIGIN` unexpanded."""

    machine: int
    interpreter: str
    needed: tuple[str, ...]
    soname: str
    search: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a file that is mapped; `size` is in the file, `header` where its own description is."""

    kind: int
    offset: int
    address: int
    size: int
    header: int


def parse(content: Bytes) -> Elf | None:
    """Read a whole file, or the mapping of one. None for what isn't a loadable ELF file of this kind, or is damaged."""
    try:
        return _parse(content)
    except (struct.error, ValueError, IndexError):
        return None


def loaded_part(content: bytes) -> bytes:
    """The file without what the kernel and the loader never read: symbol tables, debug information and the table of sections.

    The same bytes for anything that isn't an ELF file. PostgreSQL 18's `postgres` goes from 11.3 MB to 10.2.
    """
    if parse(content) is None:
        return content
    end = max(segment.offset + segment.size for segment in _segments(content))
    if end >= len(content):
        return content
    bare = bytearray(content[:end])
    _forget_sections(bare)
    return bytes(bare)


def loaded_segments(content: bytes) -> list[Segment]:
    """What the loader maps; nothing for what isn't an ELF file."""
    return [segment for segment in _segments(content) if segment.kind == _LOAD] if parse(content) is not None else []


def with_smaller_segment(content: bytes, segment: Segment, replacement: bytes, page: int) -> bytes:
    """The file with shorter contents for one segment, and what follows moved up in the file by whole pages. No address changes.

    The same bytes when nothing is gained, or when another segment begins inside of this one.
    """
    end = segment.offset + segment.size
    gain = (segment.size - len(replacement)) // page * page
    others = [other for other in _segments(content) if other.header != segment.header and other.size]
    if gain <= 0 or any(segment.offset <= other.offset < end for other in others):
        return content
    result = bytearray(content[: segment.offset] + replacement)
    result += bytes(end - gain - len(result)) + content[end:]
    # p_filesz and p_memsz of this one, p_offset of those behind it.
    struct.pack_into("<QQ", result, segment.header + 0x20, len(replacement), len(replacement))
    for other in others:
        if other.offset >= end:
            struct.pack_into("<Q", result, other.header + 0x08, other.offset - gain)
    _forget_sections(result)
    return loaded_part(bytes(result))


def _forget_sections(content: bytearray) -> None:
    _SECTION_TABLE.pack_into(content, 0x28, 0)
    _SECTION_COUNTS.pack_into(content, 0x3A, 0, 0, 0)


def _parse(content: Bytes) -> Elf | None:
    if content[: len(_IDENT)] != _IDENT:
        return None
    machine = int(_HEADER.unpack_from(content)[2])
    segments = _segments(content)
    if not segments:
        return None
    interpreter = ""
    entries: list[tuple[int, int]] = []
    for segment in segments:
        if segment.offset + segment.size > len(content):
            return None
        if segment.kind == _INTERPRETER:
            interpreter = content[segment.offset : segment.offset + segment.size].rstrip(b"\0").decode()
        elif segment.kind == _DYNAMIC_SEGMENT:
            for position in range(segment.offset, segment.offset + segment.size, _DYNAMIC.size):
                tag, value = _DYNAMIC.unpack_from(content, position)
                if tag == 0:
                    break
                entries.append((tag, value))
    strings = next((_offset(segments, value) for tag, value in entries if tag == _STRTAB), None)

    def text(value: int) -> str:
        if strings is None:
            raise ValueError("names without a table of names")
        start = strings + value
        end = content.find(b"\0", start)
        if end < 0:
            raise ValueError("a name without an end")
        return content[start:end].decode()

    def texts(wanted: int) -> tuple[str, ...]:
        return tuple(text(value) for tag, value in entries if tag == wanted)

    search = texts(_RUNPATH) or texts(_RPATH)
    return Elf(
        machine=machine,
        interpreter=interpreter,
        needed=texts(_NEEDED),
        soname=next(iter(texts(_SONAME)), ""),
        search=tuple(part for paths in search for part in paths.split(":") if part),
    )


def _segments(content: Bytes) -> list[Segment]:
    header = _HEADER.unpack_from(content)
    table, size, count = int(header[5]), int(header[9]), int(header[10])
    if size != _SEGMENT.size or table + count * size > len(content):
        return []
    found = []
    for index in range(count):
        kind, _, offset, address, _, in_file, _, _ = _SEGMENT.unpack_from(content, table + index * size)
        found.append(Segment(kind, offset, address, in_file, table + index * size))
    return found


def _offset(segments: list[Segment], address: int) -> int:
    for segment in segments:
        if segment.kind == _LOAD and segment.address <= address < segment.address + segment.size:
            return segment.offset + address - segment.address
    raise ValueError("an address outside of the file")
