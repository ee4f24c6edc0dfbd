"""Refusals that only HTTP knows, and the one shape in which every error leaves the API. Pure."""

from collections.abc import Mapping

import msgspec

from torpor.model.errors import Refused, TorporError

_MAX_TEXT = 2000


class UnknownPath(Refused):
    """Nothing is at this path."""

    kind, sqlstate, http_status = "unknown_path", "0A000", 404


class WrongMethod(Refused):
    """The path exists, but not with this method."""

    kind, sqlstate, http_status = "wrong_method", "0A000", 405

    def __init__(self, message: str, hint: str = "", allowed: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint)
        self.allowed = allowed


class RequestTooLarge(Refused):
    """The body is larger than any request needs to be."""

    kind, sqlstate, http_status = "request_too_large", "54000", 413


class RequestTimeout(Refused):
    """The body did not arrive in time."""

    kind, sqlstate, http_status = "request_timeout", "57014", 408


class MisdirectedRequest(Refused):
    """The request is addressed to a host name that isn't this API's."""

    kind, sqlstate, http_status = "misdirected_request", "08004", 421


class TooManyRequests(Refused):
    """The key, or the address, asks more often than it may. `headers` tell when to come back."""

    kind, sqlstate, http_status = "too_many_requests", "53400", 429

    def __init__(self, message: str, hint: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message, hint)
        self.headers = dict(headers or {})


class ErrorDetail(msgspec.Struct, frozen=True):
    """What went wrong (`kind` for programs, `message` for people), what to do next (`hint`), and PostgreSQL's code for it."""

    kind: str
    message: str
    hint: str
    sqlstate: str


class ErrorAnswer(msgspec.Struct, frozen=True):
    """Every error has this shape."""

    error: ErrorDetail


def error_answer(error: TorporError) -> ErrorAnswer:
    """The answer that tells of `error`."""
    return ErrorAnswer(ErrorDetail(error.kind, error.message[:_MAX_TEXT], error.hint[:_MAX_TEXT], error.sqlstate))


def unexpected_answer() -> ErrorAnswer:
    """The answer for a fault of our own: it tells nothing of the inside."""
    return ErrorAnswer(ErrorDetail("internal_error", "something unexpected went wrong inside Torpor", "its log tells what", "XX000"))
