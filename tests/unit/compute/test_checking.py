"""What PostgreSQL's log and its programs say of a cluster, and what says nothing of it. The rest is tests/integration/test_drills.py's."""

from pathlib import Path

import pytest

from torpor.compute.checking import Damaged, Overtaxed, _failure, check_not_starved
from torpor.model.drills import DrillCause

_BEGINNING = "2026-11-22 LOG:  starting PostgreSQL 18.6 on x86_64\n"
_ERROR = Damaged(DrillCause.RECOVERY, "it did not work")


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        (_BEGINNING + "LOG:  startup process (PID 7) was terminated by signal 9: Killed\n", DrillCause.MEMORY),
        (_BEGINNING + "FATAL:  could not map anonymous shared memory: Cannot allocate memory\n", DrillCause.MEMORY),
        (_BEGINNING + 'PANIC:  could not write to file "x": No space left on device\n', DrillCause.POOL),
        ("bwrap: Can't bind mount\n", DrillCause.HOST),
        ("", DrillCause.HOST),
    ],
)
def test_what_says_nothing_of_the_cluster(tmp_path: Path, said: str, cause: DrillCause) -> None:
    (tmp_path / "log").write_text(said)
    with pytest.raises(Overtaxed) as raised:
        check_not_starved(tmp_path / "log", _ERROR)
    assert raised.value.cause is cause and len(raised.value.message) < 500


@pytest.mark.parametrize(
    "said",
    [
        _BEGINNING + "FATAL:  could not locate a valid checkpoint record\n",
        _BEGINNING + "LOG:  server process (PID 7) was terminated by signal 11: Segmentation fault\n",
        "x" * 100_000,
    ],
)
def test_what_does(tmp_path: Path, said: str) -> None:
    (tmp_path / "log").write_text(said)
    check_not_starved(tmp_path / "log", _ERROR)


@pytest.mark.parametrize(
    ("code", "said", "kind"),
    [
        (1, "pg_amcheck: error: query failed: ERROR:  could not read block 3", Damaged),
        (1, "pg_amcheck: error: connection to server on socket failed: server closed the connection unexpectedly", Overtaxed),
        (137, "", Overtaxed),
        (-9, "", Overtaxed),
        (1, "", Damaged),
    ],
)
def test_programs_that_fail(code: int, said: str, kind: type[Exception]) -> None:
    found = _failure("pg_amcheck", code, said, DrillCause.AMCHECK)
    assert isinstance(found, kind) and "\x1b" not in found.message
