"""What the kernel says of processes that wait."""

from pathlib import Path

from torpor.base.pressure import Pressure, parse, read

_TEXT = "some avg10=12.58 avg60=7.30 avg300=3.90 total=1427\nfull avg10=0.25 avg60=0.00 avg300=0.00 total=3\n"


def test_parse() -> None:
    assert (parse(_TEXT, "some"), parse(_TEXT, "full"), parse("", "some"), parse("some\nfull avg10=x", "full")) == (12.58, 0.25, 0.0, 0.0)


def test_read(tmp_path: Path) -> None:
    assert read(tmp_path) == Pressure()
    (tmp_path / "memory").write_text(_TEXT)
    (tmp_path / "io").write_text(_TEXT)
    assert read(tmp_path) == Pressure(12.58, 0.25)
    assert read().memory >= 0
