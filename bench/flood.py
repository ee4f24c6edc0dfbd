"""One address floods the door as fast as one process can; another logs in meanwhile, until its first row from an awake database.

Two floods: connections that stay silent until their address may have no more, and then are refused; and guesses at a password.
The flood has a processor of its own as far as there is one: what is measured is what the door lets it take from the others.
"""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from urllib.request import Request, urlopen

from bench import harness
from bench.harness import Result, percentile
from bench.rig import FILL, BenchServer, Client, first_row, running, say
from torpor.pgwire.startup import StartupMessage

_BENCH = "flood"
_SAMPLES = 200
_HELD = 1500  # more than one address may have
_OTHER = "127.0.0.66"


def measure() -> list[Result]:
    """Log in 200 times without a flood, and 200 times in each."""
    with running(tls="off", failed_login_penalty_s=1, freeze_after_s="never") as torpor:
        database = torpor.create("shop")
        url = f"{database.url}?sslmode=disable"
        with Client(url) as client:
            client.ask(FILL)
        first_row(url)
        say("logins without a flood")
        quiet = [first_row(url) for _ in range(_SAMPLES)]
        results = harness.latencies(_BENCH, "to first row, no flood", quiet)
        for kind in ("silent", "guesses"):
            say(f"logins in a flood of {kind}")
            with flood(kind, torpor.door_port):
                before, began = _accepted(torpor), time.monotonic()
                flooded = [first_row(url) for _ in range(_SAMPLES)]
                rate = (_accepted(torpor) - before) / (time.monotonic() - began)
            results += harness.latencies(_BENCH, f"to first row, {kind}", flooded)
            results.append(Result(_BENCH, f"p50 {kind} / no flood", "x", percentile(flooded, 50) / percentile(quiet, 50)))
            results.append(Result(_BENCH, f"connections of the flood, {kind}", "/s", rate))
    return results


@contextlib.contextmanager
def flood(kind: str, port: int) -> Iterator[None]:
    """Flood the door from a process of its own."""
    process = subprocess.Popen([sys.executable, "-m", "bench.flood", kind, str(port)], stdin=subprocess.PIPE)
    time.sleep(2)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _accepted(torpor: BenchServer) -> float:
    request = Request(f"{torpor.api_url}/metrics", headers={"Authorization": f"Bearer {torpor.token}"})
    with urlopen(request, timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line for line in lines if line.startswith("torpor_door_accepted_total ")).split()[1])


def _flood(kind: str, port: int) -> None:
    held: list[socket.socket] = []
    guess = StartupMessage({"user": "shop", "database": "shop"}).encode()
    while True:
        sock = socket.socket()
        sock.settimeout(2)
        with contextlib.suppress(OSError):
            sock.bind((_OTHER, 0))
            sock.connect(("127.0.0.1", port))
            if kind == "silent" and len(held) < _HELD:
                held.append(sock)
                continue
            if kind == "guesses":
                sock.sendall(guess)
                sock.recv(4096)
        sock.close()


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in ("silent", "guesses"):
        _flood(sys.argv[1], int(sys.argv[2]))
    else:
        harness.main(measure)
