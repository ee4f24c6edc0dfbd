"""Root images: PostgreSQL runs in them with nothing else around it, and whatever interrupts or forbids something leaves nothing behind."""

import contextlib
import errno
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support.faults import eventually
from tests.support.images import build_and_die, tiny
from tests.support.server import Server
from torpor.base.host.machine import Machine, Output
from torpor.compute import binaries
from torpor.compute.binaries import Postgres
from torpor.compute.sandbox.image import images as images_module
from torpor.compute.sandbox.image import mounting
from torpor.compute.sandbox.image.images import Images
from torpor.compute.sandbox.image.packing import LIMIT_BYTES, Kind
from torpor.compute.sandbox.image.record import Image
from torpor.daemon.configuration import load
from torpor.model.errors import Conflict, ImageUnusable

_SETTINGS = load({}, os.environ)
INSTALLED = binaries.find(Path(_SETTINGS.postgres_home), _SETTINGS.pg_bindir)
NEWEST = max(INSTALLED)
_NOBODY = 65534
_TMPFS = ("mount", "-t", "tmpfs", "none")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user can reach; no mount and no loop device may be left of it."""
    path = Path(tempfile.mkdtemp(prefix="torpor-image-", dir="/var/tmp"))
    if os.geteuid() == 0:  # in memory: what a busy disk does isn't looked at here
        subprocess.run([*_TMPFS, "-o", "size=600m", path], check=True)
    path.chmod(0o755)
    try:
        yield path
        left = [point for point in _mounts_below(path) if point not in (path, path / "small")]
        assert left == []
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            with contextlib.suppress(OSError):  # somebody else's, and gone since
                assert str(path) not in backing.read_text()
    finally:
        for point in reversed(_mounts_below(path)):
            subprocess.run(["umount", point], check=False)
        shutil.rmtree(path, ignore_errors=True)


def _mounts_below(path: Path) -> list[Path]:
    points = [Path(line.split(" ")[4]) for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if point.is_relative_to(path)]


def _images(place: Path, machine: Machine | None = None, postgres: Postgres | None = None) -> Images:
    return Images(place, lambda major: postgres or INSTALLED[major], machine=machine)


class Forbidding(Machine):
    """A host where some programs can't be had, or refuse."""

    lacking: tuple[str, ...] = ()
    refusing: tuple[str, ...] = ()
    root_user = True

    @property
    def is_root(self) -> bool:
        return self.root_user

    def which(self, program: str) -> str | None:
        return None if program in self.lacking else super().which(program)

    def run(self, argv: list[str] | tuple[str, ...], timeout_s: float = 60) -> Output:  # type: ignore[override]
        return Output(32, "", f"{argv[0]}: permission denied") if argv[0] in self.refusing else super().run(argv, timeout_s)


def _forbidding(lacking: tuple[str, ...] = (), refusing: tuple[str, ...] = (), root: bool = True) -> Machine:
    made = type("Host", (Forbidding,), {"lacking": lacking, "refusing": refusing, "root_user": root})
    return made()  # type: ignore[no-any-return]


@contextlib.contextmanager
def _cluster(place: Path, major: int) -> Iterator[Path]:
    """A cluster of its own for nobody, who computes are strangers to."""
    home = place / f"cluster-{major}"
    home.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(home, _NOBODY, _NOBODY)
    command = [str(INSTALLED[major].bindir / "initdb"), "-D", str(home / "data"), "--wal-segsize=1", "--username=owner", "--encoding=UTF8"]
    subprocess.run([*_nobody(), *command, "--locale=C.UTF-8", "--auth=trust"], cwd="/", check=True, capture_output=True)
    yield home


