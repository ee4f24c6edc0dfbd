"""A running Torpor as tests see it, and its HTTP API as they call it. Blocking; call from async tests in a thread."""

import json
import time
from io import BytesIO
from typing import Any, Protocol
from urllib.error import HTTPError
from urllib.request import Request, urlopen


class RunningDatabase(Protocol):
    """A database that was made for a test. `url` is what a user gets, password and all."""

    @property
    def name(self) -> str: ...

    @property
    def url(self) -> str: ...

    @property
    def password(self) -> str: ...


class RunningTorpor(Protocol):
    """A server that runs for the test."""

    @property
    def door_port(self) -> int: ...

    @property
    def api_url(self) -> str: ...

    @property
    def token(self) -> str: ...

    def create(self, name: str | None = None) -> RunningDatabase:
        """Make a database; each call makes another."""


def call(torpor: RunningTorpor, method: str, path: str, body: object = None) -> Any:
    """One call of the API; raises urllib.error.HTTPError for what it refuses, read already: nobody must close it."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {torpor.token}", "Content-Type": "application/json"}
    try:
        with urlopen(Request(torpor.api_url.rstrip("/") + path, data, headers, method=method), timeout=60) as response:
            return json.loads(response.read() or b"null")
    except HTTPError as error:
        with error:
            text = error.read()
        raise HTTPError(error.url, error.code, error.reason, error.headers, BytesIO(text)) from None


def put_to_sleep(torpor: RunningTorpor, name: str, tier: str = "frozen") -> None:
    """Put the database to sleep, and check that it does. A backend needs a moment after its answer until PostgreSQL shows it waiting: asked
    too early, Torpor refuses."""
    deadline = time.monotonic() + 60
    while True:
        try:
            view = call(torpor, "POST", f"/v1/databases/{name}/sleep", {"tier": tier})
        except HTTPError as error:
            with error:
                if error.code != 409 or time.monotonic() > deadline:
                    raise
        else:
            assert view["tier"] == tier
            return
        time.sleep(0.005)


def newest_wake(torpor: RunningTorpor, name: str) -> tuple[str, str]:
    """Why the database was last woken, and from which tier."""
    wake = call(torpor, "GET", f"/v1/databases/{name}/wakes?limit=1")["wakes"][0]
    return wake["reason"], wake["tier"]
