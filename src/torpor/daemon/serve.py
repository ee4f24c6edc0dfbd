"""Runs a Torpor in the foreground until a signal, a drain or the next Torpor ends it.

SIGTERM and `torpor drain`: nobody new is let in, what runs may finish, then everything is stopped in order.
SIGINT (Ctrl-C): everything is stopped in order at once; statements that run are ended.
SIGUSR2: ends at once and leaves the computes running with their connections; the next start adopts them. So does killing it.
A second SIGTERM or SIGINT: the same.
SIGHUP: reads the TLS certificates again.
The next Torpor (`torpor serve --take-over`, or any `torpor serve` while this one drains): gets the listening sockets, see `handoff`.

Concurrency: one loop of wishes (`_reign`); everything that takes time is awaited beside the next wish.
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
from torpor.daemon import notify
from torpor.daemon.directory import DataFiles
from torpor.daemon.ground import Ground
from torpor.daemon.handoff import Estate, Heir, Heirs, Predecessor, ask
from torpor.daemon.house import House
from torpor.model.errors import HostError
from torpor.model.settings import Settings

log = get_logger(__name__)

EXIT_FAULT = 1
_PREDECESSOR_ENDS_S = 10.0
_HEIR_LOADS_S = 5.0

Wish = signal.Signals | Heir


def run(settings: Settings, take_over: bool = False) -> int:
    """Serve; the exit code. What the host lacks is one sentence on standard error and a code of its own."""
    configure(settings.log_format)
    _raise_file_limit()
    _keep_descriptors_to_ourselves()
    try:
        predecessor = ask(settings, take_over)
        ground = estate = None
        if predecessor is not None:
            ground = Ground(settings, DataFiles(Path(settings.data_dir)))
            estate = predecessor.let_go()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(settings, predecessor, ground, estate))
    except HostError as error:
        print(f"torpor: {error}", file=sys.stderr)
        return error.exit_code


async def _serve(settings: Settings, predecessor: Predecessor | None, ground: Ground | None, estate: Estate | None) -> int:
    loop = asyncio.get_running_loop()
    wishes: asyncio.Queue[Wish] = asyncio.Queue()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        loop.add_signal_handler(number, wishes.put_nowait, number)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closed terminal must not take databases with it
    house = House(settings, estate, ground, 0.0 if predecessor is None else _PREDECESSOR_ENDS_S)
    await house.start()
    reign = Reign(settings, house, wishes)  # whoever is told that this one serves can ask for its place
    if predecessor is not None:
        predecessor.confirm()
    notify.ready()
    _greet(house, settings)
    return await reign.last()


class Reign:
    """A Torpor that serves, from its first wish to its end."""

    def __init__(self, settings: Settings, house: House, wishes: "asyncio.Queue[Wish]") -> None:
        self._settings = settings
        self._house = house
        self._wishes = wishes
        self._told_to_end = False
        self._heirs = self._open_to_heirs()
        # Ignored until now, and never deadly: a closed terminal must not take databases with it.
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)

    async def last(self) -> int:
        """Until the end; the exit code."""
        while True:
            match await self._next_wish():
                case Heir() as heir:
                    if await self._pass_to(heir):
                        await self._heirs.close(remove=False)
                        return 0
                case None:
                    return await self._end("drained")
                case signal.SIGUSR2:
                    return await self._end("left", leave=True)
                case _ if self._told_to_end:
                    self._leave_at_once()
                case signal.SIGTERM:
                    self._told_to_end = True
                    self._house.drain()
                    notify.notify("STATUS=draining")  # not yet that it ends: the next Torpor may be the same service
                    print("torpor: draining; a second signal ends it at once", file=sys.stderr)
                case _:
                    return await self._end("told to stop")

    def _reload(self) -> None:
        self._house.reload_certificates()

    async def _next_wish(self) -> Wish | None:
        """What is wished next; None when a drain is over and nobody is about to take over."""
        wish = asyncio.create_task(self._wishes.get(), name="next wish")
        drained = asyncio.create_task(self._house.drained.wait(), name="drained")
        try:
            await asyncio.wait({wish, drained}, return_when=asyncio.FIRST_COMPLETED)
            if not wish.done() and self._heirs.expected:
                await asyncio.wait({wish}, timeout=_HEIR_LOADS_S)
            return wish.result() if wish.done() else None
        finally:
            wish.cancel()
            drained.cancel()

    async def _end(self, why: str, leave: bool = False) -> int:
        """Stop in order, unless another signal comes."""
        notify.stopping(why)
        log.info("stopping", because=why, computes="stay" if leave else "are stopped")
        await self._heirs.close(remove=True)
        stopping = asyncio.create_task(self._house.stop(leave), name="stop")
        again = asyncio.create_task(self._next_signal(), name="second signal")
        await asyncio.wait({stopping, again}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            self._leave_at_once()
        again.cancel()
        await stopping
        return 0

    async def _next_signal(self) -> None:
        while isinstance(await self._wishes.get(), Heir):
            pass  # too late: it starts by itself when this one has ended

    def _leave_at_once(self) -> None:
        log.warning("asked again: leaving at once; computes that still run are adopted by the next start")
        os._exit(EXIT_FAULT)

    async def _pass_to(self, heir: Heir) -> bool:
        """Let the next Torpor take over; False when it didn't, and this one serves again."""
        log.info("handing over", to=heir.pid)
        remaining_s = self._house.drain_remaining_s
        estate = await self._house.hand_over()
        if await heir.inherit(estate):
            log.info("handed over", to=heir.pid)
            return True
        self._house = House(self._settings, estate, self._house.ground)
        await self._house.start()
        if remaining_s is not None:
            self._house.drain(remaining_s)
        await self._heirs.close(remove=False)
        self._heirs = self._open_to_heirs()
        log.warning("serving again, as the next Torpor didn't take over")
        return False

    def _open_to_heirs(self) -> Heirs:
        door_host, door_port = self._settings.door_host, self._house.door.address[1]
        addresses = {"door_host": door_host, "door_port": door_port, "api_host": self._settings.api_host, "api_port": self._house.api.port}
        house = self._house
        heirs = Heirs(Path(self._settings.data_dir), addresses, lambda: house.drain_remaining_s is not None, self._wishes.put_nowait)
        heirs.open()
        return heirs


