"""Who is let in: credentials, host names, rates."""

import asyncio
import base64
import hmac
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.api.conftest import TOKEN, Desk
from torpor.api import docs
from torpor.api import gate as module
from torpor.api.faults import TooManyRequests
from torpor.api.gate import ApiLimits, Gate
from torpor.api.server import ApiServer
from torpor.model.errors import TorporError, Unauthorized
from torpor.model.workspace import AccessScope, Caller

KEY = b"torpor_k1_k" + b"a" * 11 + b"_" + b"b" * 52


def scope(*headers: tuple[bytes, bytes], address: str = "192.0.2.1") -> dict[str, Any]:
    return {"headers": list(headers), "client": (address, 1)}


def gate(limits: ApiLimits | None = None, now: Any = lambda: 0.0) -> Gate:
    caller = Caller(AccessScope.READ, None)
    return Gate(TOKEN, "the token", lambda text, _: caller if text == KEY else None, limits or ApiLimits(), now)


# -- credentials


@given(st.one_of(st.binary(max_size=2000), st.binary(max_size=80).map(lambda b: b"Bearer " + b), st.binary().map(lambda b: b"Basic " + b)))
def test_no_header_but_the_right_one_lets_in(header: bytes) -> None:
    quiet = gate(ApiLimits(address_per_s=1e9))
    for is_page in (False, True):
        with pytest.raises((Unauthorized, TooManyRequests)):
            quiet.admit(scope((b"authorization", header)), is_page=is_page)


@given(st.data())
def test_not_even_one_character_may_be_wrong(data: st.DataObject) -> None:
    for right in (TOKEN.encode(), KEY):
        wrong = bytearray(right)
        wrong[data.draw(st.integers(0, len(right) - 1))] ^= data.draw(st.integers(1, 255))
        with pytest.raises(TorporError):
            gate().admit(scope((b"authorization", b"Bearer " + wrong)))
        with pytest.raises(TorporError):
            gate().admit(scope((b"authorization", b"Bearer " + right[: data.draw(st.integers(0, len(right) - 1))])))


def test_how_it_may_be_said() -> None:
    for header in (b"Bearer " + KEY, b"bearer  " + KEY + b" ", b"BEARER " + KEY):
        assert gate().admit(scope((b"authorization", header))).scope is AccessScope.READ
    assert gate().admit(scope((b"authorization", b"Bearer " + TOKEN.encode()))).scope is AccessScope.HOST
    twice = (b"authorization", b"Bearer " + KEY)
    for headers in ([twice, twice], [(b"authorization", KEY)], [(b"cookie", KEY)], [(b"x-api-key", KEY)]):
        with pytest.raises(Unauthorized):
            gate().admit(scope(*headers))


def test_basic_is_for_pages_only() -> None:
    header = (b"authorization", b"Basic " + base64.b64encode(b"any:" + KEY))
    assert gate().admit(scope(header), is_page=True).scope is AccessScope.READ
    with pytest.raises(Unauthorized):
        gate().admit(scope(header))


