"""The little of Redis's protocol (RESP2) that a second level of the cache needs: commands out, answers in. Pure.

Answers come from a store that strangers may have taken over: what isn't as it should be, or longer than `most_bytes`, raises ValueError,
and the connection is worth nothing any more. Memory: at most one answer.
"""

from collections.abc import Iterator

_LONGEST_LINE = 4_096
_MOST_VALUES = 16

Answer = bytes | None | Exception | list["Answer"]
"""A value, nothing, what went wrong, or several."""
_NIL: "Answer" = None
"""Nothing is an answer, too."""


class Refused(Exception):
    """The store has answered with an error."""


def command(*parts: bytes) -> bytes:
    """A command and its arguments."""
    said = [b"*%d\r\n" % len(parts)]
    for part in parts:
        said += (b"$%d\r\n" % len(part), part, b"\r\n")
    return b"".join(said)


class Answers:
    """Takes bytes as they come, gives answers as they are whole."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._held = bytearray()
        self._needs = 0  # bytes before it is worth another look

    def feed(self, data: bytes) -> Iterator[Answer]:
        """Raises ValueError, for good."""
        self._held += data
        while len(self._held) >= self._needs and self._held:
            self._needs = 0
            found = self._read(0, 0)
            if found is None:
                if len(self._held) > _MOST_VALUES * self._most + _LONGEST_LINE:
                    raise ValueError("an answer that is too long")
                return
            answer, end = found
            del self._held[:end]
            yield answer

    def _read(self, at: int, depth: int) -> tuple[Answer, int] | None:
        end = self._held.find(b"\r\n", at, at + _LONGEST_LINE)
        if end < 0:
            if len(self._held) - at >= _LONGEST_LINE:
                raise ValueError("a line without an end")
            return None
        kind, line, at = bytes(self._held[at : at + 1]), bytes(self._held[at + 1 : end]), end + 2
        if kind in (b"+", b":"):
            return line, at
        if kind == b"-":
            return Refused(line.decode("utf-8", "replace")), at
        number = int(line)
        if kind == b"$":
            if number == -1:
                return _NIL, at
            if not 0 <= number <= self._most:
                raise ValueError("a value that is too long")
            if len(self._held) < at + number + 2:
                self._needs = at + number + 2
                return None
            if self._held[at + number : at + number + 2] != b"\r\n":
                raise ValueError("a value without an end")
            return bytes(self._held[at : at + number]), at + number + 2
        if kind != b"*" or depth or not 0 <= number <= _MOST_VALUES:
            raise ValueError("not the protocol")
        values: list[Answer] = []
        for _ in range(number):
            found = self._read(at, 1)
            if found is None:
                return None
            values.append(found[0])
            at = found[1]
        return values, at