def _greet(house: House, settings: Settings) -> None:
    host, port = house.door.address
    torpor, where = _command(settings)
    lines = [
        f"Torpor serves PostgreSQL {settings.postgres_major} from {settings.data_dir}",
        f"  the door   {host}:{port}",
        *(["  pooled     {}:{}".format(*pooled)] if (pooled := house.door.pool_address) is not None else []),
        f"  the API    {house.api.url}/v1   (docs: {house.api.url}/docs, metrics: {house.api.url}/metrics)",
        *([f"  over HTTP  {house.http.url}/sql"] if house.http is not None else []),
        f"  next       {torpor} create shop{where}",
        f"  the end    Ctrl-C stops everything at once; `{torpor} drain{where}` and SIGTERM let statements finish",
    ]
    print("\n".join(lines), flush=True)


def _command(settings: Settings) -> tuple[str, str]:
    """How to call the command line from where the user is, and what to say last."""
    program = Path(sys.argv[0])
    name = "torpor"
    if os.access(program, os.X_OK):
        relative = os.path.relpath(program)
        on_path = any((Path(directory) / "torpor").exists() for directory in os.environ.get("PATH", "").split(":"))
        name = "torpor" if on_path else (relative if len(relative) < len(str(program)) else str(program))
    from torpor.daemon.configuration import default_data_dir

    return name, "" if Path(settings.data_dir) == default_data_dir(os.environ) else f" --data-dir {settings.data_dir}"


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
