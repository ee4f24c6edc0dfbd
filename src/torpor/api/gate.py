"""Who may ask at all: the name that the request is addressed to, the credential, and how often.

Concurrency: plain calls on the loop; what is remembered of strangers is bounded (`rates`). In this order, so that each step costs
strangers as little as possible and tells them nothing:

1. The Host header must name this API. A web page can make a browser send requests here under a name of its own (DNS rebinding).
2. The credential: the host's token, or an API key; as a bearer token, never as a cookie, so that no web page can use it behind the back
   of its owner. A right one is always let through: whoever shares an address with an attacker isn't locked out. Guesses are slowed for
   the sake of the processor and the log; 256 bits of chance need no protection from guessing.
3. The rate: of the key, or of the address when there is no right credential. The host's token has none: who holds it has the host.
"""

import base64
import binascii
import hashlib
import hmac
import math
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address

from torpor.api.asgi import Scope
from torpor.api.faults import MisdirectedRequest, TooManyRequests
from torpor.api.rates import Buckets, Taken
from torpor.model.access import NetworkSet, address_key, parse_address
from torpor.model.errors import InvalidRequest, Unauthorized
from torpor.model.workspace import AccessScope, Caller

BURST_S = 10.0
"""How many seconds' worth of requests may come at once."""

FAILURES_PER_S = 0.2
FAILURES_AT_ONCE = 20.0
"""Wrong credentials from one address: then one in five seconds is looked at, the others are told to wait."""

MAX_CREDENTIAL_BYTES = 1024
MAX_HEADERS = 100
MAX_HOPS = 10
MAX_HOP_CHARACTERS = 64
CHALLENGE = 'Bearer realm="torpor"'
PAGE_CHALLENGE = 'Basic realm="Torpor: any user name, and an API key or the token as password", charset="UTF-8", ' + CHALLENGE


@dataclass(frozen=True, slots=True)
class ApiLimits:
    """Host names under which the API is reached (addresses always are), mean rates in requests a second, and the addresses and networks
    of proxies that are believed when they say from where a request came."""

    names: frozenset[str] = frozenset()
    key_per_s: float = 50.0
    address_per_s: float = 10.0
    proxies: tuple[str, ...] = ()


