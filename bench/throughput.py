"""Read-only pgbench through the door against the same PostgreSQL on a direct socket; PgBouncer and Torpor's own relay beside it.

Two databases with the same content: one under Torpor, the other's cluster under the same binaries, user and configuration without
Torpor. After half of the rounds they change places. All ways are measured in turn within a second or two of each other, and a ratio is
the median of the rounds' own ratios, so that a slow moment of the host falls on all.
"""

import contextlib
import shutil
import signal
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bench import harness
from bench.harness import Result
from bench.rig import Bare, BenchServer, Client, postgres, running, say
from tests.support.server import MadeDatabase

_BENCH = "throughput"
_SCALE = 10
_CLIENTS = 4
_TURN_S = 1
_ROUNDS = 9
_MODES = ("prepared", "simple")
_POOL_MODES = ("session", "transaction")
_Rates = dict[tuple[str, str], list[float]]


def measure() -> list[Result]:
    """Twice nine rounds of one second for each way and protocol; fewer for PgBouncer and the relay."""
    rates: _Rates = {}
    with running(page_after_s="never", stop_after_s="never") as torpor:
        databases = [torpor.create(name) for name in ("one", "two")]
        say(f"filling pgbench tables, scale {_SCALE}")
        for database in databases:
            run_program("pgbench", "-i", "-q", "-I", "dtGvp", "-s", str(_SCALE), database.url)
        for door, direct in (databases, reversed(databases)):
            say(f"{_ROUNDS} rounds")
            _half(torpor, door, direct, rates)
        say("the relay")
        torpor.stop()
        torpor.settings["relay"] = True
        torpor.start()
        for mode in _MODES:
            pgbench(databases[0].url, mode)
            rates["Torpor's relay", mode] = [pgbench(databases[0].url, mode) for _ in range(4)]
    results = []
    for mode in _MODES:
        pairs = zip(rates["door", mode], rates["direct", mode], strict=True)
        results.append(Result(_BENCH, f"door / direct, {mode}", "x", statistics.median(a / b for a, b in pairs), 0.97, at_least=True))
    for (way, mode), values in rates.items():
        rival = "" if way == "door" else way
        results.append(Result(_BENCH, f"read-only pgbench, {mode}", "/s", statistics.median(values), rival=rival))
    return results


def _half(torpor: BenchServer, door: MadeDatabase, direct: MadeDatabase, rates: _Rates) -> None:
    torpor.lay_down(direct.name, "stopped")
    program = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        say("PgBouncer isn't installed (apt-get install pgbouncer): its rows are missing")
    with contextlib.ExitStack() as running_rivals:
        bare = running_rivals.enter_context(torpor.bare(direct))
        ways: list[tuple[str, str, tuple[str, ...]]] = [("door", door.url, _MODES), ("direct", bare.url, _MODES)]
        for pool_mode in _POOL_MODES if program else ():
            url = running_rivals.enter_context(pgbouncer(program or "", torpor.data_dir, bare, direct, pool_mode))
            # PgBouncer before 1.21 breaks prepared statements in transaction mode.
            ways.append((f"PgBouncer, {pool_mode} mode", url, _MODES if pool_mode == "session" else ("simple",)))
        for _, url, modes in ways:
            pgbench(url, modes[0])  # warm-up
        for number in range(_ROUNDS):
            for mode in _MODES:
                turn = [way for way in ways if mode in way[2] and (number % 3 == 0 or way[0] in ("door", "direct"))]
                for way, url, _ in turn if number % 2 else reversed(turn):
                    rates.setdefault((way, mode), []).append(pgbench(url, mode))


def run_program(program: str, *arguments: str) -> str:
    done = subprocess.run([str(postgres().bindir / program), *arguments], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(f"{program}: {done.stderr.strip()[-1000:]}")
    return done.stdout


def pgbench(url: str, mode: str, seconds: int = _TURN_S) -> float:
    """Transactions a second, connecting not counted."""
    out = run_program("pgbench", "-n", "-S", "-M", mode, "-c", str(_CLIENTS), "-j", "2", "-T", str(seconds), url)
    return next(float(line.split("=")[1].split()[0]) for line in out.splitlines() if line.startswith("tps"))


@contextlib.contextmanager
def pgbouncer(
    program: str,
    directory: Path,
    bare: Bare,
    database: MadeDatabase,
    pool_mode: str,
    secret: str = "",
    tls: tuple[Path, Path] | None = None,
) -> Iterator[str]:
    """A PgBouncer in front of `bare`, as the computes' kind of user; yields its URL. `secret` is what it knows instead of the password."""
    place = directory / f"pgbouncer-{pool_mode}{'-tls' if tls else ''}"
    place.mkdir(mode=0o755, exist_ok=True)
    encryption = ""
    if tls is not None:
        for source, name in zip(tls, ("server.crt", "server.key"), strict=True):
            shutil.copy(source, place / name)
            shutil.chown(place / name, "nobody")
        encryption = f"client_tls_sslmode=require\nclient_tls_cert_file={place}/server.crt\nclient_tls_key_file={place}/server.key\n"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    users = place / "users.txt"
    users.write_text(f'"{database.name}" "{secret or database.password}"\n')
    settings = place / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n* = host=127.0.0.1 port={bare.port}\n[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={port}\nunix_socket_dir=\n"
        f"auth_type=scram-sha-256\nauth_file={users}\npool_mode={pool_mode}\ndefault_pool_size={_CLIENTS}\nlogfile={place}/log\n"
        f"pidfile={place}/pid\nserver_tls_sslmode=disable\n{encryption}"
    )
    shutil.chown(place, "nobody")
    process = subprocess.Popen([program, "-q", "-u", "nobody", str(settings)], stderr=subprocess.DEVNULL, start_new_session=True)
    url = f"postgresql://{database.name}:{database.password}@127.0.0.1:{port}/{database.name}" + ("?sslmode=require" if tls else "")
    try:
        _wait_answers(url, process)
        yield url
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait(10)


def _wait_answers(url: str, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(200):
        with contextlib.suppress(RuntimeError), Client(url) as client:
            client.ask("SELECT 1")
            return
        if process.poll() is not None:
            raise RuntimeError(f"PgBouncer ended with {process.returncode}")
        time.sleep(0.02)
    raise TimeoutError("PgBouncer does not answer")


if __name__ == "__main__":
    harness.main(measure)
