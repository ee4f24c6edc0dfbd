"""Databases on an encrypted pool: what lies on the disk tells nothing of them, and without the key Torpor says what it lacks."""

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support.faults import eventually
from tests.support.pools import lacks_encryption
from tests.support.server import Server
from torpor.base.host import setup
from torpor.base.host.machine import Machine
from torpor.base.host.plan import MakePool, State, Step
from torpor.base.host.sealed import Sealed
from torpor.model.errors import KeyFileUnusable

pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(lacks_encryption()), reason=lacks_encryption())]


@pytest.fixture
def server() -> Iterator[Server]:
    """One that isn't started yet, on an encrypted pool."""
    server = Server()
    try:
        step = Step("copy-on-write pool", State.CHANGE, "", MakePool(400 << 20, encrypted=True))
        (done,) = setup.apply((step,), server.data_dir, Machine())
        assert done.state is State.CHANGED, done.text
        yield server
    finally:
        server.destroy()  # unmounts it, too


def test_what_lies_on_the_disk_tells_nothing_and_nothing_opens_without_the_key(server: Server) -> None:
    secret = f"hummingbird-{uuid.uuid4()}"
    server.start()
    shop = server.create("shop")
    with psycopg.connect(shop.url, autocommit=True) as connection:
        connection.execute("CREATE TABLE secrets (text text)")
        connection.execute("INSERT INTO secrets SELECT %s FROM generate_series(1, 100)", [secret])
    server.stop()
    subprocess.run(["sync", "--file-system", str(server.data_dir / "volumes")], check=True)
    assert _holds(server.data_dir / "volumes" / shop.id, secret)  # else this test would say nothing
    assert not _holds(Sealed(server.data_dir).image, secret)

    eventually(lambda: _torpor(server, "host", "lock").returncode == 0)  # the last process in it has ended, and may not be gone yet
    assert os.listdir(server.data_dir / "volumes") == []
    key = server.data_dir / "pool.key"
    elsewhere = server.data_dir / "elsewhere.key"
    shutil.move(key, elsewhere)
    refused = server.spawn()
    assert refused.wait(60) == KeyFileUnusable.exit_code
    assert f"torpor: the key file {key} of the encrypted pool isn't there; bring it back" in server.log
    assert os.listdir(server.data_dir / "volumes") == []
    assert not Sealed(server.data_dir).is_open

    server.settings["pool_key_file"] = elsewhere
    server.start()
    with psycopg.connect(shop.url) as connection:
        assert connection.execute("SELECT count(*) FROM secrets WHERE text = %s", [secret]).fetchone() == (100,)


def _holds(place: Path, text: str) -> bool:
    return subprocess.run(["grep", "--quiet", "--recursive", "--text", "--fixed-strings", text, str(place)]).returncode == 0


def _torpor(server: Server, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", "from torpor.cli import main; main()", *arguments, f"--data-dir={server.data_dir}"]
    return subprocess.run(command, capture_output=True, text=True, env=server.environment(), timeout=120)
