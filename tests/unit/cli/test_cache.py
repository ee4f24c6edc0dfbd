"""`torpor cache` against the twin: what it asks, what it prints, and what it refuses."""

from dataclasses import replace

from tests.unit.cli.conftest import Run
from tests.unit.cli.twin import NOW, Twin, view
from torpor.api import examples
from torpor.cli.show import lines
from torpor.model.cache import CacheView
from torpor.model.fingerprint import fingerprint
from torpor.model.pool import PoolView

STATEMENT = "SELECT * FROM users WHERE id = 7"
DIGITS = fingerprint(STATEMENT.encode())


def test_rules_on_write_and_figures(torpor: Run, running: Twin) -> None:
    running.add(view("shop"))
    assert torpor("cache", "shop").out == "shop: 0 results, 0 B\non-write     off\n"
    assert "on-write     on: writes drop what was read before" in torpor("cache", "on-write", "shop", "on").out
    assert f"rule         {DIGITS}  ttl=60 tags=users  {STATEMENT}" in torpor("cache", "rule", "shop", STATEMENT, "ttl=60 tags=users").out
    running.caches["shop"] = replace(running.caches["shop"], figures=CacheView(3, 2048, 90, 0, 10, {"volatile": 2, "ttl=0": 5}, 10, 1, 4))
    shown = torpor("cache", "show", "shop").out
    assert "shop: 3 results, 2 kB, 90 % of 100 statements served from it" in shown
    assert "bypassed     5 (ttl=0), 2 (volatile)" in shown
    assert "dropped      4 purged, 1 to make room" in shown
    assert torpor("cache", "shop", "--json").json["figures"]["hits"] == 90
    assert "rule " not in torpor("cache", "rule", "shop", STATEMENT.lower(), "--remove").out
    assert torpor("cache", "rule", "shop", DIGITS, "--remove").code == 0


def test_purges(torpor: Run, running: Twin) -> None:
    running.add(view("shop"))
    assert torpor("cache", "purge", "shop", "--tag", "users", "--tag", "home").out == "7 results dropped\n"
    assert running.requests[-1][3] == {"by": "tag", "values": ["users", "home"]}
    assert torpor("cache", "purge", "shop", "--all", "--json").json == {"dropped": 7}
    assert running.requests[-1][3] == {"by": "all", "values": []}


def test_what_makes_no_sense_is_refused(torpor: Run, running: Twin) -> None:
    running.add(view("shop"))
    for line in (("purge", "shop"), ("purge", "shop", "--all", "--tag", "x"), ("purge", "shop", "--tag", "x", "--table", "y")):
        result = torpor("cache", *line)
        assert result.code == 2 and "give one of --tag" in result.err
    assert "give the words or --remove" in torpor("cache", "rule", "shop", "SELECT 1").err
    assert "not both" in torpor("cache", "rule", "shop", "SELECT 1", "ttl=1", "--remove").err
    assert torpor("cache", "nowhere").code != 0
    assert "Commands:" in torpor("cache", "--help").out


def test_it_is_shown_where_there_is_one() -> None:
    pool = PoolView(1, 0, 0, 0, 0, 10, 0, 0, 0.0, 0.0, (), CacheView(entries=2, bytes=4096, hits=3, misses=1))
    detail = replace(examples.DETAIL, database=replace(examples.DATABASE, pool=pool))
    assert "cache        2 results, 4 kB, 75 % of 4 statements served from it" in "\n".join(lines(detail, NOW))
