"""How commands fail: one sentence, what to do next, and an exit code. Pure."""

from enum import IntEnum

from torpor.model.errors import TorporError


class Exit(IntEnum):
    """The exit codes of commands; `torpor serve` has those of HostError too."""

    REFUSED = 1  # the request was understood and can't be served; also: something is missing
    USAGE = 2  # the command line is wrong
    UNREACHABLE = 3  # no Torpor answers
    UNAUTHORIZED = 4  # the API's token is missing, unreadable or wrong
    INTERRUPTED = 130  # Ctrl-C


class CommandError(TorporError):
    """An error with the exit code and the kind that it is shown with."""

    def __init__(self, message: str, hint: str = "", *, kind: str = "refused", code: int = Exit.REFUSED, sqlstate: str = "") -> None:
        super().__init__(message, hint)
        self.code = int(code)
        self.shown_kind = kind
        self.shown_sqlstate = sqlstate


def as_json(error: TorporError) -> dict[str, object]:
    """The same shape as the API's errors, with the exit code."""
    kind = error.shown_kind if isinstance(error, CommandError) else error.kind
    sqlstate = error.shown_sqlstate if isinstance(error, CommandError) else error.sqlstate
    body = {"kind": kind, "message": error.message, "hint": error.hint, "sqlstate": sqlstate, "exit_code": exit_code(error)}
    return {"error": body}


def exit_code(error: TorporError) -> int:
    """The exit code that tells this error."""
    if isinstance(error, CommandError):
        return error.code
    return int(getattr(error, "exit_code", Exit.REFUSED))
