"""The executors: on a fake tree for the order of things and for failures, and as root for real, leaving nothing behind."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.pools import kinds
from torpor.base.host import packages, pool, record, setup, zram
from torpor.base.host.facts import KERNEL_SETTINGS_FILE, can_reflink, probe, probe_swaps
from torpor.base.host.machine import HostActionFailed, Machine, Output
from torpor.base.host.plan import AddZram, InstallPackages, MakePool, SetKernel, State, Step, Wishes, plan


@dataclass(frozen=True, slots=True)
class Scripted(Machine):
    """A machine whose commands are answered from a table by their first two words; what was run is kept."""

    answers: dict[str, Output] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)

    def run(self, argv: Sequence[str], timeout_s: float = 60) -> Output:
        self.ran.append(" ".join(argv))
        return self.answers.get(" ".join(argv[:2]), Output(0, "", ""))

    def which(self, program: str) -> str | None:
        return f"/usr/bin/{program}"


def host(root: Path, **answers: Output) -> Scripted:
    for name, text in {
        "proc/sys/vm/page-cluster": "3\n",
        "proc/sys/vm/swappiness": "60\n",
        "proc/swaps": "Filename\n",
        "sys/block/zram0/disksize": "0\n",
        "sys/block/zram0/comp_algorithm": "[lzo-rle] lzo lz4\n",
        "sys/block/zram0/reset": "",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Scripted(root, {key.replace("_", " "): value for key, value in answers.items()})


KERNEL = Step("kernel settings", State.CHANGE, "", SetKernel((("page-cluster", "0"), ("swappiness", "100"))))
ZRAM = Step("zram swap", State.CHANGE, "", AddZram(64 << 20, "/dev/zram0"))


@pytest.mark.parametrize(
    ("distribution", "version", "name"),
    [
        ("debian", "12", "libssl3"),
        ("debian", "13", "libssl3t64"),
        ("ubuntu", "22.04", "libssl3"),
        ("ubuntu", "24.04", "libssl3t64"),
        ("debian", "", "libssl3t64"),
    ],
)
def test_package_names(distribution: str, version: str, name: str) -> None:
    names = packages.needed(distribution, version)
    assert names is not None
    assert name in names


def test_package_names_elsewhere_are_unknown() -> None:
    assert packages.needed("fedora", "41") is None


def test_missing_packages_are_read_from_dpkg(tmp_path: Path) -> None:
    machine = host(tmp_path)
    machine.answers["dpkg-query -W"] = Output(1, "gcc installed\ntzdata config-files\n", "no packages found matching bubblewrap")
    assert packages.missing(machine, ("gcc", "tzdata", "bubblewrap")) == ("tzdata", "bubblewrap")


def test_install_refreshes_the_lists_only_when_it_must(tmp_path: Path) -> None:
    machine = host(tmp_path)
    packages.install(machine, ("gcc",))
    assert machine.ran == ["apt-get install -y -q --no-install-recommends gcc"]
    failing = host(tmp_path)
    failing.answers["apt-get install"] = Output(100, "", "E: Unable to locate package gcc")
    with pytest.raises(HostActionFailed, match="Unable to locate") as caught:
        packages.install(failing, ("gcc",))
    assert [line.split()[1] for line in failing.ran] == ["install", "update", "install"]
    assert "--skip-packages" in caught.value.hint


def test_apply_records_and_undo_takes_back(tmp_path: Path) -> None:
    machine, data = host(tmp_path), tmp_path / "data"
    swaps = tmp_path / "proc/swaps"
    steps = (Step("packages", State.CHANGE, "", InstallPackages(("gcc",))), ZRAM, KERNEL, Step("pool", State.DONE, "there"))
    done = list(setup.apply(steps, data, machine))
    assert [step.state for step in done] == [State.CHANGED, State.CHANGED, State.CHANGED, State.DONE]
    assert machine.ran[1:] == ["mkswap /dev/zram0", "swapon -p 100 /dev/zram0"]
    assert (tmp_path / "sys/block/zram0/comp_algorithm").read_text() == "lz4"
    assert (tmp_path / "proc/sys/vm/swappiness").read_text() == "100"
    assert "vm.swappiness = 100" in machine.path(KERNEL_SETTINGS_FILE).read_text()

    swaps.write_text("Filename\n/dev/zram0 partition 65536 0 100\n")
    undone = {step.name: step.state for step in setup.undo(data, machine)}
    assert undone == {
        "kernel settings": State.CHANGED,
        "zram swap": State.CHANGED,
        "copy-on-write pool": State.DONE,
        "packages": State.SKIPPED,
    }
    assert machine.ran[-1] == "swapoff /dev/zram0"
    assert (tmp_path / "sys/block/zram0/reset").read_text() == "1"
    assert (tmp_path / "proc/sys/vm/swappiness").read_text() == "60"
    assert not machine.path(KERNEL_SETTINGS_FILE).exists()
    assert os.listdir(data) == []
    assert {step.state for step in setup.undo(data, machine)} == {State.DONE}


def test_a_second_setup_keeps_the_first_values_to_go_back_to(tmp_path: Path) -> None:
    machine, data = host(tmp_path), tmp_path / "data"
    for _ in range(2):
        list(setup.apply((KERNEL,), data, machine))
    assert record.load(data).kernel_before == {"page-cluster": "3", "swappiness": "60"}


def test_a_failed_step_is_told_and_the_others_are_done(tmp_path: Path) -> None:
    machine, data = host(tmp_path), tmp_path / "data"
    machine.answers["swapon -p"] = Output(255, "", "swapon: Operation not permitted")
    done = list(setup.apply((ZRAM, KERNEL), data, machine))
    assert [step.state for step in done] == [State.FAILED, State.CHANGED]
    assert "Operation not permitted" in done[0].text
    assert record.load(data).zram is None
    assert (tmp_path / "sys/block/zram0/reset").read_text() == "1"


def test_a_kernel_without_zram_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(HostActionFailed, match="has no zram") as caught:
        zram.add_zram(1 << 20, None, Scripted(tmp_path))
    assert "--no-zram" in caught.value.hint


def test_zram_comes_back_after_a_reboot(tmp_path: Path) -> None:
    machine, data = host(tmp_path), tmp_path / "data"
    assert not zram.ensure_zram(data, machine)
    record.save(data, record.Record(zram=record.ZramRecord("/dev/zram3", 1 << 20, True)))
    if os.geteuid() != 0:
        with pytest.raises(HostActionFailed):
            zram.ensure_zram(data, machine)
        return
    assert zram.ensure_zram(data, machine)
    assert record.load(data).zram == record.ZramRecord("/dev/zram0", 1 << 20, False)


def test_only_one_at_a_time(tmp_path: Path) -> None:
    machine = host(tmp_path)
    first = setup.apply((KERNEL, KERNEL), tmp_path, machine)
    next(first)
    with pytest.raises(HostActionFailed, match="another"):
        list(setup.undo(tmp_path, machine))
    assert len(list(first)) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 99}', '{"version": 1}'])
def test_a_damaged_record_is_not_guessed_at(tmp_path: Path, text: str) -> None:
    (tmp_path / "host.json").write_text(text)
    with pytest.raises(HostActionFailed, match=r"host\.json"):
        record.load(tmp_path)


def test_without_an_image_there_is_no_pool(tmp_path: Path) -> None:
    assert not pool.ensure_pool_mounted(tmp_path)


def test_a_pool_never_hides_files(tmp_path: Path) -> None:
    (tmp_path / "pool.img").touch()
    (tmp_path / "volumes").mkdir()
    (tmp_path / "volumes" / "x").touch()
    with pytest.raises(HostActionFailed):
        pool.ensure_pool_mounted(tmp_path)


def test_a_pool_that_cant_be_made_leaves_nothing(tmp_path: Path) -> None:
    machine = host(tmp_path / "root")
    machine.answers["mkfs.xfs -q"] = Output(1, "", "mkfs.xfs: no")
    with pytest.raises(HostActionFailed, match="no"):
        pool.make_pool(tmp_path / "data", 300 << 20, machine)
    assert os.listdir(tmp_path / "data") == []


@pytest.fixture
def real_directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="torpor-host-", dir="/var/tmp"))
    try:
        yield directory
    finally:
        if os.path.ismount(directory / "volumes"):
            Machine().run(["umount", str(directory / "volumes")])
        shutil.rmtree(directory)


@contextmanager
def only_user_of_zram() -> Iterator[None]:
    lock = os.open("/sys/block", os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@pytest.mark.root
@pytest.mark.parametrize("filesystem", kinds())
def test_a_real_pool(real_directory: Path, filesystem: str) -> None:
    machine = Machine()
    image = real_directory / "pool.img"
    wishes = Wishes(pool_size_bytes=300 << 20, pool_filesystem=filesystem, zram=False)
    planned = [step for step in plan(probe(real_directory), (), wishes) if step.name == "copy-on-write pool"]
    if planned[0].action is None:
        planned = [Step("copy-on-write pool", State.CHANGE, "", MakePool(300 << 20, filesystem))]  # /var/tmp shares blocks itself
    (done,) = setup.apply(tuple(planned), real_directory, machine)
    assert done.state is State.CHANGED, done.text
    volumes = real_directory / "volumes"
    assert can_reflink(volumes)
    assert probe(real_directory).pool.quotas is (filesystem == "btrfs")
    assert image.stat().st_size == 300 << 20
    assert image.stat().st_blocks * 512 < 100 << 20
    assert image.stat().st_mode & 0o777 == 0o600
    assert volumes.stat().st_mode & 0o777 == 0o711
    assert {step.name: step.state for step in plan(probe(real_directory), (), wishes)}["copy-on-write pool"] is State.DONE
    assert pool.ensure_pool_mounted(real_directory)

    # With a volume in it, undo keeps the image, and the next start finds the volume again.
    (volumes / "d1").mkdir()
    with (volumes / "d1" / "held").open("w"):
        undone = {step.name: step for step in setup.undo(real_directory, machine)}["copy-on-write pool"]
        assert undone.state is State.FAILED
        assert "busy" in undone.text
    undone = {step.name: step for step in setup.undo(real_directory, machine)}["copy-on-write pool"]
    assert undone.state is State.CHANGED
    assert image.exists()
    assert not os.path.ismount(volumes)
    assert not probe(real_directory).pool.quotas
    assert {step.state for step in setup.undo(real_directory, machine)} == {State.DONE}
    assert pool.ensure_pool_mounted(real_directory)
    (volumes / "d1" / "held").unlink()
    (volumes / "d1").rmdir()
    assert [step.state for step in setup.undo(real_directory, machine)] == [State.DONE, State.DONE, State.CHANGED, State.DONE]
    assert os.listdir(real_directory) == []


@pytest.mark.root
def test_a_real_zram_swap(real_directory: Path) -> None:
    machine = Machine()
    with only_user_of_zram():
        seen = probe(real_directory).zram
        if not seen.available or (seen.free_device is None and not seen.can_add):
            with pytest.raises(HostActionFailed, match="zram"):
                zram.add_zram(32 << 20, None, machine)
            return
        (done,) = setup.apply((Step("zram swap", State.CHANGE, "", AddZram(32 << 20, None)),), real_directory, machine)
        try:
            assert done.state is State.CHANGED, done.text
            made = record.load(real_directory).zram
            assert made is not None
            assert [swap.priority for swap in probe_swaps(machine) if swap.device == made.device] == [100]
        finally:
            undone = {step.name: step for step in setup.undo(real_directory, machine)}["zram swap"]
        assert undone.state is State.CHANGED, undone.text
        assert made.device not in [swap.device for swap in probe_swaps(machine)]
        assert os.listdir(real_directory) == []
