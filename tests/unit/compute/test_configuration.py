"""The files that all computes of a major share."""

import pytest

from torpor.compute.configuration import ISOLATION, pg_hba_conf, postgresql_conf


def settings_of(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    pairs = [line.split(" = ") for line in lines]
    assert len({name for name, _ in pairs}) == len(pairs), "a setting is given twice"
    return {name: value.strip("'") for name, value in pairs}


@pytest.mark.parametrize("major", [15, 16, 17, 18])
def test_postgresql_conf(major: int) -> None:
    found = settings_of(postgresql_conf(major, 42))
    assert found["max_connections"] == "46"  # clients get all 42, whatever Torpor's own session does
    assert found.items() >= ISOLATION.items()
    assert found["listen_addresses"] == ""
    assert found["wal_level"] == "logical"
    assert ("io_method" in found) is (major >= 18)


def test_nothing_that_risks_committed_transactions() -> None:
    found = settings_of(postgresql_conf(18, 100))
    assert not {"fsync", "synchronous_commit", "wal_sync_method"} & set(found)
    assert found["full_page_writes"] == "on"


def test_clients_are_trusted_but_never_as_torpor() -> None:
    rules = [line.split() for line in pg_hba_conf().splitlines() if not line.startswith("#")]

    def verdict(kind: str, database: str, user: str) -> str | None:
        """As PostgreSQL: the first rule that fits; `all` doesn't mean replication."""
        for rule in rules:
            if rule[0] == kind and rule[1] == ("replication" if database == "replication" else "all") and rule[2] in ("all", user):
                return rule[-1]
        return None

    assert verdict("local", "postgres", "torpor") == "trust"
    assert verdict("local", "postgres", "ann") is None
    assert verdict("local", "replication", "torpor") is None
    for database in ("shop", "replication"):
        assert verdict("host", database, "torpor") == "reject"
        assert verdict("host", database, "ann") == "trust"


def test_the_planner_knows_how_much_can_be_cached() -> None:
    assert settings_of(postgresql_conf(18, 100, 512 << 20))["effective_cache_size"] == "384MB"
