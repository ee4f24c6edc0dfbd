"""A listening socket for one of Torpor's own services. No concurrency of its own; blocking only to look the host's name up."""

import socket

_BACKLOG = 1024


def listen(host: str, port: int) -> socket.socket:
    """Listen there, without blocking from now on; 0 takes a free port. `::` takes IPv4, too.

    Raises OSError: `socket.gaierror` when `host` is no address, with EADDRINUSE when another program listens there.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
