"""The PostgreSQL wire protocol as values and pure functions: framing, startup, authentication, replies, reading a server's answers.

Belongs here: bytes in, values out, and the other way round, with every length checked. Does not belong: sockets, clocks, tasks,
routing, roles, or any decision about who may do what.
"""
