"""The use cases on tokens: which a database takes is shown, replaced and held to at once; and a token is looked at for the door.

Sessions end with the token that they began with; and when the rules of their database are changed or removed, at once: all that may have
begun by a token. Those that an earlier Torpor handed over are among them, as nobody knows any more how they logged in; they don't end
with their token.

Concurrency: called from many tasks. A change is one step; a login that was under way asks again after its hand-over (`begun`).
"""

import asyncio
import json
from collections.abc import Callable
from typing import Protocol

from torpor.base.clock import Clock
from torpor.base.jwt import BadKeys, BadToken, Expected, Key, UnknownKey, expires_at, read_keys, verify
from torpor.base.logs import get_logger
from torpor.base.tasks import TaskOwner
from torpor.catalog.tokens import TokenRecords
from torpor.compute.compute import Compute
from torpor.compute.sessions import Session
from torpor.control.access import sever
from torpor.control.keysets import KeySets
from torpor.model.database import Database
from torpor.model.errors import DatabaseNotFound, InvalidRequest, Unavailable, WrongToken
from torpor.model.names import DatabaseId
from torpor.model.tokens import Admission, TokenRules, TokenRulesView, TokenView
from torpor.pgwire.replies import error_response

log = get_logger(__name__)

_MAX_CLAIMS_BYTES = 16_384  # what the library in the compute takes (native/claims.h)
_LONGEST_TIMER_S = 86_400.0
_HINT = "log in anew, with a token that is good now"


