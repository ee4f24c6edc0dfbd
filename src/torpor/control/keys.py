"""API keys: made, recognised, counted as used, revoked.

A key's text is `torpor_k1_<id>_<secret>`, the secret 256 bits of chance. Of it only the SHA-256 is kept: nobody can try 2^256 secrets,
so a slow hash (which passwords need, since people choose them) would only cost every request 100 ms of processor.

Concurrency: plain calls on the loop; all keys are in memory, so that a revoked one is refused from the next request on. When keys were
used last is written at most once in ten minutes for each key, by `flush`.
"""

import asyncio
import base64
import hashlib
import hmac
import math
import re
import secrets
from dataclasses import replace

from torpor.base.clock import Clock
from torpor.base.logs import get_logger
from torpor.catalog.workspaces import WorkspaceRecords
from torpor.control.workspaces import ID_ALPHABET
from torpor.model.errors import Conflict, Forbidden, InvalidRequest, KeyNotFound
from torpor.model.workspace import KEY_PREFIX, AccessScope, ApiKey, Caller, KeyId, Workspace, WorkspaceId, check_key_name
from torpor.model.workspace_views import CreatedKey, KeyList, KeyView

log = get_logger(__name__)

MAX_KEYS = 100
"""How many keys one workspace may have."""

LAST_USED_GRAIN_S = 600.0
EXPIRED_KEPT_S = 7 * 86400.0
"""How long an expired key is still listed, so that people see why it doesn't work any more."""

MAX_LIFE_S = 10 * 365 * 86400.0

_SECRET_BYTES = 32
_TEXT = re.compile(rb"torpor_k1_(k[a-z2-7]{11})_([a-z2-7]{52})")
_NOBODY = hashlib.sha256(b"no key has this secret").digest()


