"""System calls that a tenant's own code may not make, and the namespaces, debuggers and old interfaces that they would open.

The refusals that are a promise fail with EPERM for every argument; what the filter doesn't know doesn't exist (ENOSYS).
"""

import platform
import struct
from collections.abc import Iterator

import pytest

from tests.support.attacks.kit import Attacker, Buffer, Earlier, call, call_on_host, forked, kernel_has, numbers, on_host, outcome, step
from tests.support.attacks.stronghold import Stronghold
from torpor.compute.sandbox.filter import ALLOWED, REFUSED

pytestmark = [pytest.mark.root]

CLONE_NAMESPACES = {
    "time": 0x80, "mount": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000, "pid": 0x20000000,
    "net": 0x40000000,
}  # fmt: skip
PROMISED = (
    "io_uring_setup", "io_uring_enter", "io_uring_register", "ptrace", "keyctl", "add_key", "request_key", "mount", "umount2", "pivot_root",
    "chroot", "unshare", "setns", "bpf", "userfaultfd", "perf_event_open", "kexec_load", "kexec_file_load", "init_module", "finit_module",
    "delete_module", "process_vm_readv", "process_vm_writev", "pidfd_getfd",
    "open_by_handle_at", "name_to_handle_at", "fsopen", "open_tree",
    "move_mount", "mount_setattr", "reboot", "swapon", "swapoff", "sethostname", "setdomainname", "settimeofday", "clock_settime",
    "adjtimex", "syslog", "acct", "quotactl", "ioperm", "iopl", "modify_ldt", "mq_open", "mq_unlink", "kcmp", "seccomp", "sync", "syncfs",
    "sched_setaffinity", "fanotify_init", "move_pages", "migrate_pages", "process_madvise", "vhangup", "memfd_secret", "vmsplice",
)  # fmt: skip


@pytest.fixture
def attacker(escape: Stronghold) -> Iterator[Attacker]:
    with escape.attacker() as attacker:
        yield attacker


def test_promised_refusals(attacker: Attacker) -> None:
    names = [name for name in PROMISED if name in numbers()]
    assert len(names) > 45
    for arguments in ((0,) * 6, (-1,) * 6, (1,) * 6):
        answers = attacker.run(*(call(name, *arguments) for name in names))
        refused = {name: outcome(line).error for name, line in zip(names, answers, strict=True)}
        assert set(refused.values()) == {"EPERM"}, {name: error for name, error in refused.items() if error != "EPERM"}
    for name in ("ptrace", "keyctl", "bpf", "io_uring_setup"):
        assert kernel_has(name), "else the refusal proves nothing"


def test_every_other_system_call_does_not_exist(attacker: Attacker) -> None:
    """All numbers that there are, and some that there aren't: what isn't on the list is ENOSYS, or EPERM where it is refused by name."""
    known = numbers()
    conditional = {"clone", "socket", "socketpair", "ioctl", "personality"}
    # The kernel lets these two past any filter, and ends whoever isn't a probe that it has set itself: nothing is to be had there.
    probes = {335, 336} if platform.machine() == "x86_64" else set()
    unknown = [number for name, number in known.items() if name not in {*ALLOWED, *REFUSED, *conditional}]
    unknown += [number for number in range(0, 512) if number not in known.values()] + [100_000, 2**30 - 1]
    newer = {452, 453, 462}  # fchmodat2, map_shadow_stack, mseal: on the list, and maybe not yet in this host's headers
    unknown = [number for number in unknown if number not in probes | newer]
    answers = attacker.run(*(call(number, -1, -1, -1, -1, -1, -1) for number in unknown))
    succeeded = {number: line for number, line in zip(unknown, answers, strict=True) if outcome(line).error != "ENOSYS"}
    assert not succeeded


@pytest.mark.parametrize("kind", sorted(CLONE_NAMESPACES))
def test_no_new_namespaces(attacker: Attacker, kind: str) -> None:
    flag, sigchld = CLONE_NAMESPACES[kind], 17
    assert attacker.call("unshare", flag).error == "EPERM"
    # Where it would work, a child would come back with 0 and a second answer: it leaves at once.
    answers = attacker.run(call("clone", flag | sigchld, 0, 0, 0, 0), call("clone", flag | CLONE_NAMESPACES["user"] | sigchld, 0, 0, 0, 0))
    assert {outcome(line).error for line in answers} == {"EPERM"}
    arguments = struct.pack("=QQQQQQQQ", flag, 0, 0, 0, sigchld, 0, 0, 0)
    assert attacker.call("clone3", arguments, len(arguments)).error == "ENOSYS"
    if kind == "uts":
        assert outcome(on_host(forked(call("unshare", flag)))[0]).succeeded


@pytest.mark.skipif(platform.machine() != "x86_64", reason="has no older interfaces")
def test_other_interfaces_of_the_kernel_end_the_process(attacker: Attacker) -> None:
    """32-bit and x32 calls have numbers of their own, which would pass by the filter."""
    assert attacker.run(step("old", 20)) == ["signal 31"]
    assert on_host(step("old", 20)) == ["exit 0"], "this kernel has them"
    getpid, x32 = 39, 0x40000000
    assert attacker.run(forked(call(getpid | x32)))[-1] == "signal 31"


