"""Parts that any daemon needs: tasks, clock, processes, cgroups, memory, logs, telemetry, and what the host has.

Belongs here: thin wrappers of the kernel and of asyncio. Does not belong: anything that knows of PostgreSQL or of Torpor's nouns;
this package imports no other package of Torpor.
"""
