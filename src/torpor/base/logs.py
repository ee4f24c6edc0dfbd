"""Structured logs on standard error: one event with named values a line, for people (console) or for machines (json).

What is logged is hostile: names of databases, roles and addresses come from strangers. Control characters are escaped, so that no
value can forge a line or drive a terminal. A log call never raises: the terminal that Torpor was started from may be gone.

Concurrency: callable from any task or thread; a line is written with one call. `configure` is called once, at start.
"""

import logging
import re
import sys
from typing import Any, cast

# structlog imports rich when it finds it, only to draw tracebacks that we don't use: 230 ms of start-up and 8 MB of memory.
_hide_rich = "rich" not in sys.modules
if _hide_rich:
    sys.modules["rich"] = None  # type: ignore[assignment]  # the documented way to make an import fail
import structlog  # noqa: E402  # after rich is hidden

if _hide_rich:
    del sys.modules["rich"]

Logger = structlog.typing.FilteringBoundLogger
"""What `get_logger` returns: `log.info("event in words", key=value)`; `bind(key=value)` gives one that always adds the key."""

# C0, DEL, C1, line and paragraph separators, and the marks that reorder text on a screen.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_UNSAFE_IN_TRACEBACK = re.compile(_UNSAFE.pattern.replace("\x00-\x1f", "\x00-\x09\x0b-\x1f"))


def configure(format: str) -> None:
    """Write from now on as `console` or `json`, from INFO up, and take in warnings and errors of the standard library's logging."""
    _configure(format)
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, _Forward)]:
        root.removeHandler(handler)
    root.addHandler(_Forward())
    root.setLevel(logging.WARNING)


def get_logger(name: str) -> Logger:
    """A logger that signs its lines with `name`. Cheap, and may be made before `configure`."""
    return cast(Logger, structlog.get_logger(name))


def escape(text: str) -> str:
    """`text` on one line, its control characters as \\n, \\x1b, \\u2028."""
    return _UNSAFE.sub(_escape_character, text)


def _configure(format: str) -> None:
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    if format == "json":
        tail: list[Any] = [structlog.processors.JSONRenderer()]  # escapes by itself: its output is ASCII
    else:
        colors = sys.stderr is not None and sys.stderr.isatty()
        renderer = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback, sort_keys=False)
        tail = [_escape_values, renderer]
    structlog.configure(
        processors=shared + tail,
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=_StandardError,
        cache_logger_on_first_use=False,
    )


def _escape_character(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def _escape_values(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    for key, value in event.items():
        if key == "exception":
            # Indented, so that a line break in a message can't look like a line of its own.
            text = _UNSAFE_IN_TRACEBACK.sub(_escape_character, str(value))
            event[key] = "    " + text.replace("\n", "\n    ")
        elif not (value is None or type(value) in (int, float, bool)):
            event[key] = escape(str(value))
    return event


class _StandardError:
    """Writes lines to whatever sys.stderr is now; drops them when it is gone."""

    def __init__(self, name: str = "torpor") -> None:
        self.name = name

    def msg(self, line: str) -> None:
        try:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        except (OSError, ValueError, AttributeError):
            pass  # a closed pipe, a closed file, or none at all: there is nowhere left to complain

    debug = info = warning = error = critical = exception = log = msg


class _Forward(logging.Handler):
    """Hands records of libraries that use the standard library's logging (asyncio, uvicorn) to our own."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            structlog.get_logger(record.name).log(record.levelno, record.getMessage(), exc_info=record.exc_info)
        except Exception:
            self.handleError(record)


_configure("console")
