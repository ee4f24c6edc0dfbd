"""Files that a tenant may have put something else in the place of."""

import os
from pathlib import Path

import pytest

from torpor.base.files import read_untrusted


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
