"""What every command has: --json, --data-dir, the API when it asks for it, and one way to say things.

Results go to stdout, everything else to stderr. One thread; progress is drawn by a second one while the first waits for an answer.
"""

import contextlib
import functools
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import click

from torpor.cli.errors import CommandError

if TYPE_CHECKING:
    from torpor.cli.client import Client
    from torpor.cli.passwords import Passwords

P = ParamSpec("P")
# Most answers come faster, and something that flashes by tells nobody anything.
_PROGRESS_AFTER_S = 0.4


@dataclass(frozen=True, slots=True)
class Invocation:
    """One run of one command."""

    json: bool
    given_data_dir: Path | None

    @property
    def data_dir(self) -> Path:
        """The data directory, whether anything is there or not."""
        if self.given_data_dir is not None:
            return self.given_data_dir.absolute()
        from torpor.daemon.configuration import default_data_dir

        return Path(os.environ.get("TORPOR_DATA_DIR") or default_data_dir(os.environ)).absolute()

    def connect(self) -> "Client":
        """A client of the running Torpor, closed when the command ends. Raises CommandError when there is none to be found."""
        # Imported here, as a third of the time that a command takes to start goes into http.client.
        from torpor.cli.client import Client, find_api

        client = Client(find_api(self.given_data_dir, os.environ))
        click.get_current_context().call_on_close(client.close)
        return client

    def passwords(self, client: "Client") -> "Passwords":
        """The passwords known on this machine."""
        from torpor.cli.passwords import Passwords

        return Passwords(os.environ, client.address.url)

    def emit(self, value: Any, text: str | Callable[[], str]) -> None:
        """The result: `value` as JSON with --json, otherwise the text (computed only then)."""
        if self.json:
            click.echo(json.dumps(value))
            return
        shown = text if isinstance(text, str) else text()
        if shown:
            click.echo(shown)

    def hint(self, text: str) -> None:
        """Something for the person at the terminal: not part of the result."""
        if not self.json:
            click.echo(text, err=True)

    @contextlib.contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Show that something takes its time, if it does and somebody watches."""
        if self.json or not sys.stderr.isatty():
            yield
            return
        ended = threading.Event()
        thread = threading.Thread(target=_show_progress, args=(text, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _show_progress(text: str, ended: threading.Event) -> None:
    if ended.wait(_PROGRESS_AFTER_S):
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        ended.wait()


def with_invocation(function: Callable[Concatenate[Invocation, P], None]) -> Callable[P, None]:
    """Give a command --json and --data-dir, and pass them to it as an Invocation."""

    @click.option("--json", "as_json", is_flag=True, help="Machine-readable result on stdout, errors as JSON on stderr.")
    @click.option(
        "--data-dir", type=click.Path(path_type=Path), help="Torpor's data directory (default: TORPOR_DATA_DIR, or the usual one)."
    )
    @functools.wraps(function)
    def wrapped(*args: Any, as_json: bool, data_dir: Path | None, **kwargs: Any) -> None:
        function(Invocation(as_json, data_dir), *args, **kwargs)

    return wrapped  # type: ignore[return-value]  # the two options are taken out again before the function is called


def confirm(invocation: Invocation, question: str) -> None:
    """Ask before something that can't be taken back, when there is somebody to ask. Raises CommandError for a no."""
    if invocation.json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return
    if not click.confirm(question, err=True):
        raise CommandError("nothing was done", kind="declined")