class KeyRing:
    """All keys of all workspaces."""

    def __init__(self, records: WorkspaceRecords, clock: Clock) -> None:
        self._records = records
        self._clock = clock
        self._keys = {key.id: key for key in records.all_keys()}
        self._by_workspace: dict[WorkspaceId, dict[KeyId, None]] = {}
        for key in self._keys.values():
            self._by_workspace.setdefault(key.workspace, {})[key.id] = None
        self._used: dict[KeyId, float] = {}
        self._ends: dict[KeyId, asyncio.Event] = {}

    def __repr__(self) -> str:
        return f"<KeyRing {len(self._keys)} keys>"

    def create(self, workspace: Workspace, name: str, scope: AccessScope, expires_in_s: float | None, by: Caller) -> CreatedKey:
        """A new key, its text shown this once. Raises InvalidName, InvalidRequest, Forbidden, Conflict.

        Nobody gives more than they have: only the host's admin gives the metrics scope, and a key's keys don't outlive it.
        """
        check_key_name(name)
        if scope is AccessScope.HOST:
            raise InvalidRequest("no key has the scope host", "the token in the data directory has it")
        if not by.scope.allows(scope):
            raise Forbidden(f"a key of scope {by.scope} can't make one of scope {scope}", "ask the host's admin")
        now = self._clock.time()
        expires_at = None if expires_in_s is None else now + _checked_life(expires_in_s)
        maker = self._keys.get(by.key) if by.key is not None else None
        if maker is not None and maker.expires_at is not None and (expires_at is None or expires_at > maker.expires_at):
            raise Forbidden("a key can't outlive the key that makes it", "let it expire earlier, or make it with a lasting key")
        self._drop_expired(workspace.id, now - EXPIRED_KEPT_S)
        if self.count(workspace.id) >= MAX_KEYS:
            raise Conflict(f"workspace {workspace.name} has {MAX_KEYS} keys already", "revoke those that nobody needs")
        id = KeyId("k" + "".join(secrets.choice(ID_ALPHABET) for _ in range(11)))
        secret = base64.b32encode(secrets.token_bytes(_SECRET_BYTES)).decode().rstrip("=").lower()
        key = ApiKey(id, workspace.id, name, scope, _digest(secret.encode()), now, by.actor, expires_at)
        self._records.add_key(key)
        self._keys[id] = key
        self._by_workspace.setdefault(workspace.id, {})[id] = None
        return CreatedKey(self._view(key, workspace.name), f"{KEY_PREFIX}{id}_{secret}")

    def list(self, workspace: Workspace) -> KeyList:
        """The keys of a workspace, oldest first."""
        return KeyList(tuple(self._view(self._keys[id], workspace.name) for id in self._by_workspace.get(workspace.id, ())))

    def count(self, workspace: WorkspaceId) -> int:
        """How many keys a workspace has."""
        return len(self._by_workspace.get(workspace, ()))

    def revoke(self, workspace: Workspace, id: str) -> KeyView:
        """End a key, at once and for ever, with every stream that it opened. Raises KeyNotFound, also for another workspace's."""
        key = self._keys.get(KeyId(id))
        if key is None or key.workspace != workspace.id:
            raise KeyNotFound(
                f"workspace {workspace.name} has no key {id[:20]!r}", f"`torpor key ls --workspace {workspace.name}` lists them"
            )
        self._records.remove_key(key.id)
        self._forget(key.id)
        return self._view(key, workspace.name)

    def forget_workspace(self, id: WorkspaceId) -> None:
        """End all keys of a workspace that is gone from the catalog."""
        for key in list(self._by_workspace.get(id, ())):
            self._forget(key)

    def recognise(self, text: bytes, address: str) -> Caller | None:
        """Who has this key; None when it isn't one, was revoked or has expired. Takes the same time however much of it is right."""
        match = _TEXT.fullmatch(text)
        if match is None:
            return None
        key = self._keys.get(KeyId(match[1].decode()))
        if not hmac.compare_digest(_digest(match[2]), key.digest if key is not None else _NOBODY) or key is None:
            return None
        now = self._clock.time()
        if key.expires_at is not None and key.expires_at <= now:
            return None
        self._note_use(key, now)
        return Caller(key.scope, key.workspace, key.id, key.name, address)

    async def ended(self, id: KeyId) -> None:
        """Waits until a key is revoked, expires or goes with its workspace. Safe to cancel."""
        key = self._keys.get(id)
        if key is None:
            return
        event = self._ends.setdefault(id, asyncio.Event())
        while not event.is_set():
            left_s = math.inf if key.expires_at is None else key.expires_at - self._clock.time()
            if left_s <= 0:
                return
            try:
                await asyncio.wait_for(event.wait(), min(left_s, 3600.0))
            except TimeoutError:
                continue

    def flush(self) -> None:
        """Write when keys were used last. Raises what the catalog raises; then the next one writes it."""
        if self._used:
            self._records.use_keys(self._used)
            self._used = {}

    def _drop_expired(self, workspace: WorkspaceId, before: float) -> None:
        for id in list(self._by_workspace.get(workspace, ())):
            if (expires_at := self._keys[id].expires_at) is not None and expires_at < before:
                self._records.remove_key(id)
                self._forget(id)

    def _note_use(self, key: ApiKey, now: float) -> None:
        at = now - now % LAST_USED_GRAIN_S
        if key.last_used_at is None or at > key.last_used_at:
            self._keys[key.id] = replace(key, last_used_at=at)
            self._used[key.id] = at

    def _forget(self, id: KeyId) -> None:
        key = self._keys.pop(id)
        del self._by_workspace[key.workspace][id]
        if not self._by_workspace[key.workspace]:
            del self._by_workspace[key.workspace]
        self._used.pop(id, None)
        if (event := self._ends.pop(id, None)) is not None:
            event.set()

    def _view(self, key: ApiKey, workspace: str) -> KeyView:
        expired = key.expires_at is not None and key.expires_at <= self._clock.time()
        return KeyView(
            id=key.id,
            workspace=workspace,
            name=key.name,
            scope=key.scope,
            prefix=f"{KEY_PREFIX}{key.id}",
            created_at=key.created_at,
            created_by=key.created_by,
            expires_at=key.expires_at,
            expired=expired,
            last_used_at=key.last_used_at,
        )


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


def _checked_life(seconds: float) -> float:
    if not 1 <= seconds <= MAX_LIFE_S:
        raise InvalidRequest("a key lives from a second to ten years", "leave the expiry out for one that lasts until it is revoked")
    return seconds
