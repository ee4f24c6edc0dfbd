"""Finding a running Torpor and speaking to its HTTP API.

Blocking, one kept-alive connection, used by one thread. Every failure is a CommandError with the exit code that tells it: nobody
listens, the token, or what the API refused.
"""

import contextlib
import http.client
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

from torpor.cli.decode import Undecodable, decode
from torpor.cli.errors import CommandError, Exit
from torpor.daemon.configuration import SYSTEM_DATA_DIR, default_data_dir
from torpor.model.names import check_database_name
from torpor.model.workspace import SELF, check_workspace_name

T = TypeVar("T")
_CONNECT_TIMEOUT_S = 5.0
# Longer than the longest wake (start_timeout_s), so that the API's own answer is the one that is shown.
_ANSWER_TIMEOUT_S = 120.0
# How often a request is repeated that came too early, and how long that may take each time.
_RATE_PATIENCE = 5
_LONGEST_WAIT_S = 10


@dataclass(frozen=True, slots=True)
class Address:
    """Where the API is, and the key or token for it. `source` and `credential` say in words where those were learnt."""

    url: str
    token: str
    source: str
    credential: str = "the token file"


def find_api(data_dir: Path | None, environ: Mapping[str, str]) -> Address:
    """Look in the environment, then in the data directory. Raises CommandError."""
    url = environ.get("TORPOR_API_URL")
    credential = "TORPOR_API_KEY" if environ.get("TORPOR_API_KEY") else "TORPOR_API_TOKEN"
    token = environ.get(credential)
    if url and token:
        return Address(url, token, "TORPOR_API_URL", credential)
    if url:
        directory = _candidates(data_dir, environ)[0]
        try:
            return Address(url, _read_token(directory / "token"), "TORPOR_API_URL")
        except CommandError as error:
            raise _unauthorized("TORPOR_API_URL is set, but no key", "set TORPOR_API_KEY (or TORPOR_API_TOKEN) too") from error
    candidates = _candidates(data_dir, environ)
    for directory in candidates:
        found = _read_address(directory / "api.json")
        if found is not None:
            if token:
                return Address(found["url"], token, str(directory / "api.json"), credential)
            path = Path(found["token_file"])
            return Address(found["url"], _read_token(path), str(directory / "api.json"), str(path))
    where = candidates[0]
    flag = "" if where == default_data_dir(environ) else f" --data-dir {where}"
    message = f"Torpor isn't running (there is no {where / 'api.json'})"
    raise CommandError(message, f"start it with `torpor serve{flag}`", kind="unreachable", code=Exit.UNREACHABLE)


def _candidates(data_dir: Path | None, environ: Mapping[str, str]) -> list[Path]:
    if data_dir is not None:
        return [data_dir.absolute()]
    if environ.get("TORPOR_DATA_DIR"):
        return [Path(environ["TORPOR_DATA_DIR"]).absolute()]
    # A user without a Torpor of their own most likely means the machine's.
    return list(dict.fromkeys([default_data_dir(environ), SYSTEM_DATA_DIR]))


def _read_address(path: Path) -> dict[str, str] | None:
    try:
        raw = json.loads(path.read_text())
        return {"url": str(raw["url"]), "token_file": str(raw.get("token_file") or path.parent / "token")}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise _unauthorized(f"{path} can't be read by this user", "run as the user who runs Torpor (sudo?)") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = "restart Torpor, which writes it anew"
        raise CommandError(f"{path} is damaged", hint, kind="unreachable", code=Exit.UNREACHABLE) from error


def _read_token(path: Path) -> str:
    try:
        return path.read_text().strip()
    except PermissionError as error:
        owner = _owner(path)
        hint = f"run this with sudo{'' if owner == 'root' else f' -u {owner}'}, or have {owner} make you an API key for TORPOR_API_KEY"
        raise _unauthorized(f"the API's token {path} belongs to {owner}, and you are {_user_name(os.geteuid())}", hint) from error
    except OSError as error:
        raise _unauthorized(f"the API's token {path} can't be read: {error.strerror}", "restart Torpor, which makes one") from error


def _owner(path: Path) -> str:
    try:
        return _user_name(path.stat().st_uid)
    except OSError:  # not even the directory can be entered
        return "another user"


def _user_name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _unauthorized(message: str, hint: str) -> CommandError:
    return CommandError(message, hint, kind="unauthorized", code=Exit.UNAUTHORIZED, sqlstate="28000")


