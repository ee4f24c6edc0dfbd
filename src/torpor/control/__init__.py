"""Use cases: what users do with databases, what Torpor does for them by itself, and setting right what a crash left behind.

Belongs here: the order of steps, recorded so that each can be taken back or finished. Does not belong: HTTP, the wire protocol, how
PostgreSQL is run.
"""
