"""`torpor key`: the API keys of a workspace. Each command is one request, and its answer in words.

A key's text goes to stdout, alone, so that it can be piped into where it is kept; it is shown this once.
"""

import re
import time
from typing import Any

import click

from torpor.cli import text
from torpor.cli.client import workspace_path
from torpor.cli.invocation import Invocation, with_invocation
from torpor.cli.root import LazyGroup
from torpor.model.workspace import KEY_PREFIX
from torpor.model.workspace_views import CreatedKey, KeyList, KeyView

key = LazyGroup(
    "key",
    {
        "create": ("keys:create", "Make an API key and print it, this once."),
        "ls": ("keys:ls", "List the API keys of a workspace."),
        "revoke": ("keys:revoke", "End an API key, at once."),
    },
    "API keys of workspaces.",
)

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "y": 365 * 86400}
_WORKSPACE_HELP = "Whose key (default: the workspace of your own key, or the one named default)."


class Lifetime(click.ParamType[float | str]):
    """A number with a unit: 12h, 90d, 1y; `endless`: or "never"."""

    name = "time"

    def __init__(self, *, endless: bool = False) -> None:
        self._endless = endless

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        """Seconds, or the word."""
        if self._endless and value == "never":
            return "never"
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdwy])", str(value))
        if match is None:
            self.fail(f"{value!r} is not a time: give a number with a unit, such as 12h, 90d or 1y", param, ctx)
        return float(match[1]) * _SECONDS[match[2]]


@click.command()
@click.option("--workspace", default="self", help=_WORKSPACE_HELP)
@click.option(
    "--scope",
    type=click.Choice(["read", "write", "admin", "metrics"]),
    default="read",
    show_default=True,
    help="read sees, write also changes and connects, admin also rules over keys; metrics is for Prometheus alone.",
)
@click.option("--name", required=True, help="What it is for, in a word or a few.")
@click.option("--expires", type=Lifetime(), help="How long it lives, such as 12h, 90d or 1y (default: until it is revoked).")
@with_invocation
def create(invocation: Invocation, workspace: str, scope: str, name: str, expires: float | None) -> None:
    """Make an API key and print it on stdout. It is shown this once, and kept nowhere."""
    client = invocation.connect()
    answer = client.post(workspace_path(workspace, "keys"), {"name": name, "scope": scope, "expires_in_s": expires})
    made = client.decode(CreatedKey, answer)
    invocation.emit(answer, made.secret)
    until = "until it is revoked" if made.key.expires_at is None else f"for {text.duration(made.key.expires_at - made.key.created_at)}"
    invocation.hint(f"it allows {made.key.scope} in the workspace {made.key.workspace}, {until}; it isn't shown again")
    invocation.hint(f"use: TORPOR_API_KEY=… TORPOR_API_URL={client.address.url}; end: torpor key revoke {made.key.id}")


@click.command()
@click.option("--workspace", default="self", help=_WORKSPACE_HELP)
@with_invocation
def ls(invocation: Invocation, workspace: str) -> None:
    """List the API keys of a workspace, oldest first."""
    client = invocation.connect()
    answer = client.get(workspace_path(workspace, "keys"))
    keys = client.decode(KeyList, answer).keys
    now = time.time()
    head = ["KEY", "NAME", "SCOPE", "AGE", "BY", "LAST-USED", "EXPIRES"]
    invocation.emit(answer, lambda: text.table(head, [_row(one, now) for one in keys]) if keys else "")
    if not keys:
        invocation.hint("no keys; make one with `torpor key create`")


@click.command()
@click.argument("key")
@click.option("--workspace", default="self", help=_WORKSPACE_HELP)
@with_invocation
def revoke(invocation: Invocation, key: str, workspace: str) -> None:
    """End an API key, at once. KEY is its id, as `torpor key ls` shows it."""
    id = key.removeprefix(KEY_PREFIX).partition("_")[0]  # also when somebody gives the whole text; its secret goes nowhere
    invocation.connect().delete(workspace_path(workspace, "keys", id))
    invocation.emit({"revoked": id}, f"{id} is revoked")


def _row(view: KeyView, now: float) -> list[str]:
    used = "never" if view.last_used_at is None else f"{text.age(view.last_used_at, now)} ago"
    expires = "never" if view.expires_at is None else "expired" if view.expired else f"in {text.duration(view.expires_at - now)}"
    return [view.id, view.name, view.scope, text.age(view.created_at, now), view.created_by, used, expires]