class Client:
    """The API as methods. Not safe to share between threads."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._connection: http.client.HTTPConnection | None = None
        parts = urlsplit(address.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise CommandError(f"{address.url!r} is no URL of an API", "give http://host:port", kind="usage", code=Exit.USAGE)
        self._parts = parts

    def get(self, path: str, **query: str | int | None) -> Any:
        """GET, decoded from JSON. Fields of `query` that are None are left out."""
        return self._json("GET", _with_query(path, query))

    def fetch(self, kind: type[T], path: str, **query: str | int | None) -> T:
        """GET, as a value of the model."""
        return self.decode(kind, self.get(path, **query))

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """POST, decoded from JSON."""
        return self._json("POST", path, body or {})

    def patch(self, path: str, body: Mapping[str, Any]) -> Any:
        """PATCH, decoded from JSON."""
        return self._json("PATCH", path, body)

    def put(self, path: str, body: Mapping[str, Any]) -> Any:
        """PUT, decoded from JSON."""
        return self._json("PUT", path, body)

    def delete(self, path: str, **query: str | int | None) -> None:
        """DELETE."""
        self._json("DELETE", _with_query(path, query))

    def cancel(self, path: str) -> Any:
        """DELETE of what goes on, decoded from JSON: what became of it."""
        return self._json("DELETE", path)

    def stream(self, path: str, **query: str | int | None) -> Iterator[bytes]:
        """GET, piece by piece as it arrives, for as long as the API sends."""
        yield from self._pieces(self._send("GET", _with_query(path, query), None))

    def download(self, path: str, body: Mapping[str, Any]) -> Iterator[bytes]:
        """POST, piece by piece as the answer arrives. Raises CommandError also for an answer that breaks off."""
        yield from self._pieces(self._send("POST", path, body))

    def _pieces(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        if self._connection is not None and self._connection.sock is not None:
            self._connection.sock.settimeout(None)
        try:
            while piece := response.read1(65536):
                yield piece
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(f"the connection to the API at {self.address.url} broke") from error
        finally:
            self.close()

    def decode(self, kind: type[T], value: Any) -> T:
        """An answer of the API as a value of the model. Raises CommandError when it isn't one."""
        try:
            return decode(kind, value)
        except Undecodable as error:
            hint = "compare `torpor version` with the version of the running Torpor"
            raise CommandError(f"the API's answer wasn't understood ({error})", hint, kind="bad_answer") from error

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        response = self._send(method, path, body)
        try:
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._unreachable(f"the API at {self.address.url} broke off its answer") from error
        if not content:
            return None
        try:
            return json.loads(content)
        except ValueError as error:
            hint = f"does {self.address.url} belong to Torpor?"
            raise CommandError(f"the API at {self.address.url} didn't answer in JSON", hint, kind="bad_answer") from error

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None, patience: int = _RATE_PATIENCE) -> http.client.HTTPResponse:
        headers = {"Authorization": f"Bearer {self.address.token}", "Accept": "application/json"}
        content = None
        if body is not None:
            content = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        kept = self._connection is not None
        try:
            response = self._exchange(method, path, content, headers)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as error:
            self.close()
            if not kept or method != "GET":  # what may have had an effect isn't repeated
                raise self._unreachable(f"the API at {self.address.url} closed the connection without an answer") from error
            response = self._exchange(method, path, content, headers)
        if response.status == 429 and patience and (wait_s := _wait_s(response)) is not None:
            response.read()  # nothing was done: asking again is safe, whatever it was
            time.sleep(wait_s)
            return self._send(method, path, body, patience - 1)
        if response.status >= 400:
            raise self._refusal(response)
        return response

    def _exchange(self, method: str, path: str, content: bytes | None, headers: dict[str, str]) -> http.client.HTTPResponse:
        try:
            if self._connection is None:
                self._connection = self._connect()
            self._connection.request(method, self._parts.path.rstrip("/") + path, content, headers)
            return self._connection.getresponse()
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            raise
        except TimeoutError as error:
            self.close()
            raise self._unreachable(f"the API at {self.address.url} didn't answer within {_ANSWER_TIMEOUT_S:.0f} s") from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            reason = getattr(error, "strerror", None) or str(error)
            raise self._unreachable(f"Torpor isn't running: nobody answers at {self.address.url} ({reason})") from error

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=_CONNECT_TIMEOUT_S)
        connection.connect()
        connection.sock.settimeout(_ANSWER_TIMEOUT_S)
        return connection

    def _unreachable(self, message: str) -> CommandError:
        hint = f"start it with `torpor serve` (its address comes from {self.address.source})"
        return CommandError(message, hint, kind="unreachable", code=Exit.UNREACHABLE)

    def _refusal(self, response: http.client.HTTPResponse) -> CommandError:
        """The API's error, or what can be said of an answer that isn't one."""
        content = b""
        with contextlib.suppress(OSError, http.client.HTTPException):
            content = response.read()
        try:
            error = json.loads(content)["error"]
            message, hint, kind = str(error["message"]), str(error.get("hint") or ""), str(error["kind"])
            sqlstate = str(error.get("sqlstate") or "")
        except (ValueError, KeyError, TypeError):
            message, hint, kind, sqlstate = (
                f"the API answered {response.status} {response.reason}",
                "look at Torpor's log",
                "bad_answer",
                "",
            )
        if response.status == 401:
            hint = f"it comes from {self.address.credential}; is it meant for the Torpor at {self.address.url}?"
        if response.status in (401, 403):
            return CommandError(message, hint, kind=kind, code=Exit.UNAUTHORIZED, sqlstate=sqlstate)
        return CommandError(message, hint, kind=kind, sqlstate=sqlstate)


def database_path(name: str, *rest: str) -> str:
    """The path of a database, or of something below it. Raises InvalidName for what can't be one, before anything is sent."""
    return "/".join(("/v1/databases", check_database_name(name), *rest))


def workspace_path(name: str, *rest: str) -> str:
    """The path of a workspace, or of something below it; `self` is the caller's own. Raises InvalidName."""
    return "/".join(("/v1/workspaces", name if name == SELF else check_workspace_name(name), *(quote(part, safe="") for part in rest)))


def _wait_s(response: http.client.HTTPResponse) -> int | None:
    """How long to wait before asking again; None when that is too long."""
    text = response.getheader("Retry-After") or ""
    return int(text) if text.isdigit() and int(text) <= _LONGEST_WAIT_S else None


def _with_query(path: str, query: Mapping[str, str | int | None]) -> str:
    given = {key: value for key, value in query.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path
