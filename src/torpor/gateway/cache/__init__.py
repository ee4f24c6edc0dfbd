"""The cache of results: what is kept, for whom, and for how long.

Pure but for `writes`, which reads counters from a file: what a comment in front of a statement says, the store with its bounds, and what
is asked for and missed at the same time. What clients and PostgreSQL say to each other is `gateway.pool.caching`'s.
"""
