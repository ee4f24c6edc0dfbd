"""What `torpor host setup` would do on a host, decided from facts and wishes alone. Pure."""

from dataclasses import dataclass
from enum import StrEnum

from torpor.base.host.facts import KERNEL_SETTINGS_FILE, POOL_IMAGE_NAME, HostFacts, kernel_release
from torpor.base.host.findings import GIB, show_bytes
from torpor.base.host.sealed import MAX_POOL_BYTES

MIN_POOL_BYTES = 300 << 20  # mkfs.xfs makes nothing smaller
_QUOTAS_SINCE = (6, 7)
_MAX_DEFAULT_POOL_BYTES = 100 * GIB
_MIN_ZRAM_BYTES = 16 << 20
# Reading neighbours ahead from compressed memory only costs time; and idle memory should go before file cache goes.
_PAGE_CLUSTER = 0
_SWAPPINESS = 100


class State(StrEnum):
    """What a step comes to."""

    DONE = "done"  # it is so already
    CHANGE = "change"  # to be done
    CHANGED = "changed"  # was done now
    SKIPPED = "skipped"  # not wanted, or not possible here and not needed
    FAILED = "failed"  # should be done and can't; `text` says what to do


@dataclass(frozen=True, slots=True)
class InstallPackages:
    """Install these with apt."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MakePool:
    """Make a sparse image of this size with that file system on it, and mount it."""

    size_bytes: int
    filesystem: str = "xfs"
    encrypted: bool = False


@dataclass(frozen=True, slots=True)
class MountPool:
    """Mount the image that is there."""


@dataclass(frozen=True, slots=True)
class AddZram:
    """Add a zram swap of this size; `device` is one to take, None to add one."""

    size_bytes: int
    device: str | None


@dataclass(frozen=True, slots=True)
class SetKernel:
    """Set these of vm.*, now and at each boot."""

    values: tuple[tuple[str, str], ...]

    @property
    def file_text(self) -> str:
        """The file that sets them at boot."""
        lines = "".join(f"vm.{key} = {value}\n" for key, value in self.values)
        return f"# Made by `torpor host setup`; `torpor host undo` removes it.\n{lines}"


Action = InstallPackages | MakePool | MountPool | AddZram | SetKernel


@dataclass(frozen=True, slots=True)
class Step:
    """One step: what it is about, how it stands, in words; `action` only for those to be done."""

    name: str
    state: State
    text: str
    action: Action | None = None


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the caller wants otherwise. None leaves the choice to the plan."""

    pool_size_bytes: int | None = None
    pool_filesystem: str = "xfs"
    encrypt_pool: bool = False
    zram: bool | None = None
    zram_size_bytes: int | None = None
    packages: bool = True


def plan(facts: HostFacts, missing_packages: tuple[str, ...] | None, wishes: Wishes) -> tuple[Step, ...]:
    """The steps, in the order in which they must be done. `missing_packages` is None where their names aren't known."""
    return (_packages(facts, missing_packages, wishes), _pool(facts, wishes), *_memory(facts, wishes))


def _packages(facts: HostFacts, missing: tuple[str, ...] | None, wishes: Wishes) -> Step:
    name = "packages"
    if not wishes.packages:
        return Step(name, State.SKIPPED, "not wanted")
    if missing is None:
        text = (
            f"the names aren't known for {facts.distribution} {facts.distribution_version}: install bubblewrap, xfsprogs, gcc and OpenSSL 3"
        )
        return Step(name, State.SKIPPED, text)
    if not missing:
        return Step(name, State.DONE, "all are installed")
    return Step(name, State.CHANGE, f"install {', '.join(missing)}", InstallPackages(missing))


def _pool(facts: HostFacts, wishes: Wishes) -> Step:
    name, pool, sealed = "copy-on-write pool", facts.pool, facts.encryption.sealed
    if wishes.encrypt_pool and not sealed:
        return _encrypted_pool(facts, wishes)
    if pool.exists and pool.reflinks and (pool.is_mount or not sealed):
        kind = f"{pool.filesystem}, encrypted" if sealed else pool.filesystem
        return Step(name, State.DONE, f"{pool.path} ({kind}) shares blocks between files")
    if not pool.empty:
        text = (
            f"{pool.path} holds files and can't share blocks. To move them: stop Torpor, `mv {pool.path} {pool.path}.old`, "
            f"`torpor host setup`, `cp -a {pool.path}.old/. {pool.path}/`, start Torpor, and remove {pool.path}.old when all is well"
        )
        return Step(name, State.FAILED, text)
    if facts.pool_image_exists:
        return Step(name, State.CHANGE, f"mount the pool at {pool.path}", MountPool())
    if facts.data.reflinks:
        return Step(name, State.DONE, f"{facts.data.path} ({facts.data.filesystem}) shares blocks between files")
    return _new_pool(facts, wishes)


