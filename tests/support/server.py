"""Starts the real `torpor serve` in a data directory of its own, for tests and benchmarks, and checks that it leaves nothing behind.

Blocking; call from async code in a thread. Several can run side by side.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from tests.support.processes import by_volume, postmaster_of
from tests.support.running import call
from torpor.base.cgroups import detect
from torpor.base.processes import start_ticks
from torpor.daemon.directory import instance_name

_PORT_IN_USE = 11  # exit code of `torpor serve`
_PATIENCE_S = 60.0
_UIDS = 1000
_PREFIX = "torpor-test-"
_ROOT = Path(__file__).parents[2]

_DISK, _MEMORY = Path("/var/tmp"), Path("/dev/shm")
_ROOM_BYTES = 4 << 30


def _new_directory(on_disk: bool) -> Path:
    """In memory where there is room: a database has a thousand files, and to remove them takes some disks a second or two."""
    in_memory = not on_disk and os.access(_MEMORY, os.W_OK) and min(shutil.disk_usage(_MEMORY).free, _available_bytes() // 2) > _ROOM_BYTES
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=_MEMORY if in_memory else _DISK))


class Templates:
    """Template clusters that servers of this process have made, for those that come later: they are the same for all, and to make one
    takes a second of processor. Off until a test run says otherwise: benchmarks begin with nothing."""

    def __init__(self) -> None:
        self.is_on = False

    def lend(self, server: "Server") -> None:
        """Before its first start."""
        stock, volumes = self._stock(server), server.data_dir / "volumes"
        if self._fits(server) and stock.exists() and not volumes.exists():
            volumes.mkdir(mode=0o711)
            subprocess.run(["cp", "--archive", str(stock), str(volumes / ".templates")], check=True)

    def keep(self, server: "Server") -> None:
        """When it has ended: those that aren't here yet. Under its final name one is whole, whatever killed its Torpor."""
        stock = self._stock(server)
        if self._fits(server):
            for made in (server.data_dir / "volumes" / ".templates").glob("[0-9]*"):
                if not (stock / made.name).exists():
                    stock.mkdir(mode=0o711, exist_ok=True)
                    made.rename(stock / made.name)

    def remove(self) -> None:
        """At the end of the run."""
        for place in (_DISK, _MEMORY):
            shutil.rmtree(place / f"{_PREFIX}{os.getpid()}-templates", ignore_errors=True)

    def _fits(self, server: "Server") -> bool:
        return self.is_on and server.borrows and server.data_dir.exists() and server.data_dir.stat().st_uid == os.geteuid()

    def _stock(self, server: "Server") -> Path:
        return server.data_dir.parent / f"{_PREFIX}{os.getpid()}-templates"


templates = Templates()


