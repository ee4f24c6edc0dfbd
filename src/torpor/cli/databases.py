"""The commands that make, list, change, put to sleep, wake and remove databases: each one request, and its answer in words."""

import time
from collections.abc import Iterator
from typing import Any

import click

from torpor.cli import text
from torpor.cli.client import Client, database_path
from torpor.cli.errors import CommandError, Exit
from torpor.cli.invocation import Invocation, confirm, with_invocation
from torpor.cli.keys import Lifetime
from torpor.cli.passwords import Password, with_login
from torpor.cli.pools import policy_words, pool_body, with_pool
from torpor.cli.sizes import size_body, with_size
from torpor.model.pool import PoolMode
from torpor.model.sleep import Tier
from torpor.model.views import Created, Credentials, DatabaseDetail, DatabasePage, DatabaseView, WakeView

_PAGE_SIZE = 500


class IdleTime(click.ParamType[float | str]):
    """Seconds, "never", or (where there is something to go back to) "default"."""

    name = "seconds"

    def __init__(self, *, resettable: bool = False) -> None:
        self._resettable = resettable

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        """A number, or one of the words."""
        words = ("never", "default") if self._resettable else ("never",)
        if isinstance(value, float) or value in words:
            return value  # type: ignore[no-any-return]  # narrowed by the line above
        try:
            return float(value)
        except ValueError:
            self.fail(f"{value!r} is not an idle time: give seconds or {' or '.join(words)}", param, ctx)


@click.command()
@click.argument("name", required=False)
@click.option("--major", type=int, help="PostgreSQL major (default: the one Torpor is set to).")
@click.option("--freeze-after", type=IdleTime(), help="Idle seconds before it is frozen, or never.")
@click.option("--page-after", type=IdleTime(), help="Seconds frozen before its memory is reclaimed, or never.")
@click.option("--stop-after", type=IdleTime(), help="Seconds frozen before it is stopped, or never.")
@click.option("--superuser", is_flag=True, default=None, help="Make its owner a real superuser, where the daemon allows that.")
@click.option("--workspace", help="Who owns it (default: the workspace of your API key, or the one named default).")
@with_size
@with_pool(resettable=False)
@with_invocation
def create(
    invocation: Invocation,
    name: str | None,
    major: int | None,
    freeze_after: float | str | None,
    page_after: float | str | None,
    stop_after: float | str | None,
    cpu: Any,
    memory: Any,
    connections: Any,
    disk: Any,
    superuser: bool | None,
    workspace: str | None,
    pool: str | None,
    pool_size: int | str | None,
    pool_role_size: int | str | None,
    pool_queue: int | str | None,
) -> None:
    """Make a database and print its URL, with the password, on stdout.

    The password is shown this once and kept for `torpor url` in a file of yours on this machine. Without NAME a name is chosen.
    """
    client = invocation.connect()
    wanted = {
        "name": name,
        "workspace": workspace,
        "major": major,
        "freeze_after_s": freeze_after,
        "page_after_s": page_after,
        "stop_after_s": stop_after,
        "size": size_body(cpu, memory, connections, disk) or None,
        "superuser": superuser,
        "pool": pool_body(pool, pool_size, pool_role_size, pool_queue) or None,
    }
    with invocation.waiting(f"making {name or 'a database'}"):
        answer = client.post("/v1/databases", {key: value for key, value in wanted.items() if value is not None})
    created = client.decode(Created, answer)
    # The URL first: whatever else goes wrong, it isn't lost.
    invocation.emit(answer, created.credentials.url)
    keep(invocation, client, created.database.id, created.credentials)
    origin = "from the warm pool" if created.from_warm_pool else "made from scratch"
    made = created.database.name
    invocation.hint(f"{made} is ready: PostgreSQL {created.database.major}, {origin} in {text.milliseconds(created.elapsed_ms)}")
    invocation.hint(f"next: torpor psql {made}")


