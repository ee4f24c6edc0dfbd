"""The token file."""

import os
import stat
from pathlib import Path

import pytest

from torpor.api import token
from torpor.model.errors import DataDirectoryUnusable


def test_it_is_made_once_and_private(tmp_path: Path) -> None:
    first = token.load_or_create(tmp_path)
    assert len(first) >= 40
    assert token.load_or_create(tmp_path) == first
    assert [file.name for file in tmp_path.iterdir()] == ["token"]
    assert stat.S_IMODE(token.token_path(tmp_path).stat().st_mode) == 0o600


def test_it_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        token.load_or_create(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(token.token_path(tmp_path).stat().st_mode) == 0o600


def test_a_wide_mode_is_narrowed_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = token.load_or_create(tmp_path)
    token.token_path(tmp_path).chmod(0o644)
    assert token.load_or_create(tmp_path) == first
    assert stat.S_IMODE(token.token_path(tmp_path).stat().st_mode) == 0o600
    assert "could be read by others" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"short\n", b"two words are no token\n", b"\xff" * 40, b"x" * 600])
def test_a_damaged_token_is_refused(tmp_path: Path, content: bytes) -> None:
    token.token_path(tmp_path).write_bytes(content)
    with pytest.raises(DataDirectoryUnusable, match="is damaged; remove it"):
        token.load_or_create(tmp_path)


def test_links_pipes_and_directories_are_refused(tmp_path: Path) -> None:
    path = token.token_path(tmp_path)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataDirectoryUnusable):
        token.load_or_create(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataDirectoryUnusable, match="isn't a plain file"):
        token.load_or_create(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(DataDirectoryUnusable):
        token.load_or_create(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_another_users_token_is_refused(tmp_path: Path) -> None:
    token.load_or_create(tmp_path)
    os.chown(token.token_path(tmp_path), 65534, 65534)
    with pytest.raises(DataDirectoryUnusable, match="belongs to another user"):
        token.load_or_create(tmp_path)


def test_a_missing_directory_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataDirectoryUnusable, match="can't be read or made: No such file or directory"):
        token.load_or_create(tmp_path / "missing")


def test_nothing_is_left_behind_by_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_self: Path, _target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(DataDirectoryUnusable, match="No space left"):
        token.load_or_create(tmp_path)
    assert list(tmp_path.iterdir()) == []
