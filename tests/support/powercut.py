"""Takes a host's power away under load, as often as asked for, and sees what is there when it comes back.

The host is modelled whole: a "disk" that is a file, on it a file system with Torpor's data directory (catalog, keys, logs), and in that the
pool, a file again (`pool.img`), with the volumes. All of it is XFS; below a pool that is encrypted there is ext4 besides. To cut the
power is to clone the disk's file by a reflink: the kernel holds all writers of that file for it, so the clone is the disk at one
instant, while PostgreSQL, Torpor and the file systems work on and know nothing of it. (To freeze a file system, or to sync first,
would be no power cut.)

What an instant keeps, and what it loses:
- everything that was in memory is gone: what PostgreSQL and Torpor had written and not synced, and what the file systems had not
  written out themselves, in whatever order they do that;
- the pool's own device (of an encrypted pool both) is a file in the cache of the file system below it, so a write to it that was not
  flushed is lost, or there, each block for itself: that is a disk with a cache that forgets, and that writes in any order;
- not modelled is such a cache of the lower disk: what has reached it stays. Neither are sectors that are written in part.

Then everything is killed, the clone is mounted in the place of the disk, and a new Torpor finds its way: it mounts the pool, recovers each
database, and is checked. Needs root, and PostgreSQL's programs.
"""

import contextlib
import fcntl
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError

import psycopg

from tests.support.branching import acknowledged, check_balances, check_pages, check_prefix
from tests.support.faults import Inserter, assert_nothing_half_made, eventually, program, run_program, stop_database
from tests.support.pools import DISK, MEMORY, loop_pool, make_encrypted, make_image, mount, unmount
from tests.support.server import MadeDatabase, Server

_FICLONE = 0x40049409
_DISK_MB, _POOL_MB = 1400, 700
_CLIENTS = 2
_ROOM_BYTES = 8 << 30


@dataclass(frozen=True)
class Cut:
    """A disk at one instant, and what each client of each database knew just before and just after it."""

    image: Path
    before: dict[str, list[int]]
    after: dict[str, list[int]]


class Host:
    """A host under load."""

    def __init__(self, ground: Path, databases: int, encrypted: bool = False) -> None:
        self._ground = ground  # holds the disk, and survives
        self._disk = ground.parent / "disk"
        self._disk.mkdir(mode=0o711)
        make_image("xfs", ground / "disk.img", _DISK_MB)
        mount("xfs", ground / "disk.img", self._disk)
        data_dir = self._disk / "data"
        data_dir.mkdir(mode=0o711)
        if encrypted:
            make_encrypted(data_dir, _POOL_MB)
        else:
            (data_dir / "volumes").mkdir(mode=0o711)
            make_image("xfs", data_dir / "pool.img", _POOL_MB)
            mount("xfs", data_dir / "pool.img", data_dir / "volumes")  # cached: Torpor itself would write around the cache
        self.server = Server(data_dir=data_dir, freeze_after_s=60, page_after_s="never")
        self.server.start()
        self._sandbox = self.server.call("GET", "/v1/host")["sandbox"]
        self.databases = [self._make(f"shop{number}") for number in range(databases)]

    def _make(self, name: str) -> MadeDatabase:
        database = self.server.create(name)
        with psycopg.connect(database.url) as connection:
            connection.execute("CREATE TABLE acknowledged (client int, number int, PRIMARY KEY (client, number))")
        done = run_program("pgbench", "-i", "-q", database.url)
        assert done.returncode == 0, done.stderr
        return database

    @contextlib.contextmanager
    def load(self) -> Iterator[dict[str, list[Inserter]]]:
        """pgbench, clients that note what was acknowledged, and databases that come and go."""
        command = [program("pgbench"), "-T", "3600", "-c", "2", "-n"]
        pipe = subprocess.DEVNULL
        benches = [subprocess.Popen([*command, one.url], stdout=pipe, stderr=pipe) for one in self.databases]
        inserters = {one.name: [Inserter(one.url, number) for number in range(_CLIENTS)] for one in self.databases}
        over = threading.Event()
        passing = threading.Thread(target=self._come_and_go, args=(over,), daemon=True)
        passing.start()
        try:
            eventually(lambda: all(one.acknowledged > 10 for each in inserters.values() for one in each), 60)
            yield inserters
        finally:
            over.set()
            passing.join(60)
            for bench in benches:
                bench.terminate()
                bench.wait()
            for each in inserters.values():
                for one in each:
                    one.stop()

    def _come_and_go(self, over: threading.Event) -> None:
        while not over.is_set():
            with contextlib.suppress(HTTPError, URLError, ConnectionError):
                self.server.create("passing")
                self.server.call("DELETE", "/v1/databases/passing?force=true")

    def cut(self, number: int, inserters: dict[str, list[Inserter]]) -> Cut:
        """The power is cut here, and everybody goes on."""
        image = self._ground / f"cut{number}.img"
        before = {name: acknowledged(each) for name, each in inserters.items()}
        with (self._ground / "disk.img").open("rb") as disk, image.open("wb") as clone:
            fcntl.ioctl(clone.fileno(), _FICLONE, disk.fileno())
        return Cut(image, before, {name: acknowledged(each) for name, each in inserters.items()})

    def come_back(self, cut: Cut) -> None:
        """With the disk of that instant, in a host in which nothing runs any more. Raises AssertionError for what is lost or torn."""
        settings = self.server.settings
        self.server.destroy()
        unmount(self._disk)
        mount("xfs", cut.image, self._disk)
        self.server = Server(data_dir=self._disk / "data", **settings)  # type: ignore[arg-type]
        self.server.start()
        assert self.server.call("GET", "/v1/host")["sandbox"] == self._sandbox
        for database in self.databases:
            with psycopg.connect(database.url, autocommit=True, connect_timeout=60) as connection:
                check_prefix(connection, cut.before[database.name], cut.after[database.name])
                check_balances(connection)
            stop_database(self.server, database)
            check_pages(self.server, database)
            with psycopg.connect(database.url, autocommit=True, connect_timeout=60) as connection:
                connection.execute("INSERT INTO acknowledged VALUES (-1, 0)")  # and goes on
        known = {one["name"] for one in self.server.call("GET", "/v1/databases")["databases"]}
        assert known - {"passing"} == {one.name for one in self.databases}
        assert_nothing_half_made(self.server)
        assert "Traceback" not in self.server.log

    def close(self) -> None:
        """Take everything away."""
        self.server.destroy()
        unmount(self._disk)


def cut_power(cuts: int, databases: int, seed: int = 0, encrypted: bool = False) -> int:
    """Cut it at moments that chance chooses, and come back from each; how many acknowledged commits the last one had. Raises
    AssertionError."""
    chance = random.Random(seed)
    # The ground is solid whatever it is made of; memory is quicker.
    place = MEMORY if shutil.disk_usage(MEMORY).free > _ROOM_BYTES else DISK
    with loop_pool("xfs", 4 * _DISK_MB, place) as ground, contextlib.closing(Host(ground, databases, encrypted)) as host:
        with host.load() as inserters:
            taken = []
            for number in range(cuts):
                time.sleep(chance.uniform(0.1, 1.0))
                taken.append(host.cut(number, inserters))
        for cut in taken:
            host.come_back(cut)
            cut.image.unlink()
    return sum(sum(each) for each in taken[-1].before.values())
