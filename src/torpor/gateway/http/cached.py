"""The cache over HTTP: words of headers become words in front of a statement, and what the pool says of it becomes headers. Pure.

A request asks with `cache-control: max-age=60, stale-while-revalidate=300` and `cache-tags: users,home`. Its statement then goes out
as `/* ttl=60 swr=300 tags=users,home status */ SELECT …`, and the pool tells by a notice what it did.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torpor.gateway.cache.comments import leading_words
from torpor.gateway.http.credentials import Target
from torpor.gateway.http.failures import Failure
from torpor.model import cachewords

IN_TRANSACTION = "in a transaction"
NOT_POOLED = "not pooled"
NO_NOTICE = "no answer of the cache"
BAD_WORDS = "bad words"
_HEAD = 2_048
_MAX_AGE = re.compile(r"(max-age|stale-while-revalidate)\s*=\s*\"?([0-9]{1,9})\"?")
_NEVER = re.compile(r"\bno-(?:cache|store)\b")
_NOTICE = re.compile(r"cache: (hit|stale|miss|bypass)(?: \((.*)\))?", re.DOTALL)
_DETAIL = re.compile(r"age=([0-9.]+)s ttl=([0-9.]+)s")
_WORST_FIRST = ("bypass", "miss", "stale", "hit")
_PLAIN = re.compile(r"[^\x20-\x7e]")


@dataclass(frozen=True, slots=True)
class Words:
    """What the cache shall do with a statement."""

    text: str
    why_not: str = ""
    """Why nothing is said to the cache although it was asked for: then the text is empty."""

    def in_front_of(self, sql: str) -> str:
        """The statement with its words."""
        return f"/* {self.text} */ {sql}" if self.text else sql


def read_words(cache_control: str, tags: str) -> Words | None:
    """What the headers ask for; None when nothing is to be cached."""
    found = {name: int(number) for name, number in (match.groups() for match in _MAX_AGE.finditer(cache_control.lower()))}
    ttl_s, swr_s = (min(found.get(name, 0), cachewords.MAX_SECONDS) for name in ("max-age", "stale-while-revalidate"))
    if not (ttl_s or swr_s) or _NEVER.search(cache_control.lower()):
        return None
    words = [f"ttl={ttl_s or 1}"]  # who is content with anything stale is so with what is a second old
    if swr_s:
        words.append(f"swr={swr_s}")
    if named := [tag for tag in (one.strip() for one in tags.split(",")) if tag]:
        words.append(f"tags={','.join(dict.fromkeys(named))}")
    text = " ".join([*words, "status"])
    return Words(text) if all(is_tag(tag) for tag in named) and cachewords.read_words(text) is not None else Words("", BAD_WORDS)


def words_of(headers: Mapping[str, str], target: Target, tags: str = "cache-tags") -> Words | None:
    """What a request asks for; `tags` is the header that has them."""
    found = read_words(headers.get("cache-control", ""), headers.get(tags, ""))
    return Words("", NOT_POOLED) if found is not None and _goes_past(target) else found


@contextmanager
def in_words_of_client(words: Words | None) -> Iterator[None]:
    """Errors tell their place in the statement as the client wrote it."""
    try:
        yield
    except Failure as error:
        if words is None or not error.fields.get("P", "").isdecimal():
            raise
        moved = int(error.fields["P"]) - len(words.in_front_of(""))
        raise Failure({**error.fields, "P": str(moved)}, error.status, error.retry_after_s) from error


def is_tag(text: object) -> bool:
    """Whether this may be a tag."""
    return isinstance(text, str) and not set(text) & {",", " "} and cachewords.read_words(f"ttl=1 tags={text}") is not None


def pooled(target: Target) -> Target:
    """The same database by way of the pool, unless the client said itself what it wants of that."""
    return target if _says_of_pool(target) or _goes_past(target) else replace(target, options=f"{target.options} pool=auto".strip())


def has_own_words(sql: str, target: Target) -> bool:
    """Whether the client itself put words in front, which ask for a notice, and speaks to the pool."""
    found = leading_words(sql[:_HEAD].encode("utf-8", "replace")) if _says_of_pool(target) else None
    return found is not None and found.status and not _goes_past(target)


def _goes_past(target: Target) -> bool:
    """Whether the pool has nothing to do with it: sessions by token are never pooled."""
    return target.by_token or "pool=off" in target.options


def _says_of_pool(target: Target) -> bool:
    label = target.host.partition(".")[0]
    return "pool=" in target.options or target.database.endswith(("@pool", "@auto")) or label.endswith("-pooler")


class Status:
    """What the cache said of the statements of a request: of several, the worst.

    Of a statement its last notice counts: the pool's stands directly before the end of the answer, so nothing that a function of the
    tenant says can be taken for it. What goes past the pool isn't asked.
    """

    def __init__(self) -> None:
        self.verdict = ""
        self.reason = ""
        self.age_s = 0.0
        self.ttl_s = 0.0
        self._awaits = False
        self._heard: Mapping[str, str] | None = None

    def __repr__(self) -> str:
        return f"<Status {self.text or 'not asked'}>"

    def expect(self, words: Words | None = None) -> None:
        """A statement goes out: with these words, or with the client's own."""
        self.settle()
        if words is None or words.text:
            self._awaits = True
        else:
            self.refuse(words.why_not)

    def refuse(self, reason: str) -> None:
        """What was asked for isn't done."""
        self._take("bypass", reason)

    def hear(self, notice: Mapping[str, str]) -> None:
        """A notice came, by its letters: the cache's, or another that is none of ours."""
        if self._awaits and notice.get("C") == "00000" and _NOTICE.fullmatch(notice.get("M", "")):
            self._heard = notice

    def settle(self) -> None:
        """The statement is answered. Idempotent."""
        if not self._awaits:
            return
        heard, self._heard, self._awaits = self._heard or {}, None, False
        match = _NOTICE.fullmatch(heard.get("M", ""))
        if match is None:
            self._take("bypass", NO_NOTICE)
            return
        self._take(match[1], match[2] or "")
        if detail := _DETAIL.match(heard.get("D", "")):
            self.age_s, self.ttl_s = max(self.age_s, float(detail[1])), float(detail[2])

    @property
    def text(self) -> str:
        """In one line; nothing when the cache wasn't asked for."""
        return f"{self.verdict} ({self.reason})" if self.reason else self.verdict

    @property
    def is_served(self) -> bool:
        """Whether PostgreSQL had nothing to do with it."""
        return self.verdict in ("hit", "stale")

    def headers(self) -> dict[str, str]:
        """The headers of the answer: RFC 9211's, and one that a person reads."""
        if not self.verdict:
            return {}
        match self.verdict:
            case "hit":
                said = f"Torpor; hit; ttl={int(self.ttl_s - self.age_s)}"
            case "stale":
                said = f"Torpor; hit; ttl={int(self.ttl_s - self.age_s)}; detail=stale"
            case "miss":
                said = "Torpor; fwd=miss"
            case _:
                said = f'Torpor; fwd=bypass; detail="{self._safe_reason}"'
        found = {"cache-status": said, "torpor-cache": f"{self.verdict} ({self._safe_reason})" if self.reason else self.verdict}
        return found | ({"age": str(int(self.age_s))} if self.is_served else {})

    @property
    def _safe_reason(self) -> str:
        return _PLAIN.sub("?", self.reason).replace("\\", "?").replace('"', "'")[:200]

    def _take(self, verdict: str, reason: str) -> None:
        if not self.verdict or _WORST_FIRST.index(verdict) < _WORST_FIRST.index(self.verdict):
            self.verdict, self.reason = verdict, reason