@click.command()
@click.argument("name")
@click.option("--reset-password", is_flag=True, help="Make a new password. The old one stops working; open connections stay.")
@click.option("--tls", "is_encrypted", is_flag=True, help="With what libpq needs to encrypt and to be sure of the server (verify-full).")
@click.option("--accelerate", "for_accelerate", is_flag=True, help="As the accelerateUrl of Prisma's client, with the login as its key.")
@with_invocation
def url(invocation: Invocation, name: str, reset_password: bool, is_encrypted: bool, for_accelerate: bool) -> None:
    """Print a database's URL with its password, when this machine knows it."""
    from torpor.cli.accelerate import with_key
    from torpor.cli.tls import authority, with_tls

    if is_encrypted and for_accelerate:
        raise CommandError(
            "--tls and --accelerate are for different clients", "give one; Prisma's uses https:// unless it is on this machine"
        )
    root = authority(invocation) if is_encrypted else ""

    def shown(full: str) -> str:
        return with_tls(full, root) if root else with_key(invocation, full) if for_accelerate else full

    client = invocation.connect()
    view = client.fetch(DatabaseDetail, database_path(name)).database
    if reset_password:
        with invocation.waiting(f"making a new password for {name}"):
            answer = client.post(database_path(name, "password"))
        credentials = client.decode(Credentials, answer)
        invocation.emit(answer, shown(credentials.url))
        keep(invocation, client, view.id, credentials)
        return
    known = invocation.passwords(client).get(view.id)
    if known is None:
        message = f"the password of {name} isn't known on this machine, as it is shown once, at creation"
        raise CommandError(message, f"`torpor url {name} --reset-password` makes a new one", kind="password_unknown")
    full = with_login(view.url, known.role, known.password)
    full = shown(full)
    invocation.emit({"url": full, "role": known.role, "password": known.password}, full)


@click.command()
@click.option("--tier", type=click.Choice([str(tier) for tier in Tier]), help="Only those in this tier.")
@click.option("--search", help="Only those whose name contains this.")
@click.option("--workspace", help="Only those of this workspace.")
@with_invocation
def ls(invocation: Invocation, tier: str | None, search: str | None, workspace: str | None) -> None:
    """List databases."""
    client = invocation.connect()
    answers = list(pages(client, tier, search, workspace))
    views = [view for answer in answers for view in answer["databases"]]
    if invocation.json:
        invocation.emit({"databases": views, "next": None}, "")
        return
    if not views:
        invocation.hint("no databases" + (" like that" if tier or search or workspace else " yet; make one with `torpor create`"))
        return
    now = time.time()
    decoded = [client.decode(DatabaseView, view) for view in views]
    head, rows = ["NAME", "TIER", "SINCE", "CONNS", "MEMORY", "LAST-WAKE"], [_row(view, now) for view in decoded]
    if len({view.workspace for view in decoded}) > 1:
        head, rows = [*head, "WORKSPACE"], [[*row, view.workspace] for row, view in zip(rows, decoded, strict=True)]
    modes = [str(view.pool_mode) for view in decoded]
    if any(view.pool_mode is not PoolMode.OFF for view in decoded):
        head, rows = [*head, "POOL"], [[*row, mode] for row, mode in zip(rows, modes, strict=True)]
    parents = [view.parent if view.branched_at is not None else None for view in decoded]
    if any(parents):
        head, rows = [*head, "BRANCH-OF"], [[*row, parent or "-"] for row, parent in zip(rows, parents, strict=True)]
    invocation.emit(None, text.table(head, rows, frozenset({2, 3, 4})))


@click.command(name="set")
@click.argument("name")
@click.option("--freeze-after", type=IdleTime(resettable=True), help="Idle seconds before it is frozen, never, or default.")
@click.option("--page-after", type=IdleTime(resettable=True), help="Seconds frozen before its memory is reclaimed, never, or default.")
@click.option("--stop-after", type=IdleTime(resettable=True), help="Seconds frozen before it is stopped, never, or default.")
@click.option("--ttl", type=Lifetime(endless=True), help="How long it lives from now on, such as 12h or 2d, or never: then it stays.")
@with_pool(resettable=True)
@with_invocation
def set_(
    invocation: Invocation,
    name: str,
    freeze_after: float | str | None,
    page_after: float | str | None,
    stop_after: float | str | None,
    ttl: float | str | None,
    pool: str | None,
    pool_size: int | str | None,
    pool_role_size: int | str | None,
    pool_queue: int | str | None,
) -> None:
    """Change a database's idle times and its pool ("default" goes back to Torpor's own), and how long it lives.

    What is changed of the pool holds for new connections.
    """
    given = {"freeze_after_s": freeze_after, "page_after_s": page_after, "stop_after_s": stop_after}
    body: dict[str, Any] = {key: None if value == "default" else value for key, value in given.items() if value is not None}
    own_pool = pool_body(pool, pool_size, pool_role_size, pool_queue)
    if own_pool:
        body["pool"] = own_pool
    if ttl is not None:
        body["ttl_s"] = None if ttl == "never" else ttl
    if not body:
        message = "there is nothing to change"
        raise CommandError(message, "give --freeze-after, --page-after, --stop-after, --ttl or --pool", kind="usage", code=Exit.USAGE)
    client = invocation.connect()
    answer = client.patch(database_path(name), body)

    def words() -> str:
        detail = client.decode(DatabaseDetail, answer)
        at = detail.database.expires_at
        end = "" if ttl is None else "; it stays" if at is None else f"; it is removed in {text.duration(at - time.time())}"
        of_pool = f"; pool {words}" if own_pool and (words := policy_words(detail)) else ""
        return f"{name}: {policy_text(detail)}{of_pool}{end}"

    invocation.emit(answer, words)


