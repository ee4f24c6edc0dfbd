"""Who may connect from where: addresses, networks, lists of them, and the verdict on an address. Pure.

Three scopes: global, a workspace, a database. An address must pass each of them, so a narrower scope can only narrow. In one
scope deny wins over allow, and an allow list that isn't empty admits only what is in it. Looking an address up costs one bisection per
list, however long it is.
"""

import ipaddress
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache

from torpor.model.errors import InvalidRequest

MAX_ENTRIES = 20_000
"""How many entries the lists of one scope may hold in all."""

_MAX_TEXT = 64
_V6_HALF = 64  # the bits of an IPv6 address that name a customer; the other 64 are his to choose
_MAPPED = 96  # the bits before an IPv4 address that is mapped into IPv6
_V4, _V6 = 4, 6


@dataclass(frozen=True, slots=True)
class Address:
    """An IP address as limits and lists see it. IPv4 addresses mapped into IPv6 are IPv4."""

    version: int
    number: int
    key: str
    """What limits count: the address itself for IPv4, its /64 network for IPv6, of which anybody has as many addresses as he likes."""


@lru_cache(maxsize=8192)
def parse_address(host: str) -> Address | None:
    """The address that `host` spells, with or without a zone; None for what is none."""
    try:
        parsed = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    number = int(parsed)
    if parsed.version == _V4:
        return Address(_V4, number, str(parsed))
    half = ipaddress.IPv6Address(number >> _V6_HALF << _V6_HALF)
    return Address(_V6, number, f"{half}/{_V6_HALF}")


def address_key(host: str) -> str:
    """What limits count for `host`."""
    address = parse_address(host)
    return address.key if address is not None else host[:_MAX_TEXT]


def check_network(text: str) -> str:
    """`text` in the one form in which networks are kept: `203.0.113.7`, `203.0.113.0/24`, `2001:db8::/32`. Raises InvalidRequest."""
    network = _network(text)
    single = network.prefixlen == network.max_prefixlen
    return str(network.network_address) if single else str(network)


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        network = ipaddress.ip_network(text.strip()) if len(text) <= _MAX_TEXT else None
    except ValueError:
        network = None
    if network is None:
        hint = "give an address such as 203.0.113.7, or a network such as 203.0.113.0/24 or 2001:db8::/32 whose host bits are zero"
        raise InvalidRequest(f"{text[:_MAX_TEXT]!r} is no address or network", hint)
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= _MAPPED and network.network_address.ipv4_mapped is not None:
        return ipaddress.IPv4Network((network.network_address.ipv4_mapped, network.prefixlen - _MAPPED))
    return network


class NetworkSet:
    """Networks, made for asking quickly which of them an address is in. Immutable."""

    __slots__ = ("_texts", "_v4", "_v6")

    def __init__(self, networks: Iterable[str]) -> None:
        """Raises InvalidRequest."""
        spans: dict[int, list[tuple[int, int, str]]] = {_V4: [], _V6: []}
        for text in networks:
            network = _network(text)
            spans[network.version].append((int(network.network_address), -int(network.broadcast_address), text))
        # Networks are disjoint or one holds the other: of nested ones the widest is enough.
        self._v4, v4_texts = _widest(spans[_V4])
        self._v6, v6_texts = _widest(spans[_V6])
        self._texts = (v4_texts, v6_texts)

    def __repr__(self) -> str:
        return f"<NetworkSet of {len(self._texts[0]) + len(self._texts[1])} networks>"

    def __bool__(self) -> bool:
        return bool(self._texts[0] or self._texts[1])

    def find(self, address: Address) -> str | None:
        """The widest network that holds the address, as it was written."""
        if address.version == _V4:
            (firsts, lasts), texts = self._v4, self._texts[0]
        else:
            (firsts, lasts), texts = self._v6, self._texts[1]
        place = bisect_right(firsts, address.number) - 1
        return texts[place] if place >= 0 and address.number <= lasts[place] else None


_Spans = tuple["array[int] | list[int]", "array[int] | list[int]"]


