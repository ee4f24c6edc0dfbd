"""Volumes: the durable bytes of databases, and how they are copied.

Belongs here: making, cloning, measuring and removing directories of the pool. Does not belong: what PostgreSQL keeps in them.
"""
