"""The last questions to a PostgreSQL that is about to sleep, while it can still answer. Concurrency: part of a freeze or a stop."""

from torpor.compute.service import ServiceSession
from torpor.compute.surroundings import Surroundings
from torpor.model.database import Database


async def ask_last(database: Database, service: ServiceSession, around: Surroundings) -> None:
    """Keep who may log in, and tell whoever ships the log: a Torpor that is killed right after it leaves a sleeper of which both are
    known. Raises ComputeLost."""
    roles = await service.roles()
    if roles is None:
        around.catalog.forget_roles(database.id)
    else:
        around.catalog.save_roles(database.id, roles)
    await around.falling_asleep(database, service)
