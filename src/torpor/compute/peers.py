"""Whose sessions these are, where the kernel doesn't know: behind a load balancer, or a relay, the peer of a socket isn't the client.

A small file beside the compute's listener notes such addresses, so that the next Torpor, which adopts the sessions after a kill, knows
them too. A socket is told by its inode, which no other has while it lives, whoever holds it. Nothing is synced: after a crash of the
host no session lives.

Concurrency: synchronous, called by the compute's owner. Bounded: written anew when it holds twice as many lines as there are sessions.
"""

import contextlib
import os
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

_SPARE_LINES = 1024


class HasFileno(Protocol):
    """An open socket, or who keeps one."""

    def fileno(self) -> int: ...


def inode(sock: HasFileno) -> int:
    """What tells a socket from all others of this host."""
    return os.fstat(sock.fileno()).st_ino


def peer_host(sock: socket.socket) -> str:
    """The host at the other end; "" when it has left, or is no IP address."""
    try:
        name = sock.getpeername()
    except OSError:
        return ""
    return str(name[0]) if isinstance(name, tuple) else ""


class Peers:
    """The notes of one compute."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = 0

    def __repr__(self) -> str:
        return f"<Peers {self._path} {self._lines} lines>"

    def note(self, client: socket.socket, host: str, live: Collection[HasFileno]) -> None:
        """Remember that `client` is `host`'s, unless the kernel knows. `live` are the sockets whose notes are still wanted."""
        if peer_host(client) == host:
            return
        with contextlib.suppress(OSError):  # a full disk: after a kill the session counts for its load balancer
            if self._lines > 2 * len(live) + _SPARE_LINES:
                self._shorten({inode(sock) for sock in live})
            with open(self._path, "a", opener=_private) as file:
                file.write(f"{inode(client)} {host}\n")
            self._lines += 1

    def host_of(self, client: socket.socket) -> str:
        """Whose it is: as noted, or as the kernel knows; "" when nobody does."""
        return self._read().get(inode(client)) or peer_host(client)

    def _shorten(self, wanted: Collection[int]) -> None:
        kept = {number: host for number, host in self._read().items() if number in wanted}
        new = self._path.with_name(f".{self._path.name}.new")
        with open(new, "w", opener=_private) as file:
            file.writelines(f"{number} {host}\n" for number, host in kept.items())
        new.replace(self._path)
        self._lines = len(kept)

    def _read(self) -> dict[int, str]:
        found: dict[int, str] = {}
        with contextlib.suppress(OSError, UnicodeDecodeError):
            for line in self._path.read_text().splitlines():
                number, _, host = line.partition(" ")
                if number.isdecimal() and host:
                    found[int(number)] = host  # of an inode that was used again the newest counts
        self._lines = max(self._lines, len(found))
        return found


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
