"""A hostile superuser takes all that it can get: processes, memory, descriptors, files, System V objects. Its neighbour doesn't notice.

And its names: what a tenant calls its roles and applications reaches logs, metrics and tables as text and as nothing else.
"""

import contextlib
import re
import unicodedata
from collections.abc import Iterator
from http.client import InvalidURL
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import psycopg
import pytest
from psycopg import sql

from tests.integration.test_guard_live import torpor
from tests.support.attacks.kit import Attacker, call, hostile, on_host, outcome, step
from tests.support.attacks.stronghold import Stronghold
from tests.support.faults import eventually, in_thread, refusal_of
from tests.support.server import Server

pytestmark = [pytest.mark.root]

EVIL = 'x\x1b[2J\n2026-01-01 [error] forged="yes" \u202e\'"\\ {}%s'


@pytest.fixture
def attacker(escape: Stronghold) -> Iterator[Attacker]:
    with escape.attacker_again() as attacker:  # its own compute may be recovering from what the test before did to it
        yield attacker


def test_fork_bomb(escape: Stronghold, attacker: Attacker, tmp_path: Path) -> None:
    words = attacker.run(step("bomb", 100_000, 2))[0].split()
    assert int(words[0]) < 2000 and words[-1] == "11", words
    escape.check_neighbour()
    assert int(on_host(step("bomb", 3000, 1, str(tmp_path / "count")))[0].split()[0]) == 3000


def test_more_memory_than_the_database_has(escape: Stronghold) -> None:
    """The kernel ends something of that compute, and it comes back."""
    attacker = escape.attacker_again()
    with contextlib.suppress(psycopg.OperationalError):
        assert attacker.run(step("memory", 3000))[0] in ("signal 9", "exit 3")
    escape.check_neighbour()
    attacker.connection.close()
    escape.attacker_again().connection.close()


def test_memory_in_files_counts(escape: Stronghold) -> None:
    """/tmp and /dev/shm are memory: of a limited size each, and counted as the compute's own."""
    for path in ("/tmp/full", "/dev/shm/full"):
        attacker = escape.attacker_again()
        with contextlib.suppress(psycopg.OperationalError):
            assert int(attacker.run(step("fill", path, 3000))[0].split()[0]) < 1024
        escape.check_neighbour()
        attacker.connection.close()


def test_descriptors_are_counted(attacker: Attacker) -> None:
    words = attacker.run(step("open", 100_000))[0].split()
    assert int(words[0]) < 5000 and words[-1] == "24", words


def test_system_v_objects_are_its_own(escape: Stronghold, attacker: Attacker) -> None:
    """Named alike in two computes they are two; and they go with the compute, whatever their number."""
    ipc_creat, key = 0o1600, 0x7E57
    assert outcome(attacker.run(call("shmget", key, 4096, ipc_creat))[0]).succeeded
    assert outcome(attacker.run(call("msgget", key, ipc_creat))[0]).succeeded
    assert outcome(attacker.run(call("semget", key, 1, ipc_creat))[0]).succeeded
    for name in (call("shmget", key, 4096, 0), call("msgget", key, 0), call("semget", key, 1, 0)):
        assert outcome(on_host(name)[0]).error == "ENOENT"


def test_many_files_and_deep_directories_go_with_the_database(escape: Stronghold) -> None:

    made = hostile(escape.server)
    with Attacker(escape.server, made) as attacker:
        assert attacker.run(step("files", "/data/many", 5000)) == ["5000 files, errno 0"]
        assert attacker.run(step("deep", "/data/many", 2500)) == ["2500 levels, errno 0"]
        assert escape.server.view(made.name)["disk_bytes"] > 20 << 20
        escape.check_neighbour()
    escape.server.call("DELETE", f"/v1/databases/{made.name}?force=true")
    volumes = escape.server.data_dir / "volumes"
    eventually(lambda: not [path for path in volumes.iterdir() if made.id in path.name])


def test_poisoned_names_are_text_everywhere(escape: Stronghold, attacker: Attacker) -> None:
    """Role, inner database and application with line breaks, quotes, escapes of terminals and marks that turn text around."""
    server, role = escape.server, EVIL[:60]
    attacker.sql('CREATE ROLE "' + role.replace('"', '""') + "\" LOGIN PASSWORD 'p'")
    before = len(server.log)
    with contextlib.suppress(psycopg.Error):
        psycopg.connect(escape.villain.url, user=role, password="wrong", application_name=EVIL, connect_timeout=40)
    with psycopg.connect(escape.villain.url, user=role, password="p", application_name=EVIL, autocommit=True) as poisoned:
        poisoned.execute("SELECT 1")
        views = text_of(server, "/v1/databases") + text_of(server, "/v1/databases/villain")
        metrics = text_of(server, "/metrics")
    said = server.log[before:]
    for text in (said, views, metrics):
        assert "\x1b" not in text and "\u202e" not in text
        assert not re.search(r"^2026-01-01 \[error\] forged", text, re.MULTILINE)
    assert len(said) < 20_000


