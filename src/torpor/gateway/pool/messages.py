"""What Torpor and a worker of the pool tell each other: one packet each, JSON, with at most one descriptor. Pure."""

import json
from enum import StrEnum
from typing import Any

MAX_PACKET_BYTES = 65_536


class ToWorker(StrEnum):
    """What Torpor says."""

    JOIN = "join"  # a client, with its socket
    BACKEND = "backend"  # the connection to PostgreSQL that was asked for, with its socket
    FAILED = "failed"  # there is none, and why
    CANCEL = "cancel"  # a client wants its statement to be cancelled
    CANCELED = "canceled"  # PostgreSQL has heard a cancel
    DISMISS = "dismiss"  # a client has to go
    FINISH = "finish"  # all have to go, when they are done
    CACHE = "cache"  # what holds for the cache of a database: its rules, and whether writes drop entries; before its first client
    WRITES = "writes"  # the counters of a database's writes, with their file
    STORE = "store"  # the connection to the shared store that was asked for, with its socket; without one: there is none
    PURGE = "purge"  # drop entries; ticket 0: no answer is wanted


class FromWorker(StrEnum):
    """What a worker says."""

    OPEN = "open"  # a connection to PostgreSQL is needed
    CLOSED = "closed"  # it has let go of one
    CANCEL = "cancel"  # PostgreSQL shall cancel what a backend runs
    LEFT = "left"  # a client is gone
    VIEW = "view"  # how a pool is doing
    STORE = "store"  # a connection to the shared store is wanted
    PURGED = "purged"  # how many entries were dropped


def pack(op: StrEnum, **fields: object) -> bytes:
    """A packet. Bytes are written in hexadecimal."""
    return json.dumps({"op": op, **{name: value.hex() if isinstance(value, bytes) else value for name, value in fields.items()}}).encode()


def unpack(packet: bytes) -> dict[str, Any]:
    """The fields of a packet, `op` among them."""
    fields: dict[str, Any] = json.loads(packet.decode())
    return fields
