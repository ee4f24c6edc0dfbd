"""Access lists as the API shows them. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AccessView:
    """The lists of one scope. `version` tells these lists from others; `closed` is how many live sessions the change ended."""

    allow: tuple[str, ...]
    deny: tuple[str, ...]
    version: str
    closed: int = 0
