"""A tenant who is a superuser and runs code of its own inside of a compute: the host's files, devices, processes and network are not to
be had. Each attempt has its positive control: the same code succeeds on the host, or with what is the tenant's own.
"""

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support.attacks.kit import Attacker, Buffer, Earlier, call, call_on_host, forked, on_host, outcome, step
from tests.support.attacks.stronghold import Stronghold
from tests.support.faults import eventually, processes_of

pytestmark = [pytest.mark.root]

O_RDWR, O_CREAT, O_DIRECTORY, O_PATH = 2, 0o100, 0o200000, 0o10000000
AT_FDCWD = -100
SOCK_STREAM, SOCK_RAW, SOCK_SEQPACKET = 1, 3, 5


@pytest.fixture
def attacker(escape: Stronghold) -> Iterator[Attacker]:
    with escape.attacker() as attacker:
        yield attacker


# -- files


def host_secrets(escape: Stronghold) -> list[str]:
    """Paths of the host that hold something that no tenant may read."""
    directory, other = escape.server.data_dir, escape.server.data_dir / "volumes" / escape.neighbour.id
    return [
        "/etc/shadow", "/root", "/proc/1/environ", "/proc/self/environ", "/proc/self/status", "/proc/kallsyms", "/sys/kernel", "/var/lib",
        "/dev/mem", "/dev/kmsg", "/dev/sda", "/dev/vda", "/dev/loop0", "/dev/kvm", "/dev/fuse", "/dev/net/tun", "/dev/tty", "/dev/ptmx",
        str(directory / "catalog.sqlite"), str(directory / "token"), str(directory / "api.json"), str(directory / "tls/ca.key"),
        str(directory / "run"), str(directory / "logs"), str(directory / "volumes"),
        str(directory / "run" / escape.villain.id / "door.sock"),
        str(other / "data/PG_VERSION"), str(other / "data/global/1260"),
    ]  # fmt: skip


def test_files_of_the_host_are_not_there(escape: Stronghold, attacker: Attacker) -> None:
    assert attacker.read("/data/PG_VERSION", 2).buffers[0] == b"18", "reading works"
    for path in host_secrets(escape):
        for flags in (0, O_PATH):
            assert attacker.call("open", path, flags).error in ("ENOENT", "ENOTDIR"), path
    assert call_on_host("open", "/etc/shadow", 0).succeeded
    assert call_on_host("open", str(escape.server.data_dir / "token"), 0).succeeded


def test_links_in_the_volume_lead_nowhere_outside(escape: Stronghold, attacker: Attacker) -> None:
    """Neither for the tenant, nor for Torpor, which must not follow them as root (test_escape_torpor.py has those)."""
    for number, path in enumerate(host_secrets(escape)):
        link = f"/data/link{number}"
        attacker.call("symlink", path, link)
        assert attacker.read(link).error in ("ENOENT", "ENOTDIR"), path
        assert not attacker.call("link", path, f"{link}-hard").succeeded
        attacker.call("unlink", link)
    for up in ("/data/..", "/data/../..", "/../../.."):
        names = attacker.run(step("directory", up))[0].split()
        assert "torpor" in names and "root" not in names and "boot" not in names, names


def test_what_is_seen_is_postgresql_and_nothing_of_the_host(attacker: Attacker) -> None:
    inside = set(attacker.run(step("directory", "/"))[0].split())
    assert inside <= {"bin", "conf", "data", "dev", "etc", "lib", "lib64", "opt", "proc", "run", "sbin", "tmp", "torpor", "usr"}
    for empty in ("/proc", "/run", "/tmp", "/dev/shm"):
        names = attacker.run(step("directory", empty))[0].split()
        assert not [name for name in names if not name.startswith("PostgreSQL.")], empty
    assert set(attacker.run(step("directory", "/dev"))[0].split()) == {"null", "zero", "random", "urandom", "shm"}
    assert attacker.read("/etc/passwd").buffers[0].startswith(b"root:x:0:0::/:/bin/sh\nnobody:"), "no user of the host is named"