def _is_mapped(path: Path) -> bool:
    """Whether a process that we may look into has the file in its memory."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            if str(path) in maps.read_text():
                return True
    return False


def _available_bytes() -> int:
    return int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) << 10


@dataclass(frozen=True, slots=True)
class MadeDatabase:
    """A database as `POST /v1/databases` gave it."""

    name: str
    id: str
    url: str
    password: str

    def url_as(self, role: str, password: str, inner: str | None = None) -> str:
        """The same address for another role, or another database inside."""
        host = self.url.rpartition("@")[2].partition("/")[0]
        return f"postgresql://{role}:{password}@{host}/{inner or self.name}"


class Server:
    """One Torpor. Use as a context manager; settings are those of `torpor serve`. What measures memory or disk wants it `on_disk`; what is
    about its template clusters has it make its own."""

    def __init__(self, data_dir: Path | None = None, on_disk: bool = False, own_templates: bool = False, **settings: object) -> None:
        self.borrows = data_dir is None and not on_disk and not own_templates
        # Computes run under users of their own: every directory above must let them through, as pytest's don't.
        self.data_dir = data_dir or _new_directory(on_disk)
        self.data_dir.chmod(0o711)
        # Uids that no other Torpor on this host uses: what is left in shared memory can be told from others'.
        uid_base = 400_000 + random.randrange(1_000_000) * _UIDS
        self.settings: dict[str, object] = {"door_port": 0, "api_port": 0, "warm_pool_size": 0, "uid_base": uid_base, "tls": "off"}
        self.settings["history_store"] = "none"  # it costs as much as most tests; those that need one say so
        self.settings["drill_every_s"] = "never"  # else one could come at any moment
        # Tests fail to log in on purpose, one right after the other (test_guard_live.py has the penalty for it).
        self.settings |= {"failed_login_penalty_s": 0, **settings}
        self.process: subprocess.Popen[bytes] | None = None
        self.prelude = ""
        self.door_port = 0
        self.api_url = ""
        self.token = ""

    def __enter__(self) -> "Server":
        try:
            self.start()
        except BaseException:
            self.destroy()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.destroy()

    @property
    def log(self) -> str:
        """What the daemon said."""
        path = self.data_dir / "serve.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def pid(self) -> int:
        """The daemon's process."""
        assert self.process is not None
        return self.process.pid

    def allow_only(self, *levels: str) -> None:
        """Try these sandbox levels only, as on a host that can't give others."""
        names = ", ".join(f"s.SandboxLevel({level!r})" for level in levels)
        self.prelude = (
            f"import torpor.compute.sandbox.sandbox as s; s.AS_ROOT = ({names}, s.AS_ROOT[-1]); s.AS_USER = ({names}, s.AS_USER[-1]); "
        )

    def command(self) -> list[str]:
        """The command line of the daemon."""
        flags = [f"--{name.replace('_', '-')}={str(value).lower()}" for name, value in self.settings.items()]
        return [sys.executable, "-c", f"{self.prelude}from torpor.cli import main; main()", "serve", f"--data-dir={self.data_dir}", *flags]

    def environment(self) -> dict[str, str]:
        """That of the tests, without settings that would get in the way."""
        kept = {"TORPOR_POSTGRES_HOME", "TORPOR_PG_BINDIR", "TORPOR_IMAGE_HOME"}
        own = {name: value for name, value in os.environ.items() if not name.startswith("TORPOR_") or name in kept}
        return {**own, "PYTHONPATH": str(_ROOT / "src")}

    def start(self) -> None:
        """Start it (again) and wait until it serves."""
        templates.lend(self)
        announcement, told = self.data_dir / "api.json", len(self.log)
        with contextlib.suppress(FileNotFoundError):
            before: str | None = announcement.read_text()
        if not announcement.exists():
            before = None
        self.process = self.spawn()
        deadline = time.monotonic() + _PATIENCE_S
        # Its greeting comes last: when the next Torpor can ask for its place, too.
        while not announcement.exists() or announcement.read_text() == before or "\nTorpor serves " not in "\n" + self.log[told:]:
            code = self.process.poll()
            if code == _PORT_IN_USE and self.settings.get("door_port") and time.monotonic() < deadline:
                # Somebody's own connection got that port from the kernel while nobody listened there.
                told, self.process = len(self.log), self.spawn()
            elif code is not None:
                raise RuntimeError(f"torpor serve ended with {code}:\n{self.log[-4000:]}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"torpor serve did not start:\n{self.log[-4000:]}")
            time.sleep(0.01)
        facts = json.loads(announcement.read_text())
        self.door_port, self.api_url = facts["door_port"], facts["url"]
        # Whoever starts it again wants the same addresses: open connections and URLs point there.
        self.settings |= {"door_port": self.door_port, "api_port": int(self.api_url.rpartition(":")[2])}
        self.token = (self.data_dir / "token").read_text().strip()

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def take_over(self, *flags: str) -> int:
        """Have another one take its place in operation; the exit code of the one that was there."""
        old = self.process
        assert old is not None
        self.process = self.spawn("--take-over", *flags)
        code = old.wait(_PATIENCE_S)
        if self.process.poll() is not None:
            raise RuntimeError(f"the next torpor ended with {self.process.returncode}:\n{self.log[-4000:]}")
        return code

    def spawn(self, *flags: str) -> "subprocess.Popen[bytes]":
        """A `torpor serve` on the same data directory, beside whatever runs there. Not waited for."""
        with (self.data_dir / "serve.log").open("ab") as log:
            return subprocess.Popen(
                [*self.command(), *flags],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=self.environment(),
                start_new_session=True,
            )

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """End it in order, with whatever runs; its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(_PATIENCE_S)
        self.process = None
        return code

    def destroy(self) -> None:
        """End everything and remove every trace, whatever state it is in. Raises when something was left behind."""
        try:
            if self.process is not None and self.process.poll() is None:
                self.stop()
        finally:
            self._end_postmasters()
            left = self.remains()
            trees = detect(instance_name(self.data_dir))
            for name in trees.names():
                trees.open(name).kill()
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + 30
            while self.remains() and time.monotonic() < deadline:
                time.sleep(0.01)
            self._remove_cgroups()
            self._remove_shared_memory()
            self._unmount_images()
            templates.keep(self)
            shutil.rmtree(self.data_dir, ignore_errors=True)

    def remains(self) -> list[int]:
        """Processes of its computes that still run."""
        return [pid for pids in by_volume(self.data_dir).values() for pid in pids]

    def call(self, method: str, path: str, body: object = None) -> Any:
        """One call of the API; raises urllib.error.HTTPError for what it refuses."""
        try:
            return call(self, method, path, body)
        except HTTPError as error:
            error.add_note(self.log[-1500:])
            raise

    def refusal(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Status and error of a call that must be refused."""
        try:
            answer = self.call(method, path, body)
        except HTTPError as error:
            with error:
                return error.code, json.loads(error.read())["error"]
        raise AssertionError(f"{method} {path} was not refused: {answer}")

    def create(self, name: str | None = None, **settings: object) -> MadeDatabase:
        """Make a database; each call makes another."""
        made = self.call("POST", "/v1/databases", {"name": name, **settings})
        database, credentials = made["database"], made["credentials"]
        return MadeDatabase(database["name"], database["id"], credentials["url"], credentials["password"])

    def view(self, name: str) -> Any:
        """`GET /v1/databases/<name>`: everything about it."""
        return self.call("GET", f"/v1/databases/{name}")

    def tier(self, name: str) -> str:
        """The tier in which a database is."""
        return str(self.view(name)["database"]["tier"])

    def sleep(self, name: str, tier: str, force: bool = False) -> None:
        """Bring a database down to `tier` now."""
        view = self.call("POST", f"/v1/databases/{name}/sleep", {"tier": tier, "force": force})
        assert view["tier"] == tier, view

    def wait_tier(self, name: str, tier: str, patience_s: float = 40.0) -> float:
        """Until the database is in `tier`; how long it took in seconds."""
        began = time.monotonic()
        while (now := self.tier(name)) != tier:
            if time.monotonic() - began > patience_s:
                raise TimeoutError(f"{name} is {now}, not {tier}: {self.view(name)['database']['awake_because']}")
            time.sleep(0.02)
        return time.monotonic() - began

    def postmaster(self, database: MadeDatabase) -> int:
        """The pid of a database's postmaster."""
        pid = postmaster_of(self.data_dir / "volumes" / database.id / "data")
        assert pid is not None, f"{database.name} has no postmaster"
        return pid

    def _end_postmasters(self) -> None:
        """PostgreSQL that outlived a killed Torpor: told to end, so that it gives its shared memory back."""
        trees = detect(instance_name(self.data_dir))
        for name in trees.names():
            trees.open(name).thaw()
        told = []
        for pid_file in self.data_dir.glob("volumes/d*/data/postmaster.pid"):
            if (pid := postmaster_of(pid_file.parent)) is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
                    os.kill(pid, signal.SIGQUIT)
                    told.append(pid)
        deadline = time.monotonic() + 30
        while any(start_ticks(pid) is not None for pid in told) and time.monotonic() < deadline:
            time.sleep(0.01)

    def _remove_shared_memory(self) -> None:
        """What computes that were killed, and never started again, had in /dev/shm."""
        base = int(str(self.settings["uid_base"]))
        user = (
            self.data_dir.stat().st_uid if self.data_dir.exists() else 0
        )  # an ordinary user's computes all have that one's uid: others may be in use
        for path in Path("/dev/shm").glob("PostgreSQL.*"):
            with contextlib.suppress(FileNotFoundError):
                owner = path.stat().st_uid
                if base <= owner < base + _UIDS or (owner == user != 0 and not _is_mapped(path)):
                    path.unlink()

    def _unmount_images(self) -> None:
        """What a killed Torpor has mounted; one that ends in order takes its own mounts away. And a pool of its own."""
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            point = line.split(" ")[4]
            if Path(point).is_relative_to(self.data_dir / "images"):
                subprocess.run(["umount", point], check=False)
            elif Path(point) in (self.data_dir / "volumes", self.data_dir / "sealed"):  # that on which an encrypted one lies comes last
                for _ in range(200):  # the last process in it has ended, and is not gone yet
                    if subprocess.run(["umount", point], check=False, stderr=subprocess.DEVNULL).returncode == 0:
                        break
                    time.sleep(0.05)

    def _remove_cgroups(self) -> None:
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            head, _, tail = line.partition(" - ")
            if tail.startswith("cgroup"):
                for directory in Path(head.split(" ")[4]).glob(f"{instance_name(self.data_dir)}.*"):
                    with contextlib.suppress(OSError):
                        directory.rmdir()


def remove_orphans() -> None:
    """What tests that were killed left: each Torpor with everything of it. Its directory names the process that it belonged to."""
    for directory in [path for place in (_DISK, _MEMORY) for path in place.glob(f"{_PREFIX}*-*")]:
        owner = directory.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdecimal() and start_ticks(int(owner)) is None and os.geteuid() in (0, directory.stat().st_uid):
            for process in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    if f"--data-dir={directory}".encode() in (process / "cmdline").read_bytes().split(b"\0"):
                        os.kill(int(process.name), signal.SIGKILL)
            Server(directory).destroy()