def test_credentials_are_compared_in_constant_time(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """By digests of one length, with the function that takes the same time wherever they differ; as often for any key of the right form."""
    seen: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def watched(a: bytes, b: bytes) -> bool:
        seen.append((len(a), len(b)))
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    made = desk.key(AccessScope.READ)
    known = Gate(TOKEN, "", desk.keys.recognise, ApiLimits(), lambda: 0.0)
    right_id_wrong_secret = made.secret[:-52] + "b" * 52
    for text in (right_id_wrong_secret, KEY.decode(), made.secret):
        seen.clear()
        try:
            known.admit(scope((b"authorization", b"Bearer " + text.encode())))
            assert text == made.secret
        except Unauthorized:
            assert text != made.secret
        assert seen == [(32, 32), (32, 32)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(header=st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=300))
async def test_odd_headers_over_real_sockets(header: str, server: ApiServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
    writer.write(b"GET /v1/databases HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: " + header.encode("latin-1") + b"\r\n\r\n")
    status = (await asyncio.wait_for(reader.readline(), 30)).split()[1]
    assert status in (b"401", b"429", b"400")
    writer.close()


# -- pages


async def test_every_page_and_asset_wants_a_key(stranger: httpx.AsyncClient, desk: Desk) -> None:
    metrics = desk.key(AccessScope.METRICS).secret
    for path in (*sorted(docs.PAGES), "/openapi.json"):
        refused = await stranger.get(path)
        assert refused.status_code == 401, path
        assert refused.headers["www-authenticate"].startswith("Basic realm=")
        assert (await stranger.get(path, auth=httpx.BasicAuth("me", metrics))).status_code == 200
        assert (await stranger.get(path, headers={"Authorization": f"Bearer {TOKEN}"})).status_code == 200


async def test_a_browser_that_was_asked_for_a_password_can_do_nothing_else_with_it(stranger: httpx.AsyncClient) -> None:
    stranger.auth = httpx.BasicAuth("me", TOKEN)
    for method, path in (("GET", "/v1/databases"), ("POST", "/v1/databases"), ("GET", "/metrics"), ("DELETE", "/v1/workspaces/acme")):
        answer = await stranger.request(method, path)
        assert answer.status_code == 401
        assert "Basic" not in answer.headers["www-authenticate"]


async def test_nothing_is_for_other_origins(client: httpx.AsyncClient) -> None:
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for answer in (
        await client.options("/v1/databases", headers=preflight),
        await client.get("/v1/databases", headers={"Origin": "https://evil.example"}),
        await client.get("/healthz", headers={"Origin": "null"}),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"


async def test_strangers_learn_nothing_of_what_there_is(stranger: httpx.AsyncClient) -> None:
    answers = [await stranger.request(*call) for call in (("GET", "/v1/databases"), ("PUT", "/v1/databases"), ("GET", "/nowhere"))]
    assert {(answer.status_code, answer.content) for answer in answers} == {(401, answers[0].content)}


# -- host names


@pytest.fixture
async def named(desk: Desk, tmp_path: Path) -> AsyncIterator[ApiServer]:
    limits = ApiLimits(frozenset({"Db.Example.com", ""}))
    server = ApiServer(desk.services, TOKEN, "127.0.0.1", 0, tmp_path / "token", limits=limits)
    await server.start()
    yield server
    await server.stop()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:7480", 200),
        ("[::1]:7480", 200),
        ("192.0.2.1", 200),
        ("localhost:1", 200),
        ("LOCALHOST", 200),
        ("torpor.localhost", 200),
        ("db.example.com", 200),
        ("db.example.com:443", 200),
        ("evil.example", 421),
        ("db.example.com.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
        ("", 421),
        ("[", 421),
        ("a:b:c", 421),
        ("db.example.com@evil.example", 421),
    ],
)
async def test_host_names(named: ApiServer, host: str, status: int) -> None:
    for path in ("/healthz", "/v1/databases"):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(named.url.rpartition(":")[2]))
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
        assert int((await reader.readline()).split()[1]) == status
        writer.close()


@pytest.mark.parametrize("heads", [b"", b"Host: 127.0.0.1\r\nHost: localhost\r\n", b"Host: 127.0.0.1\r\n" + b"A: b\r\n" * 100])
async def test_odd_heads(named: ApiServer, heads: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(named.url.rpartition(":")[2]))
    writer.write(b"GET /healthz HTTP/1.1\r\n" + heads + b"\r\n")
    assert b" 400 " in await reader.readline()
    writer.close()


# -- rates


async def test_a_key_that_asks_too_often_is_told_when_to_come_back(desk: Desk, tmp_path: Path) -> None:
    server = ApiServer(desk.services, TOKEN, "127.0.0.1", 0, tmp_path / "token", limits=ApiLimits(key_per_s=1.0))
    await server.start()
    quick, other = (desk.key(AccessScope.WRITE).secret for _ in range(2))
    async with httpx.AsyncClient(
        base_url=server.url, headers={"Authorization": f"Bearer {quick}"}, trust_env=False, verify=False
    ) as client:
        first = await client.get("/v1/databases")
        assert first.headers["ratelimit-policy"] == '"key";q=10;w=10'
        assert first.headers["ratelimit"].startswith('"key";r=9;t=')
        made = await client.post("/v1/databases", json={"name": "shop"})
        assert made.headers["ratelimit"].startswith('"key";r=4;t=')  # a change counts as five
        late = await client.post("/v1/databases", json={"name": "late"})
        assert (late.status_code, late.json()["error"]["kind"]) == (429, "too_many_requests")
        assert late.headers["retry-after"] == "1"
        assert late.headers["ratelimit"].startswith('"key";r=4;')
        assert late.json()["error"]["hint"]
        assert (await client.get("/v1/databases")).status_code == 200  # a look still fits
        assert (await client.get("/v1/databases", headers={"Authorization": f"Bearer {other}"})).status_code == 200
        for _ in range(30):
            answer = await client.get("/v1/databases", headers={"Authorization": f"Bearer {TOKEN}"})
            assert answer.status_code == 200 and "ratelimit" not in answer.headers
    assert "late" not in [record.target for record in desk.records()]
    await server.stop()


async def test_guesses_are_slowed_and_nobody_is_locked_out_by_them(stranger: httpx.AsyncClient, desk: Desk) -> None:
    secret = desk.key(AccessScope.READ).secret
    answers = [await stranger.get("/v1/databases", headers={"Authorization": f"Bearer guess-{n}"}) for n in range(30)]
    assert [answer.status_code for answer in answers] == [401] * 20 + [429] * 10
    assert int(answers[-1].headers["retry-after"]) >= 1
    for right in (secret, TOKEN):
        assert (await stranger.get("/v1/databases", headers={"Authorization": f"Bearer {right}"})).status_code == 200


def test_strangers_are_counted_by_address() -> None:
    now = 0.0
    busy = gate(ApiLimits(address_per_s=1.0), lambda: now)
    for _ in range(10):
        busy.admit_stranger("192.0.2.1")
    with pytest.raises(TooManyRequests) as caught:
        busy.admit_stranger("192.0.2.1")
    assert caught.value.headers == {"Retry-After": "1"}
    busy.admit_stranger("192.0.2.2")
    for n in range(10):
        busy.admit_stranger(f"2001:db8::{n}")
    with pytest.raises(TooManyRequests):
        busy.admit_stranger("2001:db8::ffff")
    now += 1
    busy.admit_stranger("192.0.2.1")


def test_memory_for_strangers_is_bounded() -> None:
    crowded = gate(ApiLimits(address_per_s=0.1))
    assert crowded._addresses._max_keys == crowded._failures._max_keys == 65_536
    crowded._addresses._max_keys = crowded._failures._max_keys = 1000
    for n in range(3000):
        with pytest.raises(Unauthorized):
            crowded.admit(scope((b"authorization", b"Bearer x"), address=f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}"))
    assert "addresses=1000 failures=1000" in repr(crowded)


def test_a_credential_is_not_endless() -> None:
    with pytest.raises(Unauthorized):
        gate().admit(scope((b"authorization", b"Bearer " + KEY + b" " * module.MAX_CREDENTIAL_BYTES)))


@pytest.mark.parametrize(
    ("peer", "forwarded", "seen"),
    [
        ("192.0.2.1", [b"203.0.113.9"], "192.0.2.1"),  # not a proxy of ours
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [b"203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", [b"127.0.0.1, 203.0.113.9"], "203.0.113.9"),  # the first was made up
        ("10.0.0.1", [b"127.0.0.1", b"203.0.113.9,10.0.0.2"], "203.0.113.9"),
        ("10.0.0.1", [b"10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", [b"203.0.113.9, unknown"], "10.0.0.1"),
        ("10.0.0.1", [b"2001:db8::9 "], "2001:db8::9"),
        ("10.0.0.1", [b"\xff\x1b[2J"], "10.0.0.1"),
        ("10.0.0.1", [b"1.2.3.4," * 8000 + b"203.0.113.9"], "203.0.113.9"),
    ],
)
def test_proxies_that_are_believed_say_from_where(peer: str, forwarded: list[bytes], seen: str) -> None:
    behind = gate(ApiLimits(proxies=("10.0.0.0/8",)))
    assert behind.address(scope(*((b"x-forwarded-for", value) for value in forwarded), address=peer)) == seen
    assert gate().address(scope(*((b"x-forwarded-for", value) for value in forwarded), address=peer)) == peer
