"""The process: `python -m torpor.gateway.http`, started by the daemon, which tells it what to do on descriptor 3.

As soon as it has what it needs it becomes a user that owns nothing but its own directory. It ends with the daemon.
"""

import asyncio
import contextlib
import ctypes
import os
import socket
import ssl
import sys
import tempfile
from pathlib import Path

import uvloop

from torpor.base.logs import configure, get_logger
from torpor.base.tasks import TaskOwner
from torpor.gateway.http.app import App
from torpor.gateway.http.backend import Door
from torpor.gateway.http.control import CONTROL_FD, PACKET_BYTES, Configuration, configuration, decode, encode
from torpor.gateway.http.figures import COUNT, tell
from torpor.gateway.http.kept import Kept
from torpor.gateway.http.places import Places
from torpor.gateway.http.purging import Purger
from torpor.gateway.http.receipts import Receipts
from torpor.gateway.http.server import Server
from torpor.model.encryption import TlsMode

log = get_logger("torpor.gateway.http")

_ORPHANED_GRACE_S = 5.0
_PR_SET_NO_NEW_PRIVS = 38
_MOST_DESCRIPTORS = 4


def main() -> int:
    """Serve until the daemon says otherwise, or has ended; the exit code."""
    control = socket.socket(fileno=CONTROL_FD)
    data, fds, _, _ = socket.recv_fds(control, PACKET_BYTES, _MOST_DESCRIPTORS)
    if not data or len(fds) != 1:
        return 1
    wanted = configuration(decode(data)["configure"])
    configure(wanted.log_format)
    _become(wanted.uid)
    listener = socket.socket(fileno=fds[0])
    listener.setblocking(False)
    control.setblocking(False)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, listener, control:
        return runner.run(_serve(control, listener, wanted))


async def _serve(control: socket.socket, listener: socket.socket, wanted: Configuration) -> int:
    tasks = TaskOwner("http")
    door = Door(wanted.door_host, wanted.door_port, wanted.secret.encode())
    receipts = Receipts(Path(wanted.directory) / "receipts")
    receipts.load()
    kept = Kept(door, wanted.keep_s, tasks)
    purger = Purger(control)
    places = Places()
    app = App(door, kept, places, receipts, TlsMode(wanted.tls), wanted.proxies, tasks, purger.purge)
    server = Server(listener, app.handle, tasks)
    server.certificates = _certificates(wanted.certificates, Path(wanted.directory))
    server.start()
    tasks.spawn_endless(receipts.tidy, "tidy receipts")
    tasks.spawn_endless(lambda: tell(control, lambda: COUNT.figures(len(server), places.taken, places.waiting, len(kept))), "tell figures")
    control.send(encode({"ready": True}))
    grace_s, turn_away = await _obey(control, server, purger, Path(wanted.directory))
    await server.stop(grace_s, turn_away)
    app.close()
    await kept.close()
    await tasks.stop()
    return 0


async def _obey(control: socket.socket, server: Server, purger: Purger, directory: Path) -> tuple[float, bool]:
    """Do as the daemon says until the end: how much grace there is then, and whether to tell those who wait that they wait in vain."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            data = await loop.sock_recv(control, PACKET_BYTES)
        except OSError:
            data = b""
        if not data:
            return _ORPHANED_GRACE_S, False
        packet = decode(data)
        if "stop" in packet:
            return float(packet["stop"]), bool(packet.get("last"))
        if "purged" in packet:
            purger.hear(packet["purged"])
        if "pause" in packet:
            server.pause()
        if "certificates" in packet:
            server.certificates = _certificates([(str(chain), str(key)) for chain, key in packet["certificates"]], directory)


def _certificates(pairs: list[tuple[str, str]], directory: Path) -> ssl.SSLContext | None:
    """What TLS is spoken with: the first pair, or the one whose names the client asks for."""
    if not pairs:
        return None
    contexts = [_context(chain, key, directory) for chain, key in pairs]
    by_name = {name: context for (chain, _), context in zip(pairs, contexts, strict=True) for name in _names(chain)}

    def choose(connection: ssl.SSLObject, name: str | None, _first: ssl.SSLContext) -> None:
        wanted = (name or "").lower()
        found = by_name.get(wanted) or by_name.get(f"*.{wanted.partition('.')[2]}")
        if found is not None:
            connection.context = found

    if len(contexts) > 1:
        contexts[0].sni_callback = choose
    return contexts[0]


def _context(chain: str, key: str, directory: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    with tempfile.NamedTemporaryFile(dir=directory) as file:  # ssl reads files only
        file.write(f"{chain}\n{key}\n".encode())
        file.flush()
        context.load_cert_chain(file.name)
    return context


def _names(chain: str) -> list[str]:
    from cryptography import x509

    certificate = x509.load_pem_x509_certificate(chain.encode())
    with contextlib.suppress(x509.ExtensionNotFound):
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return [name.lower() for name in names.get_values_for_type(x509.DNSName)]
    return []


def _become(uid: int) -> None:
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    with contextlib.suppress(OSError):
        os.chdir("/")


if __name__ == "__main__":
    sys.exit(main())
