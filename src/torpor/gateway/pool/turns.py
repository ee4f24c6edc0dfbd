"""What one client has to do with the cache, what it is told of it, and turns that repeat to the letter. Pure."""

from collections.abc import Hashable

from torpor.gateway.cache.comments import leading_words
from torpor.gateway.cache.store import Entry
from torpor.gateway.pool.flights import Ask, Flight
from torpor.gateway.pool.sharing import Lookup
from torpor.gateway.pool.units import DESCRIBE, PORTAL
from torpor.gateway.pool.values import Settings
from torpor.model.cachewords import Words
from torpor.pgwire.replies import error_response

MOST_TOLD_COLUMNS = 1_000


class Turn:
    """What a client said to the letter, and what it was answered. Whoever says the same again, and means the same by it, needn't be
    understood anew: that is most of the work of a hit (30 µs of processor for a prepared one, 4 without)."""

    __slots__ = ("answer", "body", "columns", "description", "entry", "generation", "is_own", "is_parsed", "name", "set_words", "ttl_s")

    def __init__(self, ask: Ask, entry: Entry, description: Entry | None, answer: bytes, set_words: Words | None, generation: int) -> None:
        unit = ask.unit
        self.answer, self.entry, self.description = answer, entry, description
        self.ttl_s = ask.words.ttl_s
        self.is_own = leading_words(ask.text) is not None  # what a session or a rule says doesn't matter
        self.set_words, self.generation = set_words, generation
        self.body = ask.body
        self.name = unit.name if unit is not None else None
        self.is_parsed = unit is not None and unit.parsed is not None
        self.columns = entry.columns if unit is not None and (DESCRIBE in unit.order or PORTAL in unit.order) else None


class Session:
    """What one client has to do with the cache."""

    __slots__ = ("awaited", "awaits", "carried", "default", "end", "flight", "looked", "scope", "told", "words")

    def __init__(self) -> None:
        self.words: Words | None = None  # of SET torpor.cache
        self.default: Words | None = None  # what RESET gives
        self.flight: Flight | None = None  # its own miss
        self.awaits: Flight | Lookup | None = None  # somebody else's, or what the shared store says
        self.looked: Hashable = None  # for what it has waited for that
        self.awaited = False  # it has waited once for this turn
        self.end = 0  # how long the turn is that waits
        self.carried: Settings | None = None
        self.scope = 0  # of these settings
        self.told: dict[bytes, tuple[bytes, bytes, float]] = {}  # of statements by name: the Parse, which columns it was told, as of when


class Figures:
    """Counts since the start."""

    __slots__ = ("bypasses", "fills", "hits", "misses", "purged", "shared", "skipped", "stale")

    def __init__(self) -> None:
        self.hits = self.stale = self.misses = self.fills = self.purged = 0
        self.shared = self.skipped = 0  # found in the shared store; times that it didn't answer in time
        self.bypasses: dict[str, int] = {}


def notice(what: str, detail: str = "") -> bytes:
    """What a client that wants to know is told."""
    return b"N" + error_response("00000", f"cache: {what}", detail=detail, severity="INFO")[1:]


def tell(session: Session, ask: Ask, columns: bytes | None, made_at: float) -> None:
    """The client has heard which columns its statement has, if it wanted to: what PostgreSQL said at `made_at`."""
    unit = ask.unit
    if unit is None or unit.name is None:
        return
    if columns is not None and (DESCRIBE in unit.order or PORTAL in unit.order):
        if len(session.told) >= MOST_TOLD_COLUMNS:
            session.told.clear()
        session.told[unit.name] = (ask.body, columns, made_at)
