"""What a client or a rule says of the cache: `ttl=60 swr=300 tags=users,home force status`.

Pure. The words may come from anybody, so they are bounded in length, count and characters, and whatever isn't exactly right is None: the
statement then runs as if nothing had been said.
"""

import re
from dataclasses import dataclass

MAX_WORDS_BYTES = 1_024
MAX_TAGS = 16
MAX_SECONDS = 31_536_000
"""A year: for both times."""

_TAG = re.compile(r"[A-Za-z0-9_.:@/-]{1,64}")
_SECONDS = re.compile(r"[0-9]{1,8}")


@dataclass(frozen=True, slots=True)
class Words:
    """What is wanted of one statement's result."""

    ttl_s: int = 0  # how long it may be served; 0: not at all
    swr_s: int = 0  # how long after that it may still be served while it is made anew
    tags: tuple[str, ...] = ()  # what it can be purged by, in order
    force: bool = False  # although a volatile function made it
    status: bool = False  # the client wants to hear what the cache did


def read_words(text: str) -> Words | None:
    """None when they can't be used. `ttl` must be among them, each at most once."""
    if len(text) > MAX_WORDS_BYTES or not text.isascii():
        return None
    values: dict[str, str] = {}
    for word in text.split():
        name, sign, value = word.partition("=")
        if name in values or (sign == "=") != (name in ("ttl", "swr", "tags")):
            return None
        values[name] = value
    if "ttl" not in values or not values.keys() <= {"ttl", "swr", "tags", "force", "status"}:
        return None
    tags = values["tags"].split(",") if "tags" in values else []
    seconds = [values["ttl"], values.get("swr", "0")]
    if len(tags) > MAX_TAGS or not all(_TAG.fullmatch(tag) for tag in tags) or not all(_SECONDS.fullmatch(each) for each in seconds):
        return None
    ttl_s, swr_s = (int(each) for each in seconds)
    if max(ttl_s, swr_s) > MAX_SECONDS:
        return None
    return Words(ttl_s, swr_s, tuple(sorted(set(tags))), force="force" in values, status="status" in values)