@click.command()
@click.argument("name")
@click.option("--tier", type=click.Choice(["frozen", "paged", "stopped"]), help="How deep (default: frozen).")
@click.option("--force", is_flag=True, help="Also when something runs in it, or connections are open.")
@with_invocation
def sleep(invocation: Invocation, name: str, tier: str | None, force: bool) -> None:
    """Put a database to sleep now, without waiting for its idle time."""
    client = invocation.connect()
    body: dict[str, Any] = {"force": force} | ({"tier": tier} if tier else {})
    with invocation.waiting(f"putting {name} to sleep"):
        answer = client.post(database_path(name, "sleep"), body)
    invocation.emit(answer, lambda: f"{name} is {client.decode(DatabaseView, answer).tier}")


@click.command()
@click.argument("name")
@with_invocation
def wake(invocation: Invocation, name: str) -> None:
    """Wake a database. Connecting to it does the same."""
    client = invocation.connect()
    with invocation.waiting(f"waking {name}"):
        answer = client.post(database_path(name, "wake"))

    def words() -> str:
        if answer["wake"] is None:
            return f"{name} was awake already"
        woken = client.decode(WakeView, answer["wake"])
        steps = text.waterfall([(step.name, step.elapsed_ms) for step in woken.steps], "  ")
        return "\n".join([f"{name} is awake, from {woken.tier} in {text.milliseconds(woken.elapsed_ms)}", *steps])

    invocation.emit(answer, words)


@click.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Also when connections are open; and don't ask.")
@with_invocation
def rm(invocation: Invocation, name: str, force: bool) -> None:
    """Remove a database and all its data, for ever."""
    client = invocation.connect()
    view = client.fetch(DatabaseDetail, database_path(name)).database
    if not force:
        confirm(invocation, f"Remove {name} and all its data for ever?")
    with invocation.waiting(f"removing {name}"):
        client.delete(database_path(name), force="true" if force else None)
    invocation.passwords(client).forget(view.id)
    invocation.emit({"removed": name, "id": view.id}, f"{name} is removed")


def pages(client: Client, tier: str | None = None, search: str | None = None, workspace: str | None = None) -> Iterator[dict[str, Any]]:
    """All pages of the list, as the API gives them."""
    after: str | None = None
    while True:
        answer = client.get("/v1/databases", after=after, limit=_PAGE_SIZE, tier=tier, search=search, workspace=workspace)
        if not isinstance(answer, dict) or "databases" not in answer:
            client.decode(DatabasePage, answer)
        yield answer
        after = answer.get("next")
        if after is None:
            return


def last_wake(view: DatabaseView, now: float) -> str:
    """The last wake in a cell."""
    woken = view.last_wake
    return (
        "-" if woken is None else f"{text.age(woken.at, now)} ago, {woken.reason}, {text.milliseconds(woken.elapsed_ms)} from {woken.tier}"
    )


def policy_text(detail: DatabaseDetail) -> str:
    """The sleep policy in a line, with a mark on what is the database's own."""
    parts = []
    for word, field in (("freeze", "freeze_after_s"), ("page", "page_after_s"), ("stop", "stop_after_s")):
        own = " (own)" if getattr(detail.overrides, field) is not None else ""
        parts.append(f"{word} after {text.idle_time(getattr(detail.policy, field))}{own}")
    return ", ".join(parts)


def _row(view: DatabaseView, now: float) -> list[str]:
    memory = "-" if view.tier in (Tier.STOPPED, Tier.ARCHIVED) else text.size(view.memory_bytes)
    return [view.name, str(view.tier), text.age(view.tier_since, now), str(view.connections), memory, last_wake(view, now)]


def keep(invocation: Invocation, client: Client, database_id: str, credentials: Credentials) -> None:
    """Remember a password; failing to is a warning, as the database is there and its URL is printed."""
    try:
        invocation.passwords(client).put(database_id, Password(credentials.role, credentials.password))
    except CommandError as error:
        click.echo(f"torpor: {error}", err=True)