POISONS = {
    "escapes and lines": "x\x1b[2J\x1b]0;t\x07\x9b31m\x08\r\nforged\n2026-01-01 [error] forged\x0b\x0c\x85\u2028",
    "marks and markup": "forged\u202e\u2066\u200b\ufeff[red]x[/red] <b> {} %s" + "y" * 150,
}  # fmt: skip


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
def test_poisoned_names_reach_no_terminal(escape: Stronghold, attacker: Attacker, poison: str) -> None:
    """What the operator sees in `ls`, `show`, `top`, `audit` and /metrics, after failed logins, refused calls, and while a poisoned session
    runs a poisoned statement: lines of text, and no more of them than there are."""
    server = escape.server
    host: dict[str, Any] = {"host": "127.0.0.1", "port": server.door_port, "connect_timeout": 40}
    name = poison.encode()[:60].decode(errors="ignore")
    attacker.connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'p'").format(sql.Identifier(name)))
    attacker.connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    for user, wanted in ((name, "villain"), (poison, "villain"), ("villain", poison), ("villain", f"villain.{poison}")):
        with pytest.raises(psycopg.Error):
            psycopg.connect(**host, user=user, dbname=wanted, password="wrong").close()
    for method, path, body in (
        ("POST", "/v1/databases", {"name": poison}), ("DELETE", f"/v1/databases/{quote(poison, safe='')}", None),
        ("POST", f"/v1/databases/{quote(poison, safe='')}/wake", None), ("POST", "/v1/workspaces", {"name": poison}),
    ):  # fmt: skip
        with contextlib.suppress(HTTPError, InvalidURL):
            server.call(method, path, body)
    with psycopg.connect(**host, user=name, dbname=f"villain.{name}", password="p", application_name=poison, autocommit=True) as poisoned:
        asking, failures = in_thread(lambda: poisoned.execute(sql.SQL("SELECT {}, pg_sleep(280)").format(sql.Literal(poison))))
        try:
            eventually(lambda: "statement" in str(server.view("villain")["database"]["awake_because"]))
            said = [torpor(server, *words) for words in COMMANDS]
            metrics = text_of(server, "/metrics")
        finally:
            poisoned.cancel_safe()
        asking.join(60)
    attacker.connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
    attacker.connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))
    assert [type(error) for error in failures] == [psycopg.errors.QueryCanceled]
    assert "forged" in said[1], "it is shown"
    for words, text in zip((*COMMANDS, ("/metrics",)), (*said, metrics), strict=True):
        strange = {character for character in text if character != "\n" and unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp")}
        assert not strange, (words, strange)
        assert not re.search(r"^(2026-01-01 \[error\] )?forged", text, re.MULTILINE), words
        values = re.findall(r'"(?:[^"\\]|\\.)*"', text) if "--json" in words else text.splitlines()
        assert len(text) < 100_000 and max(map(len, values)) < (1000 if "--json" in words else 5000), words


COMMANDS = (
    ("ls",), ("show", "villain"), ("top", "--once"), ("audit",), ("ls", "--json"), ("show", "villain", "--json"), ("audit", "--json"),
    ("top", "--once", "--json"),
)  # fmt: skip


def text_of(server: Server, path: str) -> str:
    headers = {"Authorization": f"Bearer {server.token}"}
    with urlopen(Request(server.api_url.rstrip("/") + path, headers=headers), timeout=60) as response:
        return str(response.read().decode())


@pytest.mark.parametrize("user", ["torpor", "torpor\n", "pg_read_all_data", "", "x" * 5000, EVIL])
def test_hostile_user_names_at_the_door(escape: Stronghold, user: str) -> None:
    before = len(escape.server.log)
    with contextlib.suppress(psycopg.Error, ValueError, OSError):
        psycopg.connect(escape.villain.url, user=user, password="x", connect_timeout=40).close()
        assert user == ""
    assert "\x1b" not in escape.server.log[before:]
    assert len(escape.server.log) - before < 5000
    assert refusal_of(escape.villain.url_as("torpor", "x"))[0] == "28000"
