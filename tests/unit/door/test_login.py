"""Logging in over real sockets, message by message."""

import asyncio
import base64
import hashlib
import hmac
import struct

import pytest
import scramp

from tests.unit.door.twin import PASSWORD, Client, Twin, client_of, open_door, outcomes, until
from torpor.door.stats import LoginOutcome
from torpor.model.database import Role
from torpor.model.errors import ComputeLost, PoolFull, StartTimeout, TorporError
from torpor.model.sleep import WakeReason
from torpor.pgwire.answers import Authentication, CommandComplete, Notice, OtherMessage, ReadyForQuery, query, terminate
from torpor.pgwire.frames import frame
from torpor.pgwire.passwords import make_md5_verifier, md5_answer
from torpor.pgwire.scram import make_verifier, mock_salt, parse_verifier
from torpor.pgwire.startup import CancelRequest, EncryptionRequest, StartupMessage


def startup(user: str = "app", database: str = "shop", minor: int = 0, **more: str) -> bytes:
    return StartupMessage({"user": user, "database": database, **more}, minor).encode()


def sasl_initial(data: bytes, mechanism: bytes = b"SCRAM-SHA-256") -> bytes:
    return frame(b"p", mechanism + b"\0" + struct.pack("!i", len(data)) + data)


async def scram(client: Client, password: str = PASSWORD) -> scramp.ScramClient:
    """The client's part up to its last message."""
    request = await client.hear_authentication()
    assert request == Authentication(10, b"SCRAM-SHA-256\0\0")
    theirs = scramp.ScramClient(["SCRAM-SHA-256"], "app", password)
    client.say(sasl_initial(theirs.get_client_first().encode()))
    request = await client.hear_authentication()
    assert request.code == 11
    theirs.set_server_first(request.data.decode())
    client.say(frame(b"p", theirs.get_client_final().encode()))
    return theirs


async def log_in(client: Client, first: bytes | None = None) -> None:
    client.say(startup() if first is None else first)
    theirs = await scram(client)
    request = await client.hear_authentication()
    assert request.code == 12
    theirs.set_server_final(request.data.decode())
    assert await client.hear_authentication() == Authentication(0, b"")
    while not isinstance(await client.hear(), ReadyForQuery):
        pass


@pytest.mark.parametrize("relay", [False, True])
async def test_a_login_wakes_the_database_and_hands_the_client_over(relay: bool) -> None:
    twin = Twin()
    async with open_door(twin, relay=relay) as door, client_of(door) as client:
        await log_in(client, startup(application_name="psql\x07", options="endpoint=shop -c geqo=off", database="other"))
        assert twin.wakes == [("shop", WakeReason.CONNECTION, "app@127.0.0.1 psql?")]
        (session,) = twin.shop.sessions
        assert session.startup == StartupMessage(
            {"user": "app", "database": "other", "application_name": "psql\x07", "options": "-c geqo=off"}
        )
        assert session.address == client.writer.get_extra_info("sockname")
        client.say(query("hello"))
        echo = await client.hear()
        assert isinstance(echo, Notice)
        assert echo.message == "hello"
        assert outcomes(door) == {LoginOutcome.HANDED_OVER: 1}
        client.say(terminate())
        assert b"ECHO" in await client.reader.read()


async def test_bytes_sent_ahead_are_postgresqls_to_read() -> None:
    twin = Twin()
    twin.may_wake.clear()
    async with open_door(twin) as door, client_of(door) as client:
        client.say(startup())
        await scram(client)
        client.say(query("early"))
        await until(lambda: door.stats.waiting == 1)
        assert door.stats.pending == 0
        twin.may_wake.set()
        seen = [await client.hear() for _ in range(9)]
        assert CommandComplete("ECHO") in seen


async def test_a_login_takes_its_turn_before_anything_is_woken_for_it() -> None:
    twin = Twin()
    twin.may_turn.clear()
    async with open_door(twin) as door, client_of(door) as client, client_of(door) as stranger:
        stranger.say(startup())
        await scram(stranger, "wrong")
        assert (await stranger.hear_refusal()).sqlstate == "28P01"
        assert twin.turns == []  # who doesn't know the password takes nobody's turn
        client.say(startup())
        await scram(client)
        await until(lambda: twin.turns == ["shop"])
        assert (door.stats.waiting, twin.wakes) == (1, [])
        twin.may_turn.set()
        assert [(await client.hear_authentication()).code for _ in range(2)] == [12, 0]
        assert len(twin.wakes) == 1


