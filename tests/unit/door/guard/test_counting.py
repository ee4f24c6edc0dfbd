"""Counting is exact whatever happens: visits and sessions in any order, and sessions that an earlier Torpor let in."""

import random
import socket
from collections import Counter
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from torpor.compute.census import Census
from torpor.compute.handover import BackendEnd
from torpor.compute.peers import Peers, inode, peer_host
from torpor.compute.sessions import Session, Sessions
from torpor.door.guard.guard import Guard, Visit
from torpor.door.guard.offenders import LogBudget, Offenders
from torpor.model.access import address_key
from torpor.model.database import Database, DatabaseState
from torpor.model.errors import TooManyConnections, TooManyFromAddress, TooManyInDatabase
from torpor.model.limits import DoorLimits
from torpor.model.names import DatabaseId

HOSTS = ("203.0.113.7", "203.0.113.8", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "10.0.0.1")
PER_ADDRESS, PER_DATABASE, OVERALL, LOGGING_IN = 5, 4, 9, 3


def database(name: str) -> Database:
    return Database(DatabaseId(f"d{name}"), name, DatabaseState.READY, 18, 1000, 0.0)


class World:
    """A guard and the sessions behind it, and beside them a plain list of who is where."""

    def __init__(self) -> None:
        self.census = Census()
        self.databases = {name: database(name) for name in ("shop", "blog", "wiki")}
        self.sessions = {one.id: Sessions(lambda _: None, lambda: None, self.census) for one in self.databases.values()}
        limits = DoorLimits(OVERALL, PER_ADDRESS, LOGGING_IN)
        self.guard = Guard(lambda: 1.0, b"secret", limits, self, ("10.0.0.0/8",))
        self.pending: list[Visit] = []
        self.entering: list[tuple[Visit, Database]] = []
        self.live: list[tuple[Session, BackendEnd, Database]] = []

    def total(self) -> int:
        return self.census.total()

    def from_address(self, key: str) -> int:
        return self.census.from_address(key)

    def room(self, database: Database) -> tuple[int, int]:
        return len(self.sessions[database.id]), PER_DATABASE

    def check(self) -> None:
        """Everything is as a count from the beginning would have it."""
        guard = self.guard
        assert guard.pending == Counter(visit.key for visit in self.pending if not visit.expects_proxy)
        assert guard.entering == Counter(visit.key for visit, _ in self.entering)
        assert guard.entering_database == Counter(one.id for _, one in self.entering)
        assert guard.entering_overall == len(self.entering)
        assert self.census.total() == len(self.live)
        keys = Counter(address_key(session.client_host) for session, _, _ in self.live)
        assert {key: self.census.from_address(key) for key in keys} == keys
        assert self.census.addresses() == len(keys)
        # And no limit is ever passed.
        inside = Counter(one.id for _, one in self.entering) + Counter(one.id for _, _, one in self.live)
        assert all(count <= PER_DATABASE for count in inside.values())
        assert sum(inside.values()) <= OVERALL
        assert all(count <= LOGGING_IN for count in guard.pending.values())
        by_address = keys + guard.entering
        assert all(count <= PER_ADDRESS for count in by_address.values())

    def step(self, what: str, choice: int) -> None:
        names = tuple(self.databases)
        match what:
            case "arrive":
                try:
                    self.pending.append(self.guard.arrive(HOSTS[choice % len(HOSTS)]))
                except TooManyFromAddress:
                    assert self.guard.pending[address_key(HOSTS[choice % len(HOSTS)])] == LOGGING_IN
            case "header" if waiting := [visit for visit in self.pending if visit.expects_proxy]:
                visit = waiting[choice % len(waiting)]
                try:
                    visit.came_from(HOSTS[choice % (len(HOSTS) - 1)])
                except TooManyFromAddress:
                    visit.release()
                    self.pending.remove(visit)
            case "leave" if self.pending:
                visit = self.pending.pop(choice % len(self.pending))
                visit.release()
                visit.release()
            case "prove" if ready := [visit for visit in self.pending if not visit.expects_proxy]:
                visit, wanted = ready[choice % len(ready)], self.databases[names[choice % len(names)]]
                self.pending.remove(visit)
                try:
                    visit.enter(wanted)
                    self.entering.append((visit, wanted))
                except TooManyInDatabase:
                    visit.release()
                except TooManyConnections:
                    visit.release()
            case "hand over" if self.entering:
                visit, wanted = self.entering.pop(choice % len(self.entering))
                end = BackendEnd()
                mine, theirs = socket.socketpair()
                theirs.close()
                session = Session(mine, end, visit.host, None)
                self.sessions[wanted.id].add(session)
                visit.release()
                self.live.append((session, end, wanted))
            case "fail" if self.entering:
                visit, _ = self.entering.pop(choice % len(self.entering))
                visit.release()
                visit.release()
            case "end" if self.live:
                _, end, _ = self.live.pop(choice % len(self.live))
                end.end()
                end.end()
            case "crash":
                wanted = self.databases[names[choice % len(names)]]
                self.sessions[wanted.id].end_all()
                self.live = [one for one in self.live if one[2] is not wanted]
            case "let go" if choice % 7 == 0:
                wanted = self.databases[names[choice % len(names)]]
                self.sessions[wanted.id].release()
                self.live = [one for one in self.live if one[2] is not wanted]

    def close(self) -> None:
        for sessions in self.sessions.values():
            sessions.release()


