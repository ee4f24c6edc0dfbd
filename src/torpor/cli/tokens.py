"""`torpor jwt`: by which tokens (JSON Web Tokens) clients can log in to a database."""

from pathlib import Path

import click

from torpor.cli.client import database_path
from torpor.cli.errors import CommandError, Exit
from torpor.cli.invocation import Invocation, with_invocation
from torpor.model.tokens import MAX_JWKS_BYTES, TokenView


@click.command()
@click.argument("name")
@click.option("--jwks", metavar="URL|FILE", help="Where the issuer's key set is: a URL that is fetched, or a file that is sent.")
@click.option("--issuer", help="What a token's `iss` must be.")
@click.option("--audience", help="What a token's `aud` must be, or have. Left out: whatever it is.")
@click.option("--role-claim", help="The claim that names the role. Left out: there is one role.")
@click.option("--roles", metavar="A,B", help="The roles that tokens may log in as. Never a superuser.")
@click.option("--remove", is_flag=True, help="Take no tokens any more; sessions that began by one end.")
@with_invocation
def tokens(
    invocation: Invocation,
    name: str,
    jwks: str | None,
    issuer: str | None,
    audience: str | None,
    role_claim: str | None,
    roles: str | None,
    remove: bool,
) -> None:
    """By which tokens clients can log in to a database: shown, or changed when options are given.

    They come as `Authorization: Bearer` over HTTP, or as the password of an encrypted connection of a role that has none. In SQL
    the claims are current_setting('torpor.jwt_claims'), for policies of row-level security.
    """
    given = {"--jwks": jwks, "--issuer": issuer, "--audience": audience, "--role-claim": role_claim, "--roles": roles}
    named = [option for option, value in given.items() if value is not None]
    if remove and named:
        raise CommandError(f"--remove and {named[0]} exclude each other", "say one of them", kind="usage", code=Exit.USAGE)
    missing = [option for option in ("--jwks", "--issuer", "--roles") if given[option] is None] if named else []
    if missing:
        message = f"{', '.join(missing)} is missing"
        hint = "these rules take the place of the present ones: say them all"
        raise CommandError(message, hint, kind="usage", code=Exit.USAGE)
    client = invocation.connect()
    path = database_path(name, "tokens")
    if remove:
        answer = client.cancel(path)
    elif named:
        body = {
            "issuer": issuer,
            "audience": audience,
            "role_claim": role_claim,
            "roles": [role for text in (roles or "").split(",") if (role := text.strip())],
        }
        answer = client.put(path, body | _keys(jwks or ""))
    else:
        answer = client.get(path)
    view = client.decode(TokenView, answer)
    invocation.emit(answer, lambda: _words(name, view))
    if view.closed:
        invocation.hint(f"{view.closed} sessions that began by a token of before end")


def _keys(given: str) -> dict[str, str]:
    if given.startswith(("https://", "http://")):
        return {"jwks_url": given}
    try:
        with Path(given).open("rb") as file:
            return {"jwks": file.read(MAX_JWKS_BYTES + 1).decode()}
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise CommandError(f"{given} can't be read: {why}", "give the URL of a key set, or a file that holds one", kind="usage") from None


def _words(name: str, view: TokenView) -> str:
    rules = view.rules
    if rules is None:
        return f"{name} takes no tokens"
    lines = [
        f"{name} takes tokens of {rules.issuer}",
        f"audience  {rules.audience or 'any'}",
        f"roles     {', '.join(rules.roles)}" + (f", as the claim {rules.role_claim!r} says" if rules.role_claim else ""),
        f"keys      {rules.keys} of {rules.jwks_url}" if rules.jwks_url else f"keys      {rules.keys}",
    ]
    return "\n".join(lines)
