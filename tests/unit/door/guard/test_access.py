"""Access lists: what they mean, and that long ones are fast."""

import ipaddress
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.pace import in_time
from torpor.model.access import (
    GLOBAL,
    MAX_ENTRIES,
    AccessBook,
    AccessList,
    ListScope,
    NetworkSet,
    access_list,
    address_key,
    check_network,
    parse_address,
)
from torpor.model.errors import InvalidRequest

WORKSPACE = (ListScope.WORKSPACE, "w1")
DATABASE = (ListScope.DATABASE, "d1")


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("", ""),
        ("nonsense" * 20, ("nonsense" * 20)[:64]),
    ],
)
def test_what_limits_count(host: str, key: str) -> None:
    assert address_key(host) == key


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("203.0.113.7/32", "203.0.113.7"),
        (" 203.0.113.0/24 ", "203.0.113.0/24"),
        ("203.0.113.0/255.255.255.0", "203.0.113.0/24"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("2001:db8::1", "2001:db8::1"),
        ("::ffff:203.0.113.0/120", "203.0.113.0/24"),
        ("0.0.0.0/0", "0.0.0.0/0"),
    ],
)
def test_networks_are_kept_in_one_form(text: str, kept: str) -> None:
    assert check_network(text) == kept


@pytest.mark.parametrize("text", ["", "x", "203.0.113.7/24", "1.2.3", "1.2.3.4/33", "::/129", "1.2.3.4,5.6.7.8", "\x1b[31m", "1" * 1000])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is no address or network"):
        check_network(text)


def test_deny_wins_and_an_allow_list_admits_only_its_own() -> None:
    book = AccessBook().with_lists(GLOBAL, access_list(["10.0.0.0/8"], ["10.1.0.0/16"]))
    assert book.bars("10.2.3.4", "", "") is None
    assert str(book.bars("10.1.2.3", "", "")) == "10.1.0.0/16 is on the deny list of this Torpor"
    assert str(book.bars("192.0.2.1", "", "")) == "it is not on the allow list of this Torpor"
    assert str(book.bars("2001:db8::1", "", "")) == "it is not on the allow list of this Torpor"


def test_a_narrower_scope_only_narrows() -> None:
    book = (
        AccessBook()
        .with_lists(GLOBAL, access_list([], ["203.0.113.0/24"]))
        .with_lists(WORKSPACE, access_list(["203.0.0.0/16"], []))
        .with_lists(DATABASE, access_list(["203.0.113.7", "198.51.100.0/24", "203.0.5.0/24"], ["203.0.5.5"]))
    )
    assert "this Torpor" in str(book.bars("203.0.113.7", "w1", "d1"))  # allowed below, denied above
    assert "of the workspace" in str(book.bars("198.51.100.1", "w1", "d1"))
    assert "of the database" in str(book.bars("203.0.6.1", "w1", "d1"))
    assert str(book.bars("203.0.5.5", "w1", "d1")) == "203.0.5.5 is on the deny list of the database"
    assert book.bars("203.0.5.6", "w1", "d1") is None
    assert book.bars("198.51.100.1", "w2", "d2") is None
    assert book.bars("203.0.6.1", "w1", "") is None


def test_who_comes_from_nowhere_passes_no_allow_list() -> None:
    assert AccessBook().with_lists(GLOBAL, access_list(["10.0.0.0/8"], [])).bars("", "", "") is not None
    assert AccessBook().with_lists(GLOBAL, access_list([], ["10.0.0.0/8"])).bars("", "", "") is None


def test_an_empty_list_takes_its_scope_out() -> None:
    book = AccessBook().with_lists(GLOBAL, access_list(["10.0.0.0/8"], [])).with_lists(GLOBAL, AccessList())
    assert book.bars("192.0.2.1", "", "") is None
    assert repr(book) == "<AccessBook of 0 scopes>"


def test_lists_are_kept_in_order_and_without_doubles() -> None:
    made = access_list(["::1", "10.0.0.1", "10.0.0.0/8", "10.0.0.1/32"], ["9.0.0.0/8"])
    assert made == AccessList(("10.0.0.0/8", "10.0.0.1", "::1"), ("9.0.0.0/8",))


def test_a_list_has_its_limit() -> None:
    networks = [str(ipaddress.IPv4Address(number)) for number in range(MAX_ENTRIES + 1)]
    with pytest.raises(InvalidRequest, match="at most"):
        access_list(networks, [])


networks = st.one_of(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(lambda t: ipaddress.IPv4Network((t[0] >> 32 - t[1] << 32 - t[1], t[1]))),
    st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 128)).map(
        lambda t: ipaddress.IPv6Network((t[0] >> 128 - t[1] << 128 - t[1], t[1]))
    ),
)


@given(st.lists(networks, max_size=30), st.lists(st.ip_addresses(), max_size=30))
def test_it_finds_what_a_slow_search_finds(
    listed: list[ipaddress.IPv4Network | ipaddress.IPv6Network], addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address]
) -> None:
    found = NetworkSet([check_network(str(network)) for network in listed])
    edges = [edge for network in listed for edge in (network[0], network[-1])]
    for address in [*addresses, *edges]:
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        parsed = parse_address(str(address))
        assert parsed is not None
        if mapped is not None or any(network.version == 6 and network.prefixlen < 96 and mapped for network in listed):
            continue  # IPv4 addresses mapped into IPv6 are IPv4
        entry = found.find(parsed)
        holding = [network for network in listed if network.version == address.version and address in network]
        mapped_listed = [n for n in listed if isinstance(n, ipaddress.IPv6Network) and n[0].ipv4_mapped is not None and n.prefixlen >= 96]
        if mapped_listed:
            continue
        assert (entry is not None) == bool(holding)
        if entry is not None:
            assert ipaddress.ip_network(entry).prefixlen == min(network.prefixlen for network in holding)


def test_ten_thousand_networks_are_looked_up_in_microseconds() -> None:
    lists = access_list([], [f"{10 + n // 65536}.{n // 256 % 256}.{n % 256}.0/25" for n in range(10_000)])
    began = time.perf_counter()
    book = AccessBook().with_lists(GLOBAL, lists)
    compiled_s = time.perf_counter() - began
    hosts = [f"10.{n % 256}.{n % 39}.{n % 256}" for n in range(1000)]
    times = []
    for host in hosts:
        began = time.perf_counter()
        book.bars(host, "w", "d")
        times.append(time.perf_counter() - began)
    times.sort()
    assert in_time(times[500], 50e-6), times[500]  # some 5 µs, parsing the address included
    assert in_time(compiled_s, 2)
