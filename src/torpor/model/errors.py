"""The one error tree. Each error has a kind, an SQLSTATE, an HTTP status and a text that is safe to show to clients.

TorporError
├── Refused                     the request can't be served as it is; the caller can mend it
│   ├── InvalidName             42602  400   a name breaks the rules
│   ├── InvalidRequest          22023  400   a value is out of range or malformed
│   ├── DatabaseExists          42P04  409   the name is taken
│   ├── DatabaseNotFound        3D000  404   no database of that name
│   ├── DatabaseInUse           55006  409   open connections forbid it
│   ├── Conflict                55000  409   the database is in a state that forbids it
│   ├── WorkspaceNotFound       42704  404   no workspace of that name
│   ├── WorkspaceExists         42710  409   the name of the workspace is taken
│   ├── WorkspaceInUse          2BP01  409   the workspace still owns databases
│   ├── KeyNotFound             42704  404   no API key of that id
│   ├── JobNotFound             42704  404   no job of that id is remembered
│   ├── TooManyJobs             53400  429   the workspace, or the host, has enough long operations that run
│   ├── Unauthorized            28000  401   the API key or the token is missing or wrong
│   ├── Forbidden               42501  403   the API key is right, but its scope doesn't allow this
│   ├── ProtocolViolation       08P01  400   the client doesn't speak the protocol
│   │   └── HandshakeFailed     08P01  400   the client and the door could not agree on TLS
│   ├── RoutingConflict         08004  400   two forms of address name different databases, or none is given
│   ├── WrongPassword           28P01  401   also for a role that doesn't exist, so that nobody can probe
│   │   └── WrongToken          28P01  401   a token isn't taken: of another issuer, expired, not signed by a key that is registered
│   ├── LoginForbidden          28000  403   the role exists and its password is right, or it is Torpor's own
│   ├── EncryptionRequired      28000  403   a client from another machine must use TLS
│   ├── LoginTimeout            08006  408   the client took too long before it was logged in
│   ├── AddressForbidden        28000  403   an access list keeps this address out
│   ├── TooManyFailedLogins     28T01  429   this address has given wrong credentials for this database; wait
│   ├── TooManyWakes            53400  429   the database, or the host, was woken too often; wait
│   └── TooManyConnections      53300  503   a limit of the door is reached: overall, or
│       ├── TooManyFromAddress  53300  503   … that of the client's address
│       └── TooManyInDatabase   53300  503   … that of the database
├── Unavailable                 a fault on our side; trying again later can help
│   ├── ComputeStartFailed      58000  503   PostgreSQL did not start; the cause is in the text
│   ├── ComputeLost             57P02  503   PostgreSQL went away while we talked to it
│   ├── StartTimeout            57P03  503   still starting (for instance recovering from a crash)
│   ├── DumpFailed              58000  503   pg_dump could not read the database, or not all of it
│   ├── PoolFull                53100  507   the storage pool has no room
│   ├── HistoryError            58030  503   the store of the history, or what is in it, fails
│   │   ├── HistoryUnreachable  58030  503   it doesn't answer, or says that something is wrong with it
│   │   ├── HistoryRefused      58030  503   it refuses: credentials, permissions, no such bucket
│   │   ├── HistoryFull         53100  507   it has no room
│   │   ├── HistoryMissing      58P01  404   a base or a piece of the log isn't there
│   │   └── HistoryCorrupt      XX001  500   what is stored isn't what was stored, or belongs elsewhere
│   ├── DrillFailed             XX001  500   a restore drill found that a database can't be restored as it was
│   ├── DrillNotPossible        57P03  503   a restore drill can't be done now, and says nothing of the database
│   ├── DiskFull                53100  507   the database was stopped, as its volume is far beyond its size
│   └── ShuttingDown            57P01  503   Torpor is stopping
└── HostError                   the host lacks something; `torpor serve` ends with `exit_code`
    ├── AddressInUse            exit 11
    ├── DataDirectoryUnusable   exit 12
    ├── AlreadyRunning          exit 13
    ├── BinariesMissing         exit 14
    ├── CatalogUnusable         exit 15
    ├── BadSettings             exit 16
    ├── TakeOverFailed          exit 19  the place of the running Torpor can't be taken
    ├── KeyFileUnusable         exit 20  the master key can't be read, or isn't the one that was used before
    ├── ImageUnusable           exit 17  the root image of the sandboxes can't be built or mounted
    └── SandboxTooWeak          exit 18  the host gives computes less than the setting `sandbox` asks for
"""

from typing import ClassVar


class TorporError(Exception):
    """Any error whose text may be shown to a client as it is. `hint` says what to do next."""

    kind: ClassVar[str] = "error"
    sqlstate: ClassVar[str] = "XX000"
    http_status: ClassVar[int] = 500
    usual_hint: ClassVar[str] = ""
    """What to do where nothing better is said."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.usual_hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class Refused(TorporError):
    """The caller asked for something that can't be done as asked."""

    kind, sqlstate, http_status = "refused", "22023", 400


class InvalidName(Refused):
    kind, sqlstate, http_status = "invalid_name", "42602", 400


class InvalidRequest(Refused):
    kind, sqlstate, http_status = "invalid_request", "22023", 400


class DatabaseExists(Refused):
    kind, sqlstate, http_status = "database_exists", "42P04", 409


class DatabaseNotFound(Refused):
    kind, sqlstate, http_status = "database_not_found", "3D000", 404


class DatabaseInUse(Refused):
    kind, sqlstate, http_status = "database_in_use", "55006", 409


class Conflict(Refused):
    kind, sqlstate, http_status = "conflict", "55000", 409


