"""`make soak`: hours of load, sleep and faults on a real Torpor, with a checker for lost commits and stranded clients.

Each database has one client that inserts numbers, waits, and comes again; it notes a number as acknowledged when PostgreSQL said so.
One hand of chance (seeded) puts databases to sleep and wakes them, kills postmasters, kills Torpor itself, ends it in order with the
computes left running, makes and removes databases. In the end every acknowledged number must be there, and none that was never sent.

Concurrency: a thread for each client and one for chance; what they share are the counters below, each written by one thread.
"""

import argparse
import contextlib
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.error import HTTPError, URLError

import psycopg

from bench.rig import BenchServer, Zram, running
from tests.support.server import MadeDatabase

_CLIENTS = 8
_STRANDED_S = 60.0
_LOGIN_S = 30
_GRACE_S = 10.0  # a client uses its connection at least this often, and finds then that its postmaster was killed


@dataclass
class Ledger:
    """What one client knows of its database."""

    database: MadeDatabase
    sent: int = 0
    acknowledged: set[int] = field(default_factory=set)
    waiting_since: float | None = None
    slowest_s: float = 0.0
    reconnects: int = 0
    excused_until: float = 0.0  # its postmaster was killed, or is about to be
    faults: list[str] = field(default_factory=list)


class Soak:
    """One run."""

    def __init__(self, torpor: BenchServer, seed: int) -> None:
        self._torpor = torpor
        self._seed = seed
        self._done = threading.Event()
        self.counts: Counter[str] = Counter()
        self.ledgers = [Ledger(torpor.create(f"soak{number}")) for number in range(_CLIENTS)]
        for ledger in self.ledgers:
            with psycopg.connect(ledger.database.url, autocommit=True) as connection:
                connection.execute("CREATE TABLE numbers (number int PRIMARY KEY, filler text)")

    def run(self, seconds: float) -> list[str]:
        """Everything that went wrong; nothing is good."""
        threads = [
            threading.Thread(target=self._client, args=(ledger, random.Random(self._seed * 1000 + number)), daemon=True)
            for number, ledger in enumerate(self.ledgers)
        ]
        for thread in threads:
            thread.start()
        faults: list[str] = []
        chance, end = random.Random(self._seed), time.monotonic() + seconds
        try:
            while time.monotonic() < end and not (faults := self._stranded()):
                self._act(chance)
                time.sleep(chance.uniform(0.2, 3))
        finally:
            self._done.set()
        for thread in threads:
            thread.join(_STRANDED_S)
        faults += self._stranded()
        for ledger in self.ledgers:
            faults += ledger.faults
            if not faults or not self._stranded():
                faults += self._check(ledger)
        if "Traceback" in self._torpor.log:
            faults.append("Torpor's log has a traceback: " + self._torpor.log.partition("Traceback")[2][-1500:])
        return faults

    # -- clients

    def _client(self, ledger: Ledger, chance: random.Random) -> None:
        connection: psycopg.Connection[tuple[object, ...]] | None = None
        while not self._done.is_set():
            ledger.waiting_since = began = ledger.waiting_since or time.monotonic()
            try:
                if connection is None:
                    connection = psycopg.connect(ledger.database.url, autocommit=True, connect_timeout=_LOGIN_S)
                ledger.sent += 1
                connection.execute("INSERT INTO numbers VALUES (%s, repeat('x', 500))", (ledger.sent,))
            except psycopg.Error as error:
                self._lost(ledger, connection, error)
                if connection is not None:
                    connection.close()
                connection = None
                time.sleep(0.1)
                continue
            ledger.acknowledged.add(ledger.sent)
            ledger.slowest_s = max(ledger.slowest_s, time.monotonic() - began)
            ledger.waiting_since = None
            if chance.random() < 0.2:
                connection.close()
                connection = None
            self._done.wait(chance.choice((0.0, 0.01, 0.3, 1.5, 4.0)))
        if connection is not None:
            connection.close()

    def _lost(self, ledger: Ledger, connection: object, error: Exception) -> None:
        ledger.reconnects += 1
        self.counts["clients turned away or cut off"] += 1
        if connection is not None and time.monotonic() > ledger.excused_until:
            # Handed-over sessions outlive Torpor: only the end of their own PostgreSQL may end them.
            ledger.faults.append(f"{ledger.database.name}: an open connection ended although its PostgreSQL was not killed: {error}")

    def _stranded(self) -> list[str]:
        now = time.monotonic()
        return [
            f"{ledger.database.name}: its client has waited for {now - since:.0f} s"
            for ledger in self.ledgers
            if (since := ledger.waiting_since) is not None and now - since > _STRANDED_S
        ]

    # -- chance

    def _act(self, chance: random.Random) -> None:
        ledger = chance.choice(self.ledgers)
        name = ledger.database.name
        action = chance.choices(
            ("sleep", "wake", "stop by force", "kill postmaster", "kill Torpor", "replace Torpor", "create and delete"),
            (30, 10, 3, 6, 4, 2, 8),
        )[0]
        self.counts[action] += 1
        match action:
            case "sleep":
                self._call("POST", f"/v1/databases/{name}/sleep", {"tier": chance.choice(("frozen", "paged", "stopped"))})
            case "wake":
                self._call("POST", f"/v1/databases/{name}/wake")
            case "stop by force":
                with self._excused(ledger):
                    self._call("POST", f"/v1/databases/{name}/sleep", {"tier": "stopped", "force": True})
            case "kill postmaster":
                with self._excused(ledger), contextlib.suppress(OSError, ProcessLookupError, ValueError, IndexError):
                    os.kill(self._torpor.postmaster(ledger.database), signal.SIGKILL)
            case "kill Torpor":
                self._torpor.kill()
                time.sleep(chance.uniform(0, 3))
                self._torpor.start()
            case "replace Torpor":
                self._torpor.stop(signal.SIGUSR2)
                self._torpor.start()
            case _:
                passing = f"passing{self.counts[action]}"
                if self._call("POST", "/v1/databases", {"name": passing}):
                    self._call("DELETE", f"/v1/databases/{passing}?force=true")

    @contextlib.contextmanager
    def _excused(self, ledger: Ledger) -> Iterator[None]:
        ledger.excused_until = float("inf")
        yield
        ledger.excused_until = time.monotonic() + _GRACE_S

    def _call(self, method: str, path: str, body: object = None) -> bool:
        try:
            self._torpor.call(method, path, body)
        except HTTPError as error:
            with error:
                self.counts[f"answers {error.code}"] += 1
            return False
        except URLError as error:
            raise RuntimeError(f"the API does not answer: {error}") from error
        return True

    # -- the end

    def _check(self, ledger: Ledger) -> list[str]:
        with psycopg.connect(ledger.database.url, connect_timeout=_LOGIN_S) as connection:
            there = {int(str(row[0])) for row in connection.execute("SELECT number FROM numbers")}
        name, faults = ledger.database.name, []
        if lost := sorted(ledger.acknowledged - there):
            faults.append(f"{name}: LOST {len(lost)} acknowledged commits, the first is {lost[0]}")
        if strange := sorted(number for number in there if not 0 < number <= ledger.sent):
            faults.append(f"{name}: has {len(strange)} rows that nobody sent")
        return faults


def main() -> int:
    """0 when nothing was lost and nobody stranded."""
    parser = argparse.ArgumentParser(prog="bench.soak", description="Load, sleep and faults, with a checker for lost commits.")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    print(f"soak: {asked.minutes:g} minutes, --seed {asked.seed}", flush=True)
    with Zram() as zram, running(freeze_after_s=0.5, page_after_s=1, stop_after_s=3, warm_pool_size=2) as torpor:
        zram.add(2)
        soak = Soak(torpor, asked.seed)
        faults = soak.run(asked.minutes * 60)
        if faults:
            print("soak: the end of Torpor's log:\n" + torpor.log[-3000:])
    commits = sum(len(ledger.acknowledged) for ledger in soak.ledgers)
    slowest = max(ledger.slowest_s for ledger in soak.ledgers)
    print(f"soak: {commits} acknowledged commits, slowest {slowest:.2f} s, {sum(ledger.reconnects for ledger in soak.ledgers)} reconnects")
    print("soak: " + ", ".join(f"{what}: {count}" for what, count in sorted(soak.counts.items())))
    for fault in faults:
        print(f"soak: {fault}", file=sys.stderr)
    print(f"soak: {'FAILED' if faults else 'nothing was lost, nobody was stranded'}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
