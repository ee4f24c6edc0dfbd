"""May this role log in, and how does it prove that it is that role? Pure.

PostgreSQL trusts the door's listener, so the door keeps what PostgreSQL would have checked. Whoever can't log in by password
learns nothing more than "password authentication failed": the true cause is for the log.
"""

from dataclasses import dataclass

from torpor.door.text import printable
from torpor.model.database import Role
from torpor.model.errors import LoginForbidden, WrongPassword
from torpor.model.names import SERVICE_ROLE
from torpor.pgwire.passwords import is_md5_verifier
from torpor.pgwire.scram import DEFAULT_ITERATIONS, Verifier, mock_salt, parse_verifier

MAX_TOKEN_BYTES = 8_193
"""Longest body of a message with a token, its NUL included."""

_SOMEBODYS = Verifier(DEFAULT_ITERATIONS, bytes(16), bytes(32), bytes(32)).encode()


@dataclass(frozen=True, slots=True)
class ScramCheck:
    """Ask for SCRAM-SHA-256. Without candidates every password is wrong, and `cause` says why."""

    salt: bytes
    iterations: int
    candidates: tuple[Verifier, ...]
    cause: str = "the password is wrong"


@dataclass(frozen=True, slots=True)
class Md5Check:
    """Ask for the md5 answer to a salt. With `is_doomed` every password is wrong, and `cause` says why."""

    verifier: str
    is_doomed: bool = False
    cause: str = "the password is wrong"


def password_check(role: Role | None, name: str, now: float, mock_secret: bytes) -> ScramCheck | Md5Check:
    """How `name` must prove itself. Raises LoginForbidden for Torpor's own role.

    Tickets count beside a SCRAM verifier, or alone where there is no password; with an md5 password they can't be asked for.
    """
    if name == SERVICE_ROLE:
        raise LoginForbidden(f'role "{SERVICE_ROLE}" belongs to Torpor and can\'t log in', "log in as the role in the database's URL")
    mocked = mock_salt(name, mock_secret)
    if role is None:
        parse_verifier(_SOMEBODYS)  # what follows reads one: the time tells nobody which roles exist
        return ScramCheck(mocked, DEFAULT_ITERATIONS, (), "the role does not exist")
    expired = role.valid_until is not None and role.valid_until < now
    if role.verifier is not None and is_md5_verifier(role.verifier):
        return Md5Check(role.verifier, True, "the password has expired") if expired else Md5Check(role.verifier)
    verifiers = [verifier for text in (role.verifier or "", *role.tickets) if (verifier := parse_verifier(text)) is not None]
    if not verifiers:
        cause = "the role has no password" if role.verifier is None else "the role's password has a form unknown to Torpor"
        return ScramCheck(mocked, DEFAULT_ITERATIONS, (), cause)
    first = verifiers[0]
    if expired:
        return ScramCheck(first.salt, first.iterations, (), "the password has expired")
    alike = tuple(v for v in verifiers if v.salt == first.salt and v.iterations == first.iterations)
    return ScramCheck(first.salt, first.iterations, alike)


def wrong_password(name: str) -> WrongPassword:
    """The refusal for a wrong password, and for everything that a stranger must not tell from one."""
    return WrongPassword(f'password authentication failed for user "{printable(name)}"')


def may_bring_token(role: Role) -> bool:
    """Whether the role can be asked for a token: it has no password that could be asked for otherwise."""
    return role.verifier is None and not role.tickets


def admitted_role(admitted: str, wanted: str, role: Role | None) -> None:
    """Raise LoginForbidden when the role that a token admits isn't the one that the client named, if it did, or may not log in so."""
    if wanted and wanted != admitted:
        raise LoginForbidden(
            f'the token is for role "{printable(admitted)}", not for "{printable(wanted)}"', "name that role in the URL, or none"
        )
    if role is None:
        raise LoginForbidden(f'role "{printable(admitted)}", which the token is for, does not exist', "create it, WITH LOGIN")
    if role.rules:
        raise LoginForbidden(
            f'role "{printable(admitted)}" is a superuser, or can become one: no token makes anybody that', "use a role without that"
        )
    check_may_log_in(role)


def check_may_log_in(role: Role) -> None:
    """Raise LoginForbidden when the role, now proven, isn't one that logs in."""
    if not role.can_login:
        raise LoginForbidden(
            f'role "{printable(role.name)}" is not permitted to log in',
            f'a superuser can allow it: ALTER ROLE "{printable(role.name)}" LOGIN',
        )
