"""From facts to what people read: has, lacks, what each lack costs, what to do. Pure."""

from dataclasses import dataclass
from enum import StrEnum

from torpor.base.host.cgroup_facts import CgroupFacts, CgroupMode
from torpor.base.host.encryption import EncryptionFacts
from torpor.base.host.facts import DirectoryFacts, HostFacts, SandboxFacts

GIB = 1 << 30
_SETUP = "run `torpor host setup` as root"


class Status(StrEnum):
    """How a finding is to be read."""

    OK = "ok"  # nothing to do
    WARN = "warn"  # works, at some cost
    LACK = "lack"  # something doesn't work without it


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing the host has or lacks. `essential`: nothing works without it."""

    name: str
    status: Status
    found: str
    cost: str = ""
    remedy: str = ""
    essential: bool = False


def findings(facts: HostFacts) -> tuple[Finding, ...]:
    """Everything there is to say about a host, most important first."""
    return (
        _data(facts.data),
        _pool(facts),
        _quotas(facts),
        _encryption(facts.encryption, facts.is_root),
        *_cgroups(facts.cgroups, facts.is_root),
        _swap(facts),
        _sandbox(facts.sandbox, facts.is_root),
        _kvm(facts.kvm),
        _files(facts.max_files),
        _compiler(facts.compiler),
        _root(facts.is_root),
    )


def missing_essentials(items: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """The findings without which nothing works."""
    return tuple(item for item in items if item.essential and item.status is Status.LACK)


def show_bytes(count: float) -> str:
    """A size for people: "512 MiB", "3.4 GiB"."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB" if count < 1024 else f"{count / 1024:.1f} TiB"


def _data(data: DirectoryFacts) -> Finding:
    name, where = "data directory", f"{data.path} ({data.filesystem or 'unknown file system'}, {show_bytes(data.free_bytes)} free)"
    if not data.writable:
        remedy = "run as the user who owns it, or give another with --data-dir or TORPOR_DATA_DIR"
        return Finding(name, Status.LACK, f"{data.path} can't be written", "nothing can be kept", remedy, essential=True)
    if data.free_bytes < GIB:
        remedy = "free some space, or give another directory with --data-dir"
        return Finding(
            name, Status.LACK, where, "a database takes tens of MB, and more as it fills", remedy, essential=data.free_bytes < GIB // 8
        )
    if data.free_bytes < 5 * GIB:
        return Finding(name, Status.WARN, where, "room for a few small databases only", "free some space, or give another with --data-dir")
    return Finding(name, Status.OK, where)


def _pool(facts: HostFacts) -> Finding:
    name, pool = "copy-on-write", facts.pool
    if pool.reflinks:
        return Finding(name, Status.OK, f"{pool.path} ({pool.filesystem}) shares blocks between files")
    cost = "each new database is a full copy of its template: about 30 MB and more time"
    if pool.reflinks is None:
        return Finding(name, Status.WARN, f"not tried: this user can't write {pool.path}", cost, "run `torpor doctor` as its owner")
    if facts.pool_image_exists:
        return Finding(name, Status.WARN, "there is a pool, but it isn't mounted", cost, "start `torpor serve` as root, which mounts it")
    return Finding(name, Status.WARN, f"{pool.filesystem or 'the file system'} can't share blocks between files", cost, _SETUP)


def _quotas(facts: HostFacts) -> Finding:
    name = "disk quotas"
    if facts.pool.quotas and facts.is_root:
        return Finding(name, Status.OK, "the kernel holds each volume to its size (btrfs)")
    found = "volumes are watched: measured while awake, read-only at their size, stopped beyond it"
    cost = "a database can pass its size by what it writes within a second or so"
    remedy = "a pool on btrfs has quotas of the kernel's, and writes slower: `torpor host setup --pool-filesystem btrfs` (Linux 6.7)"
    return Finding(name, Status.OK, found, cost, remedy)


def _encryption(seen: EncryptionFacts, is_root: bool) -> Finding:
    name = "encryption"
    if not seen.sealed:
        lacks = "the pool isn't encrypted by Torpor"
        cost = "who gets hold of the disk can read the databases, unless it is encrypted below its file system (LUKS)"
        if seen.offered:
            return Finding(name, Status.OK, lacks, cost, "`torpor host setup --encrypt-pool` makes a new pool so")
        remedy = (
            "put the data directory on an encrypted disk; for `torpor host setup --encrypt-pool` it takes CONFIG_FS_ENCRYPTION and ext4"
        )
        return Finding(
            name, Status.OK, f"{lacks}, and can't be: this kernel shows no encryption in ext4 (try `modprobe ext4`)", cost, remedy
        )
    if not is_root:
        return Finding(name, Status.OK, "the pool is encrypted; only root can see whether its key is the right one")
    if seen.key_lacks:
        cost = "after the next reboot no database can be read" if seen.is_open else "no database can be read, and Torpor doesn't start"
        remedy = "put the key file back, readable by root only, or set pool_key_file to where it is"
        return Finding(name, Status.WARN if seen.is_open else Status.LACK, f"the pool is encrypted; {seen.key_lacks}", cost, remedy)
    found = f"the pool is encrypted (AES-256-XTS) with key {seen.key} in {seen.key_file}"
    if seen.key_beside:
        cost = "the key lies on the same file system as the pool: who gets hold of that has both"
        return Finding(name, Status.WARN, found, cost, "move it to another disk, and set pool_key_file to where it is then")
    return Finding(name, Status.OK, found)