@pytest.mark.parametrize("path", ["/", "/usr/bin", "/etc", "/opt", "/conf", "/torpor", "/dev", "/proc", "/run"])
def test_nothing_outside_of_the_volume_can_be_written(attacker: Attacker, path: str) -> None:
    assert attacker.call("open", "/data/mine", O_RDWR | O_CREAT, 0o600).succeeded
    if path == "/dev":  # a file system of its own, in memory: what is written there counts as the compute's memory
        assert attacker.call("open", "/dev/sda", O_RDWR).error == "ENOENT"
        return
    assert attacker.call("open", f"{path}/hostile", O_RDWR | O_CREAT, 0o600).error in ("EROFS", "EACCES")
    assert attacker.call("mkdir", f"{path}/hostile.d", 0o700).error in ("EROFS", "EACCES")
    for name in attacker.run(step("directory", path))[0].split()[:5]:
        target = f"{path}/{name}".replace("//", "/")
        if target not in ("/data", "/tmp", "/dev"):
            assert not attacker.call("rename", target, f"{target}.old").succeeded, target
            assert not attacker.call("unlink", target).succeeded, target
            assert attacker.call("chmod", target, 0o777).error in ("EROFS", "EPERM"), target
            assert attacker.call("truncate", target, 0).error in ("EROFS", "EISDIR", "EACCES"), target


@pytest.mark.parametrize("kind", [0o060000, 0o020000])
def test_device_nodes_cannot_be_made(attacker: Attacker, kind: int) -> None:
    for directory in ("/data", "/tmp", "/dev/shm"):
        for number in (os.makedev(8, 0), os.makedev(1, 1), os.makedev(254, 0)):
            assert attacker.call("mknod", f"{directory}/node", kind | 0o600, number).error == "EPERM"
    assert call_on_host("mknod", "/var/tmp/torpor-escape-node", kind | 0o600, os.makedev(1, 3)).succeeded
    os.unlink("/var/tmp/torpor-escape-node")


def test_programs_with_the_set_user_bit_give_nothing(attacker: Attacker) -> None:
    made = attacker.run(
        call("open", "/data/suid", O_RDWR | O_CREAT, 0o755), call("close", Earlier(0)), call("chown", "/data/suid", 0, 0),
        call("chmod", "/data/suid", 0o4755), call("setuid", 0), call("setresgid", 0, 0, 0), call("getuid"),
    )  # fmt: skip
    assert not outcome(made[2]).succeeded
    assert not outcome(made[4]).succeeded
    assert not outcome(made[5]).succeeded
    assert outcome(made[6]).result != 0


