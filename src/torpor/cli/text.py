"""Values as people read them: ages, durations, sizes, tables, waterfalls. Pure; `now` is given.

Text that comes from clients (application names, statements) goes through `clean`, so that nothing a tenant writes can move the
operator's cursor.
"""

import unicodedata
from collections.abc import Sequence

_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "m"))
_BAR_WIDTH = 24
_BREAKS = "\n\r\t\u2028\u2029"


def clean(text: str, width: int = 0) -> str:
    """`text` on one line without control characters, cut to `width` when given."""
    shown = "".join(" " if char in _BREAKS else char for char in text if char in _BREAKS or unicodedata.category(char)[0] != "C")
    return shown if not width or len(shown) <= width else shown[: width - 1] + "…"


def duration(seconds: float) -> str:
    """Seconds, in the unit that suits: "0.4 s", "12 s", "3 m 20 s", "2 d 4 h"."""
    if seconds < 10:
        return f"{max(seconds, 0):.1f}".removesuffix(".0") + " s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    for position, (size, name) in enumerate(_UNITS):
        if seconds >= size:
            whole = int(seconds // size)
            below, below_name = _UNITS[position + 1] if position + 1 < len(_UNITS) else (1.0, "s")
            rest = int((seconds - whole * size) // below)
            return f"{whole} {name} {rest} {below_name}" if rest else f"{whole} {name}"
    return f"{seconds:.0f} s"


def age(at: float | None, now: float) -> str:
    """How long ago, as short as a table wants it: "4s", "12m", "3h", "9d"."""
    if at is None:
        return "-"
    seconds = max(now - at, 0)
    for size, name in _UNITS:
        if seconds >= size:
            return f"{int(seconds // size)}{name}"
    return f"{int(seconds)}s"


def milliseconds(value: float) -> str:
    """ "0.82 ms", "4.2 ms", "310 ms", "2.1 s"."""
    if value >= 1000:
        return f"{value / 1000:.1f} s"
    return f"{value:.2f} ms" if value < 1 else f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"


def size(count: float) -> str:
    """Bytes: "0 B", "12 MB", "3.4 GB" (powers of 1024)."""
    for unit in ("B", "kB", "MB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit != "MB" or count >= 10 else f"{count:.1f} MB"
        count /= 1024
    return f"{count:.1f} GB" if count < 1024 else f"{count / 1024:.1f} TB"


def idle_time(seconds: float | None) -> str:
    """A setting of the sleep policy."""
    return "never" if seconds is None else duration(seconds)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[int] = frozenset()) -> str:
    """Columns as wide as their widest cell, two spaces between; the columns in `right` are aligned right."""
    lines = [list(head), *[[clean(cell) for cell in row] for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def waterfall(steps: Sequence[tuple[str, float]], indent: str = "") -> list[str]:
    """Steps one below the other, each with a bar that starts where the one before it ended."""
    total = sum(elapsed for _, elapsed in steps)
    if total <= 0:
        return []
    width = max(len(clean(name)) for name, _ in steps)
    lines, passed = [], 0.0
    for name, elapsed in steps:
        start = round(passed / total * _BAR_WIDTH)
        passed += elapsed
        bar = "━" * max(round(passed / total * _BAR_WIDTH) - start, 1)
        lines.append(f"{indent}{clean(name).ljust(width)}  {milliseconds(elapsed).rjust(9)}  {' ' * min(start, _BAR_WIDTH - 1)}{bar}")
    return lines
