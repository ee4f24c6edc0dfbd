"""The pool's engine without sockets: links that remember, a port whose backends are twins of PostgreSQL, and clients that speak to them.

The twin answers the simple and the extended protocol for a tiny language: `begin`, `commit`, `rollback`, `fail`, `select X`, and statements
that leave something (`set`, `temp`), which it gives the signs of. What it is asked to watch it says the reads of (`public.…` in the text)
and what it thinks of it (`select volatile`, `insert`). It knows prepared statements and portals, and what errors do to a
pipeline. So what a client hears through the pool can be compared with what it hears alone.
"""

import struct
from collections import deque

from torpor.gateway.pool.backend import Backend
from torpor.gateway.pool.client import Client
from torpor.gateway.pool.engine import Pool
from torpor.gateway.pool.extended import backend_key_data, command_complete, parameter_status, ready_for_query
from torpor.gateway.pool.values import Key, Limits, Link
from torpor.pgwire.frames import FrameBuffer, frame
from torpor.pgwire.replies import authentication_ok, error_response

S, H, X = frame(b"S"), frame(b"H"), frame(b"X")

SIGNS = {"set": "SET", "temp": "CREATE TEMPORARY", "listen": "LISTEN", "lock": "pg_advisory_lock", "next": "", "load": "LOAD"}


class Remembered(Link):
    """A link that keeps what it was sent."""

    def __init__(self) -> None:
        self.sent = b""
        self.is_closed = False
        self.listens = True
        self.partner: Link | None = None

    def send(self, data: bytes) -> None:
        assert not self.is_closed
        self.sent += data

    def close(self) -> None:
        self.is_closed = True

    def feed(self, other: Link | None) -> None:
        self.partner = other

    def listen(self, on: bool) -> None:
        self.listens = on

    def take(self) -> bytes:
        """What was sent since the last call."""
        sent, self.sent = self.sent, b""
        return sent