async def test_a_message_that_comes_byte_by_byte_is_read() -> None:
    async with open_door(Twin()) as door, client_of(door) as client:
        for byte in startup():
            client.say(bytes([byte]))
            await asyncio.sleep(0.001)
        await scram(client)
        assert (await client.hear_authentication()).code == 12


async def test_a_wrong_password_wakes_nothing() -> None:
    twin = Twin()
    async with open_door(twin) as door, client_of(door) as client:
        client.say(startup())
        await scram(client, "wrong")
        refusal = await client.hear_refusal()
        assert refusal.sqlstate == "28P01"
        assert refusal.message == 'password authentication failed for user "app"'
        assert twin.wakes == []
        assert outcomes(door) == {LoginOutcome.WRONG_PASSWORD: 1}


@pytest.mark.parametrize("user", ["stranger", "nopassword", "expired"])
async def test_who_can_not_log_in_by_password_looks_like_a_wrong_password(user: str) -> None:
    twin = Twin()
    async with open_door(twin) as door:
        salts = set()
        for _ in range(2):
            async with client_of(door) as client:
                client.say(startup(user))
                await client.hear_authentication()
                theirs = scramp.ScramClient(["SCRAM-SHA-256"], user, PASSWORD)
                client.say(sasl_initial(theirs.get_client_first().encode()))
                first = (await client.hear_authentication()).data.decode()
                salts.add(first.split(",")[1])
                assert first.endswith(",i=4096")
                theirs.set_server_first(first)
                client.say(frame(b"p", theirs.get_client_final().encode()))
                refusal = await client.hear_refusal()
                assert (refusal.sqlstate, refusal.message) == ("28P01", f'password authentication failed for user "{user}"')
        assert len(salts) == 1
        if user == "stranger":
            assert salts == {"s=" + base64.b64encode(mock_salt(user, b"mock")).decode()}
        assert twin.wakes == []


async def test_nologin_is_refused_once_the_password_is_right() -> None:
    twin = Twin()
    async with open_door(twin) as door:
        async with client_of(door) as client:
            client.say(startup("nologin"))
            await scram(client)
            assert (await client.hear_authentication()).code == 12
            refusal = await client.hear_refusal()
            assert (refusal.sqlstate, refusal.message) == ("28000", 'role "nologin" is not permitted to log in')
        async with client_of(door) as client:
            client.say(startup("nologin"))
            await scram(client, "wrong")
            assert (await client.hear_refusal()).sqlstate == "28P01"
        assert twin.wakes == []


async def test_torpors_own_role_is_refused_without_a_question() -> None:
    async with open_door(Twin()) as door, client_of(door) as client:
        client.say(startup("torpor"))
        refusal = await client.hear_refusal()
        assert refusal.sqlstate == "28000"
        assert "belongs to Torpor" in refusal.message


async def test_a_ticket_is_as_good_as_the_password() -> None:
    twin = Twin()
    known = parse_verifier(twin.roles["app"].verifier or "")
    assert known is not None
    twin.roles["app"] = Role("app", known.encode(), True, tickets=(make_verifier("ticket", known.salt, known.iterations),))
    async with open_door(twin) as door:
        for password, code in (("ticket", 12), (PASSWORD, 12)):
            async with client_of(door) as client:
                client.say(startup())
                await scram(client, password)
                assert (await client.hear_authentication()).code == code


@pytest.mark.parametrize(("password", "is_right"), [(PASSWORD, True), ("wrong", False)])
async def test_md5_passwords(password: str, is_right: bool) -> None:
    async with open_door(Twin()) as door, client_of(door) as client:
        client.say(startup("old"))
        request = await client.hear_authentication()
        assert request.code == 5
        client.say(frame(b"p", md5_answer(make_md5_verifier(password, "old"), request.data)))
        if is_right:
            assert await client.hear_authentication() == Authentication(0, b"")  # PostgreSQL's own
        else:
            assert (await client.hear_refusal()).sqlstate == "28P01"


async def test_encryption_is_refused_politely_and_the_login_goes_on() -> None:
    async with open_door(Twin()) as door, client_of(door) as client:
        for request in (EncryptionRequest.GSS, EncryptionRequest.SSL):
            client.say(request.encode())
            assert await client.reader.readexactly(1) == b"N"
        await log_in(client)


async def test_endless_encryption_requests_are_refused() -> None:
    async with open_door(Twin()) as door, client_of(door) as client:
        for _ in range(2):
            client.say(EncryptionRequest.SSL.encode())
            assert await client.reader.readexactly(1) == b"N"
        client.say(EncryptionRequest.SSL.encode())
        assert (await client.hear_refusal()).sqlstate == "08P01"


