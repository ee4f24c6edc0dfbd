"""Bytes that a database exchanged with its clients. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes seen from the server: `received` went from client to server, `sent` from server to client."""

    received: int = 0
    sent: int = 0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.received + other.received, self.sent + other.sent)

    def __sub__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.received - other.received, self.sent - other.sent)

    def __bool__(self) -> bool:
        """Whether there is anything to count."""
        return self.received != 0 or self.sent != 0
