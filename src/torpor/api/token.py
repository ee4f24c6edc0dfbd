"""The API's bearer token: a file that only the user who runs Torpor can read. Synchronous; used once, at start."""

import os
import re
import secrets
import stat
from pathlib import Path

from torpor.base.logs import get_logger
from torpor.model.errors import DataDirectoryUnusable

log = get_logger(__name__)

_TOKEN = re.compile(r"[!-~]{16,512}")
_READ_BYTES = 1024


def token_path(data_dir: Path) -> Path:
    """Where the token of the Torpor in `data_dir` is."""
    return data_dir / "token"


def load_or_create(data_dir: Path) -> str:
    """The token in `data_dir`, made when there is none. Its file appears whole or not at all, with mode 0600.

    A wider mode is narrowed, and a warning logged. Raises DataDirectoryUnusable when the file is another user's, isn't a plain
    file or holds no token.
    """
    path = token_path(data_dir)
    try:
        try:
            return _load(path)
        except FileNotFoundError:
            return _create(path)
    except OSError as error:
        raise DataDirectoryUnusable(
            f"the API's token {path} can't be read or made: {error.strerror}", "see to whom its directory belongs"
        ) from error


def _load(path: Path) -> str:
    # O_NONBLOCK: a pipe in its place must not hold the start up.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise DataDirectoryUnusable(f"the API's token {path} isn't a plain file", "remove it, and the next start makes a new one")
        if status.st_uid not in (os.geteuid(), 0):
            raise DataDirectoryUnusable(f"the API's token {path} belongs to another user", "remove it, and the next start makes a new one")
        if status.st_mode & 0o077:
            os.fchmod(descriptor, 0o600)
            log.warning(
                "the API's token could be read by others; its mode is 0600 now, remove it and restart for a new one", path=str(path)
            )
        token = file.read(_READ_BYTES).decode("ascii", "replace").strip()
    if _TOKEN.fullmatch(token) is None:
        raise DataDirectoryUnusable(f"the API's token {path} is damaged", "remove it, and the next start makes a new one")
    return token


def _create(path: Path) -> str:
    token = secrets.token_urlsafe(32)
    new = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(token.encode() + b"\n")
            file.flush()
            os.fsync(descriptor)
        new.rename(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    return token
