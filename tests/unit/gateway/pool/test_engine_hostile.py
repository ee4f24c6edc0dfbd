"""Whatever a client says, well-formed or not, in whatever pieces, and whatever PostgreSQL answers: the engine neither falls over nor
lets another client notice."""

import contextlib
import gc
import random
import struct

import pytest

from tests.support.pooling import H, House, S, Talker, X, b, brief, c, d, e, p, q
from torpor.gateway.pool.backend import Backend
from torpor.gateway.pool.extended import command_complete, ready_for_query
from torpor.gateway.pool.values import Limits
from torpor.model.errors import ProtocolViolation
from torpor.pgwire.frames import frame
from torpor.pgwire.replies import error_response

_TEXTS = (
    "select 1", "begin", "commit", "rollback", "fail", "bad", "set", "temp", "listen", "lock", "next", "load", "state", "",
    "SET timezone = 'UTC'", "DISCARD ALL", "DEALLOCATE a",
)  # fmt: skip
_NAMES = ("", "a", "b", "torpor_1", "x" * 70)
_LENGTHS = (0, 1, 3, 4, 5, 7, 8, 9, 255, 256, 2052, 2053, 65535, (4 << 20) + 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def test_a_client_that_is_refused_amid_a_message_leaves_no_half_of_it() -> None:
    """What was sent of a message that has no end would swallow the beginning of what the next client says."""
    house = House(Limits(size=1))
    one, two = house.join(), house.join()
    house.settle()
    one.say(q("select 1") + frame(b"d", bytes(24))[:20])
    house.settle()
    one.say(bytes(9) + b"\1\2\3\4\5")
    house.settle()
    assert one.client.is_gone
    two.heard()
    assert two.run("select 2") == "T D(select 2) C(SELECT 1) ZI"


@pytest.mark.parametrize("tag", [b"P", b"E", b"B", b"D", b"C", b"Q"])
def test_messages_without_a_body(tag: bytes) -> None:
    house = House()
    talker = house.join()
    house.settle()
    talker.ask(p("a", "SET timezone = 'UTC'"), b("a"), S)
    talker.client.tracked = True
    talker.say(frame(tag))
    assert brief(talker.heard()).startswith("E(08P01)") or not talker.client.is_gone


@pytest.mark.parametrize("seed", range(4))
def test_nobody_notices_what_one_says(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(250):
        house = House(Limits(size=chance.randint(1, 3), queue=5), signs=chance.random() < 0.9)
        hostile = [house.join(auto=chance.random() < 0.5) for _ in range(chance.randint(1, 2))]
        neighbour = house.join()
        _settle(house, hostile)
        for _ in range(chance.randint(1, 7)):
            data = b"".join(_message(chance) for _ in range(chance.randint(1, 6)))
            for _ in range(chance.randint(0, 2)):
                data = _mutated(chance, data)
            _say(chance, house, hostile, chance.choice(hostile), data)
            _answer_oddly(chance, house, hostile)
        for talker in hostile:
            talker.client.left()
        _settle(house, hostile)
        assert not neighbour.client.is_gone
        neighbour.heard()
        assert neighbour.run("select 1") == "T D(select 1) C(SELECT 1) ZI"
        assert "D()" in neighbour.run("state"), "nothing is left"


def _say(chance: random.Random, house: House, hostile: list[Talker], talker: Talker, data: bytes) -> None:
    while data and not talker.client.is_gone and talker.link.listens:
        piece = chance.choice((1, 2, 5, 9, 17, len(data)))
        talker.say(data[:piece])
        data = data[piece:]
        if chance.random() < 0.3:
            _settle(house, hostile)
    _settle(house, hostile)


def _settle(house: House, hostile: list[Talker]) -> None:
    """A worker ends what says things that can't be, and PostgreSQL a session of which it can't read the messages."""
    while True:
        try:
            house.settle()
            return
        except (ProtocolViolation, IndexError, ValueError) as error:
            at = error.__traceback__
            while at is not None and at.tb_frame.f_code.co_name != "hear":  # the twin's
                at = at.tb_next
            if at is None and not isinstance(error, ProtocolViolation):
                raise
            for backend in _theirs(house, hostile):
                house.kill(backend)


def _theirs(house: House, hostile: list[Talker]) -> list[Backend]:
    clients = {talker.client for talker in hostile}
    return [backend for backend in house.twins if backend.client in clients]


def _answer_oddly(chance: random.Random, house: House, hostile: list[Talker]) -> None:
    """A hostile tenant has PostgreSQL say what it never would, as long as its own clients have the backend."""
    if chance.random() < 0.7:
        return
    for backend in _theirs(house, hostile):
        length = chance.choice((4, 5, 6, 8, 9, 3, 0, 40, 1 << 23))
        said = bytes([chance.choice(b"SECT12ntDGKRsIWHcdNA")]) + struct.pack("!I", length) + chance.randbytes(chance.randrange(30))
        with contextlib.suppress(ProtocolViolation):  # the worker ends it then
            backend.received(said)
        house.kill(backend)


def _message(chance: random.Random) -> bytes:
    name, text = chance.choice(_NAMES), chance.choice(_TEXTS)
    kinds = (
        q(text), p(name, text), b(name), d(name), d(name, "P"), e(), c(name), c(name, "P"), S, H, p(name, text) + b(name) + e() + S,
        frame(b"d", chance.randbytes(chance.randrange(40))), frame(b"c"), frame(b"f", b"no\0"), X if chance.random() < 0.1 else S,
    )  # fmt: skip
    return chance.choice(kinds)


def _mutated(chance: random.Random, data: bytes) -> bytes:
    place = chance.randrange(len(data)) if data else 0
    match chance.randrange(7):
        case 0:
            return data[:place]
        case 1:
            return data[:place] + chance.randbytes(1 + chance.randrange(8)) + data[place:]
        case 2:
            return data[:place] + data[place + 1 + chance.randrange(8) :]
        case 3:
            return data[:place] + struct.pack("!I", chance.choice(_LENGTHS)) + data[place + 4 :]
        case 4:
            return data[:place] + data[max(0, place - 20) : place] * 3 + data[place:]
        case 5:
            return chance.randbytes(chance.randrange(30))
        case _:
            return data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :] if data else b"\0"


def test_statements_of_one_database_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole or not, named or not; and whoever leaves makes room."""
    monkeypatch.setattr("torpor.gateway.pool.values.MOST_HELD_BYTES", 1_000_000)
    house = House(Limits(size=2))
    talkers = [house.join() for _ in range(8)]
    house.settle()
    text = "select " + "x" * 300_000
    talkers[0].ask(p("a", text), S)
    talkers[1].ask(p("b", text), S)
    assert house.pool.room.taken < 310_000, "they share one"
    talkers[2].ask(p("", text), S)
    talkers[3].say(p("c", text + "y")[:-1_000])
    assert house.pool.room.taken > 900_000
    talkers[4].heard()
    talkers[4].say(p("d", text + "z")[:-1_000])
    assert brief(talkers[4].heard()) == "E(08P01)"
    talkers[5].heard()
    assert brief(talkers[5].ask(p("", text), S)) == "E(08P01)"
    talkers[3].client.left()
    assert brief(talkers[6].ask(p("", text), S)).endswith("1 ZI")
    assert talkers[7].run("select 1").endswith("C(SELECT 1) ZI")
    for talker in talkers[:-1]:
        talker.client.left()
    for backend in list(house.pool.backends):
        house.kill(backend)
    gc.collect()
    assert house.pool.room.taken == 0, "nor does one that idles keep the backend that it had"


def test_a_message_that_comes_in_drops_is_heard_once() -> None:
    house = House(Limits(size=1))
    one, two = house.join(), house.join()
    house.settle()
    message = p("a", "select " + "x" * 100_000) + b("a") + e() + S
    one.heard()
    for at in range(0, len(message), 1_000):
        assert one.client.backend is None, "what isn't whole takes nobody's place"
        one.say(message[at : at + 1_000])
    house.settle()
    assert brief(one.heard()).startswith("1 2 D(select ")
    assert two.run("select 2").endswith("ZI")
    assert house.pool.room.taken < 101_000


def test_an_error_that_quotes_a_long_value_is_passed_on() -> None:
    house = House(Limits(size=1))
    one, two = house.join(), house.join()
    house.settle()
    one.ask(p("a", "select 1"), b("a"), e(), S)
    (backend,) = house.twins
    backend.link.take()  # type: ignore[attr-defined]
    one.say(b("a"), e(), b("a"), e(), S, q("select 2"))
    error = error_response("22P02", "x" * (5 << 20), severity="ERROR")
    for at in range(0, len(error), 65_536):
        backend.received(error[at : at + 65_536])
    assert one.heard() == error
    backend.received(ready_for_query())
    assert one.client.backend is backend, "it waits for its second answer"
    backend.received(command_complete(b"SELECT 1") + ready_for_query())
    assert brief(one.heard()) == "ZI C(SELECT 1) ZI"
    backend.link.take()  # type: ignore[attr-defined]
    assert two.run("select 3").endswith("C(SELECT 1) ZI")
