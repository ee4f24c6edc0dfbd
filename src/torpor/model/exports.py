"""What an export holds, as the API and the command line ask for it. Pure."""

from dataclasses import dataclass
from enum import StrEnum


class ExportFormat(StrEnum):
    """How a dump is written."""

    PLAIN = "plain"  # SQL, for people and for psql
    CUSTOM = "custom"  # pg_dump's archive, compressed, for pg_restore


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What to write, and how. `owners`: also who owns what and who may do what, for a target that has the same roles."""

    format: ExportFormat = ExportFormat.PLAIN
    schema_only: bool = False
    data_only: bool = False
    owners: bool = False

    def arguments(self) -> list[str]:
        """The same for pg_dump."""
        given = [f"--format={self.format}"]
        given += [] if self.owners else ["--no-owner", "--no-privileges"]
        return given + ["--schema-only"] * self.schema_only + ["--data-only"] * self.data_only
