"""Volumes: the durable bytes of databases, how they are copied, and their past.

Belongs here: making, copying, limiting, measuring and removing directories of the pool; reading log out of them as bytes; what is kept of
the past elsewhere (archive/). Does not belong: asking or running PostgreSQL, and when any of it is done.
"""
