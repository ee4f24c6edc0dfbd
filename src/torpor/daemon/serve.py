"""Runs a Torpor in the foreground until a signal ends it.

SIGINT or SIGTERM stop everything in order; a second one leaves the computes running. SIGUSR2 leaves them at once: the next start adopts
them with their connections, which is how to upgrade. Killing Torpor has the same effect.
"""

import asyncio
import contextlib
import os
import resource
import signal
import sys
from pathlib import Path

import uvloop

from torpor.base.logs import configure, get_logger
from torpor.daemon.house import House
from torpor.model.errors import HostError
from torpor.model.settings import Settings

log = get_logger(__name__)

EXIT_FAULT = 1


def run(settings: Settings) -> int:
    """Serve; the exit code. What the host lacks is one sentence on standard error and a code of its own."""
    configure(settings.log_format)
    _raise_file_limit()
    _keep_descriptors_to_ourselves()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(settings))
    except HostError as error:
        print(f"torpor: {error}", file=sys.stderr)
        return error.exit_code


async def _serve(settings: Settings) -> int:
    loop = asyncio.get_running_loop()
    asked: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        loop.add_signal_handler(number, asked.put_nowait, number)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closed terminal must not take databases with it
    house = House(settings)
    await house.start()
    _greet(house, settings)
    first = await asked.get()
    log.info("stopping", signal=first.name, computes="stay" if first is signal.SIGUSR2 else "are stopped")
    stopping = asyncio.create_task(house.stop(leave=first is signal.SIGUSR2), name="stop")
    again = asyncio.create_task(asked.get(), name="second signal")
    await asyncio.wait({stopping, again}, return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        log.warning("asked again: leaving at once; computes that still run are adopted by the next start")
        os._exit(EXIT_FAULT)
    again.cancel()
    await stopping
    return 0


def _greet(house: House, settings: Settings) -> None:
    host, port = house.door.address
    torpor = _command(settings)
    lines = [
        f"Torpor serves PostgreSQL {settings.postgres_major} from {settings.data_dir}",
        f"  the door   {host}:{port}",
        f"  the API    {house.api.url}/v1   (docs: {house.api.url}/docs, metrics: {house.api.url}/metrics)",
        f"  next       {torpor} create shop        Ctrl-C stops everything",
    ]
    print("\n".join(lines), flush=True)


def _command(settings: Settings) -> str:
    """How to call the command line from where the user is."""
    program = Path(sys.argv[0])
    name = "torpor"
    if os.access(program, os.X_OK):
        relative = os.path.relpath(program)
        on_path = any((Path(directory) / "torpor").exists() for directory in os.environ.get("PATH", "").split(":"))
        name = "torpor" if on_path else (relative if len(relative) < len(str(program)) else str(program))
    from torpor.daemon.configuration import default_data_dir

    return name if Path(settings.data_dir) == default_data_dir(os.environ) else f"{name} --data-dir {settings.data_dir}"


def _keep_descriptors_to_ourselves() -> None:
    """What whoever started us left open must not reach the tenants' PostgreSQL."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):  # the one that listed them
                os.set_inheritable(int(name), False)


def _raise_file_limit() -> None:
    """Each connection takes two descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