class Gate:
    """Lets in who has `token`, or a key that `recognise` knows by its text."""

    def __init__(
        self,
        token: str,
        token_hint: str,
        recognise: Callable[[bytes, str], Caller | None],
        limits: ApiLimits,
        now: Callable[[], float],
    ) -> None:
        self._token = _digest(token.encode())
        self._token_hint = token_hint
        self._recognise = recognise
        self._names = frozenset({"localhost", *(name.lower() for name in limits.names if name)})
        self._proxies = NetworkSet(limits.proxies)
        self._now = now
        self._keys = Buckets(limits.key_per_s, limits.key_per_s * BURST_S)
        self._addresses = Buckets(limits.address_per_s, limits.address_per_s * BURST_S)
        self._failures = Buckets(FAILURES_PER_S, FAILURES_AT_ONCE)

    def __repr__(self) -> str:
        return f"<Gate keys={len(self._keys)} addresses={len(self._addresses)} failures={len(self._failures)}>"

    def check_host(self, scope: Scope) -> None:
        """Raises MisdirectedRequest for a Host that isn't this API's, InvalidRequest for none, more than one, or too many headers."""
        if len(scope["headers"]) > MAX_HEADERS:
            raise InvalidRequest(f"a request has at most {MAX_HEADERS} headers")
        hosts = [value for key, value in scope["headers"] if key == b"host"]
        if len(hosts) != 1:
            raise InvalidRequest("a request has one Host header", "send 'Host: <name or address of this API>'")
        name = _host_name(hosts[0].decode("latin-1").lower())
        if name in self._names or name.endswith(".localhost") or _is_address(name):
            return
        raise MisdirectedRequest(
            f"this API is not reached as {name[:80]!r}", "use its address, or add the name to the setting api_names if it is right"
        )

    def address(self, scope: Scope) -> str:
        """From where the request came: the peer, or whom proxies that are believed name; empty when the server doesn't know.

        Of X-Forwarded-For the last hop counts that isn't such a proxy: what stands before it was written by a stranger.
        """
        client = scope.get("client")
        address = str(client[0]) if client else ""
        if self._proxies and self._is_proxy(address):
            forwarded = b",".join(value for key, value in scope["headers"] if key == b"x-forwarded-for").decode("latin-1")
            hops = [hop.strip() for hop in forwarded.rsplit(",", MAX_HOPS)[-MAX_HOPS:]]
            for hop in reversed(hops):
                if len(hop) > MAX_HOP_CHARACTERS or parse_address(hop) is None:
                    break
                address = hop
                if not self._is_proxy(address):
                    break
        return address

    def admit(self, scope: Scope, *, is_page: bool = False) -> Caller:
        """Who asks. Raises Unauthorized, or TooManyRequests for too many wrong credentials. `is_page`: a browser may say it its own way."""
        address = self.address(scope)
        headers = [bytes(value) for key, value in scope["headers"] if key == b"authorization"]
        if not headers:
            self.admit_stranger(address)
            raise Unauthorized("an API key is needed", self._hint)
        credential = _credential(headers[0], is_page) if len(headers) == 1 else None
        caller = None
        if credential is not None:
            if hmac.compare_digest(_digest(credential), self._token):
                return Caller(AccessScope.HOST, None, address=address)
            caller = self._recognise(credential, address)
        if caller is None:
            _check(self._failures.take(address_key(address), self._now()), "too many wrong API keys came from your address")
            self.admit_stranger(address)
            raise Unauthorized("the API key is wrong, was revoked, or has expired", self._hint)
        return caller

    def admit_stranger(self, address: str) -> None:
        """Count a request without a right credential. Raises TooManyRequests."""
        _check(self._addresses.take(address_key(address), self._now()), "too many requests came from your address")

    def count(self, caller: Caller, cost: float) -> dict[str, str]:
        """Count a request of a key; headers that tell it what is left. Raises TooManyRequests."""
        if caller.key is None:
            return {}
        taken = self._keys.take(caller.key, self._now(), cost)
        policy = f'"key";q={self._keys.burst:.0f};w={BURST_S:.0f}'
        headers = {"RateLimit-Policy": policy, "RateLimit": f'"key";r={taken.left};t={math.ceil(taken.full_in_s)}'}
        _check(taken, "this API key asks too often", headers)
        return headers

    def _is_proxy(self, host: str) -> bool:
        address = parse_address(host)
        return address is not None and self._proxies.find(address) is not None

    @property
    def _hint(self) -> str:
        return f"send 'Authorization: Bearer <key>' with an API key, or with {self._token_hint}"


def _check(taken: Taken, what: str, headers: dict[str, str] | None = None) -> None:
    if not taken.allowed:
        wait_s = max(1, math.ceil(taken.retry_in_s))
        raise TooManyRequests(what, f"wait {wait_s} s, and ask less often", {"Retry-After": str(wait_s), **(headers or {})})


def _credential(header: bytes, is_page: bool) -> bytes | None:
    if len(header) > MAX_CREDENTIAL_BYTES:
        return None
    scheme, _, rest = header.partition(b" ")
    rest = rest.strip(b" ")
    if scheme.lower() == b"bearer":
        return rest or None
    if scheme.lower() == b"basic" and is_page:
        try:
            _, _, password = base64.b64decode(rest, validate=True).partition(b":")
        except (binascii.Error, ValueError):
            return None
        return password or None
    return None


def _digest(credential: bytes) -> bytes:
    return hashlib.sha256(credential).digest()


def _host_name(host: str) -> str:
    """Without the port, which tunnels and forwarders change."""
    if host.startswith("["):
        return host.partition("]")[0][1:]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