def _cgroups(cgroups: CgroupFacts, is_root: bool) -> tuple[Finding, ...]:
    name = "control groups"
    if cgroups.mode is CgroupMode.NONE:
        cost = "databases are put to sleep with signals, and neither reclaimed, limited nor accounted group by group"
        return (Finding(name, Status.WARN, "none are mounted", cost, "mount cgroup2 at /sys/fs/cgroup"),)
    if not cgroups.writable:
        cost = "databases are put to sleep with signals, and neither reclaimed, limited nor accounted group by group"
        if is_root:
            remedy = "mount /sys/fs/cgroup writable (in a container: give it a cgroup namespace of its own, or run it privileged)"
        elif cgroups.mode is CgroupMode.V2:
            remedy = "run `systemd-run --user --scope -p Delegate=yes torpor serve`, or run as root"
        else:
            remedy = "run as root: v1 control groups can't safely be delegated"
        return (Finding(name, Status.WARN, f"{cgroups.mode}, but this user may not make groups", cost, remedy),)

    def part(what: str, there: bool, cost: str, remedy: str) -> Finding:
        return Finding(what, Status.OK, "yes") if there else Finding(what, Status.WARN, "no", cost, remedy)

    delegate = "enable the controller in the parent's cgroup.subtree_control (systemd: Delegate=cpu memory)"
    return (
        Finding(name, Status.OK, f"{cgroups.mode}, groups can be made"),
        part("freezer", cgroups.freezer, "databases are put to sleep with signals instead", "use Linux 5.2 or later"),
        part("memory reclaim", cgroups.reclaim, "a sleeping database keeps its memory unless the host is short of it", delegate),
        part("CPU accounting", cgroups.cpu, "CPU use is summed up process by process", delegate),
        _limits(cgroups.limits, delegate),
    )


def _limits(held: tuple[str, ...], remedy: str) -> Finding:
    missing = [name for name in ("processor", "memory", "processes") if name not in held]
    if not missing:
        return Finding("limits", Status.OK, f"{', '.join(held)}, held by the kernel")
    cost = f"a database can take as much as it likes of what isn't held ({', '.join(missing)}), and slow the others"
    return Finding("limits", Status.WARN, f"held: {', '.join(held) or 'none'}", cost, remedy)


def _swap(facts: HostFacts) -> Finding:
    name = "swap"
    total = sum(swap.size_bytes for swap in facts.swaps)
    if any(swap.is_zram for swap in facts.swaps):
        return Finding(name, Status.OK, f"{show_bytes(total)}, compressed in memory (zram)")
    if facts.swaps:
        cost = "a paged database wakes at the speed of that disk"
        return Finding(
            name, Status.OK, f"{show_bytes(total)} on {facts.swaps[0].device}", cost, "for zram as well: `torpor host setup --zram`"
        )
    cost = "a sleeping database keeps 10 to 20 MB of memory instead of about 5"
    return Finding(
        name,
        Status.WARN,
        "none",
        cost,
        _SETUP if facts.zram.available else "add swap space; this kernel shows no zram (try `modprobe zram`)",
    )


def _sandbox(sandbox: SandboxFacts, is_root: bool) -> Finding:
    """Which sandbox level databases get (torpor.model.sandbox), why it is no better, what to do."""
    name = "sandbox"
    lowest = "level own_user" if is_root else "level none"
    cost = "databases can see the host's processes and files" + ("" if is_root else ", and each other's")
    if sandbox.bwrap is None:
        what = f"{lowest}: bubblewrap (bwrap) is not installed"
        return Finding(name, Status.WARN, what, cost, f"{_SETUP}, or install the package bubblewrap")
    if not sandbox.filters:
        what = f"{lowest}: system calls can't be filtered, as libseccomp is not installed"
        return Finding(name, Status.WARN, what, cost, f"{_SETUP}, or install the package libseccomp2")
    allow = "allow user namespaces: user.max_user_namespaces > 0 and kernel.apparmor_restrict_unprivileged_userns = 0"
    if sandbox.works:
        level = "level full" if is_root else "level shared_user (full takes root)"
        return Finding(name, Status.OK, f"{level}: {sandbox.bwrap} starts one with namespaces of its own")
    if sandbox.works_as_root:
        what = f"level no_user_namespace: ordinary users may not make user namespaces ({sandbox.complaint})"
        return Finding(name, Status.WARN, what, "a fault in bubblewrap, before it drops its rights, would be root's", allow)
    remedy = "let this root make namespaces (in a container: run it privileged)" if is_root else f"{allow}; or run as root"
    return Finding(name, Status.WARN, f"{lowest}: {sandbox.bwrap} can't make a sandbox: {sandbox.complaint}", cost, remedy)


def _kvm(kvm: bool) -> Finding:
    if kvm:
        return Finding("KVM", Status.OK, "/dev/kvm can be used")
    return Finding("KVM", Status.OK, "none", "only virtual machines as sandboxes would need it")


def _files(limit: int) -> Finding:
    shown = "no limit" if limit >= 1 << 30 else f"{limit:,}"
    if limit < 8192:
        cost = f"about {max(limit - 300, 0) // 2:,} client connections at once"
        return Finding("open files", Status.WARN, shown, cost, "raise the hard limit (LimitNOFILE= or /etc/security/limits.conf)")
    return Finding("open files", Status.OK, shown)


def _compiler(compiler: str | None) -> Finding:
    if compiler is None:
        cost = "the library that receives sockets can't be built here"
        return Finding("C compiler", Status.WARN, "none", cost, f"{_SETUP}, or install gcc and libc6-dev")
    return Finding("C compiler", Status.OK, compiler)


def _root(is_root: bool) -> Finding:
    if is_root:
        return Finding("user", Status.OK, "root: each database runs under a user id of its own")
    cost = "all databases run under this user's id, so only the sandbox separates them"
    return Finding("user", Status.WARN, "not root", cost, "run `torpor serve` as root")
