"""The passwords of databases made from this machine, so that `torpor url` can print them again.

One JSON file of the user's with mode 0600, replaced atomically under a lock. Not having a password is normal: it was made elsewhere.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from torpor.cli.errors import CommandError

FILE_NAME = "passwords.json"


@dataclass(frozen=True, slots=True)
class Password:
    """What was shown at creation."""

    role: str
    password: str


class Passwords:
    """The file. `api_url` tells apart databases of different Torpors."""

    def __init__(self, environ: Mapping[str, str], api_url: str) -> None:
        home = environ.get("XDG_CONFIG_HOME") or os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".config")
        self.path = Path(home) / "torpor" / FILE_NAME
        self._api_url = api_url

    def get(self, database_id: str) -> Password | None:
        """The password of a database, None when this machine doesn't know it (or the file can't be read)."""
        entry = self._read().get(self._api_url, {}).get(database_id)
        return None if entry is None else Password(entry["role"], entry["password"])

    def put(self, database_id: str, password: Password) -> None:
        """Remember one. Raises CommandError, whose hint tells the caller that nothing else went wrong."""
        entry = {"role": password.role, "password": password.password}
        with self._locked():
            known = self._read()
            known.setdefault(self._api_url, {})[database_id] = entry
            self._write(known)

    def forget(self, database_id: str) -> None:
        """Forget one, if it is known."""
        if self.get(database_id) is None:
            return
        with self._locked():
            known = self._read()
            mine = known.get(self._api_url, {})
            mine.pop(database_id, None)
            if not mine:
                known.pop(self._api_url, None)
            self._write(known)

    def _read(self) -> dict[str, dict[str, dict[str, str]]]:
        """The whole file; what doesn't have the expected shape is left out."""
        try:
            raw = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        if not isinstance(raw, dict):
            return {}
        return {
            url: {id_: entry for id_, entry in entries.items() if isinstance(entry, dict) and {"role", "password"} <= entry.keys()}
            for url, entries in raw.items()
            if isinstance(entries, dict)
        }

    def _write(self, known: dict[str, dict[str, dict[str, str]]]) -> None:
        temporary = self.path.with_suffix(".new")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w") as stream:
                os.fchmod(stream.fileno(), 0o600)
                json.dump(known, stream, indent=1)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(self.path)
        except OSError as error:
            raise self._failure(error) from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._failure(error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _failure(self, error: OSError) -> CommandError:
        return CommandError(f"the password couldn't be kept in {self.path}: {error.strerror}", "note it now: it isn't shown again")


def with_login(url: str, role: str, password: str | None) -> str:
    """The URL of a database with this role in it, and this password or none."""
    parts = urlsplit(url)
    address = parts.netloc.rpartition("@")[2]
    secret = "" if password is None else f":{quote(password, safe='')}"
    return urlunsplit(parts._replace(netloc=f"{quote(role, safe='')}{secret}@{address}"))