def test_nobody_is_traced(attacker: Attacker) -> None:
    """Not even its own child, or its own sandbox's first process; nor is memory read past the process that has it."""
    assert outcome(attacker.run(step("trace"))[0]).error == "EPERM"
    assert outcome(on_host(step("trace"))[0]).succeeded
    attach, seize = 16, 0x4206
    for pid in (1, 2, attacker.call("getppid").result):
        for request in (attach, seize):
            assert attacker.call("ptrace", request, pid, 0, 0).error == "EPERM"
        assert attacker.call("process_vm_readv", pid, Buffer(16), 1, Buffer(16), 1, 0).error == "EPERM"


def test_terminal_input_cannot_be_forged(attacker: Attacker) -> None:
    tiocsti, tioclinux = 0x5412, 0x541C
    for fd in (0, 1, 2):
        for request in (tiocsti, tioclinux, tiocsti | 1 << 32):
            assert not attacker.call("ioctl", fd, request, b"x").succeeded
    assert attacker.call("open", "/dev/tty", 2).error == "ENOENT"
    assert attacker.call("open", "/dev/ptmx", 2).error == "ENOENT"


def test_files_stay_within_their_quota(attacker: Attacker) -> None:
    """The flags and the project of a file decide whose quota it counts for: neither can be changed."""
    set_project, set_flags, get_project = 0x401C5820, 0x40086602, 0x801C581F
    answers = attacker.run(
        call("open", "/data/PG_VERSION", 0), call("ioctl", Earlier(0), set_project, bytes(28)),
        call("ioctl", Earlier(0), set_flags, bytes(8)),
        call("ioctl", Earlier(0), set_project | 1 << 32, bytes(28)), call("ioctl", Earlier(0), get_project, Buffer(28)),
    )  # fmt: skip
    assert [outcome(line).error for line in answers[1:4]] == ["EPERM"] * 3


def test_personality_stays(attacker: Attacker) -> None:
    """Without address randomisation, or with memory that is executable by itself, the tenant's own processes would be softer targets."""
    no_randomising, read_implies_exec = 0x0040000, 0x0400000
    for persona in (no_randomising, read_implies_exec, no_randomising | read_implies_exec):
        assert not attacker.call("personality", persona).succeeded
    assert attacker.call("personality", 0xFFFFFFFF).result == 0
    assert call_on_host("personality", no_randomising).succeeded


def test_root_of_the_sandbox_cannot_be_remounted(attacker: Attacker) -> None:
    ms_remount_bind = 32 | 4096
    for target in ("/", "/conf", "/torpor", "/data", "/dev"):
        assert attacker.call("mount", "none", target, "none", ms_remount_bind, 0).error == "EPERM"
        assert attacker.call("umount2", target, 2).error == "EPERM"
    assert attacker.call("mount", "proc", "/proc", "proc", 0, 0).error == "EPERM"
    assert attacker.call("chroot", "/data").error == "EPERM"


def test_programs_that_the_tenant_brings_are_shut_in_as_well(attacker: Attacker, escape: Stronghold) -> None:
    """COPY … PROGRAM, and a program of the tenant's own: the filter and the namespaces go with them."""
    attacker.sql("CREATE TEMP TABLE said (line text)")
    attacker.sql("COPY said FROM PROGRAM 'echo $$; ls /; cat /etc/shadow /proc/1/environ 2>&1; true'")
    lines = [str(line) for (line,) in attacker.sql("SELECT line FROM said")]
    assert "data" in lines and "root" not in lines and "boot" not in lines
    assert sum("No such file" in line for line in lines) == 2
    assert int(lines[0]) < 10_000, "a process id of its own namespace"
    for statement in (
        "COPY said FROM PROGRAM 'mount -t tmpfs x /tmp'", "COPY said FROM '/etc/shadow'", "COPY said TO '/conf/postgresql.conf'",
        "SELECT pg_read_file('/etc/shadow')", "SELECT pg_read_file('/proc/1/environ')", "SELECT pg_ls_dir('/root')",
        "SELECT lo_import('/etc/shadow')", f"SELECT pg_read_file('{escape.server.data_dir}/token')",
        f"SELECT pg_ls_dir('{escape.server.data_dir}/run')", "SELECT pg_read_binary_file('/dev/mem', 0, 1)",
    ):  # fmt: skip
        assert attacker.refused(statement)
    assert attacker.sql("SELECT pg_read_file('/data/PG_VERSION')") == [("18\n",)], "its own it may read"


def test_untrusted_languages_and_outward_extensions_give_no_more(attacker: Attacker) -> None:
    names = {str(name) for (name,) in attacker.sql("SELECT name FROM pg_available_extensions")}
    assert not names & {"plpython3u", "plperlu", "pltclu"}, "no interpreter is in the image"
    for name in names & {"dblink", "postgres_fdw", "file_fdw", "adminpack"}:
        attacker.sql(f"CREATE EXTENSION IF NOT EXISTS {name}")
    assert "dblink" in names
    for target in ("host=127.0.0.1", "host=/data", "host=/tmp", "hostaddr=::1", "host=@torpor"):
        assert "could not" in attacker.refused(f"SELECT dblink_connect('{target} user=torpor dbname=postgres')")
