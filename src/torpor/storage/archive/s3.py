"""Objects at an S3-compatible store, through obstore. Credentials come from the environment, as every S3 client takes them.

Concurrency: requests run on obstore's own threads; cancelling one drops its connection. Retries are the Store's, not obstore's.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import obstore
from obstore import exceptions
from obstore.store import S3Store

from torpor.model.errors import BadSettings, HistoryFull, HistoryMissing, HistoryRefused, HistoryUnreachable, TorporError
from torpor.storage.archive.bucket import Stored

if TYPE_CHECKING:
    from obstore.store import S3Config

_CONNECT_S = 5
_STATUS, _CODE = re.compile(r"status code: (\d{3} [A-Za-z ]+)"), re.compile(r"<Code>([A-Za-z0-9]{1,60})</Code>")
_LISTED_AT_ONCE = 1000
_DELETED_AT_ONCE = 1000
_FULL = ("507 ", "storagefull", "quotaexceeded", "insufficientstorage", "no space", "entitytoolarge", "diskfull")
_REFUSED = (
    "401 unauthorized",
    "403 forbidden",
    "accessdenied",
    "expiredtoken",
    "invalidaccesskeyid",
    "invalidtoken",
    "nosuchbucket",
    "redirect",  # the bucket is in another region
    "signaturedoesnotmatch",
)


class S3Bucket:
    """A bucket, or a part of one, at an S3-compatible store."""

    def __init__(self, url: str, endpoint: str, environ: Mapping[str, str], timeout_s: float = 60.0) -> None:
        """`url` is s3://bucket/prefix; `endpoint` is empty for Amazon's own. Raises BadSettings; asks nobody yet."""
        parts = urlsplit(url)
        key, secret = environ.get("AWS_ACCESS_KEY_ID", ""), environ.get("AWS_SECRET_ACCESS_KEY", "")
        if not key or not secret:
            raise BadSettings(
                f"history_store is {url}, but there are no credentials",
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment",
            )
        self._description = f"{url} at {urlsplit(endpoint).hostname}" if endpoint else url
        config: S3Config = {
            "access_key_id": key,
            "secret_access_key": secret,
            "region": environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1",
        }
        if endpoint:
            config["endpoint"] = endpoint
        if token := environ.get("AWS_SESSION_TOKEN"):
            config["session_token"] = token
        self._store = S3Store(
            parts.netloc,
            prefix=parts.path.strip("/") or None,
            config=config,
            client_options={
                "allow_http": endpoint.startswith("http://"),
                "connect_timeout": timedelta(seconds=_CONNECT_S),
                "timeout": timedelta(seconds=timeout_s),
            },
            retry_config={"max_retries": 0},
        )

    def __repr__(self) -> str:
        return f"<S3Bucket {self._description}>"

    @property
    def description(self) -> str:
        """Which store it is, for people."""
        return self._description

    async def put(self, key: str, data: bytes, if_absent: bool) -> bool:
        """Store an object in one request."""
        try:
            await obstore.put_async(self._store, key, data, use_multipart=False, mode="create" if if_absent else "overwrite")
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
            return False
        except (exceptions.BaseError, OSError) as error:
            raise self._named(error) from error
        return True

    async def get(self, key: str) -> bytes:
        """All bytes of it. Raises HistoryMissing."""
        try:
            response = await obstore.get_async(self._store, key)
            return bytes(await response.bytes_async())
        except (exceptions.NotFoundError, FileNotFoundError) as error:
            if "nosuchbucket" in str(error).lower():
                raise self._named(error) from error
            raise HistoryMissing(f"{key} is not in {self.description}") from None
        except (exceptions.BaseError, OSError) as error:
            raise self._named(error) from error

    async def list(self, directory: str) -> list[Stored]:
        """All objects below a directory."""
        found: list[Stored] = []
        try:
            async for page in obstore.list(self._store, directory, chunk_size=_LISTED_AT_ONCE):
                found += [Stored(meta["path"], meta["size"], meta["last_modified"].timestamp()) for meta in page]
        except (exceptions.BaseError, OSError) as error:
            raise self._named(error) from error
        return found

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove objects, a thousand in one request."""
        try:
            for start in range(0, len(keys), _DELETED_AT_ONCE):
                await obstore.delete_async(self._store, list(keys[start : start + _DELETED_AT_ONCE]))
        except (exceptions.NotFoundError, FileNotFoundError) as error:
            if "nosuchbucket" in str(error).lower():
                raise self._named(error) from error
        except (exceptions.BaseError, OSError) as error:
            raise self._named(error) from error

    def _named(self, error: Exception) -> TorporError:
        text = str(error)
        words = text.lower()
        reason = _reason(text)
        if any(word in words for word in _FULL):
            return HistoryFull(f"{self.description} is full")
        if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError) or any(word in words for word in _REFUSED):
            return HistoryRefused(f"{self.description} refuses: {reason}", "check the bucket, its permissions and the AWS_ variables")
        return HistoryUnreachable(f"{self.description} can't be reached: {reason}")


def _reason(text: str) -> str:
    """The few words of an error that say what is wrong: status and code, where there was an answer."""
    if (status := _STATUS.search(text)) is None:
        return text.split("\n\nDebug source:", maxsplit=1)[0].splitlines()[0][:300]
    code = _CODE.search(text)
    return f"{status[1].strip()}{f' ({code[1]})' if code is not None else ''}"
