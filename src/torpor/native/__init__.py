"""What is written in C: the library that receives sockets inside the compute, the program that copies volumes, and the relay; and where
their compiled forms lie.

Belongs here: what must run inside PostgreSQL's processes, touches every byte of a session, or every file of a volume while somebody
waits. Does not belong: anything else.
"""

from pathlib import Path

LIBRARY = Path(__file__).parent / "libtorpor.so"
"""Compiled from handover.c when the package is built or installed."""

COPIER = Path(__file__).parent / "torpor-copier"
"""Compiled from copier.c likewise."""

RELAY = Path(__file__).parent / "torpor-relay"
"""Compiled from relay/ likewise; missing where OpenSSL's headers were."""
