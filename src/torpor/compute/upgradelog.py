"""Understands what the programs of a major upgrade say, line by line: how far they are, what they found, and why they gave up. Pure.

What is said comes out of a sandbox in which a tenant's code may run: it is bounded, cleaned, and believed no further than that tenant's own
database goes.
"""

import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from hashlib import blake2b

_MOST_FACTS = 20_000  # that are kept to say what differs; of more it is only known that something does
_MOST_SETTINGS = 10_000
_MOST_LINES = 20  # of each file that tells of a problem
_LONGEST = 300
_SHOWN = 5
_STEP = re.compile(r"^(\S.*?\S) {2,}(ok|fatal|failed|warning)$")
_PROBLEM = re.compile(r"\b(?:(?:ERROR|FATAL|PANIC): .*|error: .*|could not .*)")
_PLACE = re.compile(r"\S*/pg_upgrade_output\.d/\S*")
_SETTING = re.compile(r"^\s*([A-Za-z_][\w.]*)\s*=")
_NO_ROOM = "No space left on device"

_HINTS = (
    ("checking every page", "it is damaged already: REINDEX an index; bring a table back from the history (`torpor branch … --at`)"),
    ("prepared transaction", "end them: COMMIT PREPARED or ROLLBACK PREPARED; SELECT * FROM pg_prepared_xacts shows them"),
    ("reg*", "give these columns another type (text, say), or drop them"),
    ("data type", "give these columns another type (text, say), or drop them"),
    ("loadable librar", "DROP EXTENSION what isn't there for the new major, and ask again"),
    ("could not load library", "DROP EXTENSION what isn't there for the new major, and ask again"),
    ("extension", "the new major may not have it: DROP EXTENSION, or leave the database where it is"),
    ("allow connections", "ALTER DATABASE … ALLOW_CONNECTIONS true, or drop these databases"),
    ("template0", "a superuser has changed template0: make it as it was"),
    ("install user", "the role torpor must be the cluster's first superuser, as it was made"),
    ("not-null", "make the column NOT NULL where it is inherited, too"),
    ("polymorphic", "drop these functions, and make them again afterwards with anycompatible types"),
    ("postfix", "drop these operators: the new major has no postfix operators"),
    ("out of shared memory", "it has too many objects for one transaction: report this as a bug of Torpor"),
)


class _Limited(list[str]):
    """Keeps the first lines."""

    def keep(self, line: str) -> None:
        if len(self) < _MOST_LINES:
            self.append(_clean(line))


@dataclass(slots=True)
class Facts:
    """What a cluster holds: how much, a digest of all of it in whatever order, and as much as is kept of it: database, kind and name to a
    value."""

    count: int = 0
    digest: int = 0
    kept: dict[tuple[str, str, str], str] = field(default_factory=dict)

    def take(self, line: str) -> None:
        """One fact, as facts.sql says it; nonsense is left out."""
        try:
            database, kind, what, value = map(str, json.loads(line))
        except (ValueError, TypeError, RecursionError):
            return
        if (kind, what) == ("schema", "public"):
            return  # pg_upgrade makes it anew, empty, where it was dropped
        self.count += 1
        self.digest ^= int.from_bytes(
            blake2b(f"{database}\0{kind}\0{what}\0{value}".encode(errors="replace"), digest_size=16).digest(), "big"
        )
        if len(self.kept) < _MOST_FACTS:
            self.kept[database[:_LONGEST], kind[:_LONGEST], what[:_LONGEST]] = value[:_LONGEST]


