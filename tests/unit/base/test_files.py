"""Files that a tenant may have put something else in the place of."""

import os
from pathlib import Path

import pytest

from torpor.base.files import read_untrusted, sync_directory


def test_a_regular_file_is_read_up_to_the_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc\xffdef")
    assert read_untrusted(tmp_path / "file") == "abc\ufffddef"
    assert read_untrusted(tmp_path / "file", 2) == "ab"


def test_links_pipes_and_directories_are_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("secret")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", ".", "missing"):
        with pytest.raises(OSError, match=r"\w"):
            read_untrusted(tmp_path / name)


def test_a_directory_is_synchronised_and_nothing_else_is_taken_for_one(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    sync_directory(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        sync_directory(tmp_path / "file")
    assert len(os.listdir("/proc/self/fd")) == before