class WorkspaceNotFound(Refused):
    kind, sqlstate, http_status = "workspace_not_found", "42704", 404


class WorkspaceExists(Refused):
    kind, sqlstate, http_status = "workspace_exists", "42710", 409


class WorkspaceInUse(Refused):
    kind, sqlstate, http_status = "workspace_in_use", "2BP01", 409


class KeyNotFound(Refused):
    kind, sqlstate, http_status = "key_not_found", "42704", 404


class JobNotFound(Refused):
    kind, sqlstate, http_status = "job_not_found", "42704", 404


class TooManyJobs(Refused):
    kind, sqlstate, http_status = "too_many_jobs", "53400", 429


class Forbidden(Refused):
    kind, sqlstate, http_status = "forbidden", "42501", 403


class Unauthorized(Refused):
    kind, sqlstate, http_status = "unauthorized", "28000", 401


class ProtocolViolation(Refused):
    kind, sqlstate, http_status = "protocol_violation", "08P01", 400
    usual_hint = "use a PostgreSQL client or driver, in a version that is maintained"


class RoutingConflict(Refused):
    kind, sqlstate, http_status = "routing_conflict", "08004", 400


class WrongPassword(Refused):
    kind, sqlstate, http_status = "wrong_password", "28P01", 401
    usual_hint = "check user, password and database: each database has roles of its own"


class WrongToken(WrongPassword):
    kind = "wrong_token"
    usual_hint = "ask its issuer for a new one; `torpor jwt` shows which tokens the database takes"


class LoginForbidden(Refused):
    kind, sqlstate, http_status = "login_forbidden", "28000", 403


class HandshakeFailed(ProtocolViolation):
    kind = "tls_handshake_failed"


class EncryptionRequired(Refused):
    kind, sqlstate, http_status = "encryption_required", "28000", 403


class LoginTimeout(Refused):
    kind, sqlstate, http_status = "login_timeout", "08006", 408


class TooManyConnections(Refused):
    kind, sqlstate, http_status = "too_many_connections", "53300", 503


class TooManyFromAddress(TooManyConnections):
    kind = "too_many_connections_from_address"


class TooManyInDatabase(TooManyConnections):
    kind = "too_many_connections_to_database"


class AddressForbidden(Refused):
    kind, sqlstate, http_status = "address_forbidden", "28000", 403


class TooManyFailedLogins(Refused):
    # Class 28 (invalid authorization), in the part that the standard leaves to implementations: no driver asks for another password.
    kind, sqlstate, http_status = "too_many_failed_logins", "28T01", 429


class TooManyWakes(Refused):
    kind, sqlstate, http_status = "too_many_wakes", "53400", 429


class Unavailable(TorporError):
    """Nothing wrong with the request; trying again later can help."""

    kind, sqlstate, http_status = "unavailable", "57P03", 503


class ComputeStartFailed(Unavailable):
    kind, sqlstate, http_status = "compute_start_failed", "58000", 503


class ComputeLost(Unavailable):
    kind, sqlstate, http_status = "compute_lost", "57P02", 503
    usual_hint = "try again: it is started anew"


class StartTimeout(Unavailable):
    kind, sqlstate, http_status = "start_timeout", "57P03", 503


class DumpFailed(Unavailable):
    kind, sqlstate, http_status = "dump_failed", "58000", 503


class DrillFailed(Unavailable):
    kind, sqlstate, http_status = "drill_failed", "XX001", 500


class DrillNotPossible(Unavailable):
    kind, sqlstate, http_status = "drill_not_possible", "57P03", 503


class DiskFull(Unavailable):
    kind, sqlstate, http_status = "disk_full", "53100", 507


class PoolFull(Unavailable):
    kind, sqlstate, http_status = "pool_full", "53100", 507


class HistoryError(Unavailable):
    kind, sqlstate, http_status = "history_error", "58030", 503


class HistoryUnreachable(HistoryError):
    kind, sqlstate, http_status = "history_unreachable", "58030", 503


class HistoryRefused(HistoryError):
    kind, sqlstate, http_status = "history_refused", "58030", 503


class HistoryFull(HistoryError):
    kind, sqlstate, http_status = "history_full", "53100", 507
    usual_hint = "give the store of the history more room, or keep less history"


class HistoryMissing(HistoryError):
    kind, sqlstate, http_status = "history_missing", "58P01", 404


class HistoryCorrupt(HistoryError):
    kind, sqlstate, http_status = "history_corrupt", "XX001", 500
    usual_hint = "restore to a moment that another base covers, and make a new base"


class ShuttingDown(Unavailable):
    kind, sqlstate, http_status = "shutting_down", "57P01", 503


class HostError(TorporError):
    """The host lacks something that Torpor can't run without."""

    kind = "host_error"
    exit_code: ClassVar[int] = 10


class AddressInUse(HostError):
    kind, exit_code = "address_in_use", 11


class DataDirectoryUnusable(HostError):
    kind, exit_code = "data_directory_unusable", 12


class AlreadyRunning(HostError):
    kind, exit_code = "already_running", 13


class BinariesMissing(HostError):
    kind, exit_code = "binaries_missing", 14


class CatalogUnusable(HostError):
    kind, exit_code = "catalog_unusable", 15


class BadSettings(HostError):
    kind, exit_code = "bad_settings", 16


class TakeOverFailed(HostError):
    kind, exit_code = "take_over_failed", 19


class KeyFileUnusable(HostError):
    kind, exit_code = "key_file_unusable", 20


class ImageUnusable(HostError):
    kind, exit_code = "image_unusable", 17


class SandboxTooWeak(HostError):
    kind, exit_code = "sandbox_too_weak", 18