def test_no_privilege_is_left(attacker: Attacker, escape: Stronghold) -> None:
    pr_get_no_new_privs, pr_capbset_read = 39, 23
    assert attacker.call("prctl", pr_get_no_new_privs, 0, 0, 0, 0).result == 1
    assert [attacker.call("prctl", pr_capbset_read, number, 0, 0, 0).result for number in range(41)] == [0] * 41
    assert attacker.call("capget", struct.pack("=II", 0x20080522, 0), Buffer(24)).buffers[0] == bytes(24)
    for status in statuses(escape):
        assert status["Seccomp"] == "2"
        assert status["NoNewPrivs"] == "1"
        assert {status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
        assert len(set(status["Uid"].split())) == 1 and status["Uid"].split()[0] != "0"
        assert status["Groups"] in ("", "65534", status["Uid"].split()[0])


def statuses(escape: Stronghold) -> list[dict[str, str]]:
    """/proc/<pid>/status of each PostgreSQL process of the attacker's compute."""
    found = []
    for pid in processes_of(escape.server, escape.villain.id):
        try:
            text = Path(f"/proc/{pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):  # it has ended since
            continue
        status = {line.partition(":")[0]: line.partition(":")[2].strip() for line in text.splitlines()}
        if status["Name"].startswith("postgres"):
            found.append(status)
    assert len(found) >= 3
    return found


# -- processes


def test_other_processes_are_neither_seen_nor_reached(escape: Stronghold, attacker: Attacker) -> None:
    """Every process id that there can be: only its own compute's answer, as few as they are, numbered from 1."""

    def reached_only_its_own() -> list[int] | None:
        """What PostgreSQL starts and ends by itself meanwhile may be in the one list, and not in the other: the next ones agree."""
        words = attacker.run(step("processes", 4_194_304))[0].split()
        # Where root made the namespaces, its sandbox's first process is there, and not for it to signal.
        reached = [int(word.removesuffix("(EPERM)")) for word in words if word != "1(EPERM)"]
        return reached if 3 <= len(reached) <= len(processes_of(escape.server, escape.villain.id)) + 1 else None

    reached = eventually(reached_only_its_own)
    assert reached is not None
    assert max(reached) < 10_000
    assert attacker.call("getpid").result in reached
    assert on_host(step("signal", 0, escape.server.pid))[0] == "0 0"


def test_its_own_supervisor_is_all_that_it_can_end(escape: Stronghold) -> None:
    """kill(-1) and the end of the sandbox's first process: its own compute goes down, and comes back at the next connection."""
    for attack in (step("signal", 9, -1), step("signal", 9, 1), step("signal", 15, 1), step("signal", 19, 1)):
        with escape.attacker() as attacker, contextlib.suppress(psycopg.OperationalError):  # its compute is gone
            attacker.run(attack)
        escape.check_neighbour()
        assert escape.server.process is not None and escape.server.process.poll() is None
        with escape.attacker_again() as attacker:
            assert attacker.sql("SELECT 1") == [(1,)]


def test_namespaces_are_its_own(escape: Stronghold, attacker: Attacker) -> None:
    pid = escape.server.postmaster(escape.villain)
    other = escape.server.postmaster(escape.neighbour)
    for kind in ("user", "pid", "mnt", "ipc", "uts", "net"):
        mine = os.readlink(f"/proc/{pid}/ns/{kind}")
        assert mine != os.readlink(f"/proc/self/ns/{kind}"), kind
        assert mine != os.readlink(f"/proc/{other}/ns/{kind}"), kind
    assert Path(f"/proc/{pid}").stat().st_uid != Path(f"/proc/{other}").stat().st_uid
    assert attacker.call("uname", Buffer(390)).buffers[0][65:].split(b"\0")[0] == b"database", "the host's name is not told"


# -- network


def unix_address(name: bytes) -> bytes:
    return struct.pack("=H", socket.AF_UNIX) + name


def test_no_network_is_there(escape: Stronghold, attacker: Attacker) -> None:
    """No socket but Unix ones; and of the host's abstract ones, none is there."""
    families = range(2, 46)
    for family in families:
        for kind in (SOCK_STREAM, 2, SOCK_RAW, SOCK_SEQPACKET):
            assert attacker.call("socket", family, kind, 0).error == "EAFNOSUPPORT", family
        assert attacker.call("socket", family | 1 << 32, SOCK_STREAM, 0).error == "EAFNOSUPPORT", "the upper half hides nothing"
        assert not attacker.call("socketpair", family, SOCK_STREAM, 0, Buffer(8)).succeeded
    for family, kind in ((socket.AF_INET, SOCK_STREAM), (socket.AF_NETLINK, SOCK_RAW), (socket.AF_PACKET, SOCK_RAW)):
        assert call_on_host("socket", family, kind, 0).succeeded
    assert "could not" in attacker.refused("CREATE EXTENSION IF NOT EXISTS dblink; SELECT dblink_connect('host=127.0.0.1 user=x')")


def test_sockets_of_the_host_cannot_be_connected_to(escape: Stronghold, attacker: Attacker) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(b"\0torpor-escape-test")
        listener.listen()
        address = unix_address(b"\0torpor-escape-test")
        assert call_on_host("connect", 3, address, len(address)).error in ("EBADF", "ENOTSOCK")
        connected = on_host(call("socket", 1, 1, 0), call("connect", Earlier(0), address, len(address)))
        assert outcome(connected[1]).succeeded
        tried = attacker.run(call("socket", 1, 1, 0), call("connect", Earlier(0), address, len(address)))
        assert outcome(tried[1]).error == "ECONNREFUSED"
    for path in (escape.server.data_dir / "run" / escape.villain.id / "door.sock", escape.server.data_dir / "run" / "x"):
        address = unix_address(str(path).encode()[:107] + b"\0")
        tried = attacker.run(call("socket", 1, 1, 0), call("connect", Earlier(0), address, len(address)))
        assert outcome(tried[1]).error == "ENOENT"


def test_the_socket_that_the_next_torpor_asks_at_cannot_be_reached(escape: Stronghold, attacker: Attacker) -> None:
    """By its path, by abstract names that it might have, and by every abstract name that the host has now."""
    path = escape.server.data_dir / "handoff.sock"
    uid = (escape.server.data_dir / "volumes" / escape.villain.id).stat().st_uid
    by_path = unix_address(str(path).encode() + b"\0")
    assert outcome(on_host(*connect(SOCK_SEQPACKET, by_path))[1]).succeeded
    assert outcome(on_host(*connect(SOCK_SEQPACKET, by_path), uid=uid)[1]).error == "EACCES"
    for name in (str(path), "/handoff.sock", "/run/handoff.sock", "/data/handoff.sock", "handoff.sock"):
        address = unix_address(name.encode() + b"\0")
        for kind in (SOCK_STREAM, SOCK_SEQPACKET):
            assert outcome(attacker.run(*connect(kind, address))[1]).error == "ENOENT"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as decoy:
        decoy.bind(b"\0torpor-escape-handoff")
        decoy.listen()
        abstract = unix_address(b"\0torpor-escape-handoff")
        assert outcome(on_host(*connect(SOCK_SEQPACKET, abstract))[1]).succeeded
        there = {line.split()[-1][1:] for line in Path("/proc/net/unix").read_text().splitlines() if line.split()[-1].startswith("@")}
        assert "torpor-escape-handoff" in there
        for name in [*there, str(path), "handoff.sock", "torpor"]:
            address = unix_address(b"\0" + name.encode()[:100])
            for kind in (SOCK_STREAM, SOCK_SEQPACKET):
                assert outcome(attacker.run(*connect(kind, address))[1]).error == "ECONNREFUSED", name


def connect(kind: int, address: bytes) -> list[str]:
    return [call("socket", socket.AF_UNIX, kind, 0), call("connect", Earlier(0), address, len(address)), call("close", Earlier(0))]


def test_its_own_socket_file_is_a_dead_end(attacker: Attacker) -> None:
    """PostgreSQL makes one in its volume, on which nobody listens: the library put Torpor's listener in its place."""
    address = unix_address(b"/data/.s.PGSQL.5432\0")
    tried = attacker.run(call("socket", 1, 1, 0), call("connect", Earlier(0), address, len(address)))
    assert outcome(tried[1]).error == "ECONNREFUSED"


# -- descriptors


def check_descriptors(answer: str, volume: Path) -> dict[str, int]:
    """Each is harmless: its own volume, its own log (append only), pipes and Unix sockets of its own. How many there are of each."""
    counts: dict[str, int] = {}
    device = volume.stat().st_dev
    for text in answer.split(";"):
        _, kind, *facts = text.split(" ", 6)
        found = dict(fact.partition("=")[::2] for fact in facts)
        flags = int(found["flags"], 8)
        assert kind != "directory", text
        assert kind != "socket" or found["family"] in ("1", "2", "10"), text
        if kind == "device":
            assert int(found["ino"]) in {os.stat(f"/dev/{name}").st_ino for name in ("null", "zero", "random", "urandom")}, text
        if kind == "file" and int(found["dev"], 16) == device and int(found["ino"]) not in inodes(volume):
            kind = "log"
            assert flags & 0o3 == 1 and flags & 0o2000, f"a log is written at its end only: {text}"
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def inodes(directory: Path) -> set[int]:
    found = set()
    for where, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # PostgreSQL has removed it since
                found.add(os.lstat(Path(where) / name).st_ino)
    return found


def test_backend_has_nothing_but_its_own(escape: Stronghold, attacker: Attacker) -> None:
    volume = escape.server.data_dir / "volumes" / escape.villain.id / "data"
    counts = check_descriptors(attacker.run(step("descriptors", 70_000))[0], volume)
    assert counts.get("socket", 0) == 1, "its client, and not the listener"
    assert counts.get("pipe", 0) <= 2, "the life line, and PostgreSQL's own"


def test_postmaster_has_nothing_but_its_own(escape: Stronghold) -> None:
    """Code in the postmaster itself, by shared_preload_libraries."""
    volume = escape.server.data_dir / "volumes" / escape.villain.id / "data"
    (volume / "preload.script").write_text(step("descriptors", 70_000))
    (volume / "preload.script").chmod(0o644)
    with escape.attacker() as attacker:
        attacker.sql("ALTER SYSTEM SET shared_preload_libraries = '/data/attacks.so'")
    escape.server.sleep("villain", "stopped", force=True)
    with escape.attacker() as attacker:
        try:
            counts = check_descriptors((volume / "preload.answer").read_text().strip(), volume)
        finally:
            attacker.sql("ALTER SYSTEM RESET shared_preload_libraries")
            (volume / "preload.script").unlink()
    assert counts.get("socket", 0) <= 2, "the listener, and the promise that it gets ready"
    check_postmaster(escape)
    escape.server.sleep("villain", "stopped", force=True)


def check_postmaster(escape: Stronghold) -> None:
    """What it holds while it serves, as the host sees it, whoever's code is loaded: nothing that Torpor or the neighbour holds, too."""
    own = escape.server.postmaster(escape.villain)
    # The session that it has just accepted and forked a backend for it has, too, for a moment.
    eventually(lambda: sum(target.startswith("socket:") for target in held_by(own)) == 1)
    held = {
        name: held_by(pid)
        for name, pid in (
            ("own", own),
            ("the neighbour's", escape.server.postmaster(escape.neighbour)),
            ("Torpor's", escape.server.pid),
        )
    }
    kinds = {target.partition(":")[0] for target in held["own"]}
    assert {"socket", "pipe"} <= kinds
    for name in ("the neighbour's", "Torpor's"):
        shared = {target for target in held["own"] & held[name] if not target.startswith("anon_inode")}
        assert shared <= {"/dev/null"}, (name, shared)
    sockets = [target for target in held["own"] if target.startswith("socket:")]
    assert len(sockets) == 1, "the listener: the promise that it gets ready was kept, and closed"
    files = {target for target in held["own"] if target.startswith("/")}
    log = str(escape.server.data_dir / "logs" / f"{escape.villain.id}.log")
    assert all(path == log or path.startswith(("/data/", "/dev/")) or path == "/dev/null" for path in files), files


def held_by(pid: int) -> set[str]:
    found = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed since
            found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found


def test_a_session_does_not_get_at_the_sockets_of_others(escape: Stronghold) -> None:
    """Two sessions of one database: neither holds the other's, and what they hold can't be taken from outside of their own tree."""
    with escape.attacker() as one, escape.attacker() as other:
        sockets = []
        for each in (one, other):
            found = [text for text in each.run(step("descriptors"))[0].split(";") if " socket " in text]
            sockets.append(found[0].split("ino=")[1].split()[0])
        assert sockets[0] != sockets[1]
        pid = other.call("getpid").result
        stolen = one.run(call("pidfd_open", pid, 0), *(call("pidfd_getfd", Earlier(0), fd, 0) for fd in range(3, 12)))
        assert {outcome(line).error for line in stolen[1:]} == {"EPERM"}


# -- through the door's back


def test_user_of_a_compute_can_enter_nothing_of_the_others(escape: Stronghold) -> None:
    """Even without the namespaces: the modes and owners of files keep a compute's user out of everything but its own volume."""
    server = escape.server
    volume = server.data_dir / "volumes" / escape.villain.id
    uid = volume.stat().st_uid
    assert call_on_host("open", str(volume / "data/PG_VERSION"), 0, uid=uid).succeeded
    for path in [
        server.data_dir / "volumes" / escape.neighbour.id, server.data_dir / "volumes" / escape.neighbour.id / "data/PG_VERSION",
        server.data_dir / "volumes/.templates", server.data_dir / "run", server.data_dir / "run" / escape.villain.id,
        server.data_dir / "logs", server.data_dir / "catalog.sqlite", server.data_dir / "token", server.data_dir / "tls/ca.key",
        server.data_dir / "lock",
    ]:  # fmt: skip
        flags = O_DIRECTORY if path.is_dir() and path.name != ".templates" else 0
        if path.name == ".templates":
            assert call_on_host("open", str(path / "x"), O_RDWR | O_CREAT, 0o600, uid=uid).error == "EACCES"
            continue
        assert call_on_host("open", str(path), flags, uid=uid).error == "EACCES", path
    for database in (escape.villain, escape.neighbour):
        address = unix_address(str(server.data_dir / "run" / database.id / "door.sock").encode() + b"\0")
        tried = on_host(call("socket", 1, 1, 0), call("connect", Earlier(0), address, len(address)), uid=uid)
        assert outcome(tried[1]).error == "EACCES"
        own = on_host(call("socket", 1, 1, 0), call("connect", Earlier(0), address, len(address)))
        assert outcome(own[1]).succeeded
    for each in (server.data_dir / "volumes", server.data_dir):
        assert call_on_host("open", str(each), O_DIRECTORY, uid=uid).error == "EACCES", "they can't even be listed"
    pid = server.postmaster(escape.neighbour)
    assert on_host(step("signal", 0, pid), uid=uid)[0] == "-1 1"


def test_nothing_that_lies_around_can_be_run_in_a_child(attacker: Attacker) -> None:
    answer = attacker.run(forked(call("execve", "/bin/mount", bytes(8), bytes(8)), call("execve", "/usr/bin/python3", bytes(8), bytes(8))))
    assert [outcome(line).error for line in answer[:2]] == ["ENOENT", "ENOENT"]
