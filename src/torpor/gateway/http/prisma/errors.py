"""What goes wrong in a plan, as Prisma's client wants to hear it: a code like P2002, a sentence, and what PostgreSQL said. Pure."""

import re
from collections.abc import Mapping

from torpor.gateway.http.failures import Failure

_KEY = re.compile(r"Key \(([^)]+)\)")
_COLUMN = re.compile(r"column (.+) does not exist")
_QUOTED = re.compile(r'"((?:""|[^"])*)"')


class PlanError(Exception):
    """Told to the client as `{"code", "error", "meta"}`."""

    def __init__(self, code: str, message: str, meta: Mapping[str, object] | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.meta = dict(meta or {})
        self.status = status

    def as_json(self) -> dict[str, object]:
        """The body of the answer."""
        return {"code": self.code, "error": self.message, "meta": self.meta}


def malformed(what: str) -> PlanError:
    """The plan can't be followed."""
    return PlanError("P6000", f"this query plan can't be interpreted: {what}")


def inconsistent(message: str) -> PlanError:
    """PostgreSQL's value isn't what the schema says."""
    return PlanError("P2023", message)


def database_error(error: Failure, is_raw: bool = False) -> PlanError:
    """What PostgreSQL refused, as Prisma's own driver would tell it."""
    cause: dict[str, object] = {"originalCode": error.sqlstate, "originalMessage": error.message}
    cause |= {name: value for name, value in _cause(error).items() if value is not None}
    meta: dict[str, object] = {"driverAdapterError": {"name": "DriverAdapterError", "cause": cause}}
    code, message = _told(cause)
    if is_raw:
        return PlanError("P2010", f"Raw query failed. Code: `{error.sqlstate}`. Message: `{error.message}`", meta)
    if not code:
        return PlanError("P2039", f"Database error. Code: `{error.sqlstate}`. Message: `{error.message}`", meta)
    if code == "P2002" and cause.get("table"):
        meta["table"] = cause["table"]
    return PlanError(code, message, meta)


def unsupported_type(name: str) -> PlanError:
    """A column of a type that Prisma has no form for."""
    return PlanError(
        "P2010",
        f"Failed to deserialize column of type '{name}'. If you're using $queryRaw and this column is explicitly marked as `Unsupported` "
        "in your Prisma schema, try casting this column to any supported Prisma type such as `String`.",
        {"driverAdapterError": {"name": "DriverAdapterError", "cause": {"kind": "UnsupportedNativeDataType", "type": name}}},
    )


def _cause(error: Failure) -> dict[str, object]:
    fields, message = error.fields, error.message
    keys = _KEY.search(fields.get("D", ""))
    named = keys[1].split(", ") if keys else None
    match error.sqlstate:
        case "22001":
            return {"kind": "LengthMismatch", "column": fields.get("c")}
        case "22003":
            return {"kind": "ValueOutOfRange", "cause": message}
        case "22P02":
            return {"kind": "InvalidInputValue", "message": message}
        case "23505":
            index = {"index": fields["n"]} if "n" in fields else {"fields": named} if named else None
            return {"kind": "UniqueConstraintViolation", "constraint": index, "table": fields.get("t")}
        case "23502":
            column = [fields["c"]] if "c" in fields else named
            return {"kind": "NullConstraintViolation", "constraint": {"fields": column} if column else None}
        case "23503" | "23001" as state:
            constraint = {"fields": [fields["c"]]} if "c" in fields else {"index": fields["n"]} if "n" in fields else None
            kind = "ForeignKeyConstraintViolation" if state == "23503" else "RestrictViolation"
            return {"kind": kind, "constraint": constraint}
        case "3D000":
            return {"kind": "DatabaseDoesNotExist", "db": _first_quoted(message)}
        case "28000":
            return {"kind": "DatabaseAccessDenied", "db": _first_quoted(message.partition("database")[2])}
        case "28P01":
            return {"kind": "AuthenticationFailed", "user": _first_quoted(message)}
        case "40001" | "40P01":
            return {"kind": "TransactionWriteConflict"}
        case "42P01":
            return {"kind": "TableDoesNotExist", "table": _first_quoted(message)}
        case "42703":
            found = _COLUMN.fullmatch(message)
            return {"kind": "ColumnNotFound", "column": _QUOTED.sub(lambda one: one[1].replace('""', '"'), found[1]) if found else None}
        case "53300":
            return {"kind": "TooManyConnections", "cause": message}
        case "08006":
            return {"kind": "ConnectionClosed"}
    return {
        "kind": "postgres", "code": error.sqlstate, "severity": fields.get("V", "ERROR"), "message": message,
        "detail": fields.get("D"), "column": fields.get("c"), "hint": fields.get("H"),
    }  # fmt: skip


def _told(cause: Mapping[str, object]) -> tuple[str, str]:
    """Prisma's code and sentence; nothing for what it has none for."""

    def given(name: str) -> object:
        return cause.get(name) or "(not available)"

    match cause["kind"]:
        case "AuthenticationFailed":
            user = given("user")
            return "P1000", (
                f"Authentication failed against the database server, the provided database credentials for `{user}` are not valid"
            )
        case "DatabaseDoesNotExist":
            return "P1003", f"Database `{given('db')}` does not exist on the database server"
        case "DatabaseAccessDenied":
            return "P1010", f"User was denied access on the database `{given('db')}`"
        case "ConnectionClosed":
            return "P1017", "Server has closed the connection."
        case "LengthMismatch":
            return "P2000", f"The provided value for the column is too long for the column's type. Column: {given('column')}"
        case "UniqueConstraintViolation":
            return "P2002", f"Unique constraint failed on the {_constraint(cause)}"
        case "ForeignKeyConstraintViolation" | "RestrictViolation":
            return "P2003", f"Foreign key constraint violated on the {_constraint(cause)}"
        case "InvalidInputValue":
            return "P2007", f"Invalid input value: {cause['message']}"
        case "NullConstraintViolation":
            return "P2011", f"Null constraint violation on the {_constraint(cause)}"
        case "ValueOutOfRange":
            return "P2020", f"Value out of range for the type: {cause['cause']}"
        case "TableDoesNotExist":
            return "P2021", f"The table `{given('table')}` does not exist in the current database."
        case "ColumnNotFound":
            return "P2022", f"The column `{given('column')}` does not exist in the current database."
        case "TransactionWriteConflict":
            return "P2034", "Transaction failed due to a write conflict or a deadlock. Please retry your transaction"
        case "TooManyConnections":
            return "P2037", f"Too many database connections opened: {cause['cause']}"
    return "", ""


def _constraint(cause: Mapping[str, object]) -> str:
    match cause.get("constraint"):
        case {"fields": list() as fields}:
            return f"fields: ({', '.join(f'`{field}`' for field in fields)})"
        case {"index": index}:
            return f"constraint: `{index}`"
    return "(not available)"


def _first_quoted(text: str) -> str | None:
    found = _QUOTED.search(text)
    return found[1] if found else None
