"""Who has to encrypt. Pure."""

import ipaddress
from enum import StrEnum


class TlsMode(StrEnum):
    """What the door asks of clients."""

    OFF = "off"  # TLS is not spoken
    ALLOW = "allow"  # who wants it gets it
    REMOTE = "remote"  # clients that are not on this machine must use it
    REQUIRE = "require"  # all must


def must_encrypt(mode: TlsMode, host: str) -> bool:
    """Whether a client from `host`, an IP address, has to use TLS. What is no address counts as another machine's."""
    if mode is not TlsMode.REMOTE:
        return mode is TlsMode.REQUIRE
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return True
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return not (mapped or address).is_loopback


def is_ip_address(host: str) -> bool:
    """Whether `host` is an address rather than a name."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
