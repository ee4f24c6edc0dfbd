"""The pool of connections: many clients over few backends, a backend for each transaction.

`engine` decides who gets which backend, `client` and `backend` understand what the two sides of it say; all three are pure: bytes and
times in, bytes out through a `Link`. `worker` is the process that has the sockets (`links`), `pools` its other half inside of Torpor.
What runs for every message is compiled where that can be (`forms`).
"""

from pathlib import Path

from torpor.gateway.pool import forms

if (_compiled := forms.compiled(Path(__file__).parent)) is not None:
    __path__.insert(0, str(_compiled))
