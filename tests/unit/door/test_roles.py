"""Who may log in, and how they prove who they are."""

import base64
import time

import pytest

from torpor.door.roles import Md5Check, ScramCheck, check_may_log_in, password_check, wrong_password
from torpor.model.database import Role
from torpor.model.errors import LoginForbidden
from torpor.pgwire.passwords import make_md5_verifier
from torpor.pgwire.scram import ScramExchange, make_verifier, parse_verifier

NOW = 1_000.0
SECRET = b"secret"
SALT = b"s" * 16
SCRAM = make_verifier("pw", SALT, 2)
TICKET = make_verifier("ticket", SALT, 2)
MD5 = make_md5_verifier("pw", "app")


def check(verifier: str | None, *, valid_until: float | None = None, tickets: tuple[str, ...] = ()) -> ScramCheck | Md5Check:
    return password_check(Role("app", verifier, True, valid_until, tickets), "app", NOW, SECRET)


def test_a_scram_verifier_is_checked_by_scram() -> None:
    found = check(SCRAM)
    assert isinstance(found, ScramCheck)
    assert (found.salt, found.iterations, found.candidates) == (SALT, 2, (parse_verifier(SCRAM),))


def test_tickets_count_beside_the_password() -> None:
    found = check(SCRAM, tickets=(TICKET,))
    assert isinstance(found, ScramCheck)
    assert found.candidates == (parse_verifier(SCRAM), parse_verifier(TICKET))


def test_tickets_count_alone_where_there_is_no_password() -> None:
    found = check(None, tickets=(TICKET,))
    assert isinstance(found, ScramCheck)
    assert found.candidates == (parse_verifier(TICKET),)


def test_a_ticket_of_another_salt_could_never_be_right_and_is_left_out() -> None:
    found = check(SCRAM, tickets=(make_verifier("t", b"x" * 16, 2), make_verifier("t", SALT, 3)))
    assert isinstance(found, ScramCheck)
    assert found.candidates == (parse_verifier(SCRAM),)


def test_an_md5_verifier_is_checked_by_md5() -> None:
    assert check(MD5) == Md5Check(MD5)


@pytest.mark.parametrize("verifier", [None, "", "plain text", "SCRAM-SHA-256$broken"])
def test_without_a_usable_password_the_role_looks_like_any_other(verifier: str | None) -> None:
    found = check(verifier)
    assert isinstance(found, ScramCheck)
    assert found.candidates == ()
    assert found == password_check(Role("app", verifier, True), "app", NOW, SECRET)


def test_an_unknown_role_looks_like_one_without_a_password() -> None:
    unknown = password_check(None, "app", NOW, SECRET)
    known = check(None)
    assert isinstance(unknown, ScramCheck)
    assert isinstance(known, ScramCheck)
    assert (unknown.salt, unknown.iterations, unknown.candidates) == (known.salt, known.iterations, ())
    assert unknown.cause != known.cause


@pytest.mark.parametrize(
    ("valid_until", "is_valid"), [(None, True), (NOW + 1, True), (NOW, True), (NOW - 0.001, False), (float("-inf"), False)]
)
def test_an_expired_password_is_wrong_but_looks_the_same(valid_until: float | None, is_valid: bool) -> None:
    scram = check(SCRAM, valid_until=valid_until, tickets=(TICKET,))
    assert isinstance(scram, ScramCheck)
    assert bool(scram.candidates) is is_valid
    assert scram.salt == SALT
    md5 = check(MD5, valid_until=valid_until)
    assert isinstance(md5, Md5Check)
    assert md5.is_doomed is not is_valid


def test_torpors_own_role_never_logs_in() -> None:
    with pytest.raises(LoginForbidden, match="belongs to Torpor"):
        password_check(Role("torpor", SCRAM, True), "torpor", NOW, SECRET)
    with pytest.raises(LoginForbidden):
        password_check(None, "torpor", NOW, SECRET)


def test_nologin_is_told_to_those_who_know_the_password() -> None:
    check_may_log_in(Role("app", SCRAM, True))
    with pytest.raises(LoginForbidden, match=r'^role "app" is not permitted to log in') as caught:
        check_may_log_in(Role("app", SCRAM, False))
    assert caught.value.sqlstate == "28000"


def test_a_wrong_password_is_told_in_postgresqls_words() -> None:
    error = wrong_password("app\n" + "x" * 100)
    assert error.message == f'password authentication failed for user "app?{"x" * 59}"'
    assert error.sqlstate == "28P01"


def test_a_role_that_does_not_exist_takes_as_long_as_one_that_does() -> None:
    roles = {"exists": Role("exists", make_verifier("right"), True), "lacks": None}
    for _ in range(5):  # others use this machine, too
        exists, lacks = check_times_us(roles)
        if abs(exists - lacks) < 0.15 * exists + 3:  # of some 40 µs; the network's jitter is far above
            return
    raise AssertionError(f"{exists} µs, {lacks} µs")


def check_times_us(roles: dict[str, Role | None]) -> tuple[float, float]:
    """How long it takes to refuse a wrong password of one who exists, and of one who doesn't."""
    times: dict[str, list[float]] = {"exists": [], "lacks": []}
    for number in range(2000):
        name = ("exists", "lacks")[number % 2]
        began = time.perf_counter()
        check = password_check(roles[name], name, 0.0, b"mock")
        assert isinstance(check, ScramCheck)
        exchange = ScramExchange(check.salt, check.iterations, check.candidates, b"nonce")
        exchange.first(b"n,,n=,r=abc")
        assert exchange.final(b"c=biws,r=abcnonce,p=" + base64.b64encode(bytes(32))) is None
        times[name].append(time.perf_counter() - began)
    exists, lacks = (sorted(times[name])[250] * 1e6 for name in ("exists", "lacks"))
    return exists, lacks
