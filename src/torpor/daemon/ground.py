"""What a house stands on: the host, PostgreSQL's programs, the preloaded library, the root images, the sandbox that computes get.

All that takes long at a start and needs no lock, so that the next Torpor finds it out while this one still serves.
Concurrency: made once, before the event loop has anything to do; then values, but for a major that is installed later.
"""

from pathlib import Path

from torpor.base.host.pool import ensure_pool_mounted
from torpor.base.host.poolkey import PoolKeyUnusable
from torpor.base.host.zram import ensure_zram
from torpor.base.logs import get_logger
from torpor.compute import binaries
from torpor.compute.binaries import Postgres
from torpor.compute.configuration import pg_hba_conf, postgresql_conf
from torpor.compute.sandbox.image.images import Images
from torpor.compute.sandbox.sandbox import find_sandbox
from torpor.daemon.directory import DataFiles
from torpor.model.errors import BinariesMissing, DataDirectoryUnusable, KeyFileUnusable
from torpor.model.settings import Settings
from torpor.native import LIBRARY

log = get_logger(__name__)


class Ground:
    """Found out once."""

    def __init__(self, settings: Settings, files: DataFiles) -> None:
        """Raises HostError for what the host lacks."""
        self._settings = settings
        self._files = files
        _ensure_host(files.path, Path(settings.pool_key_file))
        self.binaries = _binaries(settings)
        self.library = files.publish_library(LIBRARY)
        major = settings.postgres_major
        if not files.configuration(major).is_dir():  # else it may be what another Torpor's computes start with
            self.write_configuration(files, major)
        self.images = Images(files.path, self.postgres, Path(settings.image_home))
        try:
            self.sandbox = find_sandbox(
                settings.sandbox, major, settings.uid_base, self.images, self.library, files.configuration(major), files.publish_filter
            )
        except BaseException:
            self.images.close()
            raise

    def write_configuration(self, files: DataFiles, major: int) -> None:
        """Write what all computes of a major share."""
        shared = postgresql_conf(major, self._settings.max_connections, self._settings.size.max_memory_bytes)
        files.write_configuration(major, {"pg_hba.conf": pg_hba_conf(), "pg_ident.conf": "", "postgresql.conf": shared})

    def postgres(self, major: int) -> Postgres:
        """The programs of a major, also of one that was installed since. Raises BinariesMissing."""
        if major not in self.binaries:
            newer = {m: p for m, p in _binaries(self._settings).items() if m not in self.binaries}
            for one in newer:
                self.write_configuration(self._files, one)
            self.binaries |= newer
        if major not in self.binaries:
            raise BinariesMissing(f"PostgreSQL {major} is not installed", f"install it: `torpor postgres install {major}`")
        return self.binaries[major]


def _ensure_host(data_dir: Path, pool_key_file: Path) -> None:
    try:
        ensure_pool_mounted(data_dir, key_file=pool_key_file)
    except PoolKeyUnusable as error:
        raise KeyFileUnusable(error.message, error.hint) from error
    except Exception as error:  # an empty place where volumes should be is no place to start
        raise DataDirectoryUnusable(str(error)) from error
    try:
        ensure_zram(data_dir)
    except Exception as error:
        log.warning("the zram swap of `torpor host setup` isn't there", cause=str(error))


def _binaries(settings: Settings) -> dict[int, Postgres]:
    found = binaries.find(Path(settings.postgres_home), settings.pg_bindir)
    if settings.postgres_major not in found:
        have = f" (installed: {', '.join(map(str, sorted(found)))})" if found else ""
        raise BinariesMissing(
            f"PostgreSQL {settings.postgres_major} is not installed in {settings.postgres_home}{have}",
            f"install it: `torpor postgres install {settings.postgres_major}`",
        )
    return found
