"""Puts SQL over HTTP together as the settings say. Concurrency: none, at start only."""

import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from torpor.base.telemetry import Reading, Readings, Telemetry
from torpor.door.encryption import Encryption
from torpor.door.routing import ServerNames, database_not_found, route
from torpor.gateway.http.control import Configuration
from torpor.gateway.http.figures import Figures
from torpor.gateway.http.service import HttpService
from torpor.gateway.pool.pools import Pools
from torpor.model.cache import PurgeBy
from torpor.model.database import Database
from torpor.model.settings import Settings
from torpor.pgwire.startup import StartupMessage

_LONGEST_KEEP_S = 0.8  # less than a delete or a stop waits for connections that are just ending


def new_gateway_secret() -> bytes:
    """What the gateway proves itself to the door with, until Torpor ends."""
    return secrets.token_hex(32).encode()


def make_http(
    settings: Settings,
    data_dir: Path,
    secret: bytes,
    encryption: Encryption,
    door: Callable[[], tuple[str, int]],
    find: Callable[[str], Database | None],
    pools: Pools,
) -> HttpService | None:
    """The service, None where it isn't wanted. `door` is asked once that listens; `find` gives a database by its name."""
    if not settings.http:
        return None

    def configuration() -> Configuration:
        host, port = door()
        return Configuration(
            door_host=_reachable(host),
            door_port=port,
            secret=secret.decode(),
            tls=settings.tls,
            proxies=list(settings.trusted_proxies),
            keep_s=_keep_s(settings.freeze_after_s),
            directory=str(data_dir / "http"),
            log_format=settings.log_format,
            # A user of its own, as the relay workers have one.
            uid=settings.uid_base - 2 if os.geteuid() == 0 else 0,
            certificates=_texts(encryption.pairs),
        )

    names = ServerNames(settings.public_host)

    async def purge(startup: dict[str, str], host: str, tags: list[str] | None) -> int:
        target = route(StartupMessage(startup), names.database_in(host)).target
        database = find(target)
        if database is None:
            raise database_not_found(target)
        return await pools.purge(database.id, PurgeBy.ALL if tags is None else PurgeBy.TAG, tags or ())

    service = HttpService(settings.http_host, settings.http_port, configuration, purge)
    encryption.on_pairs = lambda pairs: service.use_certificates(_texts(pairs))
    return service


def register_http(telemetry: Telemetry, service: HttpService | None) -> None:
    """Add what the process counts. Figures are some seconds old; counters begin again when the process is started anew."""
    if service is None:
        return

    def one(value: Callable[[Figures], float]) -> Callable[[], Iterable[Reading]]:
        return lambda: [((), value(service.figures))]

    for family in (
        Readings(
            "torpor_http_requests_total", "Requests over HTTP by their kind and what became of them.",
            lambda: (((kind, result), n) for kind, of_one in service.figures.requests.items() for result, n in of_one.items()),
            ("kind", "result"), "counter",
        ),
        Readings(
            "torpor_http_request_seconds_total", "How long requests over HTTP took in all; WebSockets aren't among them.",
            lambda: (((kind,), seconds) for kind, seconds in service.figures.seconds.items()), ("kind",), "counter",
        ),
        Readings("torpor_http_received_bytes_total", "Bytes from clients over HTTP.", one(lambda f: f.received), type="counter"),
        Readings("torpor_http_sent_bytes_total", "Bytes to clients over HTTP.", one(lambda f: f.sent), type="counter"),
        Readings("torpor_http_connections", "Open connections of clients over HTTP.", one(lambda f: f.connections)),
        Readings("torpor_http_running", "Requests over HTTP that run.", one(lambda f: f.taken)),
        Readings("torpor_http_waiting", "Requests over HTTP that wait for others on their database.", one(lambda f: f.waiting)),
        Readings("torpor_http_kept", "Connections to databases that wait for the next request of the same client.", one(lambda f: f.kept)),
    ):  # fmt: skip
        telemetry.add(family)


def _texts(pairs: Sequence[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(chain.decode(), key.decode()) for chain, key in pairs]


def _keep_s(freeze_after_s: float | None) -> float:
    """How long a connection may wait for its next user: less than the time after which its end would wake the database."""
    return _LONGEST_KEEP_S if freeze_after_s is None else min(_LONGEST_KEEP_S, freeze_after_s / 2)


def _reachable(host: str) -> str:
    """All addresses (0.0.0.0, ::) is a way to listen, not a place to connect to."""
    return host if host.strip("0.:") else "::1" if ":" in host else "127.0.0.1"
