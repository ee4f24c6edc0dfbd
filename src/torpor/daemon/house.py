"""The composition root: makes every part, wires them, starts and stops them in order.

Concurrency: `start` and `stop` are each called once, on the event loop that everything then runs on.
"""

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

from torpor import __version__
from torpor.api.calls import Services
from torpor.api.gate import ApiLimits
from torpor.api.server import ApiServer
from torpor.api.token import load_or_create, token_path
from torpor.base import memory
from torpor.base.cgroups import detect
from torpor.base.clock import SystemClock
from torpor.base.logs import get_logger
from torpor.base.tasks import TaskOwner
from torpor.base.telemetry import Telemetry
from torpor.catalog.access import AccessRecords
from torpor.catalog.archived import ArchivedRecords
from torpor.catalog.audit import AuditRecords
from torpor.catalog.catalog import Catalog
from torpor.catalog.histories import HistoryRecords
from torpor.catalog.workspaces import WorkspaceRecords
from torpor.compute.compute import Compute
from torpor.compute.drain import Drain
from torpor.compute.fleet import Fleet
from torpor.compute.ladder import Ladder
from torpor.compute.service import ServiceSession
from torpor.compute.surroundings import Surroundings
from torpor.compute.template import Templates
from torpor.compute.warmpool import WarmPool
from torpor.control.access import AccessControl
from torpor.control.archiving import Archiving
from torpor.control.audit import TORPOR, Audit
from torpor.control.branches import Branches
from torpor.control.claims import Claims
from torpor.control.databases import Databases
from torpor.control.disk import DiskWatch
from torpor.control.expiry import Expiry
from torpor.control.exports import Exporter
from torpor.control.jobs import Jobs
from torpor.control.keys import KeyRing
from torpor.control.pool import PoolWatch
from torpor.control.provisioning import Provisioner
from torpor.control.reconcile import Reconciler
from torpor.control.scaling import Scaling
from torpor.control.views import HostFacts, Viewer
from torpor.control.workspaces import Workspaces
from torpor.daemon.caching import make_caching
from torpor.daemon.directory import DataDirectory
from torpor.daemon.drills import make_drills
from torpor.daemon.encryption import make_encryption
from torpor.daemon.exchanging import make_exchanges
from torpor.daemon.facts import host_facts
from torpor.daemon.gateway import make_http, new_gateway_secret, register_http
from torpor.daemon.ground import Ground
from torpor.daemon.handoff import Estate
from torpor.daemon.metrics import register, register_guard, register_pool, register_shares
from torpor.daemon.past import make_histories, make_restores
from torpor.daemon.pooling import make_pools, register_pooled
from torpor.daemon.recovering import make_recovery
from torpor.daemon.tokens import make_tokens
from torpor.door.guard.guard import Guard
from torpor.door.listener import Door
from torpor.insights.wakes import WakeLog
from torpor.metering.ledger import TrafficLedger
from torpor.model.access import AccessBook, ListScope
from torpor.model.audit import AuditResult
from torpor.model.database import Database, Wake
from torpor.model.drain import DrainView
from torpor.model.errors import TorporError
from torpor.model.names import DatabaseId
from torpor.model.settings import Settings
from torpor.model.sleep import Tier
from torpor.model.views import RefusalView
from torpor.native import RELAY
from torpor.storage.archive.archive import open_archive
from torpor.storage.volumes import Volumes
from torpor.storage.writes import WriteCounters

log = get_logger(__name__)

_FLUSH_EVERY_S = 2.0
_REFUSED_SHOWN = 10
_LOGINS_S = 5.0  # that logins which are under way have when the next Torpor takes over; newcomers wait for so long at most
_REQUESTS_S = 10.0
_TRANSACTIONS_S = 5.0  # that pooled clients have to end theirs when the next Torpor takes over
_SETTLES_S = 5.0
_LAST_LOG_S = 5.0  # to ship what databases wrote last, once they are stopped; the next Torpor ships what is left
_LAST_CARDS_S = 2.0


