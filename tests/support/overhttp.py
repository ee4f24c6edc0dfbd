"""SQL over HTTP as tests ask for it: with httpx, or byte by byte where the point is what no library would send."""

import json
import socket
import time
from pathlib import Path
from typing import Any

import httpx

from tests.support.server import MadeDatabase, Server


def http_url(server: Server) -> str:
    """Where it is served."""
    return str(json.loads((server.data_dir / "api.json").read_text())["http"])


def http_pid(server: Server) -> int | None:
    """The process that serves it now."""
    for pid in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split():
        try:
            if b"torpor.gateway.http" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return None


def post(
    server: Server,
    database: MadeDatabase,
    body: Any,
    headers: dict[str, str] | None = None,
    *,
    client: httpx.Client | None = None,
    url: str = "",
) -> httpx.Response:
    """`POST /sql` as Neon's driver does it."""
    sent = {"Neon-Connection-String": url or database.url, "Neon-Raw-Text-Output": "true", "Neon-Array-Mode": "true"}
    sent |= headers or {}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    address = http_url(server) + "/sql"
    if client is not None:
        return client.post(address, content=content, headers=sent)
    with httpx.Client(timeout=90, trust_env=False) as own:
        return own.post(address, content=content, headers=sent)


def ask(server: Server, database: MadeDatabase, sql: str, *params: object, headers: dict[str, str] | None = None) -> list[list[str | None]]:
    """The rows of a statement that must succeed."""
    answer = post(server, database, {"query": sql, "params": list(params)}, headers)
    assert answer.status_code == 200, answer.text
    rows: list[list[str | None]] = answer.json()["rows"]
    return rows


def raw(server: Server, data: bytes, patience_s: float = 30.0) -> bytes:
    """What is answered to these bytes, until the connection ends or says nothing for a while."""
    host, _, port = http_url(server).removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=patience_s) as sock:
        sock.sendall(data)
        heard = b""
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            try:
                part = sock.recv(65_536)
            except ConnectionResetError:
                break
            if not part:
                break
            heard += part
        return heard
