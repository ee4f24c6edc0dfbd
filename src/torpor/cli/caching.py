"""`torpor cache`: what holds for the cache of a database, how it is doing, and dropping what is in it.

`torpor cache shop` shows it; the other commands stand in front of the name. A database that is called as one of them is shown by
`torpor cache show NAME`.
"""

import click

from torpor.cli import text
from torpor.cli.client import database_path
from torpor.cli.errors import CommandError, Exit
from torpor.cli.invocation import Invocation, with_invocation
from torpor.cli.root import LazyGroup
from torpor.model.cache import CacheStatus, CacheView, PurgeBy, Purged
from torpor.model.fingerprint import FINGERPRINT, fingerprint


class _Cache(LazyGroup):
    """Its commands, and for any other word the database of that name."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            args = ["show", *args]
        return super().resolve_command(ctx, args)


cache = _Cache(
    "cache",
    {
        "show": ("caching:show", "Figures, rules, and whether writes drop what is cached (`torpor cache NAME` does the same)."),
        "rule": ("caching:rule", "Have statements of a kind cached, whatever their clients say; or not any more."),
        "on-write": ("caching:on_write", "Whether committed writes drop what was read before."),
        "purge": ("caching:purge", "Drop results: by tag, by table, by statement, or all."),
    },
    "The cache of a database: results of its pooled clients, served without PostgreSQL. `torpor cache NAME` shows it.",
)


@click.command()
@click.argument("name")
@with_invocation
def show(invocation: Invocation, name: str) -> None:
    """Figures since the pool's worker was started, rules, and whether writes drop what is cached."""
    client = invocation.connect()
    answer = client.get(database_path(name, "cache"))
    invocation.emit(answer, lambda: _words(name, client.decode(CacheStatus, answer)))


@click.command()
@click.argument("name")
@click.argument("statement")
@click.argument("words", required=False)
@click.option("--remove", is_flag=True, help="Remove the rule.")
@with_invocation
def rule(invocation: Invocation, name: str, statement: str, words: str | None, remove: bool) -> None:
    """Have statements like STATEMENT (or of that fingerprint) cached by WORDS, such as 'ttl=60 swr=300 tags=users,home'.

    Statements are alike when they differ in literals, white space, comments and case only. What a client says in front of a statement goes
    before.
    """
    if (words is None) is not remove:
        message = "give the words or --remove" + (", not both" if remove else "")
        raise CommandError(message, "such as 'ttl=60 swr=300 tags=users,home'", kind="usage", code=Exit.USAGE)
    client = invocation.connect()
    if remove:
        digits = statement.strip() if FINGERPRINT.fullmatch(statement.strip()) else fingerprint(statement.strip().encode())
        answer = client.cancel(database_path(name, f"cache/rules/{digits}"))
    else:
        answer = client.put(database_path(name, "cache/rules"), {"statement": statement, "words": words})
    invocation.emit(answer, lambda: _words(name, client.decode(CacheStatus, answer)))


@click.command("on-write")
@click.argument("name")
@click.argument("state", type=click.Choice(["on", "off"]))
@with_invocation
def on_write(invocation: Invocation, name: str, state: str) -> None:
    """Whether a committed write drops what was read from the tables that it wrote to, whoever wrote.

    With it nobody is given a result that is older than a write which was acknowledged.
    """
    client = invocation.connect()
    answer = client.patch(database_path(name, "cache"), {"on_write": state == "on"})
    invocation.emit(answer, lambda: _words(name, client.decode(CacheStatus, answer)))


@click.command()
@click.argument("name")
@click.option("--tag", "tags", multiple=True, help="Results with this tag; may be repeated.")
@click.option("--table", "tables", multiple=True, help="Results that were read from this table or view; may be repeated.")
@click.option("--statement", "statements", multiple=True, help="Results of statements like this one, or of this fingerprint.")
@click.option("--all", "everything", is_flag=True, help="All of them.")
@with_invocation
def purge(
    invocation: Invocation, name: str, tags: tuple[str, ...], tables: tuple[str, ...], statements: tuple[str, ...], everything: bool
) -> None:
    """Drop results, as often as you like. When the command returns none of them is served any more."""
    given = [(by, values) for by, values in ((PurgeBy.TAG, tags), (PurgeBy.TABLE, tables), (PurgeBy.STATEMENT, statements)) if values]
    if len(given) + everything != 1:
        raise CommandError("give one of --tag, --table, --statement and --all", "each but --all as often as you like", kind="usage",
                           code=Exit.USAGE)  # fmt: skip
    by, values = given[0] if given else (PurgeBy.ALL, ())
    client = invocation.connect()
    answer = client.post(database_path(name, "cache/purge"), {"by": by.value, "values": list(values)})
    invocation.emit(answer, lambda: f"{client.decode(Purged, answer).dropped} results dropped")


def _words(name: str, status: CacheStatus) -> str:
    lines = [f"{name}: {figures(status.figures)}", f"on-write     {'on: writes drop what was read before' if status.on_write else 'off'}"]
    now = status.figures
    if now.bypasses:
        most = sorted(now.bypasses.items(), key=lambda each: (-each[1], each[0]))
        lines.append("bypassed     " + ", ".join(f"{number} ({text.clean(reason, 40)})" for reason, number in most))
    if now.evicted or now.purged:
        lines.append(f"dropped      {now.purged} purged, {now.evicted} to make room")
    for rule in status.rules:
        lines.append(f"rule         {rule.fingerprint}  {rule.words}" + (f"  {text.clean(rule.statement, 60)}" if rule.statement else ""))
    return "\n".join(lines)


def figures(now: CacheView) -> str:
    """How many results there are, and how often they were served."""
    asked = now.hits + now.stale + now.misses
    share = f", {100 * (now.hits + now.stale) / asked:.0f} % of {asked} statements served from it" if asked else ""
    return f"{now.entries} results, {text.size(now.bytes)}{share}"
