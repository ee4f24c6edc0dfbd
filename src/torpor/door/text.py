"""Making text that strangers chose fit for messages and logs. Pure."""

MAX_SHOWN_CHARACTERS = 63
"""No longer than the longest name that could have been right."""


def printable(text: str) -> str:
    """At most 63 characters of `text`, all of them visible (or spaces)."""
    text = text[:MAX_SHOWN_CHARACTERS]
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
