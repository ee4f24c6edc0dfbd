"""Which request goes where, and what holds for all: who the client truly is, and that what it says is encrypted.

Concurrency: belongs to one event loop; a handler runs in the task of its request.
"""

from collections.abc import Sequence

from torpor.base.tasks import TaskOwner
from torpor.gateway.http.accelerate import Accelerate, Purge
from torpor.gateway.http.backend import Door
from torpor.gateway.http.connection import Reply, Request
from torpor.gateway.http.cors import preflight
from torpor.gateway.http.failures import failure
from torpor.gateway.http.kept import Kept
from torpor.gateway.http.places import Places
from torpor.gateway.http.ppg import Ppg
from torpor.gateway.http.receipts import Receipts
from torpor.gateway.http.sql import Sql
from torpor.gateway.http.tunnel import tunnel
from torpor.model.access import NetworkSet, parse_address
from torpor.model.encryption import TlsMode, must_encrypt

_FOR_PAGES = ("/sql", "/v0/statement")
_MAX_HOPS = 20
_MAX_HOP_CHARACTERS = 64


class App:
    """All that is served."""

    def __init__(
        self,
        door: Door,
        kept: Kept,
        places: Places,
        receipts: Receipts,
        tls: TlsMode,
        proxies: Sequence[str],
        tasks: TaskOwner,
        purge: Purge,
    ) -> None:
        self._door = door
        self._sql = Sql(kept, places, receipts)
        self._ppg = Ppg(door, kept, places)
        self._accelerate = Accelerate(kept, places, tasks, purge)
        self._tls = tls
        self._proxies = NetworkSet(proxies)

    def __repr__(self) -> str:
        return f"<App tls={self._tls}>"

    async def handle(self, request: Request, reply: Reply) -> None:
        """Answer. Raises Failure."""
        encrypted = self._see_through_proxies(request)
        if not encrypted and must_encrypt(self._tls, request.client[0]):
            request.keep_alive = False
            who = "clients on other machines" if self._tls is TlsMode.REMOTE else "clients"
            raise failure(403, "28000", f"this server takes {who} over HTTPS only", "use https:// (wss://)")
        if request.method == "OPTIONS" and (origin := request.headers.get("origin")) and request.path in _FOR_PAGES:
            reply.whole(204, b"", more=preflight(origin))
            return
        match request.path:
            case "/sql":
                _check_method(request, reply, "POST")
                await self._sql.handle(request, reply)
            case "/v2":
                _check_method(request, reply, "GET")
                host = request.parameters.get("address", "").rpartition(":")[0] or request.host
                await tunnel(request, self._door, host.lower())
            case "/v0/statement":
                _check_method(request, reply, "POST")
                await self._ppg.statement(request, reply)
            case "/v0/session":
                _check_method(request, reply, "GET")
                await self._ppg.session(request)
            case path if self._accelerate.takes(request.method, path):
                await self._accelerate.handle(request, reply)
            case path if path.endswith(("/graphql", "/schema")):
                raise failure(
                    404, "0A000", "clients of Prisma before version 7 let a server understand their queries, which this one doesn't do",
                    "use Prisma 7 with its accelerateUrl, or a connection",
                )  # fmt: skip
            case _:
                raise failure(
                    404, "42704", "there is nothing at this address", "POST /sql takes a query; /v2 is for Neon's driver, /v0 for Prisma's"
                )

    def close(self) -> None:
        """End what outlives its request. Idempotent."""
        self._accelerate.close()

    def _see_through_proxies(self, request: Request) -> bool:
        """Find out whose request it is; whether it came encrypted."""
        host, port = request.connection.client
        if not self._is_proxy(host):
            return request.connection.encrypted
        hops = [hop.strip() for hop in request.headers.get("x-forwarded-for", "").rsplit(",", _MAX_HOPS)[-_MAX_HOPS:]]
        for hop in reversed(hops):
            if len(hop) > _MAX_HOP_CHARACTERS or parse_address(hop) is None:
                break
            request.client = hop.partition("%")[0], port
            if not self._is_proxy(hop):
                break
        return request.connection.encrypted or request.headers.get("x-forwarded-proto", "").lower() == "https"

    def _is_proxy(self, host: str) -> bool:
        address = parse_address(host) if self._proxies else None
        return address is not None and self._proxies.find(address) is not None


def _check_method(request: Request, reply: Reply, allowed: str) -> None:
    if request.method != allowed:
        reply.headers["allow"] = allowed
        raise failure(405, "0A000", f"{request.path} takes {allowed}, not {request.method[:20]}")
