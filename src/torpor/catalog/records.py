"""How records are read and written: named statements on one SQLite connection, with faults of file and disk as errors for people.

Concurrency: synchronous, on the loop's thread only, as told in `catalog`. Several kinds of records may share a connection; then a
`transaction` of one covers what the others write meanwhile, since nothing else can run in between.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw

from torpor.catalog.schema import statements
from torpor.model.errors import CatalogUnusable, PoolFull


class Records:
    """Records in one SQLite file."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._sql = statements()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._connection.filename or 'closed'}>"

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written inside becomes durable together, or not at all. May be nested. Must not be held across an await."""
        with faults(self._connection.filename), self._connection:
            yield

    def _read(self, statement: str, values: Mapping[str, Any] | None = None) -> list[Any]:
        with faults(self._connection.filename):
            return self._connection.execute(self._sql[statement], values).fetchall()

    def _write(self, statement: str, values: Mapping[str, Any] | Sequence[Any]) -> int:
        """How many rows were changed."""
        with faults(self._connection.filename):
            self._connection.execute(self._sql[statement], values)
            return self._connection.changes()


@contextmanager
def faults(path: Path | str) -> Iterator[None]:
    """Turn faults of the file and the disk into errors for people."""
    try:
        yield
    except apsw.FullError as error:
        raise PoolFull(f"no room on the disk for the catalog {path}", "free some space") from error
    except (apsw.NotADBError, apsw.CorruptError) as error:
        raise CatalogUnusable(f"{path} is damaged: {error}", "restore it from a copy") from error
    except apsw.BusyError as error:
        raise CatalogUnusable(f"another program keeps {path} locked", "end it and try again") from error
    except (apsw.CantOpenError, apsw.ReadOnlyError, apsw.PermissionsError, apsw.AuthError, OSError) as error:
        raise CatalogUnusable(
            f"{path} can't be opened for reading and writing: {error}",
            "see that its directory exists and belongs to the user that runs Torpor",
        ) from error
    except apsw.IOError as error:
        raise CatalogUnusable(f"the disk failed under {path}: {error}", "look at the kernel's log") from error
