"""The Torpor under attack: computes at the full sandbox level, one database of the attacker and one of somebody quiet."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg

from tests.support.attacks.kit import Attacker, hostile
from tests.support.faults import eventually
from tests.support.pace import in_time
from tests.support.server import MadeDatabase, Server

QUICK_S = 5.0
"""What a login, a statement or a call of the API that has to do with nobody's attack may take at most. Usually 10 ms; the machine of the
tests may be slow, and is busy with the attack."""


@dataclass(frozen=True, slots=True)
class Stronghold:
    """The server, the database of the attacker (a superuser), and that of a neighbour."""

    server: Server
    villain: MadeDatabase
    neighbour: MadeDatabase

    def attacker(self) -> Attacker:
        """A session of the attacker's."""
        return Attacker(self.server, self.villain)

    def attacker_again(self) -> Attacker:
        """A session of the attacker's after its compute went down: until Torpor has noticed, who comes is told so."""

        def session() -> Attacker | None:
            with contextlib.suppress(psycopg.Error):
                return self.attacker()
            return None

        attacker = eventually(session)
        assert attacker is not None
        return attacker

    def check_neighbour(self) -> float:
        """The neighbour logs in and works, and the API answers, soon; how long the slowest of it took."""
        slowest = 0.0
        for work in (self._log_in, self._ask):
            began = time.monotonic()
            work()
            slowest = max(slowest, time.monotonic() - began)
        assert in_time(slowest, QUICK_S), f"the neighbour had to wait for {slowest:.1f} s"
        return slowest

    def _log_in(self) -> None:
        with psycopg.connect(self.neighbour.url, autocommit=True, connect_timeout=40) as connection:
            assert connection.execute("SELECT count(*) FROM kept").fetchone() == (1,)

    def _ask(self) -> None:
        self.server.call("GET", "/v1/databases")


@contextlib.contextmanager
def stronghold(**settings: Any) -> Iterator[Stronghold]:
    """A Torpor of its own. Whatever the tenants did, it must not have stumbled."""
    usual: dict[str, Any] = {"sandbox": "full", "freeze_after_s": 300, "page_after_s": "never", "stop_after_s": "never"}
    usual["tls"] = "allow"
    with Server(on_disk=True, **(usual | settings)) as server:
        neighbour = server.create("neighbour")
        with psycopg.connect(neighbour.url, autocommit=True) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 'secret of the neighbour' AS text")
        yield Stronghold(server, hostile(server, "villain"), neighbour)
        assert "Traceback" not in server.log, server.log[-6000:]
