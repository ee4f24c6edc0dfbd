"""Workspaces, keys and the audit log of a real Torpor, over real HTTP, through the command line, and across kill -9."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psycopg
import pytest

from tests.support.pace import in_time
from tests.support.server import Server
from torpor.catalog.audit import AuditRecords
from torpor.catalog.catalog import Catalog
from torpor.model.audit import AuditFilter


class Tenant:
    """Somebody with an API key and nothing else."""

    def __init__(self, server: Server, workspace: str, scope: str, **fields: Any) -> None:
        self.server = server
        made = server.call("POST", f"/v1/workspaces/{workspace}/keys", {"name": f"{scope} key", "scope": scope, **fields})
        self.id, self.secret = made["key"]["id"], made["secret"]

    def request(self, method: str, path: str, body: object = None) -> Any:
        data = json.dumps(body).encode() if body is not None else None
        headers = {"Authorization": f"Bearer {self.secret}", "Content-Type": "application/json"}
        return urlopen(Request(self.server.api_url + path, data, headers, method=method), timeout=60)

    def call(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        try:
            with self.request(method, path, body) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if text else None
        except HTTPError as error:
            with error:
                return error.code, json.loads(error.read())["error"]["kind"]


def command(server: Server, *arguments: str, key: str = "") -> subprocess.CompletedProcess[str]:
    """The command line, as a user of this machine or as somebody with a key."""
    place = {"TORPOR_API_URL": server.api_url, "TORPOR_API_KEY": key} if key else {"TORPOR_DATA_DIR": str(server.data_dir)}
    program = [sys.executable, "-c", "from torpor.cli import main; main()", *arguments]
    home = {"XDG_CONFIG_HOME": str(server.data_dir / "config"), "HOME": str(server.data_dir)}
    return subprocess.run(program, env={**server.environment(), **home, **place}, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def acme(torpor: Server) -> Iterator[str]:
    torpor.call("POST", "/v1/workspaces", {"name": "acme"})
    yield "acme"
    for database in torpor.call("GET", "/v1/databases?workspace=acme")["databases"]:
        torpor.call("DELETE", f"/v1/databases/{database['name']}?force=true")
    with contextlib.suppress(HTTPError):
        torpor.call("DELETE", "/v1/workspaces/acme")


def test_a_tenant_has_its_databases_and_no_others(torpor: Server, acme: str) -> None:
    writer, reader = Tenant(torpor, acme, "write"), Tenant(torpor, acme, "read")
    others = torpor.create()
    status, made = writer.call("POST", "/v1/databases", {"name": "acmes-own"})
    assert (status, made["database"]["workspace"]) == (201, "acme")
    with psycopg.connect(made["credentials"]["url"], connect_timeout=40) as connection:
        assert connection.execute("SELECT current_database()").fetchone() == ("acmes-own",)
    for tenant in (writer, reader):
        status, page = tenant.call("GET", "/v1/databases")
        assert [view["name"] for view in page["databases"]] == ["acmes-own"]
        assert tenant.call("GET", f"/v1/databases/{others.name}") == (404, "database_not_found")
        assert tenant.call("GET", "/v1/host") == (403, "forbidden")
        assert tenant.call("GET", "/v1/workspaces/default") == (404, "workspace_not_found")
    for method, path in (("DELETE", ""), ("POST", "/tickets"), ("POST", "/password"), ("POST", "/sleep"), ("GET", "/logs")):
        assert writer.call(method, f"/v1/databases/{others.name}{path}") == (404, "database_not_found")
        assert reader.call(method, f"/v1/databases/acmes-own{path}") == (403, "forbidden")
    assert writer.call("POST", "/v1/databases", {"name": others.name})[0] == 409  # names are the host's: the door routes by them
    assert torpor.refusal("DELETE", "/v1/workspaces/acme")[1]["kind"] == "workspace_in_use"
    torpor.call("DELETE", f"/v1/databases/{others.name}")
    assert writer.call("DELETE", "/v1/databases/acmes-own?force=true") == (204, None)


def test_a_database_of_the_warm_pool_belongs_to_who_claims_it(torpor: Server, acme: str) -> None:
    deadline = time.monotonic() + 30
    while torpor.call("GET", "/v1/host")["warm"] < 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    status, made = Tenant(torpor, acme, "write").call("POST", "/v1/databases", {"name": "claimed"})
    assert (status, made["from_warm_pool"], made["database"]["workspace"]) == (201, True, "acme")


def test_revoking_ends_a_key_and_what_it_follows_at_once(torpor: Server, acme: str) -> None:
    torpor.create("followed", workspace=acme)
    tenant = Tenant(torpor, acme, "write")
    ended: list[float] = []
    with tenant.request("GET", "/v1/databases/followed/logs?follow=true&lines=0") as stream:

        def read() -> None:
            stream.read()
            ended.append(time.monotonic())

        reading = threading.Thread(target=read)
        reading.start()
        time.sleep(0.2)
        assert reading.is_alive()
        began = time.monotonic()
        torpor.call("DELETE", f"/v1/workspaces/acme/keys/{tenant.id}")
        reading.join(40)
    assert ended
    assert in_time(ended[0] - began, 1)
    assert tenant.call("GET", "/v1/databases") == (401, "unauthorized")


def test_the_command_line_with_a_key(torpor: Server, acme: str) -> None:
    made = command(torpor, "key", "create", "--workspace", acme, "--scope", "admin", "--name", "boss", "--expires", "1d")
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    created = command(torpor, "create", "by-key", key=key)
    assert created.stdout.startswith("postgresql://by-key:"), created.stderr
    listed = json.loads(command(torpor, "ls", "--json", key=key).stdout)
    assert [(view["name"], view["workspace"]) for view in listed["databases"]] == [("by-key", "acme")]
    assert command(torpor, "ls", "--workspace", "default", key=key).returncode == 1
    assert command(torpor, "top", "--once", key=key).returncode == 4
    assert "boss" in command(torpor, "key", "ls", key=key).stdout
    assert "boss" in command(torpor, "audit", "--action", "database.create", key=key).stdout
    assert command(torpor, "audit", "verify", key=key).returncode == 1
    assert command(torpor, "key", "revoke", key.split("_")[2], key=key).returncode == 0
    assert command(torpor, "ls", key=key).returncode == 4
    assert key.rpartition("_")[2] not in torpor.log


@pytest.mark.slow
@pytest.mark.fault
def test_keys_and_the_audit_log_outlive_kill_9() -> None:
    with Server() as server:
        server.call("POST", "/v1/workspaces", {"name": "acme"})
        kept, revoked = Tenant(server, "acme", "write"), Tenant(server, "acme", "read")
        server.call("DELETE", f"/v1/workspaces/acme/keys/{revoked.id}")
        mark = json.loads(command(server, "audit", "verify", "--json").stdout)["head"]

        def create() -> None:
            with contextlib.suppress(OSError, HTTPException):
                kept.call("POST", "/v1/databases", {"name": "cut-off"})

        creating = threading.Thread(target=create)
        creating.start()
        while not any(record["target"] == "cut-off" for record in server.call("GET", "/v1/audit")["records"]):
            time.sleep(0.005)
        server.kill()
        creating.join()
        server.start()
        assert kept.call("GET", "/v1/workspaces/self")[1]["name"] == "acme"
        assert revoked.call("GET", "/v1/databases") == (401, "unauthorized")
        newest = server.call("GET", "/v1/audit?outcomes=true&limit=1")["records"][0]
        assert (newest["action"], newest["target"]) == ("database.create", "cut-off")
        assert newest["result"] == "interrupted"
        verified = command(server, "audit", "verify", "--noted", mark)
        assert verified.returncode == 0, verified.stderr
        assert kept.call("POST", "/v1/databases", {"name": "cut-off"})[0] == 201  # of the one before nothing is left
        server.call("DELETE", "/v1/databases/cut-off?force=true")
        server.stop(signal.SIGTERM)
        catalog = Catalog.open(server.data_dir / "catalog.sqlite")
        drain = AuditRecords(catalog.connection).down(1, 1 << 40, 2, AuditFilter())
        catalog.close()
        assert [(record.action, record.actor) for record in drain] == [("host.drained", "torpor"), ("host.draining", "torpor")]