class Ending(Protocol):
    """A session that can be ended."""

    def dismiss(self, farewell: bytes) -> None:
        """End it when it waits for its client, and tell that why."""
        ...

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Call `callback` when it has ended."""
        ...


class TokenControl:
    """The rules of all databases that take tokens."""

    def __init__(
        self, records: TokenRecords, find: Callable[[DatabaseId], Compute | None], keysets: KeySets, clock: Clock, tasks: TaskOwner
    ) -> None:
        """`find` gives the compute of a database."""
        self._records = records
        self._find = find
        self._keysets = keysets
        self._clock = clock
        self._tasks = tasks
        self._rules = records.all()
        self._given: dict[str, tuple[Key, ...]] = {}

    def __repr__(self) -> str:
        return f"<TokenControl {len(self._rules)} databases>"

    # -- for people

    def show(self, id: DatabaseId) -> TokenView:
        """Which tokens a database takes."""
        rules = self._rules.get(id)
        if rules is None:
            return TokenView(None)
        keys = self._keysets.count(rules.jwks_url) if rules.jwks_url is not None else len(self._keys_given(rules))
        shown = TokenRulesView(rules.issuer, rules.audience, rules.role_claim, rules.roles, rules.jwks_url, keys, rules.version)
        return TokenView(shown)

    async def replace(self, id: DatabaseId, rules: TokenRules, by: str) -> TokenView:
        """Have a database take the tokens of these rules, and no others. In force when it returns.

        Raises InvalidRequest when the keys are none, or can't be fetched.
        """
        try:
            if rules.jwks is not None:
                read_keys(rules.jwks.encode())
            elif rules.jwks_url is not None:
                await self._keysets.look(rules.jwks_url)
        except (BadKeys, ValueError) as error:
            raise InvalidRequest(f"the key set can't be used: {error}", "give a JSON Web Key Set of public keys") from None
        except Unavailable as error:
            raise InvalidRequest(error.message, error.hint) from None
        return await self._put(id, rules, by)

    async def remove(self, id: DatabaseId, by: str) -> TokenView:
        """Have a database take no tokens. In force when it returns. Idempotent."""
        return await self._put(id, None, by)

    def forget(self, id: DatabaseId) -> None:
        """The database is gone. Idempotent."""
        self._drop(self._rules.pop(id, None))

    # -- for the door

    def takes(self, database: Database, role: str) -> bool:
        """Whether a token can be the way in for a role."""
        rules = self._rules.get(database.id)
        return rules is not None and role in rules.roles

    async def admit(self, database: Database, token: str) -> Admission:
        """Whom a token admits. Raises WrongToken, and Unavailable when the keys can't be fetched."""
        rules = self._rules.get(database.id)
        if rules is None:
            raise WrongToken(f'database "{database.label}" takes no tokens', "`torpor jwt` says how it can; or give the role's password")
        expected = Expected(rules.issuer, rules.audience)
        try:
            try:
                claims = verify(token, await self._keys(rules), expected, self._clock.time())
            except UnknownKey:
                if rules.jwks_url is None:
                    raise
                claims = verify(token, await self._keysets.changed(rules.jwks_url), expected, self._clock.time())
        except BadToken as error:
            raise WrongToken(str(error)) from None
        role = rules.roles[0] if rules.role_claim is None else claims.get(rules.role_claim)
        if role not in rules.roles:
            raise WrongToken("the token names no role that is admitted here")
        text = json.dumps(claims, ensure_ascii=True, separators=(",", ":")).encode()
        if len(text) > _MAX_CLAIMS_BYTES:
            raise WrongToken(f"the token's claims are longer than {_MAX_CLAIMS_BYTES} bytes")
        return Admission(role, text, expires_at(claims), rules.version)

    def begun(self, database: Database, session: Ending, admission: Admission) -> bool:
        """A session began by a token: it ends with that. False when the rules have been changed meanwhile."""
        rules = self._rules.get(database.id)
        if rules is None or rules.version != admission.version:
            return False
        self._end_later(session, admission.until)
        return True

    # -- inside

    async def _put(self, id: DatabaseId, rules: TokenRules | None, by: str) -> TokenView:
        if not self._records.replace(id, rules):
            raise DatabaseNotFound("the database was removed meanwhile")
        before = self._rules.pop(id, None)
        if rules is not None:
            self._rules[id] = rules
        if before is not None:
            self._drop(before)
        closed = 0 if before is None or before == rules else self._end_sessions(id, by)
        return TokenView(self.show(id).rules, closed)

    def _drop(self, rules: TokenRules | None) -> None:
        if rules is None or rules in self._rules.values():
            return
        self._given.pop(rules.version, None)
        if rules.jwks_url is not None and all(other.jwks_url != rules.jwks_url for other in self._rules.values()):
            self._keysets.forget(rules.jwks_url)

    async def _keys(self, rules: TokenRules) -> tuple[Key, ...]:
        return await self._keysets.keys(rules.jwks_url) if rules.jwks_url is not None else self._keys_given(rules)

    def _keys_given(self, rules: TokenRules) -> tuple[Key, ...]:
        if rules.version not in self._given:
            self._given[rules.version] = read_keys((rules.jwks or "").encode())
        return self._given[rules.version]

    def _end_sessions(self, id: DatabaseId, by: str) -> int:
        compute = self._find(id)
        if compute is None:
            return 0
        ending: list[tuple[Compute, Session]] = [
            (compute, session) for session in list(compute.sessions()) if session.by_token is not False and not session.ended
        ]
        for _, session in ending:
            session.dismiss(error_response(WrongToken.sqlstate, "this database takes other tokens now, or none", _HINT))
        if ending:
            log.warning("sessions that began by tokens are ended", database=compute.database.label, sessions=len(ending), by=by)
            self._tasks.spawn(sever(ending), "sever sessions of tokens")
        return len(ending)

    def _end_later(self, session: Ending, until: float) -> None:
        loop = asyncio.get_running_loop()
        timers: list[asyncio.TimerHandle] = []

        def look() -> None:
            left_s = until - self._clock.time()
            if left_s <= 0:
                session.dismiss(error_response(WrongToken.sqlstate, "the token of this session has expired", _HINT))
            else:
                timers[:] = [loop.call_later(min(left_s, _LONGEST_TIMER_S), look)]

        def stop() -> None:
            for timer in timers:
                timer.cancel()

        look()
        session.when_ended(stop)
