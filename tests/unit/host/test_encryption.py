"""The encrypted pool as a thing of the host: its key, what is planned and said, and as root for real, killed at each step of being made."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.faults import eventually
from tests.support.pools import MEMORY, kinds, lacks_encryption, loop_pool, make_image, mount, unmount
from tests.unit.host.test_plan import HOST, POOL, by_name, steps
from torpor.base import fscrypt
from torpor.base.fscrypt import KeyStatus
from torpor.base.host import pool, poolkey, record, setup
from torpor.base.host.encryption import EncryptionFacts
from torpor.base.host.facts import probe
from torpor.base.host.findings import GIB, Status, missing_essentials
from torpor.base.host.machine import HostActionFailed, Machine
from torpor.base.host.plan import MakePool, MountPool, State, Step, Wishes
from torpor.base.host.poolkey import PoolKeyUnusable
from torpor.base.host.sealed import MAX_POOL_BYTES, Sealed
from torpor.storage.room import look

MB = 1 << 20
OFFERED = replace(HOST, encryption=EncryptionFacts(offered=True, key_file="/keys/pool.key"))
WISH = Wishes(encrypt_pool=True)
POOL_STEP = "copy-on-write pool"
real = pytest.mark.skipif(bool(lacks_encryption()), reason=lacks_encryption())


def test_identifiers_are_those_of_the_kernel() -> None:
    # As the kernel answered for this key.
    assert fscrypt.identifier_of(bytes(range(64))).hex() == "8699c2c53707405da5aba5ae4d8583c0"


def test_a_key_is_made_once_and_for_root_only(tmp_path: Path) -> None:
    key = poolkey.make(tmp_path / "pool.key")
    assert (tmp_path / "pool.key").stat().st_mode & 0o777 == 0o600
    assert poolkey.load(tmp_path / "pool.key") == key
    assert poolkey.make(tmp_path / "other.key").identifier != key.identifier
    assert sorted(os.listdir(tmp_path)) == ["other.key", "pool.key"]
    assert key.secret.hex() not in repr(key)
    key.must_be(key.identifier)
    with pytest.raises(PoolKeyUnusable, match="encrypted with 00000000"):
        key.must_be(bytes(16))


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        ("ab" * 64, 0o640, "others may read"),
        ("ab" * 32, 0o600, "128 hexadecimal digits"),
        ("", 0o600, "128 hexadecimal digits"),
        ("xyz", 0o400, "128 hexadecimal digits"),
        ("\N{SNOWMAN}", 0o400, "128 hexadecimal digits"),
        (None, 0, "isn't there"),
    ],
)
def test_keys_that_cant_be_used(tmp_path: Path, text: str | None, mode: int, words: str) -> None:
    file = tmp_path / "pool.key"
    if text is not None:
        file.write_text(text)
        file.chmod(mode)
    with pytest.raises(PoolKeyUnusable, match=words) as caught:
        poolkey.load(file)
    assert caught.value.hint
    assert str(file) in caught.value.message


def test_a_key_that_cant_be_made_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(PoolKeyUnusable, match="No such file"):
        poolkey.make(tmp_path / "not mounted/pool.key")


@pytest.mark.parametrize(
    ("facts", "action"),
    [
        (OFFERED, MakePool(20 * GIB, encrypted=True)),
        # Where the data directory shares blocks itself there is a pool all the same: it can't encrypt.
        (
            replace(OFFERED, data=replace(HOST.data, reflinks=True), pool=replace(POOL, exists=True, reflinks=True)),
            MakePool(20 * GIB, encrypted=True),
        ),
        (replace(OFFERED, pool_image_exists=True, encryption=EncryptionFacts(True, True)), MountPool()),
        (replace(OFFERED, pool=replace(POOL, exists=True, reflinks=True, is_mount=True), encryption=EncryptionFacts(True, True)), None),
    ],
)
def test_an_encrypted_pool_is_planned(facts: object, action: object) -> None:
    assert steps(facts, WISH)[POOL_STEP].action == action  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "wishes", "words"),
    [
        (HOST, WISH, "CONFIG_FS_ENCRYPTION"),
        (replace(OFFERED, pool_image_exists=True), WISH, "isn't encrypted"),
        (replace(OFFERED, pool=replace(POOL, exists=True, reflinks=True, empty=False)), WISH, "not encrypted"),
        (replace(OFFERED, data=replace(HOST.data, free_bytes=99 << 40)), replace(WISH, pool_size_bytes=MAX_POOL_BYTES + 1), "at most"),
        (OFFERED, replace(WISH, pool_size_bytes=1), "--pool-size"),
    ],
)
def test_what_cant_be_encrypted_says_why_and_what_to_do(facts: object, wishes: Wishes, words: str) -> None:
    step = steps(facts, wishes)[POOL_STEP]  # type: ignore[arg-type]
    assert step.state is State.FAILED
    assert words in step.text


@pytest.mark.parametrize(
    ("seen", "status", "words"),
    [
        (EncryptionFacts(), Status.OK, "can't be"),
        (EncryptionFacts(True), Status.OK, "isn't encrypted"),
        (EncryptionFacts(True, True, True, "/k", "ab"), Status.OK, "key ab in /k"),
        (EncryptionFacts(True, True, True, "/k", "ab", key_beside=True), Status.WARN, "key ab in /k"),
        (EncryptionFacts(True, True, True, "/k", "", "the key is gone"), Status.WARN, "the key is gone"),
        (EncryptionFacts(True, True, False, "/k", "", "the key is gone"), Status.LACK, "the key is gone"),
    ],
)
def test_doctor_says_whether_the_pool_is_encrypted_and_what_lacks(seen: EncryptionFacts, status: Status, words: str) -> None:
    finding = by_name(replace(HOST, encryption=seen))["encryption"]
    assert finding.status is status
    assert words in finding.found
    assert bool(finding.cost) == bool(finding.remedy) == (status is not Status.OK or not seen.sealed)
    assert "only root" in by_name(replace(HOST, is_root=False, encryption=replace(seen, sealed=True)))["encryption"].found
    assert not missing_essentials((finding,))


@pytest.fixture
def data() -> Iterator[Path]:
    """A data directory; at the end nothing of it may be mounted, attached or known to the kernel any more."""
    directory = Path(tempfile.mkdtemp(prefix="torpor-sealed-", dir=MEMORY))
    try:
        yield directory
        eventually(lambda: not _mounts(directory) and str(directory) not in _loops(), 30)
    finally:
        for point in reversed(_mounts(directory)):
            unmount(Path(point))
        shutil.rmtree(directory)


def _mounts(directory: Path) -> list[str]:
    points = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if point.startswith(f"{directory}/")]


def _loops() -> str:
    return subprocess.run(["losetup", "--noheadings", "--output", "BACK-FILE"], capture_output=True, text=True, check=True).stdout


def make(data: Path, filesystem: str = "xfs", size_bytes: int = 300 * MB, key_file: Path | None = None) -> Step:
    (done,) = setup.apply((Step(POOL_STEP, State.CHANGE, "", MakePool(size_bytes, filesystem, True)),), data, Machine(), key_file)
    return done


def undo(data: Path) -> Step:
    return {step.name: step for step in setup.undo(data, Machine())}[POOL_STEP]


def sync(point: Path) -> None:
    """Have all that is written there in the file below."""
    subprocess.run(["sync", "--file-system", str(point)], check=True)


def holds(image: Path, text: bytes) -> bool:
    """Whether the bytes are anywhere in the file."""
    return subprocess.run(["grep", "--quiet", "--text", "--fixed-strings", text.decode(), str(image)]).returncode == 0


@real
@pytest.mark.root
@pytest.mark.parametrize("filesystem", kinds())
def test_a_real_encrypted_pool(data: Path, filesystem: str) -> None:
    done = make(data, filesystem)
    assert done.state is State.CHANGED, done.text
    sealed, volumes, key_file = Sealed(data), data / "volumes", data / "pool.key"
    seen = probe(data)
    assert seen.pool.filesystem == filesystem
    assert seen.pool.quotas is (filesystem == "btrfs")
    assert seen.pool.reflinks
    assert (seen.encryption.sealed, seen.encryption.is_open, seen.encryption.key_lacks, seen.encryption.key_beside) == (
        True,
        True,
        "",
        True,
    )
    assert sealed.image.stat().st_mode & 0o777 == 0o600
    assert sealed.image.stat().st_blocks * 512 < 150 * MB
    assert sealed.point.stat().st_mode & 0o777 == 0o700

    # What is written can be found in the pool's image while that is open, and nowhere in what lies on the disk.
    secret = f"hummingbird {uuid.uuid4()}".encode()
    (volumes / "d1").mkdir()
    (volumes / "d1" / "table").write_bytes(secret * 1000)
    sync(volumes)
    assert holds(sealed.pool_image, secret)
    assert not holds(sealed.image, secret)
    assert not holds(sealed.image, b"pool.img")

    # Nothing is taken away under somebody; and when it is closed, nothing is there.
    with (volumes / "d1" / "held").open("w"):
        (refused,) = setup.lock(data, Machine())
        assert refused.state is State.FAILED
        assert "busy" in refused.text
    (locked,) = setup.lock(data, Machine())
    assert locked.state is State.CHANGED, locked.text
    assert os.listdir(volumes) == []
    assert not _mounts(data)
    assert next(setup.lock(data, Machine())).state is State.DONE

    # Whoever mounts what lies on the disk, as it is, sees that there is something.
    mount("ext4", sealed.image, sealed.point)
    try:
        (name,) = os.listdir(sealed.point / "pool")
        assert name != "pool.img"
        assert fscrypt.key_status(sealed.point, sealed.identifier) is KeyStatus.ABSENT
        with pytest.raises(OSError, match="Required key not available"):
            (sealed.point / "pool" / name).read_bytes()
    finally:
        unmount(sealed.point)
    eventually(lambda: str(data) not in _loops(), 30)

    # Neither without the key nor with another one is anything mounted.
    kept = data / "kept.key"
    key_file.rename(kept)
    with pytest.raises(PoolKeyUnusable, match="isn't there"):
        pool.ensure_pool_mounted(data)
    poolkey.make(key_file)
    with pytest.raises(PoolKeyUnusable, match="but the pool is encrypted with"):
        pool.ensure_pool_mounted(data)
    assert "but the pool is encrypted with" in probe(data).encryption.key_lacks
    kept.chmod(0o604)
    with pytest.raises(PoolKeyUnusable, match="others may read"):
        pool.ensure_pool_mounted(data, key_file=kept)
    assert not _mounts(data)
    kept.chmod(0o400)
    assert pool.ensure_pool_mounted(data, key_file=kept)
    assert (volumes / "d1" / "table").read_bytes() == secret * 1000
    key_file.unlink()
    assert pool.ensure_pool_mounted(data)  # it is open: no key is needed
    kept.rename(key_file)
    key_file.chmod(0o600)

    # With a volume in it undo keeps it, with its key; empty it goes, with its key.
    assert "kept in" in undo(data).text
    assert not _mounts(data)
    assert key_file.exists()
    assert pool.ensure_pool_mounted(data)
    shutil.rmtree(volumes / "d1")
    assert undo(data).state is State.CHANGED
    assert os.listdir(data) == []


@real
@pytest.mark.root
def test_a_key_elsewhere_stays_there(data: Path) -> None:
    elsewhere = data / "usb/pool.key"
    failed = make(data / "torpor", key_file=elsewhere)
    assert failed.state is State.FAILED
    assert "its directory must be there" in failed.text
    assert not record.load(data / "torpor").pool_made
    elsewhere.parent.mkdir()
    assert make(data / "torpor", key_file=elsewhere).state is State.CHANGED
    assert not (data / "torpor/pool.key").exists()
    assert undo(data / "torpor").state is State.CHANGED
    assert os.listdir(data / "torpor") == []
    assert elsewhere.exists()


@real
@pytest.mark.root
def test_a_pool_that_cant_be_made_leaves_nothing(data: Path) -> None:
    failed = make(data, size_bytes=10 * MB)  # mkfs.xfs refuses
    assert failed.state is State.FAILED
    assert "mkfs.xfs" in failed.text
    assert not _mounts(data)
    assert os.listdir(data) == ["host.lock"]


@real
@pytest.mark.root
def test_a_file_system_that_cant_encrypt_is_refused(data: Path) -> None:
    """As a kernel without encryption would show it."""
    key, sealed = poolkey.make(data / "pool.key"), Sealed(data)
    make_image("ext4", sealed.image, 64)
    subprocess.run(["tune2fs", "-U", str(uuid.UUID(bytes=key.identifier)), str(sealed.image)], check=True, capture_output=True)
    with pytest.raises(HostActionFailed, match="can't encrypt"):
        pool.ensure_pool_mounted(data)
    assert not _mounts(data)
    sealed.image.write_bytes(bytes(MB))
    with pytest.raises(HostActionFailed, match="damaged"):
        pool.ensure_pool_mounted(data)
    (data / "pool.img").touch()
    with pytest.raises(HostActionFailed, match="two pools"):
        pool.ensure_pool_mounted(data)


def test_only_root_opens_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sealed.img").touch()
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(HostActionFailed, match="only root"):
        pool.ensure_pool_mounted(tmp_path)


_STEPS = {"subprocess.Popen", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "fcntl.ioctl"}


def _whole_when_killed_at(number: int, act: Callable[[], Step]) -> bool:
    """Do it in a process of its own, which is killed before the step of that number, counted from 0; whether it came to its end before."""
    child = os.fork()
    if child == 0:
        left = number

        def count(event: str, _: object) -> None:
            nonlocal left
            if event in _STEPS:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(count)
            os._exit(1 if act().state is State.FAILED else 0)
        finally:
            os._exit(2)  # it is a copy of all the tests, and must not go on
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return not os.WIFSIGNALED(status)


@real
@pytest.mark.root
@pytest.mark.fault
def test_killed_at_each_step_it_is_made_by_the_next_setup_and_undone_by_undo(data: Path) -> None:
    sealed, number = Sealed(data), 0
    while not _whole_when_killed_at(number, lambda: make(data)):
        if number % 2:  # whatever there is can be taken away; unless it is whole, as then it may hold volumes
            text = undo(data).text
            assert not _mounts(data)
            assert sealed.exists or set(os.listdir(data)) <= {"pool.key", "host.json"}, text
        # And the next one makes it, or mounts what there is.
        assert pool.ensure_pool_mounted(data) if sealed.exists else make(data).state is State.CHANGED
        assert undo(data).state is State.CHANGED
        assert os.listdir(data) == [], number
        number += 1
    assert number > 15
    number = 0
    while not _whole_when_killed_at(number, lambda: undo(data)):
        if sealed.exists:
            assert pool.ensure_pool_mounted(data)
        number += 1
    assert not _mounts(data)
    undo(data)
    assert undo(data).state is State.DONE
    assert set(os.listdir(data)) <= {"pool.key", "host.json"}  # a key whose pool isn't seen stays


@real
@pytest.mark.root
def test_room_counts_every_disk_below(data: Path) -> None:
    with loop_pool("xfs", 700, MEMORY) as disk:
        assert make(disk / "torpor", size_bytes=1000 * MB).state is State.CHANGED
        try:
            before = look(disk / "torpor/volumes")
            assert before.total_bytes > 900 * MB
            assert 300 * MB < before.free_bytes < 700 * MB
            (disk / "others").write_bytes(os.urandom(100 * MB))
            assert before.free_bytes - look(disk / "torpor/volumes").free_bytes > 80 * MB
            (disk / "others").unlink()

            # What is removed from the pool is free on the disk again.
            (disk / "torpor/volumes/large").write_bytes(os.urandom(30 * MB))
            sync(disk / "torpor/volumes")
            image = Sealed(disk / "torpor").image
            taken = image.stat().st_blocks * 512
            (disk / "torpor/volumes/large").unlink()

            def is_freed() -> bool:
                sync(disk / "torpor/volumes")
                sync(disk / "torpor/sealed")
                return image.stat().st_blocks * 512 < taken - 20 * MB

            eventually(is_freed, 60)
        finally:
            assert undo(disk / "torpor").state is State.CHANGED