class Twin:
    """One backend as PostgreSQL would be. `hear` gives the answer to what it is told."""

    def __init__(self, pid: int, signs: bool = True) -> None:
        self.pid = pid
        self.signs = signs
        self.statements: dict[bytes, bytes] = {}
        self.portals: dict[bytes, bytes] = {}
        self.status = b"I"
        self.skipping = False
        self.is_over = False
        self.state: set[str] = set()
        self.ran: list[str] = []
        self.watching = 0  # ReadyForQuery messages until it says what it has seen
        self.seen: list[bytes] = []
        self._frames = FrameBuffer()

    def greeting(self) -> bytes:
        """What it says first."""
        said = parameter_status(b"torpor.signs", b"1") if self.signs else b""
        said += authentication_ok() + parameter_status(b"server_version", b"18.0")
        said += parameter_status(b"application_name", b"") + parameter_status(b"TimeZone", b"UTC")
        return said + backend_key_data(self.pid, b"kkkk") + ready_for_query()

    def hear(self, data: bytes) -> bytes:
        said = b""
        flushes = (len(data) - len(data.lstrip(b"H\0\4"))) // 5 if data[:5] == H else 0
        if flushes and self.status == b"I":
            if flushes % 2:
                self.state.discard("next")
            self.watching = flushes // 2
            self.seen = []
        for tag, body in self._frames.feed(data):
            if tag == b"X":
                self.is_over = True
                break
            if self.skipping and tag != b"S":
                continue
            said += self._answer(tag, body)
        return said

    def _answer(self, tag: bytes, body: bytes) -> bytes:
        match tag:
            case b"Q":
                self.statements.pop(b"", None)
                said = b""
                for text in body[:-1].split(b";"):
                    answer, failed = self._run(text.strip())
                    said += answer
                    if failed:
                        break
                return said + self._ready()
            case b"S":
                self.skipping = False
                if self.status == b"I":
                    self.portals.clear()
                return self._ready()
            case b"P":
                name, _, rest = body.partition(b"\0")
                text = rest[: rest.index(b"\0")]
                if not name:
                    self.statements.pop(b"", None)
                if name and name in self.statements:
                    return self._fail("42P05")
                # In a failed transaction PostgreSQL would refuse some. The pool answers for those that it knows, and their Bind is refused.
                if _without_comment(text) == b"bad":
                    return self._fail("42601")
                self.statements[name] = text
                return frame(b"1")
            case b"B":
                portal, _, rest = body.partition(b"\0")
                name = rest[: rest.index(b"\0")]
                if name not in self.statements:
                    return self._fail("26000")
                self.portals[portal] = self.statements[name]
                return frame(b"2")
            case b"D":
                kind, name = body[:1], body[1:-1]
                known = self.statements if kind == b"S" else self.portals
                if name not in known:
                    return self._fail("26000" if kind == b"S" else "34000")
                rows = frame(b"T", b"\0\0") if _without_comment(known[name]).startswith(b"select") else frame(b"n")
                return (frame(b"t", b"\0\0") if kind == b"S" else b"") + rows
            case b"E":
                portal = body[: body.index(b"\0")]
                if portal not in self.portals:
                    return self._fail("34000")
                answer, failed = self._run(self.portals[portal])
                self.skipping = failed
                return answer.replace(frame(b"T", b"\0\0"), b"")
            case b"C":
                (self.statements if body[:1] == b"S" else self.portals).pop(body[1:-1], None)
                return frame(b"3")
            case _:
                return b""

    def _ready(self) -> bytes:
        said = b""
        if self.watching == 1 and self.signs:
            words = [word for text in self.seen for word in text.split()]
            for number, table in enumerate(sorted({word for word in words if word.startswith(b"public.")})):
                said += parameter_status(b"torpor.reads", b"%d %b" % (number + 1, table))
            verdict = b"writes" if b"insert" in words else b"volatile now" if b"volatile" in words else b"ok"
            said += parameter_status(b"torpor.watched", verdict)
        self.watching = max(0, self.watching - 1)
        self.seen = []
        return said + ready_for_query(self.status)

    def _fail(self, code: str) -> bytes:
        self.skipping = True
        if self.status == b"T":
            self.status = b"E"
        return error_response(code, "no", severity="ERROR")

    def _run(self, text: bytes) -> tuple[bytes, bool]:
        self.seen.append(text)
        text = _without_comment(text)
        words = text.decode().split(" ")
        self.ran.append(text.decode())
        verb = words[0]
        if verb in ("commit", "rollback"):
            done = b"ROLLBACK" if self.status == b"E" else verb.upper().encode()
            self.status = b"I"
            self.portals.clear()
            return command_complete(done), False
        if self.status == b"E" or verb == "fail":
            if self.status == b"T":
                self.status = b"E"
            return error_response("25P02" if self.status == b"E" and verb != "fail" else "XX000", "no", severity="ERROR"), True
        if verb == "begin":
            self.status = b"T"
            return command_complete(b"BEGIN"), False
        if text == b"DISCARD ALL":
            self.state.clear()
            self.statements.clear()
            news = parameter_status(b"TimeZone", b"UTC") + parameter_status(b"application_name", b"")
            return news + self._sign("DISCARD ALL") + command_complete(b"DISCARD ALL"), False
        if verb in SIGNS:
            self.state.add(verb)
            return self._sign(SIGNS[verb]) + command_complete(verb.upper().encode()), False
        if text.startswith(b"SELECT pg_catalog.set_config"):
            values = [part.split(b"'") for part in text.removeprefix(b"SELECT ").split(b",pg_catalog")]
            return self._sign("set_config") + b"".join(parameter_status(v[1], v[3]) for v in values) + command_complete(b"SELECT 1"), False
        if words[1:2] == ["torpor.cache"]:  # as the pool says: in its place, PostgreSQL hears it only in a transaction that has more to say
            return command_complete(b"SET"), False
        if verb == "SET" and words[1] == "timezone":
            return self._sign("SET") + parameter_status(b"TimeZone", words[3].strip("'").encode()) + command_complete(b"SET"), False
        if verb == "state":
            shown = ",".join(sorted(self.state)).encode()
            return frame(b"T", b"\0\0") + frame(b"D", shown) + command_complete(b"SELECT 1"), False
        said = frame(b"T", b"\0\0") + frame(b"D", bytes(2) + text * (10_000 if "big" in words else 1)) + command_complete(b"SELECT 1")
        return (b"N" + error_response("00000", "look", severity="INFO")[1:] if "notice" in words else b"") + said, False

    def _sign(self, what: str) -> bytes:
        return parameter_status(b"torpor.left", what.encode()) if self.signs and what else b""


def _without_comment(text: bytes) -> bytes:
    return text.partition(b"*/")[2].strip() if text.startswith(b"/*") else text


