"""Computes: the PostgreSQL process tree of each database, from start over sleep to stop, and the warm pool.

Belongs here: starting, configuring, freezing, waking, adopting and asking PostgreSQL, and handing clients to it. Does not belong:
who may connect (door), what users may do with databases (control).
"""
