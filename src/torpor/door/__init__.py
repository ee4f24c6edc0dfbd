"""The door: the one listener for PostgreSQL clients. It reads who they want, checks who they are, wakes, hands over.

Belongs here: accepting, the startup phase, routing, checking passwords, handing sockets over, the relay. Does not belong: how a
compute is found, woken or stopped (`ports` says what the door asks of it), where roles are kept, and anything after the hand-over:
on the direct path no byte of a session is seen here.
"""