def _encrypted_pool(facts: HostFacts, wishes: Wishes) -> Step:
    """There is none yet."""
    name, pool = "copy-on-write pool", facts.pool
    if not facts.encryption.offered:
        text = (
            "this kernel shows no encryption in ext4 (it takes CONFIG_FS_ENCRYPTION; try `modprobe ext4`), or mkfs.ext4 (e2fsprogs) isn't "
            "installed. Otherwise put the data directory on a disk that is encrypted below its file system (LUKS), without --encrypt-pool"
        )
        return Step(name, State.FAILED, text)
    if facts.pool_image_exists:
        image = f"{facts.data.path}/{POOL_IMAGE_NAME}"
        text = (
            f"there is a pool that isn't encrypted. To move what is in it: stop Torpor, `umount {pool.path}`, `mv {image} {image}.old`, "
            f"`torpor host setup --encrypt-pool`, `mount -o loop {image}.old /mnt`, `cp -a /mnt/. {pool.path}/`, `umount /mnt`, start "
            f"Torpor, and when all is well `shred -u {image}.old`"
        )
        return Step(name, State.FAILED, text)
    if not pool.empty:
        text = (
            f"{pool.path} holds files, not encrypted. To move them: stop Torpor, `mv {pool.path} {pool.path}.old`, "
            f"`torpor host setup --encrypt-pool`, `cp -a {pool.path}.old/. {pool.path}/`, start Torpor, and remove {pool.path}.old "
            "when all is well"
        )
        return Step(name, State.FAILED, text)
    return _new_pool(facts, wishes)


def _new_pool(facts: HostFacts, wishes: Wishes) -> Step:
    name, pool = "copy-on-write pool", facts.pool
    size = min(facts.data.free_bytes // 2, _MAX_DEFAULT_POOL_BYTES) if wishes.pool_size_bytes is None else wishes.pool_size_bytes
    if size < MIN_POOL_BYTES:
        text = f"it takes at least {show_bytes(MIN_POOL_BYTES)}, this one would have {show_bytes(size)}: give a larger --pool-size"
        return Step(name, State.FAILED, text)
    if size > facts.data.free_bytes + facts.data.total_bytes:
        return Step(name, State.FAILED, f"{show_bytes(size)} is more than the disk has: give a smaller --pool-size")
    if wishes.encrypt_pool and size > MAX_POOL_BYTES:
        return Step(name, State.FAILED, f"an encrypted pool has {show_bytes(MAX_POOL_BYTES)} at most: give a smaller --pool-size")
    if wishes.pool_filesystem == "btrfs" and kernel_release(facts.kernel) < _QUOTAS_SINCE:
        return Step(name, State.FAILED, f"quotas on btrfs take Linux 6.7, this is {facts.kernel}: make it with XFS")
    kind = {"xfs": "XFS", "btrfs": "btrfs"}[wishes.pool_filesystem]
    how = f"encrypted with the key in {facts.encryption.key_file}, {kind}" if wishes.encrypt_pool else kind
    text = f"make a pool of {show_bytes(size)} ({how} in a sparse file, takes room as it fills) and mount it at {pool.path}"
    return Step(name, State.CHANGE, text, MakePool(size, wishes.pool_filesystem, wishes.encrypt_pool))


def _memory(facts: HostFacts, wishes: Wishes) -> tuple[Step, Step]:
    zram = _zram(facts, wishes)
    # Without swap the kernel settings would change nothing, so they'd be set for no reason.
    if not facts.swaps and zram.action is None:
        return zram, Step("kernel settings", State.SKIPPED, "they matter with swap only")
    return zram, _kernel(facts)


def _zram(facts: HostFacts, wishes: Wishes) -> Step:
    name = "zram swap"
    if wishes.zram is False:
        return Step(name, State.SKIPPED, "not wanted")
    if any(swap.is_zram for swap in facts.swaps):
        return Step(name, State.DONE, "there is one")
    if facts.swaps and not wishes.zram:
        return Step(name, State.SKIPPED, f"there is swap on {facts.swaps[0].device} already; --zram adds one before it")
    size = facts.memory_bytes // 2 if wishes.zram_size_bytes is None else wishes.zram_size_bytes
    if size < _MIN_ZRAM_BYTES:
        return Step(name, State.FAILED, f"{show_bytes(size)} is too small to be of use: give a larger --zram-size")
    return Step(name, State.CHANGE, f"add {show_bytes(size)} of swap, compressed in memory", AddZram(size, facts.zram.free_device))


def _kernel(facts: HostFacts) -> Step:
    name = "kernel settings"
    wanted = {"page-cluster": str(_PAGE_CLUSTER), "swappiness": str(_SWAPPINESS)}
    swappiness = facts.kernel_settings.get("swappiness", "")
    if swappiness.isdigit() and int(swappiness) > _SWAPPINESS:
        del wanted["swappiness"]  # somebody chose to swap more eagerly than we would
    action = SetKernel(tuple(wanted.items()))
    now = all(facts.kernel_settings.get(key) == value for key, value in wanted.items())
    if now and facts.kernel_settings_file == action.file_text:
        return Step(name, State.DONE, f"{KERNEL_SETTINGS_FILE} is in force")
    words = ", ".join(f"vm.{key}={value}" for key, value in wanted.items())
    return Step(name, State.CHANGE, f"set {words}, also at boot ({KERNEL_SETTINGS_FILE})", action)
