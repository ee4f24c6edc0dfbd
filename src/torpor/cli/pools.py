"""The pool of a database as people write and read it: who is pooled, and how many connections pooled clients share. Pure."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from torpor.model.pool import PoolMode
from torpor.model.views import DatabaseDetail

F = TypeVar("F", bound=Callable[..., Any])

_DEFAULT = "default"


class Count(click.ParamType[int | str]):
    """A number, or (where there is something to go back to) "default"."""

    name = "number"

    def __init__(self, *, resettable: bool) -> None:
        self._resettable = resettable

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """The number, or the word."""
        if isinstance(value, int) or (self._resettable and value == _DEFAULT):
            return value  # type: ignore[no-any-return]  # narrowed by the line above
        if not str(value).isdecimal():
            self.fail(f"{value!r} is not a number{' or default' if self._resettable else ''}", param, ctx)
        return int(value)


def with_pool(*, resettable: bool) -> Callable[[F], F]:
    """Give a command the options that make up a pool."""
    back = ", or default" if resettable else ""
    modes = [PoolMode.AUTO.value, PoolMode.OFF.value, *([_DEFAULT] if resettable else [])]
    count = Count(resettable=resettable)

    def decorate(command: F) -> F:
        for option in (
            click.option("--pool-queue", type=count, help=f"Pooled clients that may wait for a connection at once{back}."),
            click.option("--pool-role-size", type=count, help=f"Of the pool's connections, how many one role may have; 0: all{back}."),
            click.option("--pool-size", type=count, help=f"Connections to PostgreSQL that pooled clients share{back}."),
            click.option("--pool", type=click.Choice(modes), help="Pool clients that don't say: auto (until they need a session), off."),
        ):
            command = option(command)
        return command

    return decorate


def pool_body(mode: str | None, size: int | str | None, role_size: int | str | None, queue: int | str | None) -> dict[str, Any]:
    """The fields that were given, as the API wants them; null goes back to the daemon's setting."""
    given = {"mode": mode, "size": size, "role_size": role_size, "queue": queue}
    return {name: None if value == _DEFAULT else value for name, value in given.items() if value is not None}


def policy_words(detail: DatabaseDetail) -> str:
    """The pool's policy in a line, with a mark on what is the database's own; a daemon of before doesn't say."""
    policy, own = detail.pool_policy, detail.pool_overrides
    if policy is None:
        return ""

    def marked(words: str, value: object) -> str:
        return f"{words} (own)" if value is not None else words

    parts = [marked(str(policy.mode), own.mode), marked(f"{policy.size} connections", own.size)]
    if policy.role_size:
        parts.append(marked(f"{policy.role_size} for one role", own.role_size))
    return ", ".join([*parts, marked(f"{policy.queue} may wait", own.queue)])
