"""SASLprep (RFC 4013) the way PostgreSQL does it, so that both make the same key of the same password. Pure.

PostgreSQL departs from the RFC: ASCII passes unchecked, what can't be prepared is used raw, and the prohibited characters and
the bidirectional rule are looked for before normalisation instead of after it.
"""

import stringprep
import unicodedata


def saslprep(password: str) -> bytes:
    """The bytes of `password` that go into PBKDF2. Lone surrogates (from surrogateescape) stand for bytes that aren't UTF-8."""
    raw = password.encode("utf-8", "surrogateescape")
    if password.isascii() or any("\ud800" <= c <= "\udfff" for c in password):
        return raw
    mapped = "".join(
        " " if stringprep.in_table_c12(c) else c for c in password if stringprep.in_table_c12(c) or not stringprep.in_table_b1(c)
    )
    if not mapped or any(map(_is_prohibited, mapped)) or not _is_one_directional(mapped):
        return raw
    return unicodedata.normalize("NFKC", mapped).encode()


def _is_prohibited(c: str) -> bool:
    return (
        stringprep.in_table_c12(c)
        or stringprep.in_table_c21_c22(c)
        or stringprep.in_table_c3(c)
        or stringprep.in_table_c4(c)
        or stringprep.in_table_c5(c)
        or stringprep.in_table_c6(c)
        or stringprep.in_table_c7(c)
        or stringprep.in_table_c8(c)
        or stringprep.in_table_c9(c)
        or stringprep.in_table_a1(c)
    )


def _is_one_directional(text: str) -> bool:
    """RFC 3454 section 6: right-to-left text has no left-to-right characters in it, and begins and ends right-to-left."""
    if not any(map(stringprep.in_table_d1, text)):
        return True
    return not any(map(stringprep.in_table_d2, text)) and stringprep.in_table_d1(text[0]) and stringprep.in_table_d1(text[-1])
