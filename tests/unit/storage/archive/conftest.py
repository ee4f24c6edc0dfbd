"""The stores that all kinds of tests of the archive run against."""

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.buckets import BUCKET, CREDENTIALS, MemoryBucket, s3_server
from torpor.storage.archive.archive import Archive
from torpor.storage.archive.bucket import Bucket
from torpor.storage.archive.directory import DirectoryBucket
from torpor.storage.archive.s3 import S3Bucket
from torpor.storage.archive.store import Store
from torpor.storage.archive.vault import MasterKey


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


@pytest.fixture(params=["memory", "directory", "s3"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path, executor: ThreadPoolExecutor) -> Bucket:
    """An empty bucket, of each kind in turn."""
    if request.param == "memory":
        return MemoryBucket()
    if request.param == "directory":
        return DirectoryBucket(tmp_path / "history", executor)
    return S3Bucket(f"s3://{BUCKET}/{uuid.uuid4()}", request.getfixturevalue("s3"), CREDENTIALS)


@pytest.fixture
def archive_in(executor: ThreadPoolExecutor) -> Callable[[Bucket], Archive]:
    """An archive in that bucket, which never waits before it tries again."""

    async def at_once(pause_s: float) -> None:
        pass

    master = MasterKey(bytes(range(32)))
    return lambda bucket: Archive(Store(bucket, sleep=at_once), master, executor)