def _widest(spans: list[tuple[int, int, str]]) -> tuple[_Spans, list[str]]:
    firsts: list[int] = []
    lasts: list[int] = []
    texts: list[str] = []
    for first, negative_last, text in sorted(spans):
        if not lasts or first > lasts[-1]:
            firsts.append(first)
            lasts.append(-negative_last)
            texts.append(text)
    if lasts and lasts[-1] <= 0xFFFFFFFF:
        return (array("L", firsts), array("L", lasts)), texts
    return (firsts, lasts), texts


class ListScope(StrEnum):
    """To whom a list applies."""

    GLOBAL = "global"  # all databases
    WORKSPACE = "workspace"  # the databases of one workspace
    DATABASE = "database"  # one database


@dataclass(frozen=True, slots=True)
class AccessList:
    """The lists of one scope: networks as `check_network` writes them, in the order of their addresses."""

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.allow or self.deny)


def access_list(allow: Iterable[str], deny: Iterable[str]) -> AccessList:
    """Lists as they are kept: checked, without doubles, in order. Raises InvalidRequest."""

    def kept(texts: Iterable[str]) -> tuple[str, ...]:
        unique = {check_network(text) for text in texts}
        return tuple(sorted(unique, key=lambda text: ((network := ipaddress.ip_network(text)).version, int(network[0]), network.prefixlen)))

    made = AccessList(kept(allow), kept(deny))
    if len(made.allow) + len(made.deny) > MAX_ENTRIES:
        raise InvalidRequest(f"an access list holds at most {MAX_ENTRIES} entries", "name networks instead of addresses")
    return made


@dataclass(frozen=True, slots=True)
class Barred:
    """Why an address may not connect: the scope whose list says so, and the entry that denies it ("" when no entry allows it)."""

    scope: ListScope
    entry: str

    def __str__(self) -> str:
        where = {ListScope.GLOBAL: "of this Torpor", ListScope.WORKSPACE: "of the workspace", ListScope.DATABASE: "of the database"}
        cause = f"{self.entry} is on the deny list" if self.entry else "it is not on the allow list"
        return f"{cause} {where[self.scope]}"


class _Compiled:
    __slots__ = ("allow", "deny")

    def __init__(self, lists: AccessList) -> None:
        self.allow = NetworkSet(lists.allow)
        self.deny = NetworkSet(lists.deny)

    def bars(self, scope: ListScope, address: Address | None) -> Barred | None:
        if address is None:  # nobody knows where it comes from: it is in no list
            return Barred(scope, "") if self.allow else None
        if (entry := self.deny.find(address)) is not None:
            return Barred(scope, entry)
        if self.allow and self.allow.find(address) is None:
            return Barred(scope, "")
        return None


ScopeKey = tuple[ListScope, str]
"""A scope and the id of its workspace or database ("" for the global one)."""

GLOBAL: ScopeKey = (ListScope.GLOBAL, "")


@dataclass(frozen=True, slots=True)
class AccessBook:
    """All access lists, ready to be asked. Immutable: a change makes another book, so that whoever asks sees all of it or nothing."""

    _compiled: Mapping[ScopeKey, _Compiled] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<AccessBook of {len(self._compiled)} scopes>"

    def with_lists(self, key: ScopeKey, lists: AccessList) -> "AccessBook":
        """This book with other lists for one scope."""
        compiled = {other: kept for other, kept in self._compiled.items() if other != key}
        if lists:
            compiled[key] = _Compiled(lists)
        return replace(self, _compiled=compiled)

    def bars(self, host: str, workspace: str, database: str) -> Barred | None:
        """Why `host` may not connect to a database of a workspace; None when it may. Empty ids ask of the wider scopes only."""
        if not self._compiled:
            return None
        address = parse_address(host)
        for key in (GLOBAL, (ListScope.WORKSPACE, workspace), (ListScope.DATABASE, database)):
            compiled = self._compiled.get(key)
            if compiled is not None and (found := compiled.bars(key[0], address)) is not None:
                return found
        return None
