"""What is understood of what the programs of a major upgrade say."""

import json

import pytest

from torpor.compute.upgradelog import Account, carried


def heard(text: str) -> Account:
    account = Account()
    for line in text.strip().splitlines():
        account.hear(line)
    return account


def test_steps_and_end() -> None:
    account = heard(
        """
@stage recovering the copy
Performing Consistency Checks
-----------------------------
Checking cluster versions                                     ok
"""
    )
    assert (account.steps, account.stage, account.is_done) == (2, "Checking cluster versions", False)
    account.hear_beginning("Creating dump of database schemas                             ")
    assert account.stage == "Creating dump of database schemas"
    account.hear("@done")
    assert account.is_done and not account.failed


def test_what_stands_against_it() -> None:
    account = heard(
        """
Checking for reg* data types in user tables                   fatal

Your installation contains one of the reg* data types in user tables.
These data types reference system OIDs that are not preserved by
pg_upgrade, so this cluster cannot currently be upgraded.
A list of the problem columns is in the file:
    /data/new/pg_upgrade_output.d/20261122T103000.000/tables_using_reg.txt
Failure, exiting
@failed pg_upgrade
@file new/pg_upgrade_output.d/20261122T103000.000/tables_using_reg.txt
In database: shop
  public.things.kind
@log old.log
2026-11-22 10:30:00 UTC [1] LOG:  database system is ready
"""
    )
    message, hint = account.cause()
    assert account.failed == "pg_upgrade"
    assert message.startswith("Checking for reg* data types in user tables: Your installation contains one of the reg* data types")
    assert "pg_upgrade_output.d" not in message
    assert message.endswith("In database: shop, public.things.kind")
    assert hint == "give these columns another type (text, say), or drop them"


def test_what_a_log_tells() -> None:
    account = heard(
        """
Restoring database schemas in the new cluster                 failed
*failure*

Consult the last few lines of "/data/new/pg_upgrade_output.d/1/log/pg_upgrade_dump_5.log" for
the probable cause of the failure.
@failed pg_upgrade
@log new/pg_upgrade_output.d/1/log/pg_upgrade_dump_5.log
pg_restore: creating TABLE "public.things"
pg_restore: error: could not execute query: ERROR:  type "gone" does not exist
"""
    )
    message, _ = account.cause()
    assert message == ('Restoring database schemas in the new cluster: error: could not execute query: ERROR:  type "gone" does not exist')


def test_an_end_without_a_word_and_one_without_room() -> None:
    assert heard("").cause() == ("it ended without a word", "")
    assert heard("could not write: No space left on device").has_no_room


@pytest.mark.parametrize(
    ("after", "shown"),
    [
        ({}, []),
        ({"rows of table": "4"}, ["rows of table public.a in shop: 5 before, 4 after"]),
        ({"extension": None}, ["extension hstore in shop: there before, missing after"]),
    ],
)
def test_facts_are_compared(after: dict[str, str | None], shown: list[str]) -> None:
    old = {("shop", "rows of table", "public.a"): "5", ("shop", "extension", "hstore"): "there"}
    account = Account()
    for cluster, changes in (("old", {}), ("new", after)):
        account.hear(f"@facts {cluster}")
        for (database, kind, what), value in old.items():
            if (now := changes.get(kind, value)) is not None:
                account.hear(json.dumps([database, kind, what, now]))
        account.hear("@end")
    assert account.differences() == shown


def test_facts_in_another_order_and_a_public_schema_that_is_made_anew() -> None:
    account = heard('@facts old\n["a", "b", "c", "d"]\n["a", "b", "e", "f"]\n@end')
    for line in ("@facts new", '["a", "b", "e", "f"]', '["a", "schema", "public", "x"]', '["a", "b", "c", "d"]', "@end"):
        account.hear(line)
    assert account.differences() == []


def test_more_facts_than_are_kept() -> None:
    account = Account()
    for cluster, last in (("old", "1"), ("new", "2")):
        account.hear(f"@facts {cluster}")
        for number in range(20_001):
            account.hear(json.dumps(["a", "rows of table", str(number), "0" if number < 20_000 else last]))
    assert account.differences() == ["of its 20001 objects there are 20001 after, or not all are the same"]


def test_nonsense_is_borne() -> None:
    account = heard('@facts old\n["broken\n["a"]\n["a", "b", "c", "d"]\n@end\n@what is this\n\x1b[2J evil\n@failed \x07x')
    assert account.facts["old"].kept == {("a", "b", "c"): "d"}
    assert account.failed == "x"


def test_settings_that_are_carried_over() -> None:
    text = "# Do not edit\nwork_mem = '8MB'\nold_snapshot_threshold = '1h'\nmy.setting = 'x''y'\nnonsense\nShared_Preload_Libraries = 'a'\n"
    kept, left_out = carried(text, {"work_mem", "shared_preload_libraries"})
    assert kept == "work_mem = '8MB'\nmy.setting = 'x''y'\nShared_Preload_Libraries = 'a'\n"
    assert left_out == ["old_snapshot_threshold"]
