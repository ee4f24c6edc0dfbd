"""`torpor serve`: the daemon, with every setting as a flag. The flags come from the declarations in `torpor.model.settings`."""

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from torpor.daemon import configuration
from torpor.model.settings import Settings, effects


def _option(name: str, effect: str, default: object, is_flag: bool) -> click.Option:
    shown = "" if default == "" else f" [default: {'never' if default is None else str(default).lower()}]"
    # Text throughout: `configuration.load` converts and checks, the same way for flags, environment and file.
    flag: dict[str, Any] = {"is_flag": False, "flag_value": "true", "metavar": "[true|false]"} if is_flag else {"metavar": "VALUE"}
    return click.Option([f"--{name.replace('_', '-')}", name], type=str, default=None, help=effect + shown, **flag)


def _options() -> list[click.Parameter]:
    texts = effects()
    own: list[click.Parameter] = [
        click.Option(["--config"], type=click.Path(path_type=Path), help="Read this torpor.toml instead of the data directory's."),
        click.Option(
            ["--take-over"], is_flag=True, help="Take the place of the Torpor that runs here: no connection is refused, no session dropped."
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="Log in JSON, and tell errors in JSON."),
    ]
    return [_option(f.name, texts[f.name], f.default, isinstance(f.default, bool)) for f in fields(Settings)] + own


def _serve(config: Path | None, take_over: bool, as_json: bool, **given: str | None) -> int:
    flags = {name: value for name, value in given.items() if value is not None}
    if as_json:
        flags.setdefault("log_format", "json")
    settings = configuration.load(flags, os.environ, config)
    from torpor.daemon.serve import run

    return int(run(settings, take_over))


serve = click.Command(
    "serve",
    params=_options(),
    callback=_serve,
    help="Run Torpor in the foreground.\n\n"
    "Ctrl-C (SIGINT) stops everything at once and in order. SIGTERM drains: nobody new is let in, what runs may finish. "
    "A second signal ends Torpor at once; databases and connections stay, and the next start adopts them.\n\n"
    "Each setting can also be given as TORPOR_<NAME> in the environment, or in torpor.toml in the data directory.",
)
