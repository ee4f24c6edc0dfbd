"""What the door allows at most, as values made from the settings. Pure."""

from dataclasses import dataclass

from torpor.model.errors import BadSettings

_WINDOWS_S = (1.0, 60.0, 600.0)
_MAX_RATE = 1_000_000.0


@dataclass(frozen=True, slots=True)
class Rates:
    """Highest mean rates per second, each with its window in seconds. Without windows there is no limit."""

    windows: tuple[tuple[float, float], ...] = ()


def parse_rates(name: str, text: str) -> Rates:
    """`300/200/100`: at most so many per second over 1 s, 1 min and 10 min. `never` means no limit. Raises BadSettings."""
    if text.strip().lower() in ("never", ""):
        return Rates()
    try:
        rates = [float(part) for part in text.split("/")]
    except ValueError:
        rates = []
    if len(rates) != len(_WINDOWS_S) or not all(1 / window <= rate <= _MAX_RATE for rate, window in zip(rates, _WINDOWS_S, strict=True)):
        raise BadSettings(
            f"{name} must be three rates per second (over 1 s, 1 min and 10 min) such as 300/200/100, or never",
            "each must let at least one through in its time",
        )
    return Rates(tuple(zip(rates, _WINDOWS_S, strict=True)))


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """The limits of one door."""

    connections_overall: int = 1_000_000
    connections_per_address: int = 1_000_000
    logins_per_address: int = 1_000_000
    wakes_per_database: Rates = Rates()
    wakes_overall: Rates = Rates()
    failed_login_penalty_s: float = 0.0
    """The first penalty, which doubles with each failure; 0 for none."""
    wakes_per_address: Rates = Rates()