def _nobody() -> list[str]:
    if os.geteuid() != 0:
        return []
    drop = ["--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
    return ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", *drop]


def _shut_in(root: Path, *mounts: str | Path) -> list[str]:
    return [
        *(str(part) for part in (*_nobody(), "bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", root, "/", "--dev", "/dev")),
        *("--tmpfs", "/tmp"),
        *map(str, mounts),
        *("--chdir", "/", "--clearenv", "--setenv", "PATH", "/usr/bin:/bin", "--setenv", "LANG", "C.UTF-8", "--"),
    ]


def _ask(images: Images, image: Image, cluster: Path, statements: list[str]) -> str:
    """What PostgreSQL, alone with the image, answers in single-user mode."""
    line = _shut_in(images.path(image), "--bind", cluster, "/data")
    line += [str(image.bindir / "postgres"), "--single", "-j", "-D", "/data/data", "-c", "exit_on_error=true", "postgres"]
    done = subprocess.run(line, input="\n\n".join(statements) + "\n", capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _answers(output: str) -> list[str]:
    return re.findall(r'= "(.*?)"\t\(typeid', output, re.DOTALL)


_EVERYTHING = """do $$ declare extension text; begin
for extension in select name from pg_available_extensions order by name loop
execute format('create extension if not exists %I cascade', extension); end loop; end $$;"""


@pytest.mark.root
@pytest.mark.parametrize("major", sorted(INSTALLED))
def test_postgres_runs_with_every_extension_and_nothing_else(place: Path, major: int) -> None:
    images = _images(place)
    image = images.ensure(major)
    assert image.bytes <= LIMIT_BYTES
    assert (image.kind is Kind.TREE) == bool(image.why_tree)
    with _cluster(place, major) as cluster:
        answers = _answers(
            _ask(
                images,
                image,
                cluster,
                [
                    _EVERYTHING.replace("\n", " "),
                    "select string_agg(extname, ' ' order by extname) from pg_extension;",
                    "select string_agg(name, ' ') from pg_available_extensions where installed_version is null;",
                    "copy (select 'of a pipe') to program 'cat > /tmp/a && cp /tmp/a /tmp/b && gzip /tmp/b && zcat /tmp/b.gz > /tmp/c';",
                    "select pg_read_file('/tmp/a') || string_agg(name, ' ' order by name collate \"C\") from pg_ls_dir('/') as name;",
                    "select pg_read_file('/etc/passwd');",
                    "select timestamptz '2026-07-01 12:00Z' at time zone 'Europe/Berlin';",
                    "select upper('stra\u00dfe \u00e4' collate \"C.utf8\");",
                    "select xpath_string('<?xml version=\"1.0\" encoding=\"windows-1251\"?><a>\u0436</a>', '/a');",
                    "select to_tsvector('german', 'Katzen')::text;",
                    "select encode(digest('a', 'sha256'), 'hex');",
                ],
            )
        )
    share = subprocess.run([INSTALLED[major].bindir / "pg_config", "--sharedir"], capture_output=True, text=True, check=True).stdout.strip()
    there = {path.stem for path in Path(share, "extension").glob("*.control")} - {name for name, _ in image.left_out}
    assert set(answers[0].split()) == there
    assert len(there) >= 40
    assert answers[1].split("\n") == ["of a pipe", "bin conf data dev etc lib lib64 opt proc run sbin tmp torpor usr"]
    assert answers[2].splitlines() == ["root:x:0:0::/:/bin/sh", "nobody:x:65534:65534::/:/bin/sh"]
    assert answers[3] == "2026-07-01 14:00:00"
    assert answers[4].endswith("\u00c4")
    assert answers[5] == "\u0420\u00b6"  # by ICU's converter, whose data was trimmed
    assert answers[-2] == "'katz':1"
    assert answers[-1].startswith("ca978112ca1bbdca")
    images.close()


@pytest.mark.root
def test_the_same_inputs_give_the_same_bytes(place: Path) -> None:
    made = []
    for name in ("one", "two"):
        (place / name).mkdir()
        images = _images(place / name)
        image = images.ensure(NEWEST, mounted=False)
        made.append((image.name, (images.home / image.file_name).read_bytes()))
    assert made[0] == made[1]


@pytest.mark.root
def test_a_mount_is_found_again_and_taken_away_in_the_end(place: Path) -> None:
    first = _images(place)
    image = first.ensure(NEWEST)
    assert _mounts_below(place) == [place, first.path(image)]
    again = _images(place)  # as after a kill
    assert again.ensure(NEWEST).built_at == image.built_at
    assert len(_mounts_below(place)) == 2
    again.close()
    assert _mounts_below(place) == [place]
    assert list(again.points.glob("*/")) == []


@pytest.mark.root
async def test_somebody_who_unmounts_it_does_no_harm(place: Path) -> None:
    images = _images(place)
    root = await images.ready(NEWEST)
    assert images.root(NEWEST) == root
    assert mounting.unmount(root.path)
    assert await images.ready(NEWEST) == root
    assert (root.path / "usr/bin/sh").exists()
    images.close()


@pytest.mark.root
@pytest.mark.parametrize("kind", [Kind.EROFS, Kind.SQUASHFS, Kind.TREE])
def test_what_was_replaced_stays_as_long_as_it_is_used(place: Path, kind: Kind) -> None:
    lacking = {Kind.EROFS: (), Kind.SQUASHFS: ("mkfs.erofs",), Kind.TREE: ("mkfs.erofs", "mksquashfs")}[kind]
    postgres = _small(place)
    images = _images(place, _forbidding(lacking), postgres)
    old = images.ensure(NEWEST)
    assert old.kind is kind
    with subprocess.Popen(
        [*_shut_in(images.path(old)), "/bin/sh", "-c", "echo in; read _; ls /"], stdin=-1, stdout=-1, text=True
    ) as inside:
        assert inside.stdin is not None and inside.stdout is not None
        assert inside.stdout.readline() == "in\n"
        assert images.users(old) == 1
        with pytest.raises(Conflict, match=r"1 running computes use the image"):
            images.remove(old)
        (postgres.bindir.parent / "share/extension/plpgsql.control").write_text("comment = 'another one'\n")
        new = images.ensure(NEWEST)
        assert new.digest != old.digest
        assert images.outdated() == [old]
        assert images.tidy() == []
        inside.stdin.write("\n")
        inside.stdin.close()
        assert "torpor" in inside.stdout.read()
    assert eventually(images.tidy) == [old]  # the last process of a sandbox ends after who waits for it
    assert [image.name for image in images.all()] == [new.name]
    assert not any(old.name in path.name for path in place.rglob("*"))
    images.remove(new)
    assert sorted(path.name for path in images.home.iterdir()) == [".lock"]


def _small(place: Path) -> Postgres:
    """A PostgreSQL that is only a shell, so that images of it take no time."""
    prefix = place / "postgres"
    for name in ("bin", "lib", "share/extension"):
        (prefix / name).mkdir(parents=True)
    shutil.copy("/bin/sh", prefix / "bin" / "postgres")
    (prefix / "share/extension/plpgsql.control").write_text("comment = 'one'\n")
    return Postgres(NEWEST, "0", prefix / "bin")


@pytest.mark.root
@pytest.mark.parametrize(
    ("machine", "kind", "why"),
    [
        (_forbidding(lacking=("mkfs.erofs",)), Kind.SQUASHFS, ""),
        (_forbidding(lacking=("mkfs.erofs", "mksquashfs")), Kind.TREE, r"mkfs\.erofs is not installed .*; mksquashfs is not installed"),
        (_forbidding(refusing=("mkfs.erofs",)), Kind.SQUASHFS, ""),
        (_forbidding(refusing=("mkfs.erofs", "mksquashfs")), Kind.TREE, r"mkfs.erofs .*permission denied"),
        (_forbidding(root=False), Kind.TREE, "only root can mount images"),
    ],
)
def test_what_a_host_lacks_is_said_and_done_without(place: Path, machine: Machine, kind: Kind, why: str) -> None:
    images = _images(place, machine, _small(place))
    image = images.ensure(NEWEST)
    assert image.kind is kind
    assert re.match(why, image.why_tree)
    assert (images.root(NEWEST).path / "usr/bin/sh").exists()
    images.close()


@pytest.mark.root
def test_a_refused_mount_leads_to_a_plain_tree(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    postgres = _small(place)
    built = _images(place, None, postgres).ensure(NEWEST, mounted=False)
    assert built.kind is Kind.EROFS

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(mounting, "_mount", refuse)
    for again in (False, True):  # it was built where it could be mounted; it is built where it can't
        images = _images(place, None, postgres)
        image = images.ensure(NEWEST, force=again)
        assert image.kind is Kind.TREE
        assert re.search(r"doesn't mount .* images through a loop device here: Operation not permitted", image.why_tree)
        assert (images.root(NEWEST).path / "usr/bin/sh").exists()


@pytest.mark.root
def test_a_kernel_that_mounts_no_files_gets_a_loop_device(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounting, "_mount_file", lambda *_: False)
    images = _images(place, None, _small(place))
    image = images.ensure(NEWEST)
    assert image.kind is Kind.EROFS
    table = Path("/proc/self/mountinfo").read_text()
    assert re.search(rf"{images.path(image)} ro,nosuid,nodev,.* - erofs /dev/loop", table)
    images.close()


def test_without_root_a_plain_tree_is_enough(place: Path) -> None:
    images = _images(place, _forbidding(root=False))
    image = images.ensure(NEWEST)
    assert image.kind is Kind.TREE
    for path in images.path(image).rglob("*"):
        assert path.is_symlink() or not path.lstat().st_mode & 0o022, path
    with _cluster(place, NEWEST) as cluster:
        assert _answers(_ask(images, image, cluster, ["select 40 + 2 as answer;"])) == ["42"]


@pytest.mark.root
def test_a_full_disk_is_said_and_leaves_nothing(place: Path) -> None:
    (place / "small").mkdir()
    subprocess.run([*_TMPFS, "-o", "size=12m", place / "small"], check=True)
    images = _images(place / "small")
    with pytest.raises(ImageUnusable, match=r"the disk is full; make room") as refused:
        images.ensure(NEWEST)
    assert isinstance(refused.value.__cause__, OSError)
    assert refused.value.__cause__.errno == errno.ENOSPC
    assert images.all() == []
    assert [path.name for path in images.home.iterdir()] == [".lock"]


def test_a_directory_that_cannot_be_written_is_named(place: Path) -> None:
    (place / "file").write_text("")
    with pytest.raises(ImageUnusable, match=r"file/images can't be written .*; mend its owner and mode"):
        _images(place / "file").ensure(NEWEST)


@pytest.mark.root
@pytest.mark.fault
@pytest.mark.slow
def test_a_build_killed_anywhere_leaves_nothing_that_counts(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "gather", lambda _: tiny(place))
    postgres = Postgres(18, "0", place)
    steps, killed, counted = 0, True, 0
    while killed:
        killed = build_and_die(_images(place, None, postgres), steps)
        images = _images(place, None, postgres)
        counted += len(images.all())  # what counts is whole, and is not built again
        before = [image.built_at for image in images.all()]
        image = images.ensure(18)
        assert before in ([], [image.built_at])
        assert (images.root(18).path / "etc/passwd").read_text() == f"{place}\n"
        images.tidy()
        assert sorted(path.name for path in images.home.iterdir()) == [".lock", image.name, image.file_name, f"{image.name}.json"]
        images.remove(image)
        steps += 1
    assert steps > 20
    assert 0 < counted < steps


@pytest.mark.root
def test_a_torpor_takes_its_mounts_away_and_one_that_is_killed_leaves_them() -> None:
    with Server() as server:
        points = _mounts_below(server.data_dir / "images")
        assert len(points) == 1
        database = server.create()
        with psycopg.connect(database.url) as connection:
            server.kill()
            assert _mounts_below(server.data_dir / "images") == points
            assert connection.execute("SELECT count(*) > 10 FROM pg_available_extensions").fetchone() == (True,)
            server.start()
            assert _mounts_below(server.data_dir / "images") == points
            connection.execute("CREATE EXTENSION pg_trgm")
        server.stop(signal.SIGINT)
        assert _mounts_below(server.data_dir / "images") == []