class House:
    """A whole Torpor."""

    def __init__(self, settings: Settings, estate: Estate | None = None, ground: Ground | None = None, patience_s: float = 0.0) -> None:
        """Make every part, upon the `estate` of another Torpor if there is one; one that is just ending is given `patience_s`.
        `ground` is what was found out before, so that it takes no time now.

        Raises HostError for what the host lacks; then nothing was started.
        """
        self._estate = estate
        self._settings = settings
        self._clock = SystemClock()
        self._tasks = TaskOwner("daemon")
        self._refilling = TaskOwner("warm pool")
        with contextlib.ExitStack() as undo:
            self._directory = directory = DataDirectory(Path(settings.data_dir), estate.lock if estate else None, patience_s)
            undo.callback(directory.close)
            self._encryption = make_encryption(settings, directory.path, RELAY, self._clock)
            self._relays = self._encryption.relays
            self.ground = ground = ground or Ground(settings, directory)
            if estate is None:  # else they may be another Torpor's, which goes on if this one can't
                undo.callback(ground.images.close)
            for major in ground.binaries:
                ground.write_configuration(directory, major)
            self._images = ground.images
            self._sandbox = ground.sandbox
            self._catalog = Catalog.open(directory.path / "catalog.sqlite")
            undo.callback(self._catalog.close)
            token = load_or_create(directory.path)
            self._volumes = Volumes(directory.path / "volumes")
            self._volumes.hold(patience_s)
            undo.callback(self._volumes.release)
            self._trees = detect(directory.instance)
            self._wakes = WakeLog(self._catalog.save_wakes, self._catalog.wakes, self._catalog.last_wakes())
            self._traffic = TrafficLedger(self._catalog.add_traffic, self._catalog.traffic())
            ladder = self._ladder = Ladder(self._clock, self._tasks, memory.read, settings.memory_high_percent)
            around = Surroundings(
                trees=self._trees,
                volumes=self._volumes,
                catalog=self._catalog,
                clock=self._clock,
                tasks=self._tasks,
                binaries=ground.postgres,
                configuration=directory.configuration,
                run=directory.path / "run",
                logs=directory.path / "logs",
                library=ground.library,
                policy=settings.sleep_policy,
                starts=asyncio.Semaphore(2 * (os.cpu_count() or 1)),
                start_timeout_s=settings.start_timeout_s,
                on_wake=self._woken,
                size=settings.size,
                sandbox=self._sandbox,
                relayed=self._relays.find,
                falling_asleep=self._falling_asleep,
                bring_back=self._bring_back,
                writes=WriteCounters(directory.path / "writes"),
            )
            self._fleet = fleet = Fleet(around, ladder)
            templates = Templates(self._volumes.root / ".templates", ground.postgres)
            provisioner = Provisioner(
                self._catalog, self._volumes, fleet, templates.data, self._clock, settings.uid_base, settings.max_connections
            )
            self._warm_pool = provisioner.warm_pool = WarmPool(
                settings.warm_pool_size, settings.postgres_major, provisioner.make_warm, provisioner.is_busy, self._clock, self._refilling
            )
            run = directory.path / "run"
            self._reconciler = Reconciler(
                self._catalog, self._volumes, self._trees, fleet, provisioner, self._warm_pool, run, self._is_archived
            )
            secret = hashlib.sha256(b"mock authentication " + token.encode()).digest()
            remembered = estate.failures if estate else None
            self._guard = Guard(self._clock.monotonic, secret, settings.door_limits, fleet, settings.load_balancers, remembered=remembered)
            undo.callback(self._guard.close)
            self._pools = make_pools(settings, fleet, around, self._guard, directory.path)
            gateway_secret = new_gateway_secret()
            tokens = self._tokens = make_tokens(settings, self._catalog, fleet, self._clock, self._tasks)
            self.door = Door(
                fleet,
                host=settings.door_host,
                port=settings.door_port,
                login_timeout_s=settings.login_timeout_s,
                max_logins=settings.max_logins,
                mock_secret=secret,
                encryption=self._encryption,
                public_host=settings.public_host,
                relay=settings.relay,
                guard=self._guard,
                gateway_secret=gateway_secret if settings.http else b"",
                pools=self._pools,
                tokens=tokens,
                pool_port=settings.pool_port,
            )
            self.http = make_http(
                settings, directory.path, gateway_secret, self._encryption, lambda: self.door.address, fleet.find, self._pools
            )
            workspace_records = WorkspaceRecords(self._catalog.connection)
            self._keys = KeyRing(workspace_records, self._clock)
            workspaces = Workspaces(
                workspace_records,
                self._clock,
                lambda id: len(fleet.names(id)),
                self._keys.count,
                self._keys.forget_workspace,
            )
            keep_s = None if settings.audit_keep_days is None else settings.audit_keep_days * 86_400
            self._audit = Audit(AuditRecords(self._catalog.connection), self._clock, directory.path / "audit", keep_s)
            self._jobs = Jobs(self._audit, self._clock)
            self._claims = Claims()
            self._archive = open_archive(settings)
            if self._archive is not None:
                undo.callback(self._archive.close)
            self._histories = make_histories(
                settings, self._archive, self._catalog, fleet, self._volumes, self._jobs, self._clock, self._tasks
            )
            archived = ArchivedRecords(self._catalog.connection)
            self._archiving: Archiving = Archiving(
                self._archive, archived, fleet, self._volumes, self._jobs, self._log_is_stored, self._claims, self._clock, self._tasks
            )
            scaling = self._scaling = Scaling(lambda: fleet.in_tier(Tier.AWAKE), self._clock, self._tasks, settings.boost_after_wake_s)
            disks = self._disk_watch = DiskWatch(lambda: fleet.in_tier(Tier.AWAKE), self._volumes, self._clock, self._tasks)
            self._pool_watch = PoolWatch(lambda: fleet.in_tier(Tier.AWAKE), self._volumes, disks, self._clock, self._tasks)
            viewer = Viewer(
                self._facts,
                fleet,
                self._wakes,
                self._volumes,
                self._clock,
                memory.read,
                self._traffic.past,
                self._warm_computes,
                workspaces.name,
                scaling,
                self._refused,
                self._histories.shipping if self._histories is not None else lambda _id: None,
                self._archiving.stored_bytes,
                self._pools.view,
                settings.pool_policy,
            )
            databases = Databases(
                self._catalog,
                fleet,
                provisioner,
                viewer,
                settings.postgres_major,
                lambda: ground.binaries,
                settings.sleep_policy,
                settings.size,
                self._forget,
                settings.tenant_superuser and around.sandbox.level.holds_superusers,
                Exporter(around),
            )
            self._expiry = Expiry(fleet, self._clock, self._tasks, self._expired)
            self._databases = databases
            branches = Branches(
                databases,
                self._catalog,
                self._volumes,
                fleet,
                provisioner,
                viewer,
                self._clock,
                settings.sleep_policy,
                settings.size,
                self._expiry.watch,
                self._claims,
                self._histories,
            )
            restores = make_restores(databases, branches, self._histories, fleet, around, viewer, self._jobs, self._clock)
            self._rewinds, upgrades = make_exchanges(
                databases,
                branches,
                restores,
                self._histories,
                self._catalog,
                fleet,
                around,
                provisioner,
                templates,
                self._jobs,
                self._claims,
            )
            telemetry = Telemetry()
            register(telemetry, fleet, self.door.stats, self._warm_pool, self._wakes, memory.read, lambda: self._relays.sessions)
            register_guard(telemetry, self._guard, fleet)
            register_shares(telemetry, self._scaling, fleet)
            register_pool(telemetry, self._volumes)
            register_pooled(telemetry, self._pools.views)
            register_http(telemetry, self.http)
            self._caching = make_caching(self._catalog, fleet, self._pools, self._volumes, around, telemetry)
            every_s = settings.drill_every_s
            self._drills = make_drills(
                self._catalog, restores, self._histories, fleet, around, self._jobs, every_s, self._clock, self._tasks, telemetry
            )
            access = self._access = AccessControl(AccessRecords(self._catalog.connection), fleet, self._tasks, self._use_lists)
            self._recovery = None
            if self._archive is not None and self._histories is not None and restores is not None:
                self._recovery = make_recovery(
                    self._archive,
                    self._histories,
                    self._archiving,
                    restores,
                    branches,
                    workspaces,
                    access,
                    self._catalog,
                    fleet,
                    provisioner,
                    around,
                    lambda: ground.binaries,
                    settings.tenant_superuser and around.sandbox.level.holds_superusers,
                    self._expiry.watch,
                    self._jobs,
                    self._claims,
                )
            services = Services(
                databases,
                workspaces,
                self._keys,
                self._audit,
                telemetry.render,
                drains=self,
                access=access,
                tokens=tokens,
                caching=self._caching,
                jobs=self._jobs,
                branches=branches,
                histories=self._histories,
                archiving=self._archiving,
                restores=restores,
                rewinds=self._rewinds,
                upgrades=upgrades,
                recovery=self._recovery,
                drills=self._drills,
            )
            names = frozenset(name.strip() for name in (settings.public_host, *settings.api_names.split(",")))
            limits = ApiLimits(names, settings.api_key_rate, settings.api_address_rate, settings.trusted_proxies)
            self.api = ApiServer(services, token, settings.api_host, settings.api_port, token_path(directory.path), limits=limits)
            telemetry.add(self.api.requests)
            self._drain = Drain(fleet, self._clock, lambda: self.door.is_busy)
            self._draining: asyncio.Task[None] | None = None
            self.drained = asyncio.Event()
            """Set when a drain has come to its end, or to its deadline."""
            self._started_at = self._clock.time()
            undo.pop_all()

    async def start(self) -> None:
        """Take the addresses, set right what the last Torpor left, and open. Raises HostError; then nothing runs that did not before."""
        try:
            estate = self._estate
            self.api.bind(estate.api if estate else None)
            if self.http is not None:
                self.http.bind(estate.http if estate else None)
            self._jobs.recall(self._audit.unfinished())
            self._audit.settle()
            await self._relays.take_over()
            found = await self._reconciler.reconcile(self._directory.previous_door_port())
            self._archiving.reconcile()
            self._caching.sweep()
            await self._access.enforce("torpor")  # a change may have been cut off before it reached them
            await self._rewinds.finish_left()
            log.info("reconciled", **{name: getattr(found, name) for name in found.__slots__})
            await self._encryption.start()
            if estate is None:
                await self.door.start()
            else:
                for id, role, verifier, ttl_s in estate.tickets:
                    self._fleet.tickets.add(DatabaseId(id), role, verifier, ttl_s)
                await self.door.start(estate.door, estate.silent)
            await self.api.start()
            if self.http is not None:
                await self.http.start()
        except BaseException:
            await self.stop(leave=True)
            await asyncio.to_thread(self._images.close)
            raise
        host, port = self.door.address
        http = self.http.url if self.http is not None else ""
        self._directory.announce(self.api.url, host, port, __version__, self._encryption.authority, http)
        self._ladder.start()
        for name in self._fleet.names():
            self._expiry.watch(self._fleet.compute(name).database)
        self._expiry.start()
        self._scaling.start()
        self._disk_watch.start()
        self._pool_watch.start()
        if self._histories is not None:
            self._histories.start()
        if self._drills is not None:
            self._drills.start()
        self._archiving.start()
        if self._recovery is not None:
            self._recovery.cards.start()
        self._warm_pool.start()
        self._tasks.spawn(asyncio.to_thread(self._images.tidy), "tidy root images")
        self._tasks.spawn_endless(self._flush_regularly, "flush records")
        self._tasks.spawn_endless(self._encryption.watch, "watch certificates")
        self._tasks.spawn_endless(self._audit.keep_bounded, "keep the audit log bounded")

    async def stop(self, leave: bool) -> None:
        """Close the door and the API, then end every compute in order; with `leave` they stay, for the next Torpor to adopt."""
        if self.http is not None:
            await self.http.stop()
        await self.door.stop_accepting()
        await self.api.stop()
        await self.door.close()
        await self._pools.stop()
        await self._jobs.stop()
        await self._refilling.stop()  # or it makes one more compute, which nobody would stop
        if leave:
            await self._fleet.leave_all()
        else:
            await self._fleet.stop_all()
            if self._histories is not None:
                await self._histories.shipper.finish(_LAST_LOG_S)
            if self._recovery is not None:
                await self._recovery.cards.finish(_LAST_CARDS_S)
            await asyncio.to_thread(self._images.close)
        await self._relays.stop(leave)
        await self._close()
        if not leave:
            self._directory.retract()
        self._directory.close()

    async def _close(self) -> None:
        """End what runs beside the computes, and close the files."""
        await self._tasks.stop()
        self._flush()
        if self._archive is not None:
            await asyncio.to_thread(self._archive.close)
        self._guard.close()
        self._catalog.close()
        self._volumes.release()

    def reload_certificates(self) -> None:
        """Read the files of certificates again now, for the handshakes to come."""
        self._tasks.spawn(self._encryption.reload(), "reload certificates")

    # -- draining, and handing over

    def drain(self, timeout_s: float | None = None) -> DrainView:
        """Let nobody in any more, and end each session when nothing runs in it; `drained` is set at the end, or after `timeout_s`.

        Newcomers wait in the kernel's queue meanwhile, for the next Torpor. Called again it changes the deadline.
        """
        self._drain.allow(self._settings.drain_timeout_s if timeout_s is None else timeout_s)
        if self._draining is None:
            self.door.pause()
            if self.http is not None:
                self.http.pause()
            self._draining = self._tasks.spawn(self._run_drain(), "drain")
        return self._drain.view

    def drain_view(self) -> DrainView:
        """How far the drain is."""
        return self._drain.view

    @property
    def drain_remaining_s(self) -> float | None:
        """How long what runs may go on; None when nobody asked for a drain."""
        return self._drain.remaining_s

    def _tell(self, action: str, detail: str) -> None:
        """Put into the audit log what Torpor does by itself, or since a signal said so; a full disk keeps it from nothing."""
        try:
            self._audit.record(TORPOR, action, "", detail=detail)
        except TorporError as error:
            log.warning("the audit log can't be written", action=action, cause=error.message)

    async def _run_drain(self) -> None:
        log.info("draining", remaining_s=self._drain.remaining_s)
        self._tell("host.draining", "no session is let in any more")
        try:
            await self._refilling.stop()
            self._tasks.spawn(self._pools.stop(self._drain.remaining_s or 0.0), "drain the pool")
            whole = await self._drain.run()
            left = 0 if whole else self._drain.view.connections
            log.info("drained", connections_left=left)
            self._tell("host.drained", f"{left} sessions that still run end now" if left else "no session is left")
        finally:
            self.drained.set()

    async def hand_over(self) -> Estate:
        """Let go of everything, and give what the next Torpor inherits. Computes stay with their sessions; logins and requests that are
        under way are finished first, within some seconds. This house is closed then; another can be made upon the same estate.
        """
        # Before the door: what was asked over HTTP and takes too long is cancelled by way of that.
        http = await self.http.release() if self.http is not None else None
        self.door.pause()
        if self._draining is not None:
            self._draining.cancel()
            await asyncio.gather(self._draining, return_exceptions=True)
        _, api = await asyncio.gather(self.door.finish_logins(_LOGINS_S), self.api.release(_REQUESTS_S))
        listeners, silent = self.door.release()
        await self.door.close()
        await self._pools.stop(_TRANSACTIONS_S)
        await self._jobs.stop()
        await self._refilling.stop()
        await self._fleet.settle(_SETTLES_S)
        await self._fleet.leave_all()
        await self._relays.stop(leave=True)
        tickets = self._fleet.tickets.release()
        failures = self._guard.release()
        await self._close()
        assert api is not None
        return Estate(self._directory.give_lock(), listeners, api, silent, tickets, failures, http)

    def _use_lists(self, book: AccessBook) -> None:
        self._guard.use(book)
        self._pools.enforce(book)

    def _facts(self) -> HostFacts:
        return host_facts(
            self._settings,
            self._directory,
            self.door.address,
            self.door.pool_address,
            self.api.url,
            self._started_at,
            self._sandbox,
            self._trees,
            self._volumes,
            self._encryption,
        )

    def _warm_computes(self) -> Collection[Compute]:
        return self._warm_pool.computes

    def _refused(self) -> tuple[RefusalView, ...]:
        ahead_s = self._clock.time() - self._clock.monotonic()
        heaviest = self._guard.heaviest(_REFUSED_SHOWN)
        return tuple(RefusalView(one.address, one.reason, one.target, one.count, one.last_at + ahead_s) for one in heaviest)

    def _woken(self, wake: Wake) -> None:
        self._wakes.record(wake)
        self._guard.woken(wake.database_id)

    async def _expired(self, compute: Compute) -> None:
        """Remove a database whose time to live is over; what can't be recorded isn't done."""
        name, workspace = compute.database.label, compute.database.workspace
        begun = self._audit.record(TORPOR, "database.expire", name, workspace=workspace, result=AuditResult.BEGUN)
        result = AuditResult.FAILED
        try:
            await self._databases.delete(name, force=True)
            result = AuditResult.DONE
        finally:
            self._audit.record(TORPOR, "database.expire", name, workspace=workspace, result=result, begun=begun)

    async def _falling_asleep(self, database: Database, service: ServiceSession) -> None:
        if self._histories is not None:
            await self._histories.shipper.falling_asleep(database, service)

    def _is_archived(self, id: DatabaseId) -> bool:
        return self._archiving.holds(id)

    async def _bring_back(self, database: Database, let_others: Callable[[], Awaitable[None]]) -> None:
        await self._archiving.bring_back(database, let_others)

    async def _log_is_stored(self, id: DatabaseId) -> bool:
        """Whether the history of a stopped database needs nothing of its volume any more; waits for that some seconds."""
        if self._histories is None:
            return True
        await self._histories.settle(id)
        history = HistoryRecords(self._catalog.connection).get(id)
        return history is None or history.end_lsn is None

    def _forget(self, id: DatabaseId) -> None:
        if self._histories is not None:
            self._histories.forget(id)
        if self._drills is not None:
            self._drills.forget(id)
        self._access.forget((ListScope.DATABASE, id))
        self._tokens.forget(id)
        self._pools.forget(id)
        self._wakes.forget(id)
        self._traffic.forget(id)
        self._scaling.forget(id)

    async def _flush_regularly(self) -> None:
        while True:
            await self._clock.sleep(_FLUSH_EVERY_S)
            self._flush()

    def _flush(self) -> None:
        for compute in self._fleet.in_tier(Tier.AWAKE):
            self._traffic.note(compute.database.id, compute.traffic())
        try:
            if self._histories is not None:
                self._histories.shipper.flush()
            self._keys.flush()
            self._wakes.flush()
            self._traffic.flush()
        except TorporError as error:
            log.warning("records could not be saved yet", cause=error.message)
