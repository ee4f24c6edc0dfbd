"""The command line of a sandbox, level by level; what it really gives is in tests/integration/test_sandbox.py."""

import shutil
from pathlib import Path

import pytest

from torpor.compute.sandbox.command import Confinement, confined
from torpor.model.errors import BadSettings, HostError
from torpor.model.sandbox import SandboxLevel, SandboxReport
from torpor.model.settings import Settings

UID = 350_001
HOST = Path("/srv/torpor")


def line(level: SandboxLevel) -> list[str]:
    given = Confinement(level, UID, HOST / "root", HOST / "data", HOST / "conf", HOST / "native/libtorpor.so", 6)
    return confined(given, {"PATH": "/bin", "TZ": "UTC"}, ["/pg/postgres", "-D", "/data"])


def pairs(words: list[str], flag: str, count: int) -> list[tuple[str, ...]]:
    """What follows each occurrence of a flag."""
    return [tuple(words[n + 1 : n + 1 + count]) for n, word in enumerate(words) if word == flag]


@pytest.mark.parametrize("level", [level for level in SandboxLevel if level.is_sandbox])
def test_every_sandbox_has_namespaces_a_filter_and_a_clean_environment(level: SandboxLevel) -> None:
    words = line(level)
    assert {"--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-net", "--clearenv", "--new-session"} <= set(words)
    assert pairs(words, "--seccomp", 1) == [("6",)]
    assert words[-4:] == ["--", "/pg/postgres", "-D", "/data"]
    assert {("PATH", "/bin"), ("TZ", "UTC")} <= set(pairs(words, "--setenv", 2))
    # A killed Torpor leaves its computes running.
    assert "--die-with-parent" not in words


@pytest.mark.parametrize("level", [level for level in SandboxLevel if level.is_sandbox])
def test_only_the_volume_is_shared_and_writable(level: SandboxLevel) -> None:
    words = line(level)
    assert pairs(words, "--bind", 2) == [(str(HOST / "data"), "/data")]
    assert set(pairs(words, "--ro-bind", 2)) == {
        (str(HOST / "root"), "/"),
        (str(HOST / "conf"), "/conf"),
        (str(HOST / "native"), "/torpor"),
    }
    assert {source for source, _ in pairs(words, "--dev-bind", 2)} == {f"/dev/{name}" for name in ("null", "zero", "random", "urandom")}
    assert not {"--proc", "--dev", "--share-net"} & set(words)
    for place, size in (("/tmp", 128 << 20), ("/dev", 512 << 20)):
        n = words.index(place)
        assert words[n - 3 : n] == ["--size", str(size), "--tmpfs"]


def test_the_full_sandbox_drops_to_its_user_before_it_is_made() -> None:
    words = line(SandboxLevel.FULL)
    bwrap = next(n for n, word in enumerate(words) if word.endswith("/bwrap"))
    before = words[:bwrap]
    assert {f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"} <= set(before)
    assert "--unshare-user" in words[bwrap:]
    assert not pairs(words, "--cap-add", 1)


def test_without_user_namespaces_the_user_is_changed_inside() -> None:
    words = line(SandboxLevel.NO_USER_NAMESPACE)
    assert words[0].endswith("/bwrap")
    assert "--unshare-user" not in words
    assert pairs(words, "--cap-drop", 1) == [("ALL",)]
    assert set(pairs(words, "--cap-add", 1)) == {("CAP_SETUID",), ("CAP_SETGID",)}
    assert ("TORPOR_UID", str(UID)) in pairs(words, "--setenv", 2)


def test_an_ordinary_user_makes_the_sandbox_itself() -> None:
    words = line(SandboxLevel.SHARED_USER)
    assert words[0].endswith("/setpriv")
    assert words[1:3] == ["--inh-caps=-all", "--ambient-caps=-all"]
    assert words[3].endswith("/bwrap")
    assert "--unshare-user" in words
    assert not pairs(words, "--cap-add", 1)


def test_a_missing_bubblewrap_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path: None)
    with pytest.raises(HostError, match="package bubblewrap"):
        line(SandboxLevel.NO_USER_NAMESPACE)


def test_levels_are_ordered() -> None:
    order = list(SandboxLevel)
    assert order[0] is SandboxLevel.FULL
    for n, level in enumerate(order):
        assert [level.suffices(other) for other in order] == [n <= m for m in range(len(order))]
    assert [level for level in order if level.holds_superusers] == [SandboxLevel.FULL, SandboxLevel.NO_USER_NAMESPACE]


def test_a_report_says_why_and_what_to_do() -> None:
    assert SandboxReport(SandboxLevel.FULL).lacks == ""
    assert SandboxReport(SandboxLevel.OWN_USER, "no bwrap", "install it").lacks == "no bwrap; install it"


@pytest.mark.parametrize("value", ["auto", *SandboxLevel])
def test_the_setting_takes_every_level(value: str) -> None:
    assert Settings(sandbox=value).sandbox == value


def test_the_setting_takes_nothing_else() -> None:
    with pytest.raises(BadSettings, match="no_user_namespace"):
        Settings(sandbox="strong")
