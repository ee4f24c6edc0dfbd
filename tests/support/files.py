"""Files of a directory in which somebody else makes and removes some."""

import os
from pathlib import Path


def files_below(directory: Path) -> list[Path]:
    """All of them, in order. Whatever goes meanwhile isn't missed."""
    return sorted(Path(where, name) for where, _, names in os.walk(directory) for name in names)