@pytest.mark.parametrize(("database", "minor", "agreed"), [("shop", 2, 2), ("shop", 7, 2), ("blog", 2, 0), ("blog", 0, 0)])
async def test_the_protocol_version_is_agreed_on_before_the_password(database: str, minor: int, agreed: int) -> None:
    twin = Twin()
    async with open_door(twin) as door, client_of(door) as client:
        client.say(startup(database=database, minor=minor, **({"_pq_.x": "1"} if minor == 7 else {})))
        if minor != agreed:
            options = b"_pq_.x\0" if minor == 7 else b""
            assert await client.hear() == OtherMessage(b"v", struct.pack("!HHi", 3, agreed, len(options) // 7) + options)
        await scram(client)
        assert (await client.hear_authentication()).code == 12
        assert (await client.hear_authentication()).code == 0
        (session,) = twin.computes[database].sessions
        assert session.startup == StartupMessage({"user": "app", "database": database}, agreed)


@pytest.mark.parametrize(
    ("first", "sqlstate", "text"),
    [
        (startup(database="nowhere"), "3D000", 'database "nowhere" does not exist'),
        (startup(database="postgres"), "3D000", 'database "postgres" does not exist'),
        (startup(database="a\nb"), "3D000", 'database "a?b" does not exist'),
        (startup(database="blog.x", options="endpoint=shop"), "08004", "names another"),
        (startup(user=""), "28000", "no PostgreSQL user name"),
        (StartupMessage({}).encode(), "28000", "no PostgreSQL user name"),
    ],
)
async def test_who_can_not_be_routed_is_told_why(first: bytes, sqlstate: str, text: str) -> None:
    async with open_door(Twin()) as door, client_of(door) as client:
        client.say(first)
        refusal = await client.hear_refusal()
        assert refusal.sqlstate == sqlstate
        assert text in refusal.message


@pytest.mark.parametrize(
    ("failure", "sqlstate", "outcome"),
    [
        (StartTimeout("still starting", "come back"), "57P03", LoginOutcome.UNAVAILABLE),
        (PoolFull("the pool is full", "free some"), "53100", LoginOutcome.UNAVAILABLE),
        (TorporError("odd", "look"), "XX000", LoginOutcome.FAILED),
        (RuntimeError("a bug, with a secret"), "XX000", LoginOutcome.FAILED),
    ],
)
@pytest.mark.parametrize("relay", [False, True])
async def test_a_wake_that_fails_is_told_with_its_sqlstate_and_hint(
    failure: Exception, sqlstate: str, outcome: LoginOutcome, relay: bool
) -> None:
    twin = Twin()
    twin.wake_failure = failure
    async with open_door(twin, relay=relay) as door, client_of(door) as client:
        client.say(startup())
        await scram(client)
        assert (await client.hear_authentication()).code == 12
        refusal = await client.hear_refusal()
        assert refusal.sqlstate == sqlstate
        assert refusal.hint
        assert "secret" not in refusal.message
        assert outcomes(door) == {outcome: 1}


@pytest.mark.parametrize("relay", [False, True])
async def test_a_compute_lost_at_the_hand_over_is_told(relay: bool) -> None:
    twin = Twin()
    twin.shop.failure = ComputeLost("PostgreSQL went away", "connect again")
    async with open_door(twin, relay=relay) as door, client_of(door) as client:
        client.say(startup())
        await scram(client)
        await client.hear_authentication()
        assert (await client.hear_refusal()).sqlstate == "57P02"


async def test_too_many_waiting_for_one_database_do_not_fill_the_door() -> None:
    twin = Twin()
    twin.may_wake.clear()
    async with (
        open_door(twin, max_logins=8) as door,
        client_of(door) as a,
        client_of(door) as b,
        client_of(door) as c,
        client_of(door) as d,
    ):
        for client in (a, b, c):
            client.say(startup())
            await scram(client)
            assert (await client.hear_authentication()).code == 12
        assert (await c.hear_refusal()).sqlstate == "53300"
        d.say(startup(database="blog"))
        await scram(d)
        await until(lambda: door.stats.waiting == 3)
        twin.may_wake.set()
        for client in (a, b):
            assert (await client.hear_authentication()).code == 0
        d_final = [await d.hear_authentication(), await d.hear_authentication()]
        assert [message.code for message in d_final] == [12, 0]


@pytest.mark.parametrize("relay", [False, True])
async def test_cancel_requests_go_to_every_compute_they_can_be_meant_for_and_are_not_answered(relay: bool) -> None:
    twin = Twin()
    twin.cancellable = [twin.computes["shop"], twin.computes["blog"]]
    async with open_door(twin, relay=relay) as door:
        for request in (CancelRequest(4711, b"key!"), CancelRequest(4711, bytes(range(32)))):
            async with client_of(door) as client:
                client.say(request.encode())
                assert await client.reader.read() == b""
                assert twin.cancels[-1] == ("127.0.0.1", 4711)
                await until(lambda request=request: all(c.sessions[-1].packet == request for c in twin.cancellable))  # type: ignore[misc]
        assert outcomes(door) == {LoginOutcome.CANCEL: 2}
        assert twin.wakes == []


@pytest.mark.parametrize("relay", [False, True])
async def test_a_cancel_request_for_nobody_is_closed_silently(relay: bool) -> None:
    twin = Twin()
    async with open_door(twin, relay=relay) as door:
        for failure in (None, ComputeLost("gone")):
            twin.shop.failure = failure
            twin.cancellable = [twin.shop] if failure else []
            async with client_of(door) as client:
                client.say(CancelRequest(1, b"key!").encode())
                assert await client.reader.read() == b""


# --- lies about SCRAM -------------------------------------------------------------------------------------------------------------


async def test_a_client_may_wait_to_be_asked_for_its_first_message() -> None:
    async with open_door(Twin()) as door, client_of(door) as client:
        client.say(startup())
        await client.hear_authentication()
        client.say(frame(b"p", b"SCRAM-SHA-256\0\xff\xff\xff\xff"))
        assert await client.hear_authentication() == Authentication(11, b"")
        client.say(frame(b"p", b"n,,n=,r=abc"))
        assert (await client.hear_authentication()).data.startswith(b"r=abc")


@pytest.mark.parametrize(
    "answer",
    [
        sasl_initial(b"n,,n=,r=abc", b"SCRAM-SHA-256-PLUS"),
        sasl_initial(b"n,,n=,r=abc", b"SCRAM-SHA-1"),
        sasl_initial(b"n,,n=,r=abc", b"PLAIN"),
        sasl_initial(b"p=tls-unique,,n=,r=abc"),
        sasl_initial(b"n,a=torpor,n=,r=abc"),
        sasl_initial(b""),
        frame(b"p", PASSWORD.encode() + b"\0"),  # in the clear, unasked
        frame(b"p", b""),
        frame(b"Q", b"select 1\0"),
        frame(b"X"),
        b"\0\0\0\0\0\0\0\0",
        b"p\x7f\xff\xff\xff",  # 2 GB
        b"p\xff\xff\xff\xff",
        b"p\0\0\0\0",
        b"p" + struct.pack("!i", 2053),
        startup(),
    ],
)
async def test_wrong_answers_to_the_request_for_a_password_are_protocol_violations(answer: bytes) -> None:
    twin = Twin()
    async with open_door(twin) as door, client_of(door) as client:
        client.say(startup())
        await client.hear_authentication()
        client.say(answer)
        assert (await client.hear_refusal()).sqlstate == "08P01"
        assert outcomes(door) == {LoginOutcome.PROTOCOL: 1}
        assert twin.wakes == []


@pytest.mark.parametrize("lie", ["nonce", "binding", "proof", "replay"])
async def test_lies_in_the_last_scram_message_are_refused(lie: str) -> None:
    twin = Twin()
    known = parse_verifier(twin.roles["app"].verifier or "")
    assert known is not None
    salted = hashlib.pbkdf2_hmac("sha256", PASSWORD.encode(), known.salt, known.iterations)
    key = hmac.digest(salted, b"Client Key", "sha256")

    def final(server_first: bytes, nonce: bytes, binding: bytes) -> bytes:
        unproven = b"c=%s,r=%s" % (binding, nonce)
        signature = hmac.digest(hashlib.sha256(key).digest(), b"n=,r=abc," + server_first + b"," + unproven, "sha256")
        proof = bytes(a ^ b for a, b in zip(key, signature, strict=True))
        return unproven + b",p=" + base64.b64encode(bytes(32) if lie == "proof" else proof)

    async with open_door(twin) as door:
        old: bytes | None = None
        for _ in range(2):
            async with client_of(door) as client:
                client.say(startup())
                await client.hear_authentication()
                client.say(sasl_initial(b"n,,n=,r=abc"))
                first = (await client.hear_authentication()).data
                nonce = b"abc" if lie == "nonce" else first.split(b",")[0][2:]
                message = final(first, nonce, b"eSws" if lie == "binding" else b"biws")
                if lie == "replay" and old is None:
                    old = message
                    continue
                client.say(frame(b"p", old or message))
                assert (await client.hear_refusal()).sqlstate == ("28P01" if lie == "proof" else "08P01")
        assert twin.wakes == []
