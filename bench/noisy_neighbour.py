"""What a neighbour at full tilt costs a quiet database: processor, memory, disk writes, connections; each alone and all at once.

The quiet one has a single client in a closed loop, reading (a row by its key) or writing (a small transaction, with a commit each time).
It is measured alone and beside the neighbour in turn, some seconds each; a ratio is the median of the rounds' own ratios. "Without limits"
is the same with the kernel's limits on both computes taken away by hand; turns of logins and processors kept free stay. The clients of the
neighbour are in an idle group (cpu.idle), as if they were on other machines: on two cores they would be most of the noise. (Idle priority
alone isn't enough: it counts among the processes of one session only where the kernel groups them by session, `sched_autogroup`.)
"""

import contextlib
import os
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from bench import harness
from bench.harness import Result, percentile
from bench.rig import BenchServer, Zram, postgres, running, say
from tests.support.server import MadeDatabase
from torpor.base.cgroups import layout_from_mounts
from torpor.daemon.directory import instance_name

_BENCH = "noisy_neighbour"
_ROUNDS = 4
_TURN_S = 3
_SETTLE_S = 1.5
_SCALE = 5
_QUIET = {"reading": ("-S", "-M", "prepared"), "writing": ("-N", "-M", "prepared")}
_NOISE: dict[str, list[tuple[int, str]]] = {
    "processor": [(8, "SELECT sum(sqrt(i)) FROM generate_series(1, 3000000) i;")],
    # Twice what it may have, over and over: sorts that fill it, and sessions that pass it and are ended by the kernel.
    "memory": [
        (3, "SET work_mem = '400MB';\nSELECT count(*) FROM (SELECT md5(i::text) FROM generate_series(1, 2000000) i ORDER BY 1) s;"),
        (1, "SELECT length(repeat('x', 1000000000));\n\\sleep 500 ms"),
    ],
    "disk writes": [
        (3, "DROP TABLE IF EXISTS waste:client_id;\nCREATE TABLE waste:client_id AS SELECT i, repeat('x', 500) AS x "
            "FROM generate_series(1, 100000) i;\nCHECKPOINT;"),
        (3, "INSERT INTO pgbench_history SELECT 1, 1, 1, 1, now(), 'x' FROM generate_series(1, 10);"),
    ],
}  # fmt: skip
_CONNECTING = 8


def measure() -> list[Result]:
    """Four rounds for each kind of noise and each quiet load, with limits and without."""
    results: list[Result] = []
    with Zram() as zram:
        zram.add(4)
        with running(freeze_after_s="never", page_after_s="never", stop_after_s="never") as torpor:
            quiet, noisy = torpor.create("quiet"), torpor.create("noisy")
            for database in (quiet, noisy):
                _run("pgbench", "-i", "-q", "-s", str(_SCALE), _plain(database))
            _run("psql", "-c", f'GRANT pg_checkpoint TO "{noisy.name}"', _plain(noisy), check=False)
            _wait_until_quiet(torpor, quiet)
            for limits in (True, False):
                with contextlib.nullcontext() if limits else _unlimited(torpor, quiet, noisy):
                    for kind in (*_NOISE, "connections", "all"):
                        say(f"{kind}, {'with' if limits else 'without'} limits")
                        results += _one_kind(torpor, quiet, noisy, kind, limits)
    return results


def _wait_until_quiet(torpor: BenchServer, quiet: MadeDatabase) -> None:
    """Who has just been filled has written so much that it is a noisy neighbour itself."""
    deadline = time.monotonic() + 60
    while torpor.view(quiet.name)["database"]["pace"] == "yielding" and time.monotonic() < deadline:
        time.sleep(0.5)


def _one_kind(torpor: BenchServer, quiet: MadeDatabase, noisy: MadeDatabase, kind: str, limits: bool) -> list[Result]:
    results = []
    for load, options in _QUIET.items():
        alone, beside, used = [], [], []
        for _ in range(_ROUNDS if limits else 2):
            alone.append(_quiet_load(torpor, quiet, options))
            with _noise(torpor, noisy, kind):
                time.sleep(_SETTLE_S)
                before = torpor.view(noisy.name)["database"]["cpu_ms"]
                beside.append(_quiet_load(torpor, quiet, options))
                used.append(max(0, torpor.view(noisy.name)["database"]["cpu_ms"] - before) / 1000 / _TURN_S)
            time.sleep(0.5)
        share = statistics.median(b[0] / a[0] for a, b in zip(alone, beside, strict=True))
        p99 = statistics.median(b[1] / a[1] for a, b in zip(alone, beside, strict=True))
        rival = "" if limits else "without limits"
        results += [
            Result(_BENCH, f"{load} beside {kind}: throughput kept", "x", share, 0.8 if limits else None, at_least=True, rival=rival),
            Result(_BENCH, f"{load} beside {kind}: p99", "x", p99, 2.0 if limits else None, rival=rival),
        ]
        if limits:
            results.append(Result(_BENCH, f"{load} beside {kind}: p99 in ms", "ms", statistics.median(b[1] for b in beside)))
            results.append(Result(_BENCH, f"{load}, alone, p99 in ms ({kind})", "ms", statistics.median(a[1] for a in alone)))
        rates, p99s = ([round(values[part], 2) for values in alone + beside] for part in (0, 1))
        say(f"{load} beside {kind}: {share:.2f} x throughput, {p99:.2f} x p99; alone, then beside: {rates} a second, p99 {p99s} ms")
        say(f"the neighbour used {[round(value, 2) for value in used]} processors")
    return results