class House:
    """A pool over twins. Nothing moves by itself: `settle` lets all that was said be heard."""

    def __init__(self, limits: Limits | None = None, signs: bool = True) -> None:
        self.now = 0.0
        self.pool = Pool("shop", self, limits or Limits(), lambda: self.now)
        self.opened: deque[Backend] = deque()
        self.twins: dict[Backend, Twin] = {}
        self.canceled: list[Backend] = []
        self._signs = signs
        self._pids = 100

    def open(self, backend: Backend) -> None:
        self.opened.append(backend)

    def cancel(self, backend: Backend) -> None:
        self.canceled.append(backend)

    def connect(self) -> None:
        """Give the pool the backends that it asked for."""
        while self.opened:
            backend = self.opened.popleft()
            self._pids += 1
            twin = self.twins[backend] = Twin(self._pids, self._signs)
            self.pool.opened(backend, Remembered())
            backend.received(twin.greeting())

    def settle(self, connect: bool = True) -> None:
        """Until nobody has anything to say."""
        moved = True
        while moved:
            moved = bool(self.opened) and connect
            if connect:
                self.connect()
            for backend, twin in list(self.twins.items()):
                link = backend.link
                assert isinstance(link, Remembered)
                data = link.take()
                if data:
                    moved = True
                    answer = twin.hear(data)
                    if answer and backend in self.pool.backends:
                        backend.received(answer)
                if link.is_closed:
                    del self.twins[backend]

    def kill(self, backend: Backend) -> None:
        """PostgreSQL closes the connection without a word."""
        del self.twins[backend]
        backend.left_by_server()

    def join(self, role: str = "ann", name: str = "", auto: bool = False, **parameters: str) -> "Talker":
        """A client."""
        return Talker(self, Key(role, "shop", tuple(parameters.items())), name, auto)


class Talker:
    """A client and what it hears."""

    def __init__(self, house: House, key: Key, name: str, auto: bool) -> None:
        self.house = house
        self.link = Remembered()
        group = house.pool.group(key)
        self.client = Client(house.pool, group, self.link, pid=1 << 24, key=b"secret", application_name=name.encode(), auto=auto)
        house.pool.join(self.client)

    def heard(self) -> bytes:
        """What it was told since the last call."""
        return self.link.take()

    def say(self, *messages: bytes) -> None:
        """Send this, all at once."""
        self.client.received(b"".join(messages))

    def ask(self, *messages: bytes) -> bytes:
        """Send this, and hear everything."""
        self.heard()
        self.say(*messages)
        self.house.settle()
        return self.heard()

    def run(self, sql: str) -> str:
        """A simple query, in short: see `brief`."""
        return brief(self.ask(q(sql)))


def q(sql: str) -> bytes:
    """A simple query."""
    return frame(b"Q", sql.encode() + b"\0")


def p(name: str, sql: str) -> bytes:
    """A Parse."""
    return frame(b"P", f"{name}\0{sql}\0".encode() + b"\0\0")


def b(name: str = "", portal: str = "") -> bytes:
    """A Bind."""
    return frame(b"B", f"{portal}\0{name}\0".encode() + bytes(6))


def d(name: str, kind: str = "S") -> bytes:
    """A Describe."""
    return frame(b"D", f"{kind}{name}\0".encode())


def e(portal: str = "") -> bytes:
    """An Execute."""
    return frame(b"E", f"{portal}\0".encode() + bytes(4))


def c(name: str, kind: str = "S") -> bytes:
    """A Close."""
    return frame(b"C", f"{kind}{name}\0".encode())


def brief(data: bytes) -> str:
    """Messages in short: `1 2 D(x) C(SELECT 1) E(26000) N(01000) S(TimeZone=UTC) ZI`."""
    words = []
    for tag, body in FrameBuffer().feed(data):
        match tag:
            case b"Z":
                words.append(f"Z{body.decode()}")
            case b"D":
                words.append(f"D({body.removeprefix(bytes(2)).decode()})")
            case b"C":
                words.append(f"C({body[:-1].decode()})")
            case b"E" | b"N":
                code = next(part[1:].decode() for part in body.split(b"\0") if part[:1] == b"C")
                words.append(f"{tag.decode()}({code})")
            case b"S":
                name, value, _ = body.split(b"\0")
                words.append(f"S({name.decode()}={value.decode()})")
            case b"K":
                words.append(f"K({struct.unpack('!I', body[:4])[0] >> 24})")
            case _:
                words.append(tag.decode())
    return " ".join(words)
