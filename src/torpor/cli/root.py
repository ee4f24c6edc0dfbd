"""The tree of commands, imported one by one as they are called, and the one place where errors become exit codes."""

import importlib
import json
import os
import sys
from collections.abc import Mapping, Sequence

import click

from torpor.cli.errors import CommandError, Exit, as_json, exit_code
from torpor.model.errors import TorporError

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class LazyGroup(click.Group):
    """A group that knows its commands' names and one line on each, and imports a command when it is called."""

    def __init__(self, name: str | None, commands: Mapping[str, tuple[str, str]], help: str) -> None:
        super().__init__(name, help=help, context_settings=dict(_SETTINGS))
        self._lazy = commands

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they were given: from the first steps to the rare ones."""
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command. None for an unknown one."""
        if cmd_name not in self._lazy:
            return None
        module, attribute = self._lazy[cmd_name][0].split(":")
        command = getattr(importlib.import_module(f"torpor.cli.{module}"), attribute)
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in --help, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self._lazy.items()])


COMMANDS = {
    "serve": ("serve:serve", "Run Torpor in the foreground."),
    "create": ("databases:create", "Make a database and print its URL."),
    "psql": ("psql:psql", "Open psql on a database."),
    "url": ("databases:url", "Print a database's URL."),
    "export": ("transfer:export", "Write all of a database to stdout, as SQL or as an archive."),
    "import": ("transfer:import_", "Put a dump, or a database of another server, into a database: all of it or nothing."),
    "diff": ("diff:diff", "What differs between the schemas of two databases."),
    "ls": ("databases:ls", "List databases."),
    "show": ("show:show", "All there is to say about one database: what woke it, why it is awake, what comes next."),
    "set": ("databases:set_", "Change a database's idle times, its pool, and how long it lives."),
    "size": ("sizes:size", "What a database may use, what it may use now, and why; or change that."),
    "branch": ("branches:branch", "Make a full copy of a database, which shares every byte that neither changes."),
    "branches": ("branches:branches", "List the branches of a database."),
    "reset": ("branches:reset", "Bring a branch back to what its parent is now."),
    "sleep": ("databases:sleep", "Put a database to sleep now."),
    "archive": ("archive:archive", "Send a database to the store of the history; it comes back with its next connection."),
    "wake": ("databases:wake", "Wake a database."),
    "rm": ("databases:rm", "Remove a database and all its data."),
    "logs": ("logs:logs", "Print a database's PostgreSQL log."),
    "top": ("top:top", "A live table of what is awake and why."),
    "demo": ("demo:demo", "A tour on real data: make, fill, query, fall asleep, wake; with the time of each."),
    "restore": ("restore:restore", "Bring a database back to what it was, in place; or undo that."),
    "upgrade": ("upgrade:upgrade", "Upgrade a database to a newer PostgreSQL major; or undo that."),
    "history": ("history:history", "What of a database's past can be restored, from when to when, and what it costs."),
    "backup": ("history:backup", "Take a base copy of a database now."),
    "recover": ("recover:recover", "Bring back databases of a machine that was lost, from the store of the history."),
    "drill": ("drills:drill", "Verify now that a database can be restored."),
    "drills": ("drills:drills", "What restore drills found."),
    "backups": ("history:backups", "List the base copies of a database."),
    "job": ("jobs:job", "Long operations: how far they are, and stopping them."),
    "workspace": ("workspaces:workspace", "Workspaces: who owns databases and API keys."),
    "key": ("keys:key", "API keys of workspaces."),
    "access": ("access:access", "From where clients may connect."),
    "cache": ("caching:cache", "The cache of a database: figures, rules, purges."),
    "jwt": ("tokens:tokens", "By which tokens (JSON Web Tokens) clients can log in to a database."),
    "audit": ("audit:audit", "Who did what to what, from where, with which key."),
    "tls": ("tls:tls", "Encrypted connections: what clients must trust."),
    "doctor": ("doctor:doctor", "What this host has and lacks, what each lack costs, what to do."),
    "drain": ("drain:drain", "End the running Torpor when nothing runs in it any more."),
    "host": ("host:host", "Give this host what it lacks, or take that back."),
    "postgres": ("postgres:postgres", "The installed PostgreSQL majors."),
    "image": ("image:image", "The root images: what computes have as their /."),
    "version": ("version:version", "Print the version."),
}

cli = LazyGroup("torpor", COMMANDS, "Serverless PostgreSQL that you host yourself: databases that sleep when nobody uses them.")


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. Errors are one sentence on stderr, or JSON with --json."""
    options = list(arguments)
    own = options[: options.index("--")] if "--" in options else options
    wants_json = "--json" in own
    try:
        result = cli.main(options, prog_name="torpor", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help())
        return Exit.USAGE
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "torpor"
        text = error.format_message().rstrip(".")
        return _report(CommandError(text, f"see `{where} --help`", kind="usage", code=Exit.USAGE), wants_json)
    except click.ClickException as error:
        return _report(CommandError(error.format_message(), kind="usage", code=Exit.USAGE), wants_json)
    except (KeyboardInterrupt, click.Abort):
        return Exit.INTERRUPTED
    except TorporError as error:
        return _report(error, wants_json)
    except BrokenPipeError:
        # Whoever read our output has enough of it (`torpor ls | head`): no error, and nothing more to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _report(error: TorporError, wants_json: bool) -> int:
    if wants_json:
        click.echo(json.dumps(as_json(error)), err=True)
    else:
        click.echo(f"torpor: {error}", err=True)
    return exit_code(error)
