"""What the daemon and the process say to each other: JSON in packets (SOCK_SEQPACKET), with descriptors. Pure values, and their forms.

daemon    {"configure": {…}} with the listener
process   {"ready": true}, or {"failed": "why"} and its end
daemon    {"certificates": [[chain, key], …]} when there are others
process   {"figures": {…}} every second that changed some
process   {"purge": {…}} when somebody may have a cache purged
daemon    {"purged": {…}} when that is done, or why not
daemon    {"stop": seconds of grace, "last": whether nobody inherits the listener}; the end of the daemon says the same
"""

from typing import Any

import msgspec

PACKET_BYTES = 190 * 1024
"""What a packet may have; the kernel's buffer for it is some more."""
CONTROL_FD = 3

_JSON = msgspec.json.Encoder()


class Configuration(msgspec.Struct, frozen=True):
    """All that the process needs to know."""

    door_host: str
    door_port: int
    secret: str
    tls: str
    proxies: list[str]
    keep_s: float
    directory: str
    log_format: str
    uid: int
    """Whom it becomes; 0 for whoever it is."""
    certificates: list[tuple[str, str]]
    """Chains and keys in PEM; none where TLS isn't spoken."""


def encode(packet: dict[str, Any]) -> bytes:
    """The bytes of a packet."""
    return _JSON.encode(packet)


def decode(data: bytes) -> dict[str, Any]:
    """The packet. Raises ValueError."""
    packet = msgspec.json.decode(data)
    if not isinstance(packet, dict):
        raise ValueError("no packet")
    return packet


def configuration(content: object) -> Configuration:
    """Read a configuration. Raises ValueError."""
    return msgspec.convert(content, Configuration)
