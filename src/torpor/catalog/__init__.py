"""Torpor's own records, in one SQLite file: databases, roles, running computes, wakes, traffic.

Belongs here: reading and writing those records, and the schema with its migrations. Does not belong: any decision about them
(control), the order of steps that a crash may interrupt (control), caches (insights, door).
"""
