"""Mutated handshakes: made from the corpus by a seeded chance, and put through everything that decides at the door before a socket is
handed over, without sockets. What comes out is an answer or a refusal; anything else is a fault."""

import random
import struct
from pathlib import Path

from torpor.door.guard.proxy import MAX_V1_BYTES, SIGNATURE, V2_HEADER_BYTES, begins_proxy_header, parse_v1, parse_v2, v2_rest_bytes
from torpor.door.negotiation import negotiate
from torpor.door.roles import ScramCheck, password_check
from torpor.door.routing import route
from torpor.door.text import printable
from torpor.model.access import address_key
from torpor.model.database import Role
from torpor.model.errors import TorporError
from torpor.pgwire.frames import MESSAGE_HEADER_BYTES, STARTUP_HEADER_BYTES, message_body_length, startup_body_length
from torpor.pgwire.passwords import MAX_PASSWORD_BYTES, PASSWORD_TAG, md5_fits, parse_sasl_initial
from torpor.pgwire.scram import ScramExchange, make_verifier
from torpor.pgwire.startup import CancelRequest, EncryptionRequest, parse_first_packet, recognise_stranger

_CORPUS = Path(__file__).parents[1] / "corpus"
_ROLES = (None, Role("app", make_verifier("correct", b"0123456789abcdef"), True), Role("app", "md5" + "0" * 32, True))
_LENGTHS = (0, 1, 3, 4, 7, 8, 9, 255, 256, 10_003, 10_004, 10_005, 65_535, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_MAX_BYTES = 12_000
_ENCRYPTION_REQUESTS = 2


def corpus() -> dict[str, bytes]:
    """Every packet by its name."""
    return {path.stem: path.read_bytes() for path in sorted(_CORPUS.glob("*.bin"))}


class Mutator:
    """An endless source of handshakes; the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        packets = corpus()
        self._all = list(packets.values())
        self._requests = [data for name, data in packets.items() if name.endswith("-request")]
        self._startups = [data for name, data in packets.items() if name.endswith("-startup")]
        self._balanced = [data for name, data in packets.items() if name.startswith("proxy")]
        drivers = [name.removesuffix("-sasl-final") for name in packets if name.endswith("-sasl-final")]
        self._logins = [(packets[f"{name}-startup"], packets[f"{name}-sasl-initial"], packets[f"{name}-sasl-final"]) for name in drivers]

    def next(self) -> tuple[bytes, bool]:
        """What a client says, and whether it comes from a load balancer."""
        chance = self._chance
        kind = chance.getrandbits(3)
        if kind < 2:
            startup, initial, final = chance.choice(self._logins)
            data = (startup if kind else chance.choice(self._startups)) + initial + final
        elif kind < 4:
            data = chance.choice(self._startups)
            if kind == 3:
                data = chance.choice(self._requests) + data
        else:
            data = chance.choice(self._all)
        is_balanced = not chance.getrandbits(2)
        if is_balanced:
            data = chance.choice(self._balanced) + data
        for _ in range(chance.getrandbits(2)):
            data = self._mutate(data)
        return data[:_MAX_BYTES], is_balanced

    def _mutate(self, data: bytes) -> bytes:
        chance = self._chance
        place = int(chance.random() * len(data)) if data else 0
        match chance.getrandbits(3):
            case 0:
                return data[:place]
            case 1:
                return data[:place] + chance.randbytes(1 + chance.getrandbits(3)) + data[place:]
            case 2:
                return data[:place] + data[place + 1 + chance.getrandbits(3) :]
            case 3:
                return data[:place] + struct.pack("!I", chance.choice(_LENGTHS)) + data[place + 4 :]
            case 4:
                other = chance.choice(self._all)
                return data[:place] + other[int(chance.random() * len(other)) :]
            case 5:
                return data[:place] + data[place : place + 32] * (1 + chance.getrandbits(4)) + data[place:]
            case 6:
                return struct.pack("!I", (len(data) + chance.getrandbits(2)) & 0xFFFFFFFF) + data[4:]
            case _:
                return data[:place] + bytes([data[place] ^ 1 << chance.getrandbits(3)]) + data[place + 1 :] if data else b"\0"


class _End(Exception):
    """The client said no more."""


class _Said:
    """What a client said, read exactly as far as asked."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.place = 0

    def take(self, length: int) -> bytes:
        begin, self.place = self.place, self.place + length
        if self.place > len(self._data):
            raise _End
        return self._data[begin : self.place]

    def line(self, limit: int, head: bytes) -> bytes:
        line = head
        while not line.endswith(b"\n") and len(line) < limit:
            line += self.take(1)
        return line


def conduct(data: bytes, is_balanced: bool, number: int = 0) -> str:
    """One handshake, in the order of `torpor.door.login`; its outcome in a word. Raises whatever the door would fall over."""
    said = _Said(data)
    try:
        if is_balanced:
            _take_proxy_header(said)
        return _converse(said, number)
    except _End:
        return "vanished"
    except TorporError as error:
        assert len(error.sqlstate) == 5
        assert error.message.isprintable() and len(error.message) < 500, error.message
        return error.kind


def _take_proxy_header(said: _Said) -> None:
    head = said.take(STARTUP_HEADER_BYTES)
    if not begins_proxy_header(head):
        raise TorporError("no PROXY header")
    if SIGNATURE.startswith(head):
        header = head + said.take(V2_HEADER_BYTES - len(head))
        client = parse_v2(header, said.take(v2_rest_bytes(header)))
    else:
        client = parse_v1(said.line(MAX_V1_BYTES, head))
    if client is not None:
        assert address_key(client[0]).isprintable()
        assert 0 <= client[1] <= 65_535


def _converse(said: _Said, number: int) -> str:
    for _ in range(2 * _ENCRYPTION_REQUESTS):
        header = said.take(STARTUP_HEADER_BYTES)
        if begins_proxy_header(header) or recognise_stranger(header) is not None:
            return "stranger"
        packet = parse_first_packet(said.take(startup_body_length(header)))
        if not isinstance(packet, EncryptionRequest):
            break
    else:
        return "encryption"
    if isinstance(packet, CancelRequest):
        assert parse_first_packet(packet.encode()[4:]) == packet
        return "cancel"
    if isinstance(packet, EncryptionRequest):
        return "encryption"
    way = route(packet)
    agreed, _ = negotiate(way.startup, 18 if number & 1 else 16)
    if not number & 7:
        assert parse_first_packet(agreed.encode()[4:]) == agreed
    assert printable(way.user).isprintable()
    check = password_check(_ROLES[number % len(_ROLES)], way.user, 0.0, b"mock")
    if not isinstance(check, ScramCheck):
        return "in" if md5_fits(check.verifier, b"salt", _password(said)) else "wrong"
    exchange = ScramExchange(check.salt, check.iterations, check.candidates, b"abcdefgh")
    _, first = parse_sasl_initial(_password(said))
    exchange.first(_password(said) if first is None else first)
    return "in" if exchange.final(_password(said)) else "wrong"


def _password(said: _Said) -> bytes:
    tag, length = message_body_length(said.take(MESSAGE_HEADER_BYTES), MAX_PASSWORD_BYTES)
    body = said.take(length)
    if tag != PASSWORD_TAG:
        raise TorporError("expected password response")
    return body
