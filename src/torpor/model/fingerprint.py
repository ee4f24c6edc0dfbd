"""The fingerprint of a statement: the same for all that differ only in literals, parameters, white space, comments, and case.

Pure, and in time linear in the text. A fingerprint names a family of statements for people and for rules; nothing is kept or refused on
its word alone. It reads PostgreSQL's words well enough for that: where it is wrong (strings with backslashes where
standard_conforming_strings is off), two statements have two fingerprints that could have had one.
"""

import re
from hashlib import blake2b

MAX_BYTES = 1 << 14
"""What comes behind these many bytes of a statement doesn't count."""

FINGERPRINT = re.compile(r"[0-9a-f]{16}")

_TOKEN = re.compile(
    rb"""(?P<space>[ \t\r\n\f\v]++ | --[^\r\n]*+)
    | (?P<block>/\*)
    | (?P<literal>[eE]'(?:[^'\\]++|\\.|'')*+'?
        | (?:[bBxXnN]|[uU]&)?'(?:[^']++|'')*+'?
        | (?:\d|\.\d)[\w.]*+(?:(?<=[eE])[+-]\d+)?
        | \$\d++)
    | (?P<dollar>\$(?:[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*+)?\$)
    | (?P<quoted>(?:[uU]&)?"(?:[^"]++|"")*+"?)
    | (?P<word>[A-Za-z_\x80-\xff][A-Za-z0-9_$\x80-\xff]*+)
    | (?P<marks>(?:[^\w\s'"$./\-\x80-\xff] | \.(?!\d) | /(?!\*) | -(?!-))++)
    | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
_NESTING = re.compile(rb"/\*|\*/")
_LITERAL = b"?"


def fingerprint(text: bytes) -> str:
    """Sixteen hexadecimal digits. Never raises."""
    return blake2b(_canonical(text[:MAX_BYTES]).rstrip(b";"), digest_size=8).hexdigest()


def _canonical(text: bytes) -> bytes:
    found: list[bytes] = []
    at, end = 0, len(text)
    after_word = False
    while at < end:
        match = _TOKEN.match(text, at)
        assert match is not None  # `other` takes any byte
        at = match.end()
        kind, token = match.lastgroup, match[0]
        if kind == "space":
            continue
        if kind == "block":
            at = _end_of_comment(text, at)
            continue
        if kind == "marks" or kind == "other":
            after_word = False
        else:
            if after_word:
                found.append(b" ")
            after_word = True
            if kind == "literal":
                token = _LITERAL
            elif kind == "word":
                token = token.lower()
            elif kind == "dollar":
                closing = text.find(token, at)
                at = end if closing < 0 else closing + len(token)
                token = _LITERAL
        found.append(token)
    return b"".join(found)


def _end_of_comment(text: bytes, at: int) -> int:
    """Where the comment ends that began before `at`: they nest."""
    depth = 1
    for mark in _NESTING.finditer(text, at):
        depth += 1 if mark[0] == b"/*" else -1
        if not depth:
            return mark.end()
    return len(text)
