"""What is said to a shared store, and what is believed of what it says: the protocol, sealed values, addresses."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.gateway.cache.resp import Answer, Answers, Refused, command
from torpor.gateway.cache.sealed import Seal, Shared, parts
from torpor.model.cachestore import StoreAddress, parse_store
from torpor.model.errors import BadSettings

_NAME = b"torpor:name"


def test_commands_are_written_as_they_should_be() -> None:
    assert command(b"SET", b"a\r\n", b"") == b"*3\r\n$3\r\nSET\r\n$3\r\na\r\n\r\n$0\r\n\r\n"


@given(st.lists(st.one_of(st.none(), st.binary(max_size=100)), max_size=16), st.lists(st.integers(1, 20), min_size=1))
def test_answers_come_whole_however_they_are_cut(values: list[bytes | None], sizes: list[int]) -> None:
    said = b"*%d\r\n" % len(values) + b"".join(b"$-1\r\n" if v is None else b"$%d\r\n%b\r\n" % (len(v), v) for v in values) + b"+OK\r\n"
    heard: list[Answer] = []
    answers, at, turn = Answers(100), 0, 0
    while at < len(said):
        size = sizes[turn % len(sizes)]
        heard += answers.feed(said[at : at + size])
        at, turn = at + size, turn + 1
    assert heard == [values, b"OK"]


def test_an_error_is_an_answer() -> None:
    (answer,) = Answers(10).feed(b"-NOAUTH Authentication required.\r\n")
    assert isinstance(answer, Refused) and "NOAUTH" in str(answer)


@pytest.mark.parametrize(
    "said",
    [b"$11\r\n", b"$-2\r\n", b"$x\r\n", b"*17\r\n", b"*-1\r\n", b"*1\r\n*1\r\n", b"$1\r\nabc", b"HTTP/1.1 400\r\n", b"+" + b"x" * 5000],
)
def test_what_is_wrong_ends_it(said: bytes) -> None:
    with pytest.raises(ValueError):
        list(Answers(10).feed(said))


@given(st.binary(max_size=200))
def test_anything_at_all_is_an_answer_or_ends_it(said: bytes) -> None:
    answers = Answers(50)
    with contextlib.suppress(ValueError):
        list(answers.feed(said))


_shared = st.builds(
    Shared,
    made_ms=st.integers(0, 10_000),
    life_ms=st.integers(100_000, 1 << 50),
    cost_ms=st.floats(0, 1e8),
    data=st.binary(max_size=300),
    columns=st.none() | st.binary(max_size=50),
    parameters=st.none() | st.binary(max_size=50),
    tables=st.lists(st.text(max_size=20), max_size=5).map(tuple),
)


@given(_shared, st.binary(min_size=32, max_size=32))
def test_what_is_sealed_can_be_opened(shared: Shared, secret: bytes) -> None:
    sealed = Seal(secret).close(_NAME, shared)
    assert Seal(secret).open(_NAME, sealed, 10_000) == shared
    assert Seal(secret).open(b"torpor:another", sealed, 10_000) is None
    assert Seal(bytes(32) if any(secret) else b"x" * 32).open(_NAME, sealed, 10_000) is None
    assert Seal(secret).open(_NAME, sealed, shared.made_ms + shared.life_ms) is None  # too old
    assert shared.made_ms < 2_001 or Seal(secret).open(_NAME, sealed, shared.made_ms - 2_001) is None  # from the future


@given(_shared, st.integers(0, 10_000), st.integers(1, 255))
def test_what_was_changed_or_cut_off_is_nothing(shared: Shared, at: int, by: int) -> None:
    seal = Seal(bytes(32))
    sealed = bytearray(seal.close(_NAME, shared))
    sealed[at % len(sealed)] ^= by
    assert seal.open(_NAME, bytes(sealed), 10_000) is None
    assert seal.open(_NAME, bytes(sealed[: at % len(sealed)]), 10_000) is None


@given(st.binary(max_size=200))
def test_what_was_sealed_wrongly_is_nothing_or_an_entry(plain: bytes) -> None:
    seal = Seal(bytes(32))
    found = seal.open(_NAME, bytes(12) + seal._cipher.encrypt(bytes(12), b"\1" + plain, _NAME), 10_000)
    assert found is None or found.life_ms


def test_a_store_is_told_nothing() -> None:
    seal = Seal(b"s" * 32)
    shared = Shared(0, 1000, 0.0, b"the row", b"the column", None, ("public.users",))
    told = seal.name(parts([b"SELECT 1"])) + seal.close(_NAME, shared)
    assert not any(word in told for word in (b"SELECT", b"row", b"column", b"users"))
    assert seal.name(parts([b"ab", b"c"])) != seal.name(parts([b"a", b"bc"]))


def test_addresses() -> None:
    assert parse_store("") is None
    assert parse_store("redis://cache") == StoreAddress("cache")
    found = parse_store("redis://bob:p%40ss@[::1]:7000/3")
    assert found == StoreAddress("::1", 7000, "bob", "p@ss", 3)
    assert "p@ss" not in f"{found} {found!r}"
    for wrong in (
        "rediss://cache",
        "http://cache",
        "redis://",
        "redis://cache/x",
        "redis://cache:port",
        "redis://cache/0?a=b",
        "cache:6379",
    ):
        with pytest.raises(BadSettings):
            parse_store(wrong)
