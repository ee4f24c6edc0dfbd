"""One at a time has a database's volume in hand."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from tests.support.fleet import make_database
from tests.support.shelving import DATABASE, shelves
from tests.unit.control.test_archiving import content, fill
from torpor.compute.compute import Compute
from torpor.control.claims import Claims
from torpor.model.archived import ArchivedState
from torpor.model.errors import Conflict
from torpor.model.jobs import JobState
from torpor.model.sleep import Tier


def compute(number: int) -> Compute:
    return cast(Compute, SimpleNamespace(database=make_database(number)))


def test_all_or_none_and_given_back_once() -> None:
    claims, one, two = Claims(), compute(1), compute(2)
    first = claims.take("archived", one)
    with pytest.raises(Conflict, match="db1 is being archived"):
        claims.take("restored", two, one)
    first.release()
    with claims.take("restored", two, one):
        first.release()  # once more: it has nothing any more
        with pytest.raises(Conflict, match="db2 is being restored"):
            claims.take("reset", two)
    claims.take("reset", two).release()
    assert repr(claims) == "<Claims 0>"


async def test_two_that_archive_at_once_lose_nothing(tmp_path: Path) -> None:
    """The second one is refused; once more when it comes as the first one ends, with what is in the store being all that there is."""
    fill(tmp_path)
    async with shelves(tmp_path) as found:
        before = content(found.data)
        job = found.archiving.archive(DATABASE.id, "test")
        with pytest.raises(Conflict, match="db1 is being archived"):
            found.archiving.archive(DATABASE.id, "test")
        assert (await found.jobs.wait(job.id)).state is JobState.DONE
        found.compute.archived = False  # as it was when the second one asked
        late = await found.jobs.wait(found.archiving.archive(DATABASE.id, "test").id)
        assert (late.state, late.error and late.error.message) == (JobState.FAILED, "db1 is archived already")
        found.compute.archived = True
        assert [one.state for one in found.records.all()] == [ArchivedState.ARCHIVED]
        await found.bring_back()
        assert content(found.data) == before


async def test_one_that_is_cancelled_before_its_first_step_is_free_again(tmp_path: Path) -> None:
    fill(tmp_path)
    async with shelves(tmp_path) as found:
        job = found.archiving.archive(DATABASE.id, "test")
        assert (await found.jobs.cancel(job.id, None)).state is JobState.CANCELLED  # nothing was awaited in between
        assert (await found.archive()).state is JobState.DONE


async def test_a_copy_of_what_is_archived_meanwhile_counts_as_torn(tmp_path: Path) -> None:
    """Its files are removed under the copy: `snapshot` looks at the moves."""
    fill(tmp_path)
    async with shelves(tmp_path) as found:
        moves = found.compute.moves
        await found.archive()
        assert found.compute.tier is Tier.ARCHIVED
        assert found.compute.moves != moves
