"""`torpor size`, and sizes as people write them."""

import time
from dataclasses import replace

import pytest

from tests.unit.cli.conftest import Run
from tests.unit.cli.twin import DECISION, SIZE, Twin, view
from torpor.cli.sizes import parse_bytes, parse_cpu, summary
from torpor.model.size import GIB, MIB, ScaleReason


@pytest.mark.parametrize(
    ("written", "meant"),
    [("256MB", 256 * MIB), ("1.5 GB", 1536 * MIB), ("1g", GIB), ("2GiB", 2 * GIB), ("100 kB", 102_400), ("5B", 5), ("1TB", 1024 * GIB)],
)
def test_bytes(written: str, meant: int) -> None:
    assert parse_bytes(written) == meant


@pytest.mark.parametrize("written", ["", "12", "MB", "-1MB", "1 PB", "1e3MB", "GB1"])
def test_bytes_need_a_number_and_a_unit(written: str) -> None:
    with pytest.raises(ValueError, match="such as 512MB"):
        parse_bytes(written)


def test_processors() -> None:
    assert [parse_cpu(written) for written in ("2", "0.5", "500m")] == [2, 0.5, 0.5]
    with pytest.raises(ValueError, match="number of processors"):
        parse_cpu("two")


def test_create_sends_the_size(torpor: Run, running: Twin) -> None:
    torpor("create", "shop", "--cpu", "0.5:2", "--memory", "1GB", "--connections", "20", "--disk", "5GB")
    size = {"min_cpu": 0.5, "max_cpu": 2.0, "max_memory_bytes": GIB, "connections": 20, "disk_bytes": 5 * GIB}
    assert running.requests == [("POST", "/v1/databases", {}, {"name": "shop", "size": size})]


def test_size_shows_and_changes(torpor: Run, running: Twin) -> None:
    running.add(view("shop"))
    shown = torpor("size", "shop")
    assert shown.code == 0
    assert "0.25 to 2 (own); now 1, yields to who uses less, uses 0.42" in shown.out
    assert "2 of 100, 80 until its next start" in shown.out
    assert "saturated" in shown.out
    assert "average 0.11, withheld 0.61" in shown.out
    torpor("size", "shop", "--cpu", "default", "--memory", ":512MB", "--disk", "default")
    size = {"min_cpu": None, "max_cpu": None, "max_memory_bytes": 512 * MIB, "disk_bytes": None}
    assert running.requests[-2:] == [
        ("PATCH", "/v1/databases/shop", {}, {"size": size}),
        ("GET", "/v1/databases/shop/size", {}, None),
    ]
    assert torpor("size", "shop", "--json").json["cpu_ceiling"] == 1.0


@pytest.mark.parametrize("option", [("--cpu", "fast"), ("--memory", "1"), ("--connections", "-3"), ("--disk", "big")])
def test_what_is_no_size_is_a_usage_error(torpor: Run, running: Twin, option: tuple[str, str]) -> None:
    result = torpor("size", "shop", *option)
    assert result.code == 2
    assert option[1].split(":")[0] in result.err
    assert running.requests == []


def test_the_summary_is_part_of_show(torpor: Run, running: Twin) -> None:
    running.add(view("shop"))
    shown = torpor("show", "shop").out
    assert all(line in shown for line in summary(SIZE))


def test_show_tells_that_memory_ran_out(torpor: Run, running: Twin) -> None:
    running.add(view("shop"))
    decision = replace(DECISION, kind="memory", reason=ScaleReason.OUT_OF_MEMORY, at=time.time() - 180)
    running.size = replace(SIZE, decisions=(decision,))
    assert "out of memory 3 m ago: the kernel ended the largest process" in torpor("show", "shop").out
