"""torpor image: build, list, show and remove on the host's files, without a running Torpor."""

import os
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Run
from torpor.base.host.findings import Status
from torpor.cli import doctor as doctor_module
from torpor.cli.invocation import Invocation
from torpor.compute.binaries import find
from torpor.daemon.configuration import load

_SETTINGS = load({}, os.environ)


@pytest.fixture
def images(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where images are kept, beside the PostgreSQL that the tests use."""
    monkeypatch.setenv("TORPOR_POSTGRES_HOME", _SETTINGS.postgres_home)
    monkeypatch.setenv("TORPOR_PG_BINDIR", _SETTINGS.pg_bindir)
    monkeypatch.setenv("TORPOR_IMAGE_HOME", str(home / "images"))
    return home / "images"


def test_build_says_what_went_where(torpor: Run, images: Path) -> None:
    first = torpor("image", "build")
    assert first.code == 0
    lines = first.out.splitlines()
    assert lines[0].split() == ["PART", "FILES", "MB", "ON", "THE", "HOST", "MB", "UNPACKED", "MB", "IN", "THE", "IMAGE"]
    assert {"server", "extension modules", "shared libraries", "time zones", "total"} <= {line.split("  ")[0] for line in lines}
    assert "was built in " in first.out and str(images) in first.out
    again = torpor("image", "build", "--json")
    (made,) = again.json["images"]
    assert not made["built_now"]
    assert sum(share["packed_bytes"] for share in made["shares"]) + made["other_bytes"] == made["bytes"]
    assert sum(share["bytes"] for share in made["shares"]) == made["unpacked_bytes"]
    assert made["kind"] == "tree" or made["bytes"] <= made["limit_bytes"]
    assert torpor("image", "build", "--force", "--json").json["images"][0]["built_now"]

    listed = torpor("image", "ls", "--json").json["images"]
    assert [image["name"] for image in listed] == [made["name"]]
    assert not listed[0]["outdated"]
    assert made["name"] in torpor("image", "ls").out
    assert torpor("image", "show", str(made["major"])).out.splitlines()[0] == lines[0]
    assert torpor("image", "show", made["name"], "--json").json["digest"] == made["digest"]
    found = {finding.name: finding for finding in doctor_module.own_findings(Invocation(False, None), images)}["root image"]
    assert found.status is (Status.WARN if made["kind"] == "tree" else Status.OK)
    assert made["version"] in found.found

    assert torpor("image", "rm").out == "nothing was to be removed\n"
    assert torpor("image", "rm", made["name"]).out == f"removed {made['name']}\n"
    assert [path.name for path in images.iterdir()] == [".lock"]
    assert torpor("image", "ls").out == "there is none\n"


@pytest.mark.usefixtures("images")
def test_what_is_not_there_is_named(torpor: Run) -> None:
    assert torpor("image", "show", "nothing").err == "torpor: there is no image 'nothing'; `torpor image ls` lists them\n"
    refused = torpor("image", "build", "99", "--json")
    assert refused.code == 1
    assert refused.error["kind"] == "binaries_missing"
    assert "torpor postgres install 99" in refused.error["hint"]
    found = {finding.name: finding for finding in doctor_module.own_findings(Invocation(False, None), Path("none"))}["root image"]
    assert found.found.startswith("none yet")


def test_installing_a_major_builds_its_image(torpor: Run, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = find(Path(_SETTINGS.postgres_home), _SETTINGS.pg_bindir)[_SETTINGS.postgres_major]
    monkeypatch.setattr("torpor.cli.postgres.binaries.install", lambda *_: installed)
    result = torpor("postgres", "install", str(installed.major), "--json")
    assert Path(result.json["image"]).parent == images
    assert Path(result.json["image"]).exists()
