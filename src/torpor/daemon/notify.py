"""Tells systemd (Type=notify) what the service does: one datagram a word. Does nothing elsewhere. Stateless."""

import contextlib
import os
import socket
from collections.abc import MutableMapping


def notify(*words: str, environ: MutableMapping[str, str] = os.environ) -> None:
    """Send `words`, such as "READY=1". Never fails: a manager that doesn't listen is no reason to stop."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto("\n".join(words).encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)


def ready() -> None:
    """It serves; and if it took the place of another, it is the service's main process from now on."""
    notify("READY=1", f"MAINPID={os.getpid()}", "STATUS=serving")


def stopping(why: str) -> None:
    """It ends."""
    notify("STOPPING=1", f"STATUS={why}")