STEPS = ("arrive", "arrive", "arrive", "header", "leave", "prove", "prove", "hand over", "hand over", "fail", "end", "crash", "let go")


@settings(max_examples=150)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 1000)), max_size=150))
def test_counts_never_drift_and_limits_are_never_passed(steps: list[tuple[str, int]]) -> None:
    world = World()
    try:
        for what, choice in steps:
            world.step(what, choice)
            world.check()
    finally:
        world.close()


def test_true_addresses_are_known_to_the_next_torpor(tmp_path: Path) -> None:
    peers, sockets = Peers(tmp_path / "peers"), list[socket.socket]()
    for number in range(50):
        sockets.append(socket.socket())
        peers.note(sockets[-1], f"203.0.113.{number}", sockets)
    again = Peers(tmp_path / "peers")
    assert [again.host_of(sock) for sock in sockets] == [f"203.0.113.{number}" for number in range(50)]
    assert (tmp_path / "peers").stat().st_mode & 0o777 == 0o600
    for sock in sockets:
        sock.close()


def test_notes_of_the_past_are_forgotten(tmp_path: Path) -> None:
    peers, kept = Peers(tmp_path / "peers"), socket.socket()
    peers.note(kept, "203.0.113.7", [kept])
    for number in range(5000):
        passing = socket.socket()
        peers.note(passing, f"10.0.{number // 256}.{number % 256}", [kept, passing])
        passing.close()
    assert len((tmp_path / "peers").read_text().splitlines()) < 1200
    assert Peers(tmp_path / "peers").host_of(kept) == "203.0.113.7"
    kept.close()


def test_where_the_kernel_knows_nothing_is_noted(tmp_path: Path) -> None:
    peers = Peers(tmp_path / "peers")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()[:2]):
        accepted, _ = server.accept()
        with accepted:
            assert peer_host(accepted) == "127.0.0.1"
            assert inode(accepted)
            peers.note(accepted, "127.0.0.1", [accepted])
            assert not (tmp_path / "peers").exists()
            peers.note(accepted, "203.0.113.7", [accepted])
            assert Peers(tmp_path / "peers").host_of(accepted) == "203.0.113.7"
    (tmp_path / "peers").write_bytes(b"\xff\xfe nonsense\n12 \n x\n")
    with socket.socket() as other:
        assert Peers(tmp_path / "peers").host_of(other) == ""


def test_the_heaviest_are_found_in_a_flood_of_addresses() -> None:
    offenders, chance = Offenders(), random.Random(1)
    for number in range(50_000):
        now = number * 0.001
        if number % 10 == 0:
            offenders.note("203.0.113.7", "wrong_password", "shop", now)
        else:
            offenders.note(f"2001:db8:{chance.randrange(65536):x}:{chance.randrange(65536):x}::/64", "wrong_password", "shop", now)
    (first, *rest) = offenders.heaviest(10, 50.0)
    assert (first.address, first.target, len(rest)) == ("203.0.113.7", "shop", 9)
    assert len(offenders._kept) == 128
    assert offenders.heaviest(10, 50.0 + 3600) == []


def test_a_flood_gets_few_lines_and_the_next_one_tells_how_many_were_left_out() -> None:
    budget = LogBudget()
    lines = [budget.line("203.0.113.7", 1.0 + number / 1000) for number in range(10_000)]  # ten seconds
    written = [line for line in lines if line is not None]
    assert 20 <= len(written) <= 31
    assert sum(written) == sum(line is None for line in lines[: len(lines) - lines[::-1].index(written[-1])])
    assert budget.line("203.0.113.8", 11.0) is not None  # another address has lines of its own
    total = sum(budget.line(f"10.{n // 65536}.{n // 256 % 256}.{n % 256}", 12.0 + n / 100_000) is not None for n in range(100_000))
    assert total <= 200 + 60  # of all addresses together, in a second
    assert len(budget._kept) <= 1024


def test_a_fleet_without_databases_counts_as_well_as_any() -> None:
    """A guard is made before the databases are known, when the fleet that it asks has no members and is false."""

    class Empty(World):
        def __len__(self) -> int:
            return 0

    world = Empty()
    guard = Guard(lambda: 1.0, b"secret", DoorLimits(), world)
    assert guard._sessions is world