@dataclass(slots=True)
class Account:
    """What was said so far."""

    stage: str = "beginning"
    steps: int = 0
    is_done: bool = False
    has_no_room: bool = False
    failed: str = ""
    facts: dict[str, Facts] = field(default_factory=dict)
    settings: set[str] = field(default_factory=set)
    troubles: list[str] = field(default_factory=list)
    """Of extensions that were not brought to their newest version."""
    _section: str = ""
    _last_step: str = ""
    _words: list[str] = field(default_factory=list)
    _files: dict[str, _Limited] = field(default_factory=lambda: defaultdict(_Limited))
    _logs: dict[str, _Limited] = field(default_factory=lambda: defaultdict(_Limited))

    def hear(self, line: str) -> None:
        """One line, without its end."""
        if _NO_ROOM in line:
            self.has_no_room = True
        if line.startswith("@"):
            self._hear_own(*line[1:].partition(" ")[::2])
            return
        kind, _, name = self._section.partition(" ")
        if kind == "facts" and line.startswith('["'):
            self.facts[name].take(line)
        elif kind == "settings":
            if len(self.settings) < _MOST_SETTINGS:
                self.settings.add(line.strip().lower())
        elif kind == "extensions":
            if "ERROR" in line and len(self.troubles) < _MOST_LINES:
                self.troubles.append(_clean(line.partition("ERROR:")[2].strip() or line))
        elif kind == "file":
            self._files[name].keep(line)
        elif kind == "log":
            if (found := _PROBLEM.search(line)) is not None:
                self._logs[name].keep(found[0])
        elif (step := _STEP.match(line)) is not None:
            self.steps += 1
            self.stage = self._last_step = _clean(step[1])
            self._words.clear()
        elif len(self._words) < _MOST_LINES and line.strip() and not line.startswith("Failure, exiting"):
            self._words.append(_clean(line))

    def hear_beginning(self, line: str) -> None:
        """A line that isn't whole yet: what goes on now."""
        if not self._section and line.endswith("  ") and not line.startswith("@"):
            self.stage = _clean(line)

    def _hear_own(self, word: str, rest: str) -> None:
        self._section = ""
        match word:
            case "stage":
                self.steps += 1
                self.stage = self._last_step = _clean(rest)
                self._words.clear()
            case "failed":
                self.failed = self.failed or _clean(rest)
            case "done":
                self.is_done = True
            case "end":
                pass
            case _:
                self._section = f"{word} {rest}"
                if word == "facts":
                    self.facts.setdefault(rest, Facts())

    def differences(self) -> list[str]:
        """What isn't in the new cluster as it is in the old one."""
        old, new = self.facts.get("old", Facts()), self.facts.get("new", Facts())
        if (old.count, old.digest) == (new.count, new.digest):
            return []
        shown = []
        for key in sorted(old.kept.keys() | new.kept.keys()) if max(old.count, new.count) <= _MOST_FACTS else ():
            if (before := old.kept.get(key)) != (after := new.kept.get(key)):
                database, kind, what = key
                shown.append(_clean(f"{kind} {what} in {database}: {before or 'missing'} before, {after or 'missing'} after"))
        return shown or [f"of its {old.count} objects there are {new.count} after, or not all are the same"]

    def cause(self) -> tuple[str, str]:
        """Why it gave up, in words for people, and what to do. Of an end without a word, too."""
        objects = [line for lines in self._files.values() for line in lines if line.strip()]
        said = [_PLACE.sub("", line).strip() for line in self._words if "A list of" not in line and not line.startswith("Consult the last")]
        said = [line for line in said if line and not set(line) <= set("-*")]
        logged = [line for lines in self._logs.values() for line in lines]
        text = " ".join(said) or " ".join(logged[:_SHOWN]) or f"{self.failed or 'it'} ended without a word"
        if logged and not objects and self.failed == "pg_upgrade":  # which says no more than where to look
            text = " ".join(logged[:_SHOWN])
        whole = f"{self._last_step}: {text}" if self._last_step else text
        if objects:
            more = f" and {len(objects) - _SHOWN} more" if len(objects) > _SHOWN else ""
            whole += f": {', '.join(line.strip() for line in objects[:_SHOWN])}{more}"
        searched = f"{whole} {' '.join(said)}".lower()
        return _clean(whole, 3 * _LONGEST), next((hint for word, hint in _HINTS if word in searched), "")


def carried(text: str, known: set[str]) -> tuple[str, list[str]]:
    """What of postgresql.auto.conf the new major has a setting for, and the names of what it hasn't."""
    kept, left_out = [], []
    for line in text.splitlines():
        if (found := _SETTING.match(line)) is None:
            continue
        name = found[1].lower()
        if "." in name or name in known:
            kept.append(line)
        else:
            left_out.append(name)
    return "".join(f"{line}\n" for line in kept), left_out


def _clean(line: str, longest: int = _LONGEST) -> str:
    return "".join(char if char.isprintable() else " " for char in line[:longest]).strip()
