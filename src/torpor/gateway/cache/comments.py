"""What the text of a statement says by itself: the words of the comment in front of it, and whether it can be a read at all. Pure.

Comments come from anybody. Only the first one counts, only if it begins the text, and only its first kilobyte is looked at. One that
doesn't speak of `ttl`, `swr` or `tags` is a comment like any other; one that does, but not as it should, is bad: the statement runs as
if it had said nothing.
"""

import re
from functools import lru_cache

from torpor.model.cachewords import MAX_WORDS_BYTES, Words, read_words

BAD = Words(-1)
"""Words that can't be used: their ttl is below 0. Whether the client wants to be told is understood all the same."""
_BAD_TOLD = Words(-1, status=True)

_SPACE = b" \t\r\n\f\v"
_BEGINS = frozenset((b"/", b" ", b"\t", b"\r", b"\n", b"\f", b"\v"))
_HEAD_BYTES = MAX_WORDS_BYTES + 16
_SPEAKS = re.compile(rb"(?:\A|[ \t\r\n])(?:ttl|swr|tags)=")
_READS = re.compile(
    rb"(?:[ \t\r\n\f\v(]++|--[^\r\n]*+|/\*[^*]*+\*++(?:[^/*][^*]*+\*++)*+/)*+(?:select|with|values|table)(?![A-Za-z0-9_$\x80-\xff])",
    re.IGNORECASE,
)


def leading_words(text: bytes) -> Words | None:
    """What the comment in front says; None when there is none that is about the cache, one whose ttl is below 0 when it can't be used."""
    if text[:1] not in _BEGINS:
        return None
    head = text[:_HEAD_BYTES].lstrip(_SPACE)
    if head[:2] != b"/*":
        return None
    end = head.find(b"*/", 2)
    return _read(head[2:end] if end >= 0 else head[2:], end >= 0)


def may_read(text: bytes) -> bool:
    """Whether the statement begins like one that reads. One that says yes may write all the same."""
    return _READS.match(text) is not None


@lru_cache(maxsize=512)
def _read(inside: bytes, is_closed: bool) -> Words | None:
    if _SPEAKS.search(inside) is None:
        return None
    words = read_words(inside.decode("latin-1")) if is_closed and b"/*" not in inside and b"\0" not in inside else None
    return words or (_BAD_TOLD if b"status" in inside.split() else BAD)
