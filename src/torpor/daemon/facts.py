"""What `torpor info` and the API tell of the host. Keeps nothing: the host is looked at anew each time. Concurrency: as `house`."""

from pathlib import Path

from torpor import __version__
from torpor.base.cgroups import Trees
from torpor.base.host.facts import probe
from torpor.base.host.findings import Status, findings
from torpor.compute.sandbox.sandbox import Sandbox
from torpor.control.views import HostFacts
from torpor.daemon.directory import DataDirectory
from torpor.door.encryption import Encryption
from torpor.model.settings import Settings
from torpor.storage.volumes import Volumes


def host_facts(
    settings: Settings,
    directory: DataDirectory,
    door: tuple[str, int],
    pool_door: tuple[str, int] | None,
    api: str,
    started_at: float,
    sandbox: Sandbox,
    trees: Trees,
    volumes: Volumes,
    encryption: Encryption,
) -> HostFacts:
    """Where all is to be found, what this host holds, and what it lacks."""
    host, port = door
    public = settings.public_host
    found = findings(probe(directory.path, pool_key_file=Path(settings.pool_key_file)))
    return HostFacts(
        version=__version__,
        door=f"{host}:{port}",
        public_host=public,
        public_port=port,
        api=api,
        data_dir=str(directory.path),
        started_at=started_at,
        sandbox=f"{sandbox.level}, {trees.description}",
        sandbox_lacks=sandbox.report.lacks,
        held={
            name: trees.description if name in trees.held else "not held: no cgroup for it can be written here"
            for name in ("processor", "memory", "processes")
        }
        | {"disk": volumes.held_by},
        lacks=tuple(f"{item.name}: {item.cost}" for item in found if item.status is Status.LACK),
        url_query=encryption.url_query(public),
        pool_door="{}:{}".format(*pool_door) if pool_door is not None else "",
    )
