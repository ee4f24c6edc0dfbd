"""The pool of connections: many clients over few backends, a backend for each transaction.

`engine` decides who gets which backend, `client` and `backend` understand what the two sides of it say; all three are pure: bytes and
times in, bytes out through a `Link`. `worker` is the process that has the sockets, `pools` its other half inside of Torpor.
"""
