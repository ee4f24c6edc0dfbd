"""Torpor: serverless PostgreSQL that anyone can host. The packages and their layers are drawn in ARCHITECTURE.md."""

__version__ = "0.1.0"