def _quiet_load(torpor: BenchServer, quiet: MadeDatabase, options: tuple[str, ...]) -> tuple[float, float]:
    """Transactions a second, and the 99th percentile of their latency in ms."""
    prefix = torpor.data_dir / "quiet-log"
    for old in torpor.data_dir.glob("quiet-log.*"):
        old.unlink()
    _run("pgbench", "-n", *options, "-c", "1", "-T", str(_TURN_S), "-l", f"--log-prefix={prefix}", _plain(quiet))
    latencies = [int(line.split()[2]) / 1000 for path in torpor.data_dir.glob("quiet-log.*") for line in path.read_text().splitlines()]
    return len(latencies) / _TURN_S, percentile(latencies, 99)


@contextlib.contextmanager
def _noise(torpor: BenchServer, noisy: MadeDatabase, kind: str) -> Iterator[None]:
    """The neighbour at full tilt for as long as it lasts. Its clients come again when they are thrown out."""
    over = threading.Event()
    kinds = [*_NOISE, "connections"] if kind == "all" else [kind]
    clients: list[list[str]] = []
    running_now: set[subprocess.Popen[bytes]] = set()
    lock = threading.Lock()

    def keep_running(command: list[str], elsewhere: Path) -> None:
        while not over.is_set():
            with lock:
                if over.is_set():
                    return
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
                with contextlib.suppress(ProcessLookupError):  # it has ended already
                    (elsewhere / "cgroup.procs").write_text(str(process.pid))
                running_now.add(process)
            process.wait()
            with lock:
                running_now.discard(process)
            over.wait(0.05)

    for each in kinds:
        if each == "connections":
            script = _script(torpor, "connect", "SELECT 1;")
            commands = [_pgbench(noisy, script, 1, "-C") for _ in range(_CONNECTING)]
        else:
            commands = [
                _pgbench(noisy, _script(torpor, f"{each}-{number}".replace(" ", "-"), sql), 1)
                for number, (count, sql) in enumerate(_NOISE[each])
                for _ in range(count)
            ]
        for number, command in enumerate(commands):
            clients.append([*command[:-1], "-D", f"client_id={number}", command[-1]])
    with _elsewhere() as elsewhere:
        threads = [threading.Thread(target=keep_running, args=(command, elsewhere)) for command in clients]
        for thread in threads:
            thread.start()
        try:
            _wait_for_sessions(torpor, noisy, len(threads) // 2 if kind != "connections" else 1)
            yield
        finally:
            over.set()
            with lock:
                for process in running_now:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
            for thread in threads:
                thread.join()
            torpor.lay_down(noisy.name, "stopped")
            torpor.call("POST", f"/v1/databases/{noisy.name}/wake")


def _wait_for_sessions(torpor: BenchServer, noisy: MadeDatabase, count: int) -> None:
    """Clients at idle priority can take long to log in."""
    deadline = time.monotonic() + 20
    while torpor.view(noisy.name)["database"]["connections"] < count:
        if time.monotonic() > deadline:
            say(f"only {torpor.view(noisy.name)['database']['connections']} clients of the neighbour are there")
            return
        time.sleep(0.1)


@contextlib.contextmanager
def _unlimited(torpor: BenchServer, *databases: MadeDatabase) -> Iterator[None]:
    """Take away the limits of computes, again and again, since Torpor sets them anew."""
    layout, over = layout_from_mounts(Path("/proc/self/mountinfo").read_text()), threading.Event()
    instance = instance_name(torpor.data_dir)

    def lift() -> None:
        while not over.wait(0.1):
            for database in databases:
                files = layout.below(f"{instance}.{database.id}")
                cpu, memory = files.cpu_v1 or files.unified, files.memory_v1 or files.unified
                for directory, name, value in (
                    (cpu, "cpu.idle", "0"), (cpu, "cpu.cfs_quota_us", "-1"), (cpu, "cpu.max", "max"),
                    (memory, "memory.memsw.limit_in_bytes", "-1"), (memory, "memory.limit_in_bytes", "-1"),
                    (memory, "memory.soft_limit_in_bytes", "-1"), (memory, "memory.high", "max"), (memory, "memory.max", "max"),
                ):  # fmt: skip
                    with contextlib.suppress(OSError):
                        if directory is not None and (directory / name).exists():
                            (directory / name).write_text(value)

    thread = threading.Thread(target=lift)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def _elsewhere() -> Iterator[Path]:
    """A group for those to whom only goes what is idle of the processors. Needs root, and cgroups with `cpu.idle` (Linux 5.15)."""
    layout = layout_from_mounts(Path("/proc/self/mountinfo").read_text())
    root = layout.shares_v1 or layout.unified
    assert root is not None
    group = root / f"torpor-bench-{os.getpid()}"
    group.mkdir()
    try:
        (group / "cpu.idle").write_text("1")
        yield group
    finally:
        group.rmdir()


def _script(torpor: BenchServer, name: str, sql: str) -> Path:
    path = torpor.data_dir / f"{name}.sql"
    path.write_text(sql + "\n")
    return path


def _pgbench(database: MadeDatabase, script: Path, clients: int, *options: str) -> list[str]:
    program = str(postgres().bindir / "pgbench")
    return [program, "-n", "-f", str(script), "-c", str(clients), "-T", "3600", *options, _plain(database)]


def _plain(database: MadeDatabase) -> str:
    """Its URL without TLS: sockets are handed over."""
    return f"{database.url}?sslmode=disable"


def _run(program: str, *arguments: str, check: bool = True) -> str:
    done = subprocess.run([str(postgres().bindir / program), *arguments], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode and check:
        raise RuntimeError(f"{program}: {done.stderr.strip()[-1000:]}")
    return done.stdout


if __name__ == "__main__":
    harness.main(measure)
