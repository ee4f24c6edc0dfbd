"""A volume that is thrown away after any crash, as long as it isn't settled: nothing that is written to it has to be durable.

A branch recovers, is named and gets its passwords before anybody is told that it is there. PostgreSQL would sync every file that it
touches on the way, one flush of the disk after the other: some 60, beside whatever else the disk does. Instead all is synced once, at
the end.

A page of memory that the processes of the compute share says whether it is so; the preloaded library looks there (native/handover.c). When
it is over, it is over for all of them at the same instant: what was written before is synced then, what is written later PostgreSQL
syncs by itself. They can only read it.

Concurrency: none; `end` may be called by whoever settles the volume or removes it, once or more often.
"""

import os

_PAGE_BYTES = 4096
_LASTS, _IS_OVER = b"\1", b"\0"


class Haste:
    """One that lasts until `end`."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._page = os.memfd_create("torpor-haste", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self._page, _PAGE_BYTES)
            os.pwrite(self._page, _LASTS, 0)
            self.reader = os.open(f"/proc/self/fd/{self._page}", os.O_RDONLY | os.O_CLOEXEC)
            """A descriptor for the compute."""
        except BaseException:
            os.close(self._page)
            raise

    def __repr__(self) -> str:
        return f"<Haste{'' if self._page >= 0 else ' over'}>"

    def end(self) -> None:
        """From here on PostgreSQL syncs. Idempotent."""
        if self._page >= 0:
            os.pwrite(self._page, _IS_OVER, 0)
            os.close(self._page)
            os.close(self.reader)
            self._page = self.reader = -1
