"""Logging in by a token: who is asked for one, what becomes of right and wrong ones, and that no client can pass for the gateway."""

import time

import pytest

from tests.unit.door.test_login import startup
from tests.unit.door.twin import MOCK_SECRET, Client, Twin, client_of, open_door
from torpor.door.guard.guard import Guard
from torpor.door.ports import Session
from torpor.gateway.http.proxyheader import vouch
from torpor.model.database import Database, Role
from torpor.model.errors import Unavailable, WrongToken
from torpor.model.limits import DoorLimits
from torpor.model.tokens import Admission
from torpor.pgwire.answers import Authentication, Notice
from torpor.pgwire.frames import frame

SECRET = b"0123456789abcdef"
ASKED = Authentication(3, b"")


class TwinTokens:
    """Takes tokens of the form ROLE!, in memory."""

    def __init__(self) -> None:
        self.version = "1"
        self.is_down = False

    def takes(self, database: Database, role: str) -> bool:
        return True

    async def admit(self, database: Database, token: str) -> Admission:
        if self.is_down:
            raise Unavailable("no keys")
        if not token.endswith("!"):
            raise WrongToken("the token's signature is wrong")
        return Admission(token[:-1], b'{"sub":"u1"}', time.time() + 60, "1")

    def begun(self, database: Database, session: Session, admission: Admission) -> bool:
        return admission.version == self.version


def twin_with(*roles: Role) -> Twin:
    twin = Twin()
    twin.roles |= {role.name: role for role in roles}
    return twin


async def tried(client: Client, token: bytes, user: str = "", by_token: bool = True, secret: bytes = SECRET) -> object:
    """What is heard after the token."""
    client.say(vouch(secret, ("203.0.113.7", 4711), "", by_token) + startup(user))
    heard = await client.hear()
    if heard != ASKED:
        return heard
    client.say(frame(b"p", token + b"\0"))
    return await client.hear()


async def test_a_right_token_makes_the_role_and_brings_its_claims() -> None:
    twin = twin_with(Role("web", None, True))
    async with open_door(twin, gateway_secret=SECRET, tokens=TwinTokens()) as door, client_of(door) as client:
        assert await tried(client, b"web!") == Authentication(0, b"")
        (session,) = twin.computes["shop"].sessions
        assert (session.startup.parameters["user"], session.claims, session.address[0]) == ("web", b'{"sub":"u1"}', "203.0.113.7")


@pytest.mark.parametrize(
    ("token", "user", "code"),
    [
        (b"web", "", "28P01"),
        (b"", "", "28P01"),
        (b"\xff\xfe", "", "28P01"),
        (b"web!", "app", "28000"),
        (b"rich!", "", "28000"),
        (b"nologin!", "", "28000"),
        (b"gone!", "", "28000"),
        (b"x" * 9_000, "", "08P01"),
    ],
)
async def test_what_is_refused(token: bytes, user: str, code: str) -> None:
    twin = twin_with(Role("web", None, True), Role("rich", None, True, rules=True))
    async with open_door(twin, gateway_secret=SECRET, tokens=TwinTokens()) as door, client_of(door) as client:
        heard = await tried(client, token, user)
        assert isinstance(heard, Notice)
        assert heard.fields["C"] == code
        assert not twin.computes["shop"].sessions


async def test_wrong_ones_count_as_failed_logins_and_keys_that_are_missing_do_not() -> None:
    guard, tokens = Guard(time.monotonic, MOCK_SECRET, DoorLimits(failed_login_penalty_s=600)), TwinTokens()
    async with open_door(Twin(), guard=guard, gateway_secret=SECRET, tokens=tokens) as door:
        tokens.is_down = True
        for told in ("57P03", "57P03"):
            async with client_of(door) as client:
                heard = await tried(client, b"wrong")
                assert isinstance(heard, Notice)
                assert heard.fields["C"] == told
        tokens.is_down = False
        for told in ("28P01", "28T01"):
            async with client_of(door) as client:
                heard = await tried(client, b"wrong")
                assert isinstance(heard, Notice)
                assert heard.fields["C"] == told


async def test_rules_that_change_in_the_moment_of_the_hand_over() -> None:
    twin, tokens = twin_with(Role("web", None, True)), TwinTokens()
    tokens.version = "2"
    async with open_door(twin, gateway_secret=SECRET, tokens=tokens) as door, client_of(door) as client:
        await tried(client, b"web!")
        while not twin.computes["shop"].sessions:
            await client.hear()
        (session,) = twin.computes["shop"].sessions
        while not session.was_cut:
            await client.hear()


async def test_only_the_gateway_can_say_that_there_is_a_token() -> None:
    twin = twin_with(Role("web", None, True))
    async with open_door(twin, gateway_secret=SECRET, tokens=TwinTokens()) as door:
        async with client_of(door) as client:
            heard = await tried(client, b"web!", secret=b"another")
            assert isinstance(heard, Notice)
            assert heard.fields["C"] == "08P01"
        # In the clear nobody is asked for one: whoever has no password has a wrong one.
        async with client_of(door) as client:
            client.say(startup("web"))
            assert (await client.hear_authentication()).code == 10
        # By way of the gateway a role without a password may show one as such; one with a password is asked for that.
        async with client_of(door) as client:
            assert await tried(client, b"web!", "web", by_token=False) == Authentication(0, b"")
        async with client_of(door) as client:
            heard = await tried(client, b"app!", "app", by_token=False)
            assert isinstance(heard, Authentication)
            assert heard.code == 10
