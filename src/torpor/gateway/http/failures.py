"""What goes wrong, as JSON says it: PostgreSQL's errors with all their fields, ours with an SQLSTATE and a hint. Pure."""

from collections.abc import Mapping
from typing import Final

FIELDS: Final[Mapping[str, str]] = {
    "V": "severity",
    "C": "code",
    "D": "detail",
    "H": "hint",
    "P": "position",
    "p": "internalPosition",
    "q": "internalQuery",
    "W": "where",
    "s": "schema",
    "t": "table",
    "c": "column",
    "d": "dataType",
    "n": "constraint",
    "F": "file",
    "L": "line",
    "R": "routine",
}
"""PostgreSQL's letters and the names of Neon's driver, which are node-postgres's."""

BAD_REQUEST = 400
_RETRYABLE = frozenset({"08006", "40001", "40P01", "53300", "57P01", "57P02", "57P03"})


class Failure(Exception):
    """Something that is told to the client. PostgreSQL's own come with 400, as Neon's driver expects: it reads only those as errors of
    the database."""

    def __init__(self, fields: Mapping[str, str], status: int = BAD_REQUEST, retry_after_s: int | None = None) -> None:
        """`fields` are an ErrorResponse's, by their letters."""
        super().__init__(fields.get("M", ""))
        self.fields = fields
        self.status = status
        self.retry_after_s = retry_after_s

    @property
    def sqlstate(self) -> str:
        """The SQLSTATE."""
        return self.fields.get("C", "XX000")

    @property
    def message(self) -> str:
        """The primary message."""
        return self.fields.get("M", "")

    @property
    def is_last(self) -> bool:
        """Whether PostgreSQL (or the door) ends the connection with it."""
        return self.fields.get("V") in ("FATAL", "PANIC")

    def as_json(self) -> dict[str, object]:
        """All fields; those that there are not are null."""
        told: dict[str, object] = {"message": self.message}
        told.update((name, self.fields.get(letter)) for letter, name in FIELDS.items())
        told["retryable"] = self.sqlstate in _RETRYABLE
        return told


def failure(status: int, sqlstate: str, message: str, hint: str = "", retry_after_s: int | None = None) -> Failure:
    """One of our own."""
    fields = {"V": "ERROR", "C": sqlstate, "M": message}
    if hint:
        fields["H"] = hint
    return Failure(fields, status, retry_after_s)


def bad_request(message: str, hint: str = "") -> Failure:
    """The request can't be understood."""
    return failure(BAD_REQUEST, "22023", message, hint)


def gone(message: str = "the connection to the database was lost") -> Failure:
    """The connection to the database ended, or could not be made."""
    return failure(503, "08006", message, "try again; what was not committed is rolled back", 1)


def error_fields(body: bytes) -> dict[str, str]:
    """The fields of an ErrorResponse or NoticeResponse."""
    return {chr(part[0]): part[1:].decode("utf-8", "replace") for part in body.split(b"\0") if part}
