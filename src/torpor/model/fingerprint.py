"""The fingerprint of a statement: the same for all that differ only in literals, parameters, white space, comments, and case.

Pure, and in time linear in the text. A fingerprint names a family of statements for people and for rules; nothing is kept or refused on
its word alone. It reads PostgreSQL's words well enough for that: where it is wrong (strings with backslashes where
standard_conforming_strings is off), two statements have two fingerprints that could have had one.
"""

import re
from hashlib import blake2b

MAX_BYTES = 1 << 16
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
    | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
_NESTING = re.compile(rb"/\*|\*/")
_LITERAL = b"?"


def fingerprint(text: bytes) -> str:
    """Sixteen hexadecimal digits. Never raises."""
    tokens = _tokens(text[:MAX_BYTES])
    while tokens and tokens[-1] == b";":
        tokens.pop()
    return blake2b(b" ".join(tokens), digest_size=8).hexdigest()


def _tokens(text: bytes) -> list[bytes]:
    found: list[bytes] = []
    at, end = 0, len(text)
    while at < end:
        match = _TOKEN.match(text, at)
        assert match is not None  # `other` takes any byte
        at = match.end()
        match match.lastgroup:
            case "space":
                pass
            case "block":
                at = _end_of_comment(text, at)
            case "literal":
                found.append(_LITERAL)
            case "dollar":
                closing = text.find(match[0], at)
                at = end if closing < 0 else closing + len(match[0])
                found.append(_LITERAL)
            case "word":
                found.append(match[0].lower())
            case _:
                found.append(match[0])
    return found


def _end_of_comment(text: bytes, at: int) -> int:
    """Where the comment ends that began before `at`: they nest."""
    depth = 1
    for mark in _NESTING.finditer(text, at):
        depth += 1 if mark[0] == b"/*" else -1
        if not depth:
            return mark.end()
    return len(text)
