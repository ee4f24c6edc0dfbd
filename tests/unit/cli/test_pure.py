"""Decoding, texts, and lines out of pieces."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.unit.cli.twin import Twin, view
from torpor.cli import text
from torpor.cli.decode import Undecodable, decode
from torpor.cli.host import Size
from torpor.cli.logs import printable, split
from torpor.cli.passwords import Password, Passwords, with_login
from torpor.model.sleep import SleepOverrides, Tier
from torpor.model.views import DatabaseDetail, DatabaseView, HostView


def test_views_survive_json() -> None:
    twin = Twin()
    twin.add(view("a"))
    twin.overrides["a"] = SleepOverrides(3, "never", None)
    for value in (twin._detail("a"), twin._host()):
        kind: type[DatabaseDetail] | type[HostView] = type(value)
        assert decode(kind, json.loads(json.dumps(asdict(value)))) == value


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"tier": "hibernating"}, "DatabaseView.tier"),
        ({"connections": True}, "DatabaseView.connections"),
        ({"connections": "2"}, "DatabaseView.connections"),
        ({"awake_because": {}}, "DatabaseView.awake_because"),
        ({"last_wake": 3}, "DatabaseView.last_wake"),
        ({"tier_reason": "boredom"}, "DatabaseView.tier_reason"),
    ],
)
def test_other_shapes_are_refused_by_place(change: dict[str, object], place: str) -> None:
    with pytest.raises(Undecodable, match=place):
        decode(DatabaseView, json.loads(json.dumps(asdict(view("a")))) | change)


def test_neighbouring_versions_understand_each_other() -> None:
    raw = json.loads(json.dumps(asdict(Twin()._host())))
    del raw["lacks"]
    assert decode(HostView, raw | {"news": 1}).lacks == ()
    del raw["door"]
    with pytest.raises(Undecodable, match=r"HostView\.door is missing"):
        decode(HostView, raw)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-1, "0 s"), (0.44, "0.4 s"), (12.3, "12 s"), (60, "1 m"), (200, "3 m 20 s"), (100_800, "1 d 4 h")],
)
def test_duration(seconds: float, shown: str) -> None:
    assert text.duration(seconds) == shown


@pytest.mark.parametrize(("value", "shown"), [(0.817, "0.82 ms"), (4.25, "4.2 ms"), (310.4, "310 ms"), (2100, "2.1 s")])
def test_milliseconds(value: float, shown: str) -> None:
    assert text.milliseconds(value) == shown


@pytest.mark.parametrize(("count", "shown"), [(0, "0 B"), (3 << 20, "3.0 MB"), (17 << 20, "17 MB"), (3 << 29, "1.5 GB")])
def test_size(count: int, shown: str) -> None:
    assert text.size(count) == shown


@pytest.mark.parametrize(("at", "shown"), [(None, "-"), (100, "0s"), (90, "10s"), (100 - 3600 * 5, "5h"), (200, "0s")])
def test_age(at: float | None, shown: str) -> None:
    assert text.age(at, 100) == shown


def test_clean_leaves_nothing_that_moves_a_cursor() -> None:
    assert text.clean("a\x1b[31mb\u202ec\nd\u009be\x00") == "a[31mbc de"
    assert text.clean("abcdef", 4) == "abc…"


def test_table_and_waterfall() -> None:
    assert text.table(["A", "BB"], [["x", "1"], ["yyy", "22"]], frozenset({1})) == "A    BB\nx     1\nyyy  22"
    first, second = text.waterfall([("thaw", 1), ("start", 3)])
    assert first.index("━") < second.index("━")
    assert second.count("━") == 18
    assert text.waterfall([]) == []


def test_lines_out_of_pieces() -> None:
    assert list(split([b"a\nb\xe2", b"\x82\xac\n", b"c"])) == ["a", "b€", "c"]
    assert printable("a\x1b[2J\tb") == "a[2J\tb"


@pytest.mark.parametrize(("given", "count"), [("300", 300), ("1k", 1024), ("1.5G", 3 << 29), ("500 MiB", 500 << 20), ("2tb", 2 << 40)])
def test_sizes_on_the_command_line(given: str, count: int) -> None:
    assert Size().convert(given, None, None) == count


def test_login_in_a_url() -> None:
    assert with_login("postgresql://owner@[::1]:7432/a?x=1", "o@x", "p:/@") == "postgresql://o%40x:p%3A%2F%40@[::1]:7432/a?x=1"
    assert with_login("postgresql://a:b@h:1/d", "a", None) == "postgresql://a@h:1/d"


@pytest.mark.parametrize("content", ["", "[]", "{", '{"http://x": []}', '{"http://x": {"d1": "word"}}'])
def test_a_damaged_password_file_is_replaced(tmp_path: Path, content: str) -> None:
    passwords = Passwords({"XDG_CONFIG_HOME": str(tmp_path)}, "http://x")
    passwords.path.parent.mkdir()
    passwords.path.write_text(content)
    assert passwords.get("d1") is None
    passwords.put("d1", Password("owner", "secret"))
    assert passwords.get("d1") == Password("owner", "secret")
    assert Passwords({"XDG_CONFIG_HOME": str(tmp_path)}, "http://y").get("d1") is None


def test_tiers_are_drawn_in_all_colours() -> None:
    from torpor.cli.top import _COLORS

    assert set(_COLORS) == set(Tier)
