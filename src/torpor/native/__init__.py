"""What is written in C: the library that receives sockets inside the compute, and the relay; and where their compiled forms lie.

Belongs here: what must run inside PostgreSQL's processes, or touches every byte of a session. Does not belong: anything else.
"""

from pathlib import Path

LIBRARY = Path(__file__).parent / "libtorpor.so"
"""Compiled from handover.c when the package is built or installed."""

RELAY = Path(__file__).parent / "torpor-relay"
"""Compiled from relay/ likewise; missing where OpenSSL's headers were."""
