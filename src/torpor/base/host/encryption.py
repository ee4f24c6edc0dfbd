"""Whether this host can encrypt a pool, whether its pool is encrypted, and what its key lacks.

Reads only, changes nothing.
"""

from dataclasses import dataclass
from pathlib import Path

from torpor.base.host.machine import HostActionFailed, Machine
from torpor.base.host.poolkey import KEY_NAME, load
from torpor.base.host.sealed import Sealed


@dataclass(frozen=True, slots=True)
class EncryptionFacts:
    """`offered`: the kernel encrypts files of ext4, and there is mkfs.ext4. `sealed`: the pool is an encrypted one. `key_lacks`: why it
    couldn't be opened with the key file, empty when it could. `key_beside`: the key lies on the same file system as what it opens."""

    offered: bool = False
    sealed: bool = False
    is_open: bool = False
    key_file: str = ""
    key: str = ""
    key_lacks: str = ""
    key_beside: bool = False


def probe_encryption(data_dir: Path, machine: Machine, key_file: Path | None) -> EncryptionFacts:
    """Look. Never raises."""
    offered = machine.path("/sys/fs/ext4/features/encryption").exists() and machine.which("mkfs.ext4") is not None
    sealed, key_file = Sealed(data_dir), key_file or data_dir / KEY_NAME
    if not sealed.exists:
        return EncryptionFacts(offered, key_file=str(key_file))
    identifier, lacks, beside = "", "", False
    try:
        key = load(key_file)
        identifier = key.identifier.hex()
        key.must_be(sealed.identifier)
        beside = key_file.stat().st_dev == sealed.image.stat().st_dev
    except HostActionFailed as error:
        lacks = error.message
    except OSError as error:
        lacks = f"the key file {key_file} of the pool can't be read: {error.strerror}"
    return EncryptionFacts(offered, True, sealed.is_open, str(key_file), identifier, lacks, beside)
