"""Every setting of the daemon, declared once with its unit and effect. File, environment, flags and docs derive from this.

A setting `freeze_after_s` is `freeze_after_s` in torpor.toml, `TORPOR_FREEZE_AFTER_S` in the environment and
`--freeze-after-s` on `torpor serve`. The loader is `torpor.daemon.configuration`.
"""

import re
from dataclasses import dataclass, field, fields
from typing import Any

from torpor.model.access import NetworkSet
from torpor.model.cachestore import parse_store
from torpor.model.encryption import TlsMode
from torpor.model.errors import BadSettings, InvalidRequest
from torpor.model.limits import DoorLimits, parse_rates
from torpor.model.pool import MAX_POOL_QUEUE, MAX_POOL_SIZE, PoolMode, PoolPolicy
from torpor.model.sandbox import AUTO, SandboxLevel
from torpor.model.size import GIB, MIB, Size
from torpor.model.sleep import SleepPolicy

SUPPORTED_MAJORS = (16, 17, 18)
DEFAULT_MAJOR = 18
NO_HISTORY = "none"
"""The `history_store` of who wants none."""
_BUCKET_URL = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._/-]*)?")


def _setting(default: Any, effect: str) -> Any:
    return field(default=default, metadata={"effect": effect})


@dataclass(frozen=True, slots=True)
class Settings:
    """The daemon's settings. Idle times take seconds or "never"."""

    data_dir: str = _setting("", "directory that holds everything; default /var/lib/torpor as root, else ~/.local/share/torpor")
    door_host: str = _setting("127.0.0.1", "address the door listens on for PostgreSQL clients")
    door_port: int = _setting(7432, "TCP port of the door; 0 takes a free one")
    public_host: str = _setting("", "host name in the URLs that are handed out; default door_host")
    api_host: str = _setting("127.0.0.1", "address the HTTP API listens on")
    api_port: int = _setting(7480, "TCP port of the API; 0 takes a free one")
    api_names: str = _setting("", "host names under which the API is reached, separated by commas, beside its addresses and public_host")
    api_proxies: str = _setting(
        "", "addresses and networks of HTTP proxies whose X-Forwarded-For is believed, separated by commas; by SQL over HTTP, too"
    )
    api_key_rate: float = _setting(50.0, "requests a second that one API key may make on average; a change counts as five")
    api_address_rate: float = _setting(10.0, "requests a second that one address may make without a right API key")
    http: bool = _setting(False, "serve SQL over HTTP and WebSockets, in a process of its own")
    http_host: str = _setting("127.0.0.1", "address that SQL over HTTP is served on")
    http_port: int = _setting(7483, "TCP port of SQL over HTTP; 0 takes a free one")
    jwks_networks: str = _setting(
        "", "addresses and networks that aren't public, from which key sets of tokens may be fetched all the same, separated by commas"
    )
    postgres_major: int = _setting(DEFAULT_MAJOR, "PostgreSQL major of new databases; a database keeps its own")
    postgres_home: str = _setting("", "directory of the installed PostgreSQL majors; default <default data_dir>/postgres")
    pg_bindir: str = _setting("", "use the PostgreSQL in this directory (for instance /usr/lib/postgresql/15/bin) for its own major")
    image_home: str = _setting("", "directory of the root images that computes have as their /; default <default data_dir>/images")
    freeze_after_s: float | None = _setting(5.0, "idle seconds before a compute is frozen")
    page_after_s: float | None = _setting(30.0, "seconds frozen before its memory is reclaimed to swap")
    stop_after_s: float | None = _setting(3600.0, "seconds frozen before a compute without connections is stopped")
    warm_pool_size: int = _setting(4, "computes kept started and asleep for the next creates; 0 switches the warm pool off")
    max_connections: int = _setting(100, "connections that clients may have open to one database at once, unless its size says otherwise")
    size_min_cpu: float = _setting(0.25, "processors kept for each awake database, unless its size says otherwise")
    size_max_cpu: float = _setting(2.0, "processors that one database may use at most, unless its size says otherwise")
    size_min_memory_mb: int = _setting(
        128, "MB of memory that a database may keep when the host is short of it, unless its size says otherwise"
    )
    size_max_memory_mb: int = _setting(1024, "MB of memory that one database may use at most, page cache and swap included")
    size_disk_gb: float = _setting(10.0, "GB that the volume of one database may take, unless its size says otherwise")
    boost_after_wake_s: float = _setting(3.0, "seconds after a wake in which a database has the full processor, whatever its size")
    login_timeout_s: float = _setting(10.0, "seconds a client has until it is logged in, the wake not counted")
    max_logins: int = _setting(4096, "connections that may be logging in at once; above it the oldest silent one is closed")
    failed_login_penalty_s: float = _setting(
        1.0, "seconds an address must wait after wrong credentials for a database, doubling up to an hour; 0 for never"
    )
    max_logins_per_address: int = _setting(1024, "connections of one address (IPv6: of one /64) that may be logging in at once")
    max_connections_per_address: int = _setting(5000, "connections that one address (IPv6: one /64) may have, those logging in included")
    max_connections_overall: int = _setting(50_000, "connections to all databases at once, those logging in not included")
    wake_rate_per_database: str = _setting("300/200/100", "wakes per second of one database, over 1 s, 1 min and 10 min; or never")
    wake_rate_per_address: str = _setting(
        "1500/1000/500", "wakes per second by logins of one address, over 1 s, 1 min and 10 min; or never"
    )
    wake_rate_overall: str = _setting("3000/2000/1000", "wakes per second of all databases, over 1 s, 1 min and 10 min; or never")
    proxy_protocol_from: str = _setting("", "load balancers that send the PROXY protocol: addresses or networks, with commas between")
    drain_timeout_s: float = _setting(600.0, "seconds that running statements and transactions have after SIGTERM, before they are ended")
    start_timeout_s: float = _setting(60.0, "seconds a client waits for a compute to start before it is told to come back")
    memory_high_percent: float = _setting(85.0, "share of the host's memory above which the longest asleep go down a tier")
    uid_base: int = _setting(310_000, "first host uid for computes when Torpor runs as root; each database has its own")
    sandbox: str = _setting("auto", "weakest sandbox level to run with: auto, full, no_user_namespace, shared_user, own_user or none")
    tenant_superuser: bool = _setting(False, "allow databases whose owner is a real superuser, where the sandbox level holds them")
    tls: str = _setting(
        TlsMode.REMOTE, "who encrypts: off, allow (who wants to), remote (clients on other machines must), require (all must)"
    )
    tls_cert: str = _setting("", "PEM files of certificate chains, separated by commas; default the development authority's own")
    tls_key: str = _setting("", "PEM files of their keys, in the same order; default the keys are in the files of tls_cert")
    relay: bool = _setting(False, "carry the bytes of every session through relay workers instead of handing sockets over")
    relay_workers: int = _setting(0, "processes that carry encrypted and relayed sessions; 0 is one for two cores, 1 to 8")
    pool: str = _setting(
        PoolMode.OFF,
        "who is pooled that doesn't say so itself, unless the database has its own: off (nobody), or auto (all, until they need a session)",
    )
    pool_port: int | None = _setting(
        None, "TCP port at the door's addresses where every connection is pooled; 0 takes a free one; never (the default): there is none"
    )
    pool_workers: int = _setting(0, "processes that serve pooled clients, started when they are needed; 0 is one for two cores, 1 to 8")
    pool_size: int = _setting(20, "connections to PostgreSQL that the pooled clients of one database share, unless it has its own")
    pool_role_size: int = _setting(0, "of these, how many one role may have; 0: as many as there are")
    pool_queue: int = _setting(1000, "pooled clients of one database that may wait for a connection at once")
    pool_wait_s: float = _setting(30.0, "seconds a pooled client waits for a connection before it is sent away")
    pool_idle_s: float = _setting(3.0, "seconds before a pool closes a connection that nobody needs, so that the database can sleep")
    cache_bytes: int = _setting(
        128 << 20, "bytes of results that one process for pooled clients keeps in its cache at most; 0 caches nothing"
    )
    cache_store: str = _setting(
        "", "a Redis or Valkey in which cached results outlive their process: redis://user:password@host:port/db; none by default"
    )
    pool_max_clients: int = _setting(10_000, "pooled clients that one database may have")
    history_store: str = _setting(
        "", "where the history of databases is kept: a directory, s3://bucket/prefix, or none; default <data_dir>/history"
    )
    history_keep_days: float = _setting(7.0, "days back to any moment of which a database can be restored, unless it has its own")
    history_keep_bases: int = _setting(30, "base copies that are kept of one database at most, however long that reaches back")
    history_endpoint: str = _setting("", "URL of the S3-compatible store that history_store is at; default Amazon's own")
    drill_every_s: float | None = _setting(
        3600.0, "seconds between two restore drills, each of which restores some database to some moment for a trial; or never"
    )
    key_file: str = _setting("", "file of the master key, which wraps the keys of databases; default <data_dir>/master.key")
    pool_key_file: str = _setting("", "file of the key of a pool that is encrypted (`torpor host setup`); default <data_dir>/pool.key")
    audit_keep_days: float | None = _setting(None, "days that files of older audit records are kept; never removed by default")
    log_format: str = _setting("console", "log lines for people (console) or for machines (json)")

    def __post_init__(self) -> None:
        """Raise BadSettings, naming the setting, for values out of range."""
        _ = self.sleep_policy
        _ = self.door_limits
        parse_store(self.cache_store)
        try:
            NetworkSet(self.load_balancers)
        except InvalidRequest as error:
            raise BadSettings(f"proxy_protocol_from is wrong: {error.message}", error.hint) from None
        try:
            NetworkSet(self.trusted_proxies)
        except InvalidRequest as error:
            raise BadSettings(f"api_proxies is wrong: {error.message}", error.hint) from None
        try:
            NetworkSet(self.key_set_networks)
        except InvalidRequest as error:
            raise BadSettings(f"jwks_networks is wrong: {error.message}", error.hint) from None
        for name in ("door_port", "api_port", "http_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise BadSettings(f"{name} must be between 0 and 65535")
        if self.pool_port is not None and not 0 <= self.pool_port <= 65535:
            raise BadSettings("pool_port must be between 0 and 65535, or never")
        if self.pool_port and self.pool_port == self.door_port:
            raise BadSettings("pool_port is the same as door_port", "give the pool a port of its own")
        for name, low, high in (
            ("warm_pool_size", 0, 1000),
            ("api_key_rate", 1, 100_000),
            ("api_address_rate", 0.1, 100_000),
            ("max_connections", 5, 10_000),
            ("login_timeout_s", 0.1, 600),
            ("max_logins", 1, 1_000_000),
            ("failed_login_penalty_s", 0, 3600),
            ("max_logins_per_address", 1, 1_000_000),
            ("max_connections_per_address", 1, 1_000_000),
            ("max_connections_overall", 1, 1_000_000),
            ("drain_timeout_s", 0, 30 * 86_400),
            ("start_timeout_s", 0.1, 86_400),
            ("memory_high_percent", 1, 100),
            ("boost_after_wake_s", 0, 300),
            ("uid_base", 1_001, 2_000_000_000),
            ("relay_workers", 0, 256),
            ("pool_workers", 0, 256),
            ("pool_size", 1, MAX_POOL_SIZE),
            ("pool_role_size", 0, MAX_POOL_SIZE),
            ("pool_queue", 0, MAX_POOL_QUEUE),
            ("pool_wait_s", 0.1, 86_400),
            ("pool_idle_s", 0.1, 86_400),
            ("pool_max_clients", 1, 1_000_000),
            ("cache_bytes", 0, 1 << 40),
            ("history_keep_days", 0, 3650),
            ("history_keep_bases", 1, 1000),
        ):
            if not low <= getattr(self, name) <= high:
                raise BadSettings(f"{name} must be between {low} and {high}")
        if self.audit_keep_days is not None and not 1 <= self.audit_keep_days <= 36_500:
            raise BadSettings("audit_keep_days must be between 1 and 36500, or never")
        if self.drill_every_s is not None and not 1 <= self.drill_every_s <= 366 * 86_400:
            raise BadSettings("drill_every_s must be between 1 and 31622400, or never")
        try:
            _ = self.size
        except InvalidRequest as error:
            raise BadSettings(f"size_{error.message}", error.hint) from None
        if self.sandbox not in (AUTO, *SandboxLevel):
            raise BadSettings(f"sandbox must be one of {', '.join((AUTO, *SandboxLevel))}")
        if self.pool not in (PoolMode.OFF, PoolMode.AUTO):
            raise BadSettings(f"pool must be one of {PoolMode.OFF}, {PoolMode.AUTO}", "who wants pool=on says so by its address")
        if self.tls not in list(TlsMode):
            raise BadSettings(f"tls must be one of {', '.join(TlsMode)}")
        if self.tls_key and not self.tls_cert:
            raise BadSettings("tls_key is set without tls_cert", "set both, or neither")
        if self.history_store.startswith("s3:") and not _BUCKET_URL.fullmatch(self.history_store):
            raise BadSettings("history_store must be a directory, s3://bucket/prefix, or none")
        if self.history_endpoint and not self.history_endpoint.startswith(("http://", "https://")):
            raise BadSettings("history_endpoint must be a URL, such as https://s3.example.com")
        if self.log_format not in ("console", "json"):
            raise BadSettings("log_format must be console or json")

    @property
    def sleep_policy(self) -> SleepPolicy:
        """The global idle times."""
        return SleepPolicy(self.freeze_after_s, self.page_after_s, self.stop_after_s)

    @property
    def pool_policy(self) -> PoolPolicy:
        """The pool of databases that have none of their own."""
        return PoolPolicy(PoolMode(self.pool), self.pool_size, self.pool_role_size, self.pool_queue)

    @property
    def history_retention(self) -> tuple[float, int]:
        """Seconds back that a history reaches, and how many bases it has at most."""
        return self.history_keep_days * 86_400, self.history_keep_bases

    @property
    def size(self) -> Size:
        """The size of databases that have none of their own."""
        return Size(
            self.size_min_cpu,
            self.size_max_cpu,
            self.size_min_memory_mb * MIB,
            self.size_max_memory_mb * MIB,
            self.max_connections,
            int(self.size_disk_gb * GIB),
        )

    @property
    def door_limits(self) -> DoorLimits:
        """What the door allows at most."""
        return DoorLimits(
            self.max_connections_overall,
            self.max_connections_per_address,
            self.max_logins_per_address,
            parse_rates("wake_rate_per_database", self.wake_rate_per_database),
            parse_rates("wake_rate_overall", self.wake_rate_overall),
            self.failed_login_penalty_s,
            parse_rates("wake_rate_per_address", self.wake_rate_per_address),
        )

    @property
    def trusted_proxies(self) -> tuple[str, ...]:
        """The networks in `api_proxies`."""
        return tuple(part for text in self.api_proxies.split(",") if (part := text.strip()))

    @property
    def key_set_networks(self) -> tuple[str, ...]:
        """The networks in `jwks_networks`."""
        return tuple(part for text in self.jwks_networks.split(",") if (part := text.strip()))

    @property
    def load_balancers(self) -> tuple[str, ...]:
        """The networks from which the PROXY protocol is spoken."""
        return tuple(part for part in self.proxy_protocol_from.replace(",", " ").split() if part)


def effects() -> dict[str, str]:
    """The effect of each setting, by name: the text of flags and docs."""
    return {f.name: f.metadata["effect"] for f in fields(Settings)}
