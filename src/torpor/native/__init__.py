"""The C library that receives sockets inside the compute, and where its compiled form lies.

Belongs here: what must run inside PostgreSQL's processes. Does not belong: anything that Python can do from outside.
"""

from pathlib import Path

LIBRARY = Path(__file__).parent / "libtorpor.so"
"""Compiled from handover.c when the package is built or installed."""
